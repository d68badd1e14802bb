#!/usr/bin/env bash
# Run all linters: ruff, mypy, shellcheck and the language rules. Print the result of each one.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
# shellcheck source=utils/path.sh
. utils/path.sh || exit 1

status=0
check() {
    local name=$1
    shift
    if "$@"; then
        echo "lint: $name: ok"
    else
        echo "lint: $name: FAILED"
        status=1
    fi
}

shell_files() {
    git ls-files -co --exclude-standard '*.sh' tools/doctor .ci/run | sort -u | while IFS= read -r file; do
        [[ ! -f $file ]] || echo "$file"
    done
}

mapfile -t files < <(shell_files)
check "ruff check" "$SPEECHCLIP_PYTHON" -m ruff check .
check "ruff format" "$SPEECHCLIP_PYTHON" -m ruff format --check -q .
check "mypy" "$SPEECHCLIP_PYTHON" -m mypy speechclip
check "shellcheck (${#files[@]} files)" shellcheck -x "${files[@]}"
check "language rules" "$SPEECHCLIP_PYTHON" tools/check_language.py
exit "$status"
