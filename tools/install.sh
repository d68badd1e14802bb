#!/usr/bin/env bash
# Create the Python environment of this project. It can run again at any time, also after a killed run.
set -euo pipefail
tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$tools")

extras=                   #: extras to add: s3prl fairseq search asr mteb regions dev
python=${PYTHON:-}        #: Python 3.10 to 3.12 for the environment. Default: $PYTHON, or the
                          #: first of python3.12 python3.11 python3.10 python3 that runs
venv=$tools/venv          #: folder of the environment
torch_index=              #: additional package index for torch and torchvision, for example with CPU builds
device=auto               #: build of torch: cpu, cuda, or auto (cuda if the machine has an NVIDIA GPU)
usage_text='Usage: tools/install.sh [options]

Creates a virtual environment with the requirements of speechclip, torch first.'
# shellcheck source=utils/parse_options.sh
. "$root/utils/parse_options.sh" "$@"

fail() {
    echo "error: install.sh: $1" >&2
    exit "${2:-1}"
}

# accepts PYTHON MODULE: true if it runs, has an accepted version and the module. The shim of a version manager may not run.
accepts() {
    "$1" -c "import sys, $2; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))" >/dev/null 2>&1
}

# Print the Python for the environment. One with ensurepip is preferred.
find_python() {
    local module candidate
    local -a candidates=(python3.12 python3.11 python3.10 python3)
    [[ -z $python ]] || candidates=("$python")
    for module in ensurepip pip sys; do
        for candidate in "${candidates[@]}"; do
            if accepts "$candidate" "$module"; then
                command -v "$candidate"
                return
            fi
        done
    done
    fail "no Python 3.10, 3.11 or 3.12 runs as: ${candidates[*]}. Give one with --python."
}

# Create the empty environment, also without ensurepip (Debian has it in a separate package).
make_venv() {
    local base=$1
    if accepts "$base" ensurepip; then
        "$base" -m venv "$venv" || fail "$base -m venv $venv failed"
    elif accepts "$base" pip; then
        if ! "$base" -m venv --without-pip "$venv" || ! "$base" -m pip --python "$venv/bin/python" install -q pip; then
            fail "$base: ensurepip is missing and pip cannot fill $venv. Run: apt-get install python3-venv, or give another --python."
        fi
    else
        fail "$base: venv and pip are missing. Run: apt-get install python3-venv (as root), or give another --python."
    fi
}

# Replace only an environment or an empty folder.
clear_venv() {
    if [[ -e $venv && ! -f $venv/pyvenv.cfg && -n $(ls -A "$venv" 2>/dev/null) ]]; then
        fail "$venv: not empty and not a virtual environment. Give another folder with --venv."
    fi
    rm -rf "$venv"
}

# The marker exists while pip writes. If it exists at the start, a kill left incomplete packages.
pip_install() {
    local status=0
    : >"$venv/.installing"
    "$venv/bin/python" -m pip install --disable-pip-version-check -q -c "$pins" "$@" || status=$?
    rm -f "$venv/.installing"
    return "$status"
}

install_torch() {
    local -a index=()
    [[ -z $torch_index ]] || index=(--extra-index-url "$torch_index")
    pip_install "setuptools>=77.0.3,<81" wheel || fail "setuptools did not install. Check the package index."
    if [[ $device == cpu ]]; then
        if pip_install "${index[@]}" "torch==2.13.0+cpu" 2>/dev/null; then
            echo "  CPU build"
        else
            echo "  the package indexes have no CPU build (--torch_index URL adds one): installing the default build, up to several GB"
            pip_install "${index[@]}" "torch==2.13.0" || fail "torch 2.13.0 did not install"
        fi
    else
        pip_install "${index[@]}" "torch==2.13.0" || fail "torch 2.13.0 did not install"
    fi
    # from now on no package may replace this build of torch
    "$venv/bin/python" -c 'import importlib.metadata as m; print("torch==" + m.version("torch"))' >"$venv/torch.pin"
    pins=$venv/pins.txt
    { grep -v '^torch==' "$tools/constraints.txt"; cat "$venv/torch.pin"; } >"$pins"
    pip_install "${index[@]}" "torchvision==0.28.0" || fail "torchvision 0.28.0 did not install"
}

install_project() {
    local wanted
    wanted=$(tr ' ' ',' <<<"$1")
    pip_install --no-build-isolation -e "$root${wanted:+[$wanted]}" || fail "the packages of setup.py did not install. See the messages above."
    if [[ " $1 " == *" fairseq "* ]]; then
        # READTHEDOCS skips C extensions that HuBERT does not need, so no compiler is needed
        READTHEDOCS=1 pip_install --no-deps --no-build-isolation "fairseq-fixed==0.12.3.1" || fail "fairseq-fixed did not install"
    fi
}

# Print the words of both lists, sorted and without repetition.
union() {
    tr -s ' ,' '\n' <<<"$1 $2" | sed '/^$/d' | sort -u | paste -sd' ' -
}

main() {
    local started=$SECONDS base stamp=$venv/.speechclip have='' made='' wanted word
    for word in ${extras//,/ }; do
        [[ " s3prl fairseq search asr mteb regions dev " == *" $word "* ]] || fail "--extras: unknown extra '$word' (known: s3prl fairseq search asr mteb regions dev)" 2
    done
    case $device in
        auto) device=cpu && nvidia-smi -L 2>/dev/null | grep -q '^GPU' && device=cuda ;;
        cpu | cuda) ;;
        *) fail "--device: unknown device '$device' (known: auto cpu cuda)" 2 ;;
    esac || true
    # the inputs of an environment, without its extras: it may have more extras than this call names
    made=$(cat "$root/setup.py" "$tools/constraints.txt" <(echo "$root $device $torch_index") | sha256sum | cut -d' ' -f1)
    if [[ -f $stamp ]]; then
        have=$(sed -n 's/^extras //p' "$stamp")
    fi
    wanted=$(union "$extras" "$have")
    if [[ -f $stamp && ! -f $venv/.installing && $(head -n 1 "$stamp") == "$made" && $wanted == "$have" ]] &&
        { [[ -z $python ]] || same_python; } && "$venv/bin/python" -c 'import pip' 2>/dev/null; then
        echo "$venv: up to date${have:+ (extras: $have)}"
        return
    fi

    if [[ -f $venv/.installing ]] || ! accepts "$venv/bin/python" pip || { [[ -n $python ]] && ! same_python; }; then
        base=$(find_python)
        clear_venv
        mkdir -p "$(dirname "$venv")"
        echo "creating $venv with $("$base" --version) ($base)"
        make_venv "$base"
    fi
    rm -f "$stamp"
    pins=$tools/constraints.txt
    echo "installing torch 2.13.0 ($device)"
    install_torch
    echo "installing speechclip${wanted:+ with $wanted}"
    install_project "$wanted"
    "$venv/bin/python" -m pip check >"$venv/pip_check.log" || echo "warning: pip check: $(head -n 1 "$venv/pip_check.log")"
    printf '%s\nextras %s\n' "$made" "$wanted" >"$stamp.new"
    mv "$stamp.new" "$stamp"
    echo "$venv: ready in $((SECONDS - started)) s. tools/doctor checks it."
}

# True if the environment has the version of --python.
same_python() {
    local code='import sys; print(sys.version_info[:3])'
    [[ $("$venv/bin/python" -c "$code" 2>/dev/null) == "$("$python" -c "$code" 2>/dev/null)" ]]
}

main; exit  # on one line, so that an edit of this file does not affect a running call
