# shellcheck shell=bash disable=SC2154 # the variables come from utils/driver.sh
# The baselines and the listening conditions: a recogniser in front of CLIP (--asr), all systems in noise (--conditions),
# and copies of the training speech with noise (--augment). Their stages are parts of stages 2, 3 and 4.

# name_asr RECOGNIZER SEED: sets the experiment folders of a recogniser and of its text head. "ctc" is trained on the
# captions, with the seed. Others are used as they are; the seed is that of their text head.
name_asr() {
    local suffix=
    [[ $2 == 0 ]] || suffix=_seed$2
    run_seed=$2
    asr_name=$(basename "$1")
    exp=exp/${model}_asr_$asr_name$suffix
    text_head_exp=exp/${model}_asr_${asr_name}_text_head$suffix
    recognizer=$1
    [[ $1 != ctc ]] || recognizer=$exp/recognizer
    asr_splits=(train dev test)
    # pocketsphinx needs hours for a training set, and no head can repair its transcripts
    [[ $1 != pocketsphinx ]] || asr_splits=(test)
    label="asr $asr_name seed $run_seed"
}

run_asr_stages() {
    local word run_number
    asr_exps=()
    for word in $asr; do
        for run_number in $seed; do
            [[ $word == ctc || $run_number == "${seed%% *}" ]] || continue
            name_asr "$word" "$run_number"
            [[ $word != ctc ]] || step 3 recognizer
            step 4 asr
            asr_exps+=("$exp")
            ((${#asr_splits[@]} == 1)) || asr_exps+=("$text_head_exp")
        done
    done
    label=
    [[ $conditions == false ]] || step 4 conditions
}

stage_augment() {  # hidden states of copies of the training speech, for --augment with stored features
    [[ $augment =~ [1-9] && $feats == dump ]] || return 0
    begin "$dump/.done/2_augment" "$dump/log/2_augment.log"
    depends after "$features_stamp"
    depends value "augment=${augment_overrides[*]} ${learned_overrides[*]}"
    makes "$dump/train_augment1/feats.scp"
    up_to_date && return
    needs "$dump/train/feats.scp" 2
    local -a copies=("$python" -m speechclip.bin.extract_features "${model_layers[@]}" "${encoder_overrides[@]}"
        "${augment_overrides[@]}" "${learned_overrides[@]}" --data_dirs '[data/train]' --dump_root "$dump" --copy 1 --jobs "$nj")
    run_jobs "$dump/log/2_augment.JOB.log" "${copies[@]}" --job JOB
    ((nj == 1)) || run "${copies[@]}" --job 0
    finish
}

stage_recognizer() {  # a CTC recogniser over the features of the heads
    begin "$exp/.done/3_recognizer" "$exp/log/3_recognizer.log"
    depends after "$dump/.done/2_features"
    depends_on_encoders
    depends value "seed=$run_seed"
    makes "$recognizer/model.safetensors"
    up_to_date && return
    needs "$dump/train/feats.scp" 2
    run "$python" -m speechclip.bin.train_recognizer "${model_layers[@]}" "${encoder_overrides[@]}" --data_root data \
        --dump_root "$dump" --out "$recognizer" --seed "$run_seed"
    finish
}

stage_asr() {  # transcripts, and retrieval with them
    begin "$exp/.done/4_asr" "$exp/log/4_asr.log"
    depends after "$dump/.done/2_features"
    depends_on_encoders
    depends_on_eval
    depends value "recognizer=$recognizer seed=$run_seed"
    [[ $recognizer != "$exp/recognizer" ]] || depends after "$exp/.done/3_recognizer"
    [[ ! -e $recognizer ]] || depends path "$recognizer"
    makes "$exp/scores/retrieval.json" "$exp/transcripts/test.jsonl"
    local -a text_head=() trained=()
    if ((${#asr_splits[@]} > 1)); then
        text_head=(--text_head "$text_head_exp")
        makes "$text_head_exp/scores/retrieval.json"
    fi
    up_to_date && return
    [[ $recognizer != "$exp/recognizer" ]] || { needs "$recognizer" 3 && trained=(--recognizer "$recognizer"); }
    needs "$dump/test/image_embeddings.npz" 2
    run "$python" -m speechclip.bin.transcribe --recognizer "$recognizer" --data_dirs "${asr_splits[@]/#/data/}" \
        --dump_root "$dump" --out "$exp/transcripts"
    run "$python" -m speechclip.bin.score_asr "${model_layers[@]}" "${encoder_overrides[@]}" "${eval_overrides[@]}" \
        --transcripts "$exp/transcripts" "${trained[@]}" --data_root data --dump_root "$dump" --out "$exp" \
        "${text_head[@]}" --seed "$run_seed"
    finish
}

stage_conditions() {  # scores/conditions.json of all heads and recognisers, on the same signals
    local at folder word run_number
    local -a systems=()
    begin "exp/.done/4_conditions_$(printf '%s' "${exps[*]} ${asr_exps[*]}" | cksum | cut -d' ' -f1)" exp/log/4_conditions.log
    for at in "${!exps[@]}"; do
        depends after "${exps[at]}/.done/4_retrieval"
        makes "${exps[at]}/scores/conditions.json"
        systems+=(--run "${all_weights[at]}" "${exps[at]}")
    done
    for folder in $compare; do
        depends path "$folder/best"
        makes "$folder/scores/conditions.json"
        systems+=(--run "$folder/best" "$folder")
    done
    for word in $asr; do
        [[ $word != pocketsphinx ]] || continue  # its rows in noise would cost hours
        for run_number in $seed; do
            [[ $word == ctc || $run_number == "${seed%% *}" ]] || continue
            name_asr "$word" "$run_number"
            depends after "$exp/.done/4_asr"
            makes "$exp/scores/conditions.json" "$text_head_exp/scores/conditions.json"
            systems+=(--asr_run "$recognizer" "$exp" --asr_run "$recognizer" "$text_head_exp")
        done
    done
    # shellcheck disable=SC2034 # the log reads it
    label=
    depends value "noise_dir=$noise_dir rir_dir=$rir_dir"
    for folder in "$noise_dir" "$rir_dir"; do [[ -z $folder ]] || depends path "$folder"; done
    up_to_date && return
    for folder in "${all_weights[@]}"; do needs "$folder" 3; done
    needs "$dump/test/image_embeddings.npz" 2
    run "$python" -m speechclip.bin.score_conditions "${systems[@]}" --clip "$clip" --data_dir data/test \
        --dump_dir "$dump/test" --train_data data/train --noise_dir "$noise_dir" --rir_dir "$rir_dir"
    finish
}
