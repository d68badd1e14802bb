#!/usr/bin/env bash
# Measures this collection against plain baselines: tools/bench/bench.sh --help. The environment is tools/install.sh's.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=utils/path.sh
. utils/path.sh
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
exec "$SPEECHCLIP_PYTHON" tools/bench/run.py "$@"
