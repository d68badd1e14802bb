#!/usr/bin/env bash
# Stage 0: finds the corpus in --corpus DIR or downloads it into corpus/; downloads the encoders' files that --models lacks.
# shellcheck disable=SC2034 # each recipe takes the same options, whether it needs them or not
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. ./path.sh

corpus=  #: folder with the photographs, captions and recordings
nj=2     #: not used, nothing is computed
models=  #: folder of the encoders' original files; empty: the hub's are taken in stage 2
model=   #: whose encoders
mirror=  #: URL of a folder with the corpus's files, tried first
. ../../utils/parse_options.sh "$@"

missing() {
    echo "error: $corpus: $1 (photographs: COCO 2014; recordings: SpokenCOCO, Hsu et al. 2021; split: Karpathy and" \
        "Fei-Fei 2015; without --corpus they are downloaded, about 96 GB)" >&2
    exit 1
}

if [[ -n $models ]]; then
    "$SPEECHCLIP_PYTHON" ../../utils/obtain_models.py "$model" "$models"
fi
if [[ -z $corpus ]]; then
    corpus=corpus
    "$SPEECHCLIP_PYTHON" -m speechclip.bin.download --what spokencoco --to "$corpus" --mirror "$mirror"
fi
[[ -d $corpus/val2014 || -d $corpus/mscoco_img/val2014 || -d $corpus/images/val2014 ]] ||
    missing "no photographs: no val2014/, mscoco_img/val2014/ or images/val2014/"
[[ -d $corpus/SpokenCOCO/wavs || -d $corpus/wavs ]] || missing "no recordings: no SpokenCOCO/wavs/"
echo "$corpus: photographs and recordings are there"
