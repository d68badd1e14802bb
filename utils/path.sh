# shellcheck shell=bash
# Finds the repository and its Python. Sourced by the path.sh of each recipe, and by tools/.
#
# Sets SPEECHCLIP_ROOT and SPEECHCLIP_PYTHON, and puts that Python first on the PATH. In order of preference:
# $SPEECHCLIP_PYTHON, an active environment that has torch and transformers, tools/venv.

SPEECHCLIP_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export SPEECHCLIP_ROOT
# use the modules of this checkout, also if another one was installed
export PYTHONPATH=$SPEECHCLIP_ROOT${PYTHONPATH:+:$PYTHONPATH}

_find_python() {
    local active=${VIRTUAL_ENV:-${CONDA_PREFIX:-}}
    local has='import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, ("torch", "transformers", "open_clip"))))'
    if [[ -n ${SPEECHCLIP_PYTHON:-} ]]; then
        if ! command -v "$SPEECHCLIP_PYTHON" >/dev/null; then
            echo "error: SPEECHCLIP_PYTHON: $SPEECHCLIP_PYTHON: is not a program" >&2
            return 1
        fi
        SPEECHCLIP_PYTHON=$(command -v "$SPEECHCLIP_PYTHON")
    elif [[ -n $active && -x $active/bin/python ]] && "$active/bin/python" -c "$has" 2>/dev/null; then
        SPEECHCLIP_PYTHON=$active/bin/python
    elif [[ -f $SPEECHCLIP_ROOT/tools/venv/.speechclip ]]; then
        SPEECHCLIP_PYTHON=$SPEECHCLIP_ROOT/tools/venv/bin/python
    else
        echo "error: no Python environment found. Run $SPEECHCLIP_ROOT/tools/install.sh" >&2
        return 1
    fi
    export SPEECHCLIP_PYTHON
    export PATH=${SPEECHCLIP_PYTHON%/*}:$PATH
}

_find_python || return 1
