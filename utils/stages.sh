# shellcheck shell=bash disable=SC2154 # the options and the run's names come from utils/driver.sh
# The stages of every recipe: their inputs, outputs and commands. utils/driver.sh calls them.
#
# A stage function lists its inputs (depends KIND VALUE, see utils/stamp.py) and its outputs (makes FILE..., shares FILE).
# Then it calls `up_to_date && return`, names the files it needs (needs FILE STAGE), and runs its commands (run COMMAND...).
# Inputs are only those that change the outputs: not the version, the number of jobs, logging or loader processes.

splits=(train dev test)
extra_splits=${extra_splits-}  # further splits that a recipe's run.sh names and its corpus may have
may_download=${may_download-}  # files that stage 0 writes with some options only; stage 1 depends on them if they exist

# have_splits [PREFIX]: prints train, dev, test and the extra splits that exist in data/. With PREFIX: the extra ones alone that
# begin with it.
have_splits() {
    local split
    [[ -n ${1-} ]] || printf '%s\n' "${splits[@]}"
    for split in $extra_splits; do
        [[ $split != "${1-}"* || ! -f data/$split/wav.scp ]] || echo "$split"
    done
}

# data_dirs: prints the data directories as a list of the configuration.
data_dirs() {
    local -a every
    mapfile -t every < <(have_splits)
    (IFS=, && echo "[${every[*]/#/data/}]")
}

stage_download() {  # corpus and models
    begin data/.done/0_download data/log/0_download.log
    local option again=false
    local -a options=(--corpus "$corpus" --nj "$nj")
    for option in "${download_options[@]}"; do
        options+=("--$option" "${!option}")
        case ${!option} in
            true) again=true ;;  # such an option requests work; only its result is an input of later stages
            false) ;;
            *) depends aside "$option=${!option}" ;;  # the place a file comes from does not matter to later stages
        esac
    done
    depends script local
    [[ -z $corpus ]] || depends path "$corpus"
    # shellcheck disable=SC2086 # a list
    [[ -n $corpus ]] || makes $downloaded
    [[ $again == true ]] || { up_to_date && return; }
    run bash local/download.sh "${options[@]}"
    finish
}

stage_prepare() {  # data/{train,dev,test}
    local split file option
    local -a options=(--corpus "$corpus" --nj "$nj") every
    begin data/.done/1_prepare data/log/1_prepare.log
    depends script local
    depends after data/.done/0_download
    [[ -z $corpus ]] || depends path "$corpus"
    for option in "${prepare_options[@]}"; do
        options+=("--$option" "${!option}")
        depends value "$option=${!option}"
    done
    for file in $may_download; do [[ ! -f $file ]] || depends file "$file"; done
    for split in "${splits[@]}"; do
        makes "data/$split/"{wav.scp,text,utt2spk,spk2utt,img.scp,utt2img}
    done
    up_to_date && return
    [[ -n $corpus ]] || for file in $downloaded; do needs "$file" 0; done
    run bash local/prepare.sh "${options[@]}"
    mapfile -t every < <(have_splits)
    run "$python" -m speechclip.bin.validate_data_dir "${every[@]/#/data/}"
    finish
}

stage_features() {  # CLIP embeddings, reduced vocabulary, hidden states
    local split
    local -a every
    mapfile -t every < <(have_splits)
    begin "$features_stamp" "$dump/log/2_features.log"
    depends after data/.done/1_prepare
    depends_on_encoders
    depends value "feats=$hidden_states"
    depends value "vocabulary=$vocabulary"
    [[ ! -f data/captions.tsv ]] || depends file data/captions.tsv
    for split in "${every[@]}"; do  # captions as CLIP reads them, if they differ from text
        [[ ! -f data/$split/text_clip ]] || depends file "data/$split/text_clip"
    done
    [[ ! -d models ]] || depends file models
    for split in "${every[@]}"; do
        makes "$dump/$split/image_embeddings.npz"
        [[ $hidden_states == online ]] || makes "$dump/$split/feats.scp"
    done
    [[ $has_clip == false ]] || shares "$vocabulary_file"
    up_to_date && return
    for split in "${splits[@]}"; do needs "data/$split/wav.scp" 1; done
    embed_with_clip
    [[ $hidden_states == online ]] || extract_states 2_features "${model_layers[@]}" "${encoder_overrides[@]}"
    finish
}

stage_regions() {  # CLIP's patch tokens, for rerankers
    local split
    local -a every
    mapfile -t every < <(have_splits)
    begin "$dump/.done/2_regions" "$dump/log/2_regions.log"
    depends after data/.done/1_prepare
    depends_on_encoders
    for split in "${every[@]}"; do makes "$dump/$split/regions/feats.scp"; done
    up_to_date && return
    for split in "${splits[@]}"; do needs "data/$split/img.scp" 1; done
    run "$python" -m speechclip.bin.extract_regions "${model_layers[@]}" "${encoder_overrides[@]}" \
        --data_dirs "$(data_dirs)" --dump_root "$dump"
    finish
}

stage_towers() {  # for the head fast_vgs: regions of the images, and the output of the waveform convolutions if it reads them
    local split file convolutions=false
    local -a every
    mapfile -t every < <(have_splits)
    [[ $feats == online || $(tower_part) == all ]] || convolutions=true
    begin "$dump/.done/2_towers" "$dump/log/2_towers.log"
    depends after data/.done/1_prepare
    depends_on_encoders
    depends_on_layers "${tower_layers[@]}"
    depends value "feats=$feats overrides=${tower_overrides[*]}"
    for file in ${region_files//,/ } "$detector"; do
        [[ ! -e $file ]] || depends path "$file"
    done
    for split in "${every[@]}"; do
        makes "$dump/$split/$(region_folder)/feats.scp"
        [[ $convolutions == false ]] || makes "$dump/$split/convolutions/feats.scp"
    done
    up_to_date && return
    for split in "${splits[@]}"; do needs "data/$split/img.scp" 1; done
    run "$python" -m speechclip.bin.extract_regions "${tower_layers[@]}" "${encoder_overrides[@]}" "${tower_overrides[@]}" \
        --data_dirs "$(data_dirs)" --dump_root "$dump" --region_files "$region_files" --detector "$detector"
    [[ $convolutions == false ]] || extract_states 2_towers "${tower_layers[@]}" "${encoder_overrides[@]}"
    finish
}

# One head with one seed. bin/train.py decides whether a run resumes, is finished or starts over, and keeps earlier weights.
stage_train() {
    if [[ -n $checkpoint ]]; then
        log "skipped: --checkpoint $checkpoint is scored instead of a trained head"
        return
    fi
    local -a launch=("$python")
    local processes=$(((ngpu > 1 ? ngpu : 1) * num_nodes))
    ((processes == 1)) || launch=("$python" "$utils/torchrun.py" --ngpu "$ngpu" --num_nodes "$num_nodes" --endpoint "$endpoint")
    begin "$exp/.done/3_train" "$exp/log/3_train.log"
    depends_on_features
    depends_on_layers "${layers[@]}"
    depends value "overrides=${encoder_overrides[*]} ${learned_overrides[*]}"
    depends value "seed=$run_seed"
    depends value "feats=$feats"
    depends value "supervision=$supervision"
    depends_on_languages train dev
    local -a first_stage=()
    if [[ -n $coarse_run ]]; then
        first_stage=(--coarse "$(checkpoint_of "$coarse_run")")
        depends after "$dump/.done/2_regions"
        depends file "${first_stage[1]}/model.safetensors"
    fi
    depends later outputs
    makes "$exp/best/model.safetensors" "$exp/best/config.yaml"
    up_to_date && return
    needs data/train/wav.scp 1
    needs "$dump/train/image_embeddings.npz" 2
    local stored=$dump/train/feats.scp
    [[ $run_head != fast_vgs || $(tower_part) == all ]] || stored=$dump/train/convolutions/feats.scp
    [[ $feats == online ]] || needs "$stored" 2
    without_text "$run_head" || needs "$vocabulary_file" 2
    [[ -z $coarse_run ]] || needs "${first_stage[1]}/model.safetensors" "3 with --head parallel, or give --coarse"
    # glibc returns the memory of large tensors after each use and requests it again page by page: half of a step's time
    local -x MALLOC_MMAP_MAX_=${MALLOC_MMAP_MAX_-0} MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_-1000000000000}
    local -x MALLOC_TOP_PAD_=${MALLOC_TOP_PAD_-268435456}
    # shellcheck disable=SC2086 # the launcher may be several words
    run ${train_cmd-} "${launch[@]}" -m speechclip.bin.train "${layers[@]}" "${encoder_overrides[@]}" --data.feats "$feats" \
        --train.supervision "$supervision" "${training_overrides[@]}" --data_root data --dump_root "$dump" \
        --vocabulary "$vocabulary_file" --out "$exp" --seed "$run_seed" --force "$force" "${first_stage[@]}"
    finish
}

stage_retrieval() {  # scores/retrieval.json
    begin "$exp/.done/4_retrieval" "$exp/log/4_retrieval.log"
    depends_on_weights
    depends_on_eval
    local split
    local -a further
    mapfile -t further < <(have_splits test)
    depends_on_languages test "${further[@]}"
    local -a second_stage=()
    if [[ -n $rerank ]]; then
        second_stage=(--rerank "$(checkpoint_of "$rerank")")
        depends file "${second_stage[1]}/model.safetensors"
    fi
    [[ $needs_regions == false ]] || depends after "$dump/.done/2_regions"
    makes "$exp/scores/retrieval.json"
    for split in "${further[@]}"; do makes "$exp/scores/$split/retrieval.json"; done
    up_to_date && return
    [[ -n $checkpoint && -f $checkpoint ]] || needs "$weights" 3
    for split in test "${further[@]}"; do needs "$dump/$split/image_embeddings.npz" 2; done
    claim
    if [[ -n $checkpoint && -f $checkpoint ]]; then  # a published one
        local -a tower=()
        [[ -z $clip ]] || tower=(--clip "$clip")
        run "$python" -m speechclip.bin.convert_checkpoint --checkpoint "$checkpoint" --out "$weights" "${tower[@]}"
    fi
    run "$python" -m speechclip.bin.score_retrieval --checkpoint "$weights" --data_dir data/test --dump_dir "$dump/test" \
        --out "$exp/scores" "${second_stage[@]}" "${eval_overrides[@]}"
    for split in "${further[@]}"; do
        run "$python" -m speechclip.bin.score_retrieval --checkpoint "$weights" --data_dir "data/$split" \
            --dump_dir "$dump/$split" --out "$exp/scores/$split" "${second_stage[@]}" "${eval_overrides[@]}"
    done
    finish
}

stage_keywords() {  # scores/keywords.json, for heads with keywords; scores/spotting.json, if the test set has labels
    begin "$exp/.done/5_keywords" "$exp/log/5_keywords.log"
    depends_on_weights
    depends_on_eval
    depends_on_languages test
    local words
    for words in data/test/ctm data/test/textgrid data/test/utt2keywords; do [[ ! -e $words ]] || depends path "$words"; done
    [[ -n $checkpoint || $run_head == reranker ]] || without_text "$run_head" || makes "$exp/scores/keywords.json"
    up_to_date && return
    needs "$weights" "$weights_stage"
    needs "$dump/test/image_embeddings.npz" 2
    claim
    run "$python" -m speechclip.bin.score_keywords --checkpoint "$weights" --data_dir data/test --dump_dir "$dump/test" \
        --train_data data/train --out "$exp/scores" "${eval_overrides[@]}"
    if [[ -f data/test/utt2keywords && $has_clip == true && $run_head != fast_vgs && $run_head != reranker ]]; then
        run "$python" -m speechclip.bin.score_spotting --checkpoint "$weights" --data_dir data/test --dump_dir "$dump/test" \
            --spoken_from data/train --out "$exp/scores" "${eval_overrides[@]}"
    fi
    finish
}

stage_report() {  # exp/RESULTS.md, and the figures and the page of each run
    local folder
    begin "exp/.done/6_report_$(printf '%s' "${exps[*]}" | cksum | cut -d' ' -f1)" exp/log/6_report.log
    local -a transcripts=() figures=()
    for folder in "${exps[@]}"; do
        depends after "$folder/.done/4_retrieval"
        depends after "$folder/.done/5_keywords"
    done
    for folder in "${asr_exps[@]}"; do
        [[ $folder == *_text_head* ]] || depends after "$folder/.done/4_asr"
        [[ $folder == *_text_head* || $folder == *_seed* ]] || transcripts+=("$folder/transcripts/test.jsonl")
    done
    for folder in "${exps[@]}" "${asr_exps[@]}"; do makes "$folder/figures" "$folder/report/index.html"; done
    ((${#transcripts[@]} == 0)) || transcripts=(--transcripts "${transcripts[@]}")
    if [[ $conditions == true ]]; then
        depends after "exp/.done/4_conditions_$(printf '%s' "${exps[*]} ${asr_exps[*]}" | cksum | cut -d' ' -f1)"
        makes exp/conditions.svg
        figures=(--conditions_figure exp/conditions)
    fi
    makes exp/RESULTS.md
    up_to_date && return
    # shellcheck disable=SC2086 # a list of folders
    for folder in "${exps[@]}" $compare "${asr_exps[@]}"; do needs "$folder/scores/retrieval.json" 4; done
    needs "$dump/test/image_embeddings.npz" 2
    # shellcheck disable=SC2086 # a list of folders
    run "$python" -m speechclip.bin.results --out exp/RESULTS.md --data_dir data/test --dump_dir "$dump/test" \
        --exp "${exps[@]}" $compare "${asr_exps[@]}" "${transcripts[@]}" "${figures[@]}"
    finish
}

stage_pack() {  # a folder that loads on another machine
    begin "$exp/.done/7_pack" "$exp/log/7_pack.log"
    depends after "$exp/.done/4_retrieval"
    depends after "$exp/.done/5_keywords"
    depends value "push=$push"
    makes "$exp/pack/README.md" "$exp/pack/model.safetensors"
    up_to_date && return
    local packed=$exp/best
    [[ -z $checkpoint ]] || packed=$weights
    needs "$packed" "$weights_stage"
    needs "$exp/scores/retrieval.json" 4
    run "$python" -m speechclip.bin.pack --checkpoint "$packed" --scores "$exp/scores" --out "$exp/pack" --push "$push"
    finish
}

# depends_on_layers --config FILE...: the content of each file.
depends_on_layers() {
    local word
    for word; do
        [[ $word == --config ]] || depends file "$word"
    done
}

depends_on_encoders() {
    local file
    depends_on_layers "${model_layers[@]}"
    depends value "encoders=${encoder_overrides[*]}"
    for file in "${speech_encoder#s3prl:*:}" "$clip" "$clip_embeddings" "$text_embeddings"; do
        [[ ! -e $file ]] || depends path "$file"
    done
}

# The stored features that a head reads.
depends_on_features() {
    [[ $run_head != fast_vgs ]] || depends after "$dump/.done/2_towers"
    [[ $run_head == fast_vgs && $(tower_part) == convolutions ]] || depends after "$dump/.done/2_features"
}

depends_on_weights() {
    depends_on_features
    [[ $features_stamp == */2_features || $run_head == fast_vgs ]] || depends after "$features_stamp"
    if [[ -n $checkpoint ]]; then
        depends path "$checkpoint"
    else
        depends after "$exp/.done/3_train"
    fi
}

# depends_on_languages SPLIT...: the languages of the utterances, if they are known.
depends_on_languages() {
    local split
    for split; do
        [[ ! -f data/$split/utt2lang ]] || depends file "data/$split/utt2lang"
    done
}

depends_on_eval() { depends value "eval=${eval_overrides[*]}"; }

# Stores CLIP's embeddings and the vocabulary, with the logs 2_clip.JOB.log: one job for every $captions_per_job captions, and
# --nj at most, because each job loads CLIP. The user's own embeddings are copied.
embed_with_clip() {
    local captions jobs
    local -a command=("$python" -m speechclip.bin.extract_clip_embeddings "${model_layers[@]}" "${encoder_overrides[@]}"
        --data_dirs "$(data_dirs)" --dump_root "$dump" --vocabulary "$vocabulary_file"
        --vocabulary_from "$vocabulary" --clip_embeddings "$clip_embeddings" --text_embeddings "$text_embeddings")
    captions=$({ cat data/*/text 2>/dev/null || true; } | wc -l)
    jobs=$((1 + captions / ${captions_per_job:-20000}))
    local nj=$((jobs < nj ? jobs : nj))
    if ((nj == 1)) || [[ -n $clip_embeddings ]]; then
        run "${command[@]}"
    else
        run_jobs "$dump/log/2_clip.JOB.log" "${command[@]}" --jobs "$nj" --job JOB
        run "${command[@]}" --jobs "$nj" --job 0
    fi
}

# extract_states NAME OPTION...: stores outputs of the speech encoder in --nj jobs, with the logs NAME.JOB.log.
extract_states() {
    local log_name=$1  # not "name": the messages of driver.sh read it
    shift
    local -a command=("$python" -m speechclip.bin.extract_features "$@" --data_dirs "$(data_dirs)" --dump_root "$dump" --jobs "$nj")
    run_jobs "$dump/log/$log_name.JOB.log" "${command[@]}" --job JOB
    ((nj == 1)) || run "${command[@]}" --job 0
}

# run_jobs LOG COMMAND...: runs the command as --nj jobs. JOB in LOG and COMMAND is replaced by the number of each job.
run_jobs() {
    local jobs_log=$1
    local -a jobs=("$python" -SE "$utils/run_jobs.py" --launcher "${jobs_launcher:-local}" --jobs "$nj" --log "$jobs_log")
    shift
    [[ -z ${slurm_options-} ]] || jobs+=("--options=$slurm_options")
    if [[ $dry_run == true ]]; then
        "${jobs[@]}" --dry_run -- "$@"
    else
        run "${jobs[@]}" -- "$@"
    fi
}
