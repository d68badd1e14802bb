#!/usr/bin/env bash
# Run the tests, one file per core: tools/test.sh [pytest arguments]. -m slow runs the slow tests; -n 0 uses one process, for
# a debugger.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=utils/path.sh
. utils/path.sh
if ! "$SPEECHCLIP_PYTHON" -c 'import pytest, hypothesis, xdist' 2>/dev/null; then
    echo 'error: pytest is not installed: tools/install.sh --extras "dev s3prl fairseq search asr"' >&2
    exit 1
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false MPLBACKEND=Agg
# in the order of test/conftest.py, and not files with many tests first
exec "$SPEECHCLIP_PYTHON" -m pytest -n auto --dist loadfile --no-loadscope-reorder "$@"
