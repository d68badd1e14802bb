# shellcheck shell=bash
# Sets SPEECHCLIP_RECIPE_COMMAND to the command line of a recipe, quoted so that it can be typed again. Every result stores
# it. Source this file with the arguments of the recipe.

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
