# shellcheck shell=bash
# Source it with a recipe's arguments: SPEECHCLIP_RECIPE_COMMAND, which goes with every number, is then its command line
# as one types it, quoted where a shell would split or expand an argument.

recipe_command() {
    local word
    printf ./run.sh
    for word; do
        if [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then
            printf ' %s' "$word"
        else
            printf " '%s'" "${word//\'/\'\\\'\'}"
        fi
    done
}

SPEECHCLIP_RECIPE_COMMAND=$(recipe_command "$@")
export SPEECHCLIP_RECIPE_COMMAND
