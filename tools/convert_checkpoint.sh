#!/usr/bin/env bash
# Convert a published SpeechCLIP checkpoint (.ckpt) to a checkpoint folder: tools/convert_checkpoint.sh --help
set -euo pipefail
# shellcheck source=utils/path.sh
. "$(dirname "${BASH_SOURCE[0]}")/../utils/path.sh"
exec "$SPEECHCLIP_PYTHON" -m speechclip.bin.convert_checkpoint "$@"
