# shellcheck shell=bash disable=SC2154 # the options come from utils/options.sh
# Drives the stages of a recipe. Its run.sh sources this last, with the arguments, from the recipe's folder.
#
# Each stage leaves a stamp of what it depended on (utils/stamp.py) and is skipped while that holds and its outputs exist.

utils=$SPEECHCLIP_ROOT/utils
recipe_models=$models  # the names that the recipe has; --models is a folder
models=
usage_text="Usage: ./run.sh [options] [-- configuration overrides]

${title}

Stages: 0 download the corpus and models; 1 prepare data/; 2 CLIP embeddings and speech features, into dump/; 3 train, into exp/; \
4 score retrieval; 5 score keywords; 6 report, into RESULTS.md; 7 pack, on request. --stage N runs from N to the end, \
--stop_stage M ends with M. \
Stages that are up to date are skipped. Models: ${recipe_models}. Heads: ${heads}."
overrides_text="What follows a lone -- changes the configuration: ./run.sh --stage 3 -- --optim.lr 1e-4. eval.* is of \
stages 4 and 5 and trains nothing anew: ./run.sh --stage 5 -- --eval.sweep '[1,2,7]'"
# shellcheck source=utils/recipe_command.sh
. "$utils/recipe_command.sh" "$@"
option_files=("${BASH_SOURCE[1]}" "$utils/options.sh")
download_options=("${download_options[@]}")
prepare_options=("${prepare_options[@]}")
# shellcheck source=utils/parse_options.sh
. "$utils/parse_options.sh" "$@"
# shellcheck source=utils/stages.sh
. "$utils/stages.sh"

fail() {
    echo "error: ${0##*/}: $1" >&2
    exit "${2:-1}"
}

# one_of OPTION VALUE KNOWN...
one_of() {
    local option=$1 value=$2
    shift 2
    [[ " $* " == *" $value "* && -n $value ]] || fail "--$option: this recipe has no '$value' (it has: $*)" 2
}

check_options() {
    local word
    # shellcheck disable=SC2086 # lists of words
    {
        one_of model "$model" $recipe_models
        one_of feats "$feats" dump online
        one_of vocabulary "$vocabulary" all train
        one_of supervision "$supervision" image text
        [[ -n ${head// /} ]] || fail "--head: at least one is needed (this recipe has: $heads)" 2
        for word in $head; do one_of head "$word" $heads; done
        [[ -n ${seed// /} ]] || fail "--seed: at least one is needed" 2
        for word in $seed; do
            [[ $word =~ ^[0-9]{1,9}$ ]] || fail "--seed: '$word' is not a whole number" 2
        done
        # shellcheck disable=SC2206
        local -a several=($head $seed)
        [[ -z $push || -n $checkpoint || ${#several[@]} -eq 2 ]] ||
            fail "--push: a repository holds the pack of one run: give one --head and one --seed" 2
    }
    ((stop_stage <= 7)) || fail "--stop_stage: there are stages 0 to 7, not $stop_stage" 2
    ((stage <= 6 || stop_stage == 7)) || stop_stage=7
    ((stage <= stop_stage)) || fail "--stage: there is nothing to do from stage $stage to stage $stop_stage" 2
    [[ ! $tag =~ ^plus(_|$) ]] || fail "--tag: 'plus' belongs to the names of heads" 2
    [[ $tag =~ ^[A-Za-z0-9._-]*$ ]] || fail "--tag: '$tag' does not fit into a folder's name" 2
    [[ -z $corpus || -d $corpus ]] || fail "--corpus: $corpus: no such folder"
    [[ -z $models || -d $models || $stage == 0 ]] || fail "--models: $models: no such folder (stage 0 makes it)"
    for word in clip_embeddings text_embeddings config; do
        [[ -z ${!word} || -f ${!word} ]] || fail "--$word: ${!word}: no such file"
    done
    [[ -z $checkpoint || -e $checkpoint ]] || fail "--checkpoint: $checkpoint: no such checkpoint"
    ((nj >= 1)) || fail "--nj: at least one process is needed" 2
    ((num_nodes >= 1)) || fail "--num_nodes: at least one machine is needed" 2
    ((num_nodes == 1)) || [[ -n ${train_cmd-} ]] ||
        fail "--num_nodes: train_cmd of cmd.sh has to start its arguments on each of $num_nodes machines (with Slurm: srun --nodes=$num_nodes --ntasks-per-node=1)" 2
    [[ ${jobs_launcher-local} =~ ^(local|slurm)$ ]] ||
        fail "cmd.sh: jobs_launcher: '$jobs_launcher' is neither local nor slurm" 2
    command -v "$python" >/dev/null || fail "--python: $python: no such program"
    export SPEECHCLIP_PYTHON=$python
}

# The names under which encoders are published, by model, the original file first (see speechclip/data/corpora/sources.py).
declare -A hubert_names=([base]="hubert_base_ls960.pt hubert-base-ls960" [large]="hubert_large_ll60k.pt hubert-large-ll60k")
declare -A clip_names=([base]="ViT-B-32.pt clip-vit-base-patch32 ViT-B-32" [large]="ViT-L-14.pt clip-vit-large-patch14 ViT-L-14")

# find_encoder NAMES: the first of them in --models; where there is none, the one that stage 0 downloads. Later on nothing,
# with status 1.
find_encoder() {
    local name
    for name in $1; do
        if [[ -e $models/$name ]]; then
            echo "$models/$name"
            return
        fi
    done
    ((stage == 0)) || return 1
    echo "$models/${1%% *}"
}

lacks() { fail "--models: $models has none of: $1 (stage 0 downloads it)"; }

# Whether --checkpoint is scored with its speech encoder at work: a published file, what it was converted to, a run that was
# trained so.
takes_recordings() { [[ -f $checkpoint ]] || grep -qs '^  feats: online$' "$checkpoint/config.yaml"; }

# Names that several stages share: the dump folder, the configuration layers of the encoders, the overrides they take.
name_encoders() {
    local file word
    if [[ -n $models && -n ${hubert_names[$model]-} ]]; then
        [[ -n $speech_encoder ]] || speech_encoder=$(find_encoder "${hubert_names[$model]}") ||
            [[ -f $checkpoint ]] || lacks "${hubert_names[$model]}"  # a published one has its own inside
        [[ -n $clip || -n $clip_embeddings ]] || clip=$(find_encoder "${clip_names[$model]}") || lacks "${clip_names[$model]}"
    fi
    dump=dump/$model
    [[ -z $speech_encoder ]] || dump+=_$(basename "$speech_encoder")
    features_stamp=$dump/.done/2_features
    # hundreds of gigabytes that nothing would read; the stamp of those that runs here are trained on stays as it is
    if [[ $feats == dump && -n $checkpoint ]] && takes_recordings; then
        feats=online features_stamp=$dump/.done/2_embeddings
        echo "--feats online: $checkpoint takes recordings, no hidden states are stored for it"
    fi
    vocabulary_file=data/clip_vocabulary.tsv
    [[ $vocabulary == all ]] || vocabulary_file=data/clip_vocabulary_$vocabulary.tsv
    model_layers=()
    for file in "../conf/$model.yaml" "conf/$model.yaml" "$config"; do
        [[ ! -f $file ]] || model_layers+=(--config "$file")
    done
    has_clip=true
    [[ -z $clip_embeddings || -n $clip ]] || has_clip=false
    for word in $head; do
        [[ $has_clip == true || $word == parallel ]] ||
            fail "--clip_embeddings: a $word head needs CLIP's text transformer: give --clip too, or --head parallel" 2
    done
    encoder_overrides=()
    [[ -z $speech_encoder ]] || encoder_overrides+=(--model.speech_encoder.path "$speech_encoder")
    [[ -z $clip ]] || encoder_overrides+=(--model.clip.path "$clip")
    [[ $has_clip == true ]] || encoder_overrides+=(--model.clip.path=)
    split_overrides
}

# The user's overrides by the stages that take them: those of scoring (4, 5), and those of training (3), of which
# features (2) take their part too.
split_overrides() {
    local i
    local -a words
    eval_overrides=() training_overrides=()
    for ((i = 0; i < ${#overrides[@]}; i++)); do
        words=("${overrides[i]}")
        [[ ${words[0]} == *=* || $((i + 1)) -ge ${#overrides[@]} ]] || words+=("${overrides[++i]}")
        case ${words[0]} in
            --eval | --eval[.=]*) eval_overrides+=("${words[@]}") ;;
            *) training_overrides+=("${words[@]}") ;;
        esac
        case ${words[0]} in
            --model.speech_encoder.* | --model.clip.* | --data.store_dtype*) encoder_overrides+=("${words[@]}") ;;
        esac
    done
}

# name_run HEAD SEED: the experiment folder and the configuration layers of one run.
name_run() {
    local file tag=$tag
    [[ $supervision == image ]] || tag=supervised${tag:+_$tag}
    run_head=$1 run_seed=$2 exp=exp/${model}_$1${tag:+_$tag}
    [[ $run_seed == 0 ]] || exp+=_seed$run_seed
    label="$(basename "${exp%_seed*}") seed $run_seed"
    weights=$exp/best weights_stage=3
    if [[ -n $checkpoint ]]; then
        weights=$checkpoint
        file=${checkpoint%/}
        [[ $file != */best && $file != */last ]] || file=${file%/*}
        exp=exp/$(basename "${file%.ckpt}")${tag:+_$tag}
        # scores of somebody else's weights do not replace those of a run of the same name here
        [[ ! -d $exp/best || $checkpoint -ef $exp/best ]] || exp+=_checkpoint_$(realpath "$checkpoint" | cksum | cut -d' ' -f1)
        [[ ! -f $checkpoint ]] || weights=$exp/converted weights_stage=4
        label=$(basename "$exp")
    fi
    layers=()
    for file in {../conf,conf}/{"$model","$run_head","${model}_$run_head"}.yaml "$config"; do
        [[ ! -f $file ]] || layers+=(--config "$file")
    done
}

# A mistake in the user's own configuration is told before anything is written.
check_configuration() {
    local word
    [[ -n $config || ${#overrides[@]} -gt 0 ]] || return 0
    for word in $head; do
        name_run "$word" 0
        "$python" "$utils/check_config.py" "${layers[@]}" "${encoder_overrides[@]}" "${overrides[@]}" || exit 2
    done
}

# The lock lives as long as this shell or a stage it started: the kernel drops it with the last of them. A killed run's
# stage takes a moment to end; it is waited for.
take_lock() {
    local patience=$((SECONDS + 30)) holder
    exec 9>>.run.lock
    until "$python" -SEc 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)' 2>/dev/null; do
        holder=$(<.run.lock)
        if [[ -z $holder ]] || kill -0 "$holder" 2>/dev/null || ((SECONDS > patience)); then
            fail "another run is at work in $PWD (process $holder)"
        fi
        sleep 0.2
    done
    echo $$ >.run.lock
}

child=
interrupted() {
    local status=0
    trap '' INT TERM
    if [[ -n $child ]]; then
        kill -TERM "$child" 2>/dev/null || true
        wait "$child" || status=$?
    fi
    ((status != saved)) || stopped_and_saved
    fail "stopped in stage $number ($name); the same command goes on from there" "$1"
}

saved=75  # EX_TEMPFAIL: the status of a stage that was asked to stop and has saved what it did, and then of the recipe
stopped_and_saved() {
    fail "stage $number ($name) was stopped and has saved; the same command goes on from there" "$saved"
}

log() { echo "stage $number ($name)${label:+: $label}: $1"; }

# begin STAMP LOG: starts the description of a stage.
begin() {
    stamp=$1 log=$2 inputs='' produced=''
    depends value "version=$version"
}

depends() { inputs+="$1"$'\t'"$2"$'\n'; }

makes() {
    local file
    for file; do produced+="output"$'\t'"$file"$'\n'; done
}

# shares FILE: an output that runs in another dump folder write too.
shares() { produced+="shared"$'\t'"$1"$'\n'; }

# Whether the stage can be skipped; says so, or says what it does and why.
up_to_date() {
    local reason
    if reason=$(printf '%s%s' "$inputs" "$produced" | "$python" -SE "$utils/stamp.py" check "$stamp"); then
        if [[ $force == false ]]; then
            log "up to date (--force true runs it again)"
            return 0
        fi
        reason="--force true"
    fi
    [[ -n $reason ]] || fail "$utils/stamp.py failed"
    log "$reason"
    # what a cut run leaves is not what the stamp stands for
    had_stamp=false
    [[ ! -f $stamp ]] || had_stamp=true
    [[ $dry_run == true ]] || rm -f "$stamp"
    return 1
}

# needs FILE STAGE: an input that an earlier stage makes.
needs() {
    [[ -e $1 || $dry_run == true ]] || fail "stage $number ($name): $1 is missing: stage $2 makes it (./run.sh --stage $2)"
}

# run COMMAND...: runs a command of the stage, logged; ends the recipe where it fails.
run() {
    local status=0
    if [[ $dry_run == true ]]; then
        printf '   '
        printf ' %q' "$@"
        printf '\n'
        return
    fi
    mkdir -p "$(dirname "$log")"
    printf '# %s %s\n' "$(date '+%Y-%m-%d %H:%M:%S')" "$*" >>"$log"
    "$python" -SE "$utils/run_logged.py" "$log" "$@" </dev/null &
    child=$!
    wait "$child" || status=$?
    child=
    ((status != saved)) || stopped_and_saved
    ((status == 0)) || fail "stage $number ($name) failed${label:+ for $label} (status $status); its log: $log" "$status"
}

finish() {
    [[ $dry_run == false ]] || return 0
    printf '%s%s' "$inputs" "$produced" | "$python" -SE "$utils/stamp.py" write "$stamp" ||
        fail "stage $number ($name) is not done; its log: $log"
    log "done in $((SECONDS - started)) s"
}

# step NUMBER NAME: one stage, where it is among those asked for.
step() {
    number=$1 name=$2 started=$SECONDS
    ((stage <= number && number <= stop_stage)) || return 0
    "stage_$name"
}

run_stages() {
    local run_number word
    label=
    step 0 download
    step 1 prepare
    label=$(basename "$dump")
    step 2 features
    exps=()
    for word in $head; do
        for run_number in $seed; do
            name_run "$word" "$run_number"
            [[ " ${exps[*]} " != *" $exp "* ]] || continue  # one checkpoint, whatever heads and seeds
            exps+=("$exp")
            step 3 train
            step 4 retrieval
            step 5 keywords
        done
    done
    label=
    step 6 report
    local folder
    for folder in "${exps[@]}"; do
        exp=$folder label=$(basename "$folder")
        step 7 pack
    done
}

check_options
name_encoders
check_configuration
[[ $dry_run == true ]] || take_lock
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$SPEECHCLIP_ROOT/speechclip/__init__.py")
trap 'interrupted 130' INT
trap 'interrupted 143' TERM
run_stages
