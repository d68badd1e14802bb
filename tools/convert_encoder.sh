#!/usr/bin/env bash
# Convert fairseq's HuBERT or OpenAI's CLIP from the original file: tools/convert_encoder.sh --help
set -euo pipefail
# shellcheck source=utils/path.sh
. "$(dirname "${BASH_SOURCE[0]}")/../utils/path.sh"
exec "$SPEECHCLIP_PYTHON" -m speechclip.bin.convert_encoder "$@"
