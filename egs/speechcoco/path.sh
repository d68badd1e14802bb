# shellcheck shell=bash
# Finds the repository and its Python.
# shellcheck source=utils/path.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../utils/path.sh"
