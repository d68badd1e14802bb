# shellcheck shell=bash disable=SC2154 # the options come from utils/options.sh
# Runs the stages of a recipe. Its run.sh sources this last, with the arguments, in the recipe's folder.
#
# Each finished stage records its inputs in a stamp (utils/stamp.py). It is skipped as long as they are the same and its
# outputs exist.

utils=$SPEECHCLIP_ROOT/utils
recipe_models=$models  # names of the recipe's models; the option --models is a folder
recipe_languages=$languages
models=
usage_text="Usage: ./run.sh [options] [-- configuration overrides]

${title}

Stages: 0 download the corpus and models; 1 prepare data/; 2 extract features into dump/; 3 train, into exp/; \
4 score retrieval; 5 score keywords; 6 report, into exp/; 7 pack, on request. --stage N runs from N to the end, \
--stop_stage M stops after M. Stages that are up to date are skipped. Models: ${recipe_models}. Heads: ${heads}.

Training resumes if it was stopped. If an option changes the weights, it starts over in the same folder: the earlier \
weights stay until the new run saves, and are then kept in exp/<run>/replaced/<number>. Only --force true deletes them. \
Give --tag NAME to train next to an earlier run."
overrides_text="Words after a lone -- override the configuration: ./run.sh --stage 3 -- --optim.lr 1e-4. Overrides of \
eval.* go to stages 4 and 5 and do not train again: ./run.sh --stage 5 -- --eval.sweep '[1,2,7]'"
# shellcheck source=utils/recipe_command.sh
. "$utils/recipe_command.sh" "$@"
option_files=("${BASH_SOURCE[1]}" "$utils/options.sh")
download_options=("${download_options[@]}")
prepare_options=("${prepare_options[@]}")
# shellcheck source=utils/parse_options.sh
. "$utils/parse_options.sh" "$@"
# shellcheck source=utils/stages.sh
. "$utils/stages.sh"
# shellcheck source=utils/asr_stages.sh
. "$utils/asr_stages.sh"

fail() {
    echo "error: ${0##*/}: $1" >&2
    exit "${2:-1}"
}

# one_of OPTION VALUE KNOWN...
one_of() {
    local option=$1 value=$2
    shift 2
    [[ " $* " == *" $value "* && -n $value ]] || fail "--$option: '$value' is not one of: $*" 2
}

check_options() {
    local word
    # shellcheck disable=SC2086 # lists of words
    {
        one_of model "$model" $recipe_models
        one_of feats "$feats" dump online
        one_of vocabulary "$vocabulary" all train
        one_of supervision "$supervision" image text
        [[ -n ${head// /} ]] || fail "--head: is empty. Give at least one of: $heads" 2
        for word in $head; do one_of head "$word" $heads; done
        for word in $languages; do
            [[ $word =~ ^[A-Za-z0-9.-]+$ ]] || fail "--languages: '$word' is not the name of a language" 2
        done
        [[ -n ${seed// /} ]] || fail "--seed: is empty. Give at least one number" 2
        for word in $seed; do
            [[ $word =~ ^[0-9]{1,9}$ ]] || fail "--seed: '$word' is not a whole number" 2
        done
        # shellcheck disable=SC2206
        local -a several=($head $seed)
        [[ -z $push || -n $checkpoint || ${#several[@]} -eq 2 ]] ||
            fail "--push: a hub repository holds one run. Give one --head and one --seed" 2
    }
    ((stop_stage <= 7)) || fail "--stop_stage: $stop_stage is not a stage. The stages are 0 to 7" 2
    ((stage <= 6 || stop_stage == 7)) || stop_stage=7
    ((stage <= stop_stage)) || fail "--stage: $stage is after --stop_stage $stop_stage" 2
    [[ ! $tag =~ ^plus(_|$) ]] || fail "--tag: 'plus' is part of the names of heads. Use another tag" 2
    [[ $tag =~ ^[A-Za-z0-9._-]*$ ]] || fail "--tag: '$tag' cannot be part of a folder's name. Use letters, digits, '.', '_' and '-'" 2
    [[ -z $corpus || -d $corpus ]] || fail "--corpus: $corpus: is not a folder"
    [[ -z $models || -d $models || $stage == 0 ]] || fail "--models: $models: is not a folder. Run stage 0"
    [[ -z $coarse || " $head " == *" reranker "* ]] || fail "--coarse: is for --head reranker" 2
    for word in coarse rerank; do
        [[ -z ${!word} || -d ${!word} ]] || fail "--$word: ${!word}: is not a folder"
    done
    [[ $augment =~ ^(0(\.[0-9]+)?|1(\.0*)?)$ ]] || fail "--augment: '$augment' is not between 0 and 1" 2
    for word in noise_dir rir_dir; do
        [[ -z ${!word} || -d ${!word} ]] || fail "--$word: ${!word}: is not a directory"
    done
    [[ -z $compare || $conditions == true ]] || fail "--compare: is for --conditions true" 2
    for word in $compare; do
        [[ -d $word/best ]] || fail "--compare: $word: has no weights in best/. Give the experiment folder of a trained head"
    done
    for word in ${region_files//,/ }; do
        [[ -f $word ]] || fail "--region_files: $word: is missing"
    done
    for word in clip_embeddings text_embeddings config detector; do
        [[ -z ${!word} || -f ${!word} ]] || fail "--$word: ${!word}: is missing"
    done
    [[ -z $checkpoint || -e $checkpoint ]] || fail "--checkpoint: $checkpoint: is missing"
    ((nj >= 1)) || fail "--nj: 0 is too small. Use at least 1" 2
    ((num_nodes >= 1)) || fail "--num_nodes: 0 is too small. Use at least 1" 2
    ((num_nodes == 1)) || [[ -n ${train_cmd-} ]] ||
        fail "--num_nodes: train_cmd in cmd.sh is empty. Set a command that starts its arguments on $num_nodes machines, with Slurm: srun --nodes=$num_nodes --ntasks-per-node=1" 2
    [[ ${jobs_launcher-local} =~ ^(local|slurm)$ ]] ||
        fail "cmd.sh: jobs_launcher: '$jobs_launcher' is not one of: local slurm" 2
    command -v "$python" >/dev/null || fail "--python: $python: is not a program"
    export SPEECHCLIP_PYTHON=$python
}

# File names of the published encoders, by model; the original file first (see speechclip/data/corpora/sources.py).
declare -A hubert_names=([base]="hubert_base_ls960.pt hubert-base-ls960" [large]="hubert_large_ll60k.pt hubert-large-ll60k")
wav2vec_names="wav2vec_small.pt wav2vec2-base"  # of the head fast_vgs, whatever the model
declare -A clip_names=([base]="ViT-B-32.pt clip-vit-base-patch32 ViT-B-32" [large]="ViT-L-14.pt clip-vit-large-patch14 ViT-L-14")

# Succeeds for a head without keywords: it needs neither a vocabulary nor CLIP's text transformer.
without_text() { [[ " parallel mean fast_vgs " == *" $1 "* ]]; }

# find_encoder NAMES: prints the path of the first one in --models. If all are missing: in stage 0 the path that will be
# downloaded, later nothing, with status 1.
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

lacks() { fail "--models: $models has none of: $1. Run stage 0"; }

# Succeeds if scoring --checkpoint runs its speech encoder: a published file, or a run that was trained with feats online.
takes_recordings() { [[ -f $checkpoint ]] || grep -qs '^  feats: online$' "$checkpoint/config.yaml"; }

# tower_setting KEY DEFAULT: prints the value of a key in the configuration layers of fast_vgs, a lower-case word.
tower_setting() {
    local word found value=$2
    for word in "${tower_layers[@]}"; do
        [[ $word != --config ]] || continue
        found=$(sed -nE "s/^ +$1: *([a-z]+).*/\1/p" "$word")
        value=${found:-$value}
    done
    echo "$value"
}

# Prints the part of the speech encoder that fast_vgs reads, as in speechclip/config.py.
tower_part() { tower_setting part all; }

# Prints the folder of the regions that fast_vgs reads, as in speechclip/data/regions.py.
region_folder() {
    local word kind
    kind=$(tower_setting regions butd)
    for word in "${tower_overrides[@]}"; do
        case ${word#*=} in
            butd | frcnn | clip) kind=${word#*=} ;;
        esac
    done
    if [[ $kind == clip ]]; then echo regions; else echo "regions_$kind"; fi
}

# Sets names that several stages share: the dump folder, the configuration layers of the encoders, and the overrides.
name_encoders() {
    local file word
    needs_towers=false
    [[ " $head " != *" fast_vgs "* ]] || needs_towers=true
    if [[ $needs_towers == true && -n $models && -z $speech_encoder && -n ${hubert_names[$model]-} ]]; then
        [[ ${head// /} == fast_vgs ]] || fail "--head: fast_vgs reads wav2vec 2.0 and other heads HuBERT. Run them one by one" 2
        speech_encoder=$(find_encoder "$wav2vec_names") || [[ -f $checkpoint ]] || lacks "$wav2vec_names"
    fi
    if [[ -n $models && -n ${hubert_names[$model]-} ]]; then
        [[ -n $speech_encoder || $needs_towers == true ]] || speech_encoder=$(find_encoder "${hubert_names[$model]}") ||
            [[ -f $checkpoint ]] || lacks "${hubert_names[$model]}"  # a published checkpoint contains its encoder
        [[ -n $clip || -n $clip_embeddings ]] || clip=$(find_encoder "${clip_names[$model]}") || lacks "${clip_names[$model]}"
    fi
    dump=dump/$model
    [[ -z $speech_encoder ]] || dump+=_$(basename "$speech_encoder")
    features_stamp=$dump/.done/2_features
    # Stored features would be hundreds of gigabytes that nothing reads. Another stamp: runs of this recipe keep theirs.
    if [[ $feats == dump && -n $checkpoint ]] && takes_recordings; then
        feats=online features_stamp=$dump/.done/2_embeddings
        echo "--feats online: scoring $checkpoint reads recordings, so no features are stored"
    fi
    tower_layers=()
    for file in {../conf,conf}/{"$model",fast_vgs,"${model}_fast_vgs"}.yaml "$config"; do
        [[ ! -f $file ]] || tower_layers+=(--config "$file")
    done
    hidden_states=$feats
    if [[ ${head// /} == fast_vgs && -z $asr && -z $rerank && $(tower_part) == convolutions ]]; then  # nothing reads hidden states
        hidden_states=online features_stamp=$dump/.done/2_embeddings
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
        [[ $has_clip == true ]] || without_text "$word" ||
            fail "--clip_embeddings: a $word head needs CLIP itself. Give --clip too, or --head parallel" 2
    done
    [[ $has_clip == true || -z $rerank ]] || fail "--clip_embeddings: --rerank needs CLIP's patch tokens. Give --clip too" 2
    needs_regions=false
    [[ -z $rerank && " $head " != *" reranker "* ]] || needs_regions=true
    [[ $has_clip == true || -z $asr ]] || fail "--asr: transcripts need CLIP's text tower. Give --clip, too" 2
    encoder_overrides=()
    [[ -z $speech_encoder ]] || encoder_overrides+=(--model.speech_encoder.path "$speech_encoder")
    [[ -z $clip ]] || encoder_overrides+=(--model.clip.path "$clip")
    [[ $has_clip == true ]] || encoder_overrides+=(--model.clip.path=)
    split_overrides
    augment_overrides=()
    [[ ! $augment =~ [1-9] ]] || augment_overrides=(--data.augment.probability "$augment" --data.augment.noise_dir="$noise_dir"
        --data.augment.rir_dir="$rir_dir")
    learned_overrides=("${augment_overrides[@]}" "${learned_overrides[@]}")
    training_overrides=("${augment_overrides[@]}" "${training_overrides[@]}")
    if restricts_languages; then
        # shellcheck disable=SC2086 # a list
        word=$(printf '%s,' $languages)
        eval_overrides+=(--eval.languages "[${word%,}]")
        training_overrides+=(--data.languages "[${word%,}]")
        learned_overrides+=(--data.languages "[${word%,}]")
    fi
}

# Succeeds if training and scoring select utterances by --languages. A corpus in the recipe's own language has no utt2lang.
restricts_languages() {
    [[ -n $languages ]] && { [[ $languages != "$recipe_languages" ]] || [[ -f data/train/utt2lang ]]; }
}

# Splits the user's overrides: eval_overrides go to stages 4 and 5, training_overrides to stage 3, those of the encoders to
# stage 2 too, tower_overrides to stage 2 of fast_vgs. learned_overrides are the training_overrides that change the weights: only they are inputs of stage 3.
# WITHOUT_EFFECT in speechclip/train/state.py is the same list.
split_overrides() {
    local i
    local -a words
    eval_overrides=() training_overrides=() learned_overrides=() tower_overrides=()
    for ((i = 0; i < ${#overrides[@]}; i++)); do
        words=("${overrides[i]}")
        [[ ${words[0]} == *=* || $((i + 1)) -ge ${#overrides[@]} ]] || words+=("${overrides[++i]}")
        case ${words[0]} in
            --eval | --eval[.=]*) eval_overrides+=("${words[@]}") ;;
            --data.workers* | --data.eval_batch_size* | --train.log_interval* | --train.tensorboard_utterances*)
                training_overrides+=("${words[@]}")
                ;;
            *)
                training_overrides+=("${words[@]}")
                learned_overrides+=("${words[@]}")
                ;;
        esac
        case ${words[0]} in
            --model.speech_encoder.* | --model.clip.* | --data.store_dtype*) encoder_overrides+=("${words[@]}") ;;
            --model.head.fast_vgs.regions*) tower_overrides+=("${words[@]}") ;;
        esac
    done
}

# name_run HEAD SEED: sets the experiment folder and the configuration layers of one run.
name_run() {
    local file tag=$tag
    [[ $supervision == image ]] || tag=supervised${tag:+_$tag}
    [[ $languages == "$recipe_languages" ]] || tag=${languages// /_}${tag:+_$tag}
    run_head=$1 run_seed=$2 exp=exp/${model}_$1${tag:+_$tag}
    [[ $run_seed == 0 ]] || exp+=_seed$run_seed
    label="$(basename "${exp%_seed*}") seed $run_seed"
    weights=$exp/best weights_stage=3
    if [[ -n $checkpoint ]]; then
        weights=$checkpoint
        file=${checkpoint%/}
        [[ $file != */best && $file != */last ]] || file=${file%/*}
        exp=exp/$(basename "${file%.ckpt}")${tag:+_$tag}
        # a run or another checkpoint with the same name keeps its scores; stage 4 writes $exp/checkpoint
        if [[ -d $exp/best && ! $checkpoint -ef $exp/best ]] ||
            [[ -f $exp/checkpoint && $(<"$exp/checkpoint") != "$(realpath "$checkpoint")" ]]; then
            exp+=_checkpoint_$(realpath "$checkpoint" | cksum | cut -d' ' -f1)
        fi
        [[ ! -f $checkpoint ]] || weights=$exp/converted weights_stage=4
        label=$(basename "$exp")
    fi
    coarse_run=
    [[ $1 != reranker ]] || coarse_run=${coarse:-${exp/_reranker/_parallel}}
    layers=()
    for file in {../conf,conf}/{"$model","$run_head","${model}_$run_head"}.yaml "$config"; do
        [[ ! -f $file ]] || layers+=(--config "$file")
    done
}

# checkpoint_of RUN: prints the folder of the best weights of a run; a checkpoint stays as it is.
checkpoint_of() {
    if [[ -f $1/model.safetensors ]]; then echo "${1%/}"; else echo "${1%/}/best"; fi
}

# Reports a mistake in the user's own configuration before anything is written.
check_configuration() {
    local word
    for word in $head; do
        name_run "$word" 0
        [[ -n $config || ${#overrides[@]} -gt 0 ]] || trains_encoder || continue
        "$python" "$utils/check_config.py" "${layers[@]}" "${encoder_overrides[@]}" --data.feats "$feats" "${overrides[@]}" ||
            exit 2
    done
}

# Succeeds if a configuration layer of the run trains a part of the speech encoder.
trains_encoder() {
    local file
    for file in "${layers[@]}"; do
        [[ $file == --config ]] || ! grep -qE '^  encoder: *[^ f]' "$file" || return 0
    done
    return 1
}

# Takes the lock of the recipe folder. The kernel releases it when this shell and all its stages have ended. The stage of a
# killed run takes a moment to end: wait for it.
take_lock() {
    local patience=$((SECONDS + 30)) holder
    exec 9>>.run.lock
    until "$python" -SEc 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)' 2>/dev/null; do
        holder=$(<.run.lock)
        if [[ -z $holder ]] || kill -0 "$holder" 2>/dev/null || ((SECONDS > patience)); then
            fail "$PWD: another run is active (process $holder). Wait for it, or stop it"
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
    fail "stopped in stage $number ($name). Run the same command to resume" "$1"
}

saved=75  # EX_TEMPFAIL: exit status of a stage that was stopped and has saved its state, and then of the recipe
stopped_and_saved() {
    fail "stage $number ($name) was stopped and has saved its state. Run the same command to resume" "$saved"
}

log() { echo "stage $number ($name)${label:+: $label}: $1"; }

# begin STAMP LOG: starts the description of a stage.
begin() {
    stamp=$1 log=$2 inputs='' produced=''
}

# claim: writes the path of --checkpoint into its experiment folder. A checkpoint with the same name gets another folder.
claim() {
    [[ -n $checkpoint && $dry_run == false && ! $checkpoint -ef $exp/best ]] || return 0
    mkdir -p "$exp"
    realpath "$checkpoint" >"$exp/checkpoint"
}

depends() { inputs+="$1"$'\t'"$2"$'\n'; }

makes() {
    local file
    for file; do produced+="output"$'\t'"$file"$'\n'; done
}

# shares FILE: an output that runs with another dump folder write too.
shares() { produced+="shared"$'\t'"$1"$'\n'; }

# Succeeds if the stage can be skipped. Logs that, or the reason to run it. Removes the stamp of a stage that will run.
up_to_date() {
    local reason
    if reason=$(printf '%s%s' "$inputs" "$produced" | "$python" -SE "$utils/stamp.py" check "$stamp"); then
        if [[ $force == false ]]; then
            log "up to date"
            return 0
        fi
        reason="--force true"
    fi
    [[ -n $reason ]] || fail "$utils/stamp.py failed"
    log "running ($reason)"
    # a run that is killed halfway leaves outputs that do not fit the stamp
    [[ $dry_run == true ]] || rm -f "$stamp"
    return 1
}

# needs FILE STAGE: fails if an input from an earlier stage is missing.
needs() {
    [[ -e $1 || $dry_run == true ]] || fail "stage $number ($name): $1 is missing. Run stage $2: ./run.sh --stage $2"
}

# run COMMAND...: runs a command of the stage and appends its output to the log. Ends the recipe if it fails.
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
    ((status == 0)) || fail "stage $number ($name) failed${label:+ for $label} with status $status. Log: $log" "$status"
}

finish() {
    [[ $dry_run == false ]] || return 0
    printf '%s%s' "$inputs" "$produced" | "$python" -SE "$utils/stamp.py" write "$stamp" ||
        fail "stage $number ($name) is incomplete. Log: $log"
    log "done in $((SECONDS - started)) s"
}

# step NUMBER NAME: runs one stage if it is between --stage and --stop_stage.
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
    [[ $needs_regions == false ]] || step 2 regions
    [[ $needs_towers == false ]] || step 2 towers
    step 2 augment
    exps=() all_weights=()
    for word in $head; do
        for run_number in $seed; do
            name_run "$word" "$run_number"
            [[ " ${exps[*]} " != *" $exp "* ]] || continue  # --checkpoint is one run for all heads and seeds
            exps+=("$exp") all_weights+=("$weights")
            step 3 train
            step 4 retrieval
            step 5 keywords
        done
    done
    run_asr_stages
    step 6 report
    ((stage > 6 || stop_stage < 6)) || summarize
    local folder
    for folder in "${exps[@]}"; do
        exp=$folder label=$(basename "$folder")
        step 7 pack
    done
}

# Prints the main scores, the reports and what to try next.
summarize() {
    [[ $dry_run == false ]] || return 0
    "$python" -m speechclip.bin.summary --exp "${exps[@]}" --results exp/RESULTS.md
}

check_options
name_encoders
check_configuration
[[ $dry_run == true ]] || take_lock
trap 'interrupted 130' INT
trap 'interrupted 143' TERM
run_stages
