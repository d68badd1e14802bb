# shellcheck shell=bash
# Reads a script's command line into its shell variables. Source it after the defaults, with the arguments:
#
#     nj=2           #: number of processes
#     force=false    #: run all stages again; a longer text
#                    #: continues in lines that start with the mark
#     . utils/parse_options.sh "$@"
#
# A line "name=default  #: help" in the script, or in the files of the array option_files, declares an option.
# --name value and --name=value are the same. Dashes and underscores are the same. If the default is true or false, the value
# must be a boolean; if it is a whole number, the value must be one. Words after a lone -- are stored in the array
# `overrides`. --help prints usage_text, if it is set, and all options.

parse_options() {
    local -a known=() texts=() files=("${option_files[@]}")
    local -A seen=()
    local line word name value at=-1
    local declares='^[[:space:]]*([a-z][a-z0-9_]*)=.*[[:space:]]#:[[:space:]]?(.*)$'
    local continues='^[[:space:]]*#:[[:space:]]?(.*)$'
    for word in "${files[@]}"; do
        [[ -f $word ]] || word=$OLDPWD/$word  # relative to the folder that the script was called in
        while IFS= read -r line; do
            if [[ $line =~ $continues ]] && ((at >= 0)); then
                texts[at]+=" ${BASH_REMATCH[1]}"
            elif [[ $line =~ $declares ]]; then
                name=${BASH_REMATCH[1]}
                [[ -n ${seen[$name]:-} ]] && continue
                seen[$name]=1
                known+=("$name")
                texts+=("${BASH_REMATCH[2]}")
                at=$((${#known[@]} - 1))
            fi
        done <"$word"
    done

    # shellcheck disable=SC2034 # for the script that sources this
    overrides=()
    while (($#)); do
        word=$1
        shift
        case $word in
            --help | -h)
                _print_options
                exit 0
                ;;
            --)
                # shellcheck disable=SC2034
                overrides=("$@")
                return 0
                ;;
            --?*) ;;
            *) _option_error "'$word' is not an option. Options start with --; overrides of the configuration follow a lone --" ;;
        esac
        name=${word#--}
        value=
        [[ $name == *=* ]] && value=${name#*=} && name=${name%%=*}
        name=${name//-/_}
        [[ -n ${seen[$name]:-} ]] || _option_error "unknown option --$name$(_nearest_option "$name") (known: $(printf -- '--%s ' "${known[@]}")--help)"
        if [[ $word != *=* ]]; then
            (($#)) || _option_error "--$name: a value is missing"
            [[ $1 == --* && $1 != *' '* ]] && _option_error "--$name: a value is missing before '$1'. Write --$name=VALUE for a value that starts with --"
            value=$1
            shift
        fi
        _set_option "$name" "$value"
    done
}

# _set_option NAME VALUE: checks the value against the type of the default and assigns it.
_set_option() {
    local type
    case ${!1-} in
        true | false) type=boolean ;;
        '' | *[!0-9]*) type=text ;;
        *) type=integer ;;
    esac
    if [[ $type == boolean && $2 != true && $2 != false ]]; then
        _option_error "--$1: '$2' is not true or false"
    elif [[ $type == integer && ! $2 =~ ^[0-9]{1,9}$ && " ${list_options:-} " != *" $1 "* ]]; then
        _option_error "--$1: '$2' is not a whole number"
    fi
    printf -v "$1" '%s' "$2"
}

_option_error() {
    echo "error: ${0##*/}: $1" >&2
    exit 2
}

# Prints the known option that is a prefix of the given one, or the reverse, or that differs in one letter.
_nearest_option() {
    local option i
    for option in "${known[@]}"; do
        if [[ $option == "$1"* || $1 == "$option"* ]]; then
            echo ", did you mean --$option?"
            return
        fi
    done
    for option in "${known[@]}"; do
        for ((i = 0; i <= ${#1}; i++)); do
            # the option has one letter more, less or different
            if [[ $option == "${1:0:i}"?"${1:i}" || $option == "${1:0:i}${1:i+1}" || $option == "${1:0:i}"?"${1:i+1}" ]]; then
                echo ", did you mean --$option?"
                return
            fi
        done
    done
}

_print_options() {
    local i text
    [[ -n ${usage_text:-} ]] && printf '%s\n' "$usage_text" | fold -s -w 78
    printf '\nOptions, with their defaults:\n'
    for i in "${!known[@]}"; do
        text=${!known[i]-}
        printf '  --%s %s\n' "${known[i]}" "${text:-\"\"}"
        printf '%s\n' "${texts[i]}" | fold -s -w 70 | sed 's/^/        /; s/[[:space:]]*$//'
    done
    [[ -n ${overrides_text:-} ]] && printf '\n%s\n' "$overrides_text" | fold -s -w 78
    return 0
}

[[ -n ${option_files+set} ]] || option_files=("${BASH_SOURCE[1]}")
parse_options "$@"
unset option_files
