#!/usr/bin/env bash
# Stage 0: generate corpus/. With --pretrain true, train both encoders first.
# shellcheck disable=SC2034 # each recipe takes the same options, used or not
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. ./path.sh

corpus=         #: not used, this recipe generates its corpus
nj=2            #: processes
scenes=4000     #: training scenes; dev and test have a twentieth each
languages=en    #: languages of the captions: en, es or "en es"
long_seconds=0  #: dev_long and test_long: a description of each scene of this many seconds or more; 0 for none
pretrain=false  #: train models/clip and models/hubert again; this takes much longer than the recipe
. ../../utils/parse_options.sh "$@"

if [[ -n $corpus ]]; then
    echo "error: --corpus: the mini recipe generates its corpus. Remove the option." >&2
    exit 2
fi
if [[ $pretrain == true ]]; then
    "$SPEECHCLIP_PYTHON" local/pretrain_clip.py models/clip --nj "$nj"
    "$SPEECHCLIP_PYTHON" local/pretrain_hubert.py models/hubert --nj "$nj"
fi
for file in models/clip/open_clip_config.json models/hubert/config.json; do
    if [[ ! -f $file ]]; then
        echo "error: $file: is missing. Run: git checkout $file, or ./run.sh --pretrain true" >&2
        exit 1
    fi
done
held_out=$((scenes / 20 > 0 ? scenes / 20 : 1))
"$SPEECHCLIP_PYTHON" local/generate.py corpus --num_train "$scenes" --num_dev "$held_out" --num_test "$held_out" \
    --languages "$languages" --nj "$nj"
rm -rf corpus/narratives corpus/narratives.tsv corpus/narratives.ctm
if ((long_seconds > 0)); then
    "$SPEECHCLIP_PYTHON" local/narrate.py corpus --num_dev "$held_out" --num_test "$held_out" --seconds "$long_seconds" \
        --nj "$nj"
fi
