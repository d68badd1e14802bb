#!/usr/bin/env bash
# Validates data directories: utils/validate_data_dir.sh [--list] DIR...
set -euo pipefail
# shellcheck source=utils/path.sh
. "$(dirname "${BASH_SOURCE[0]}")/path.sh"
exec "$SPEECHCLIP_PYTHON" -m speechclip.bin.validate_data_dir "$@"
