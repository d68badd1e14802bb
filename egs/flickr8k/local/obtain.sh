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
    echo "error: $corpus: $1 (photographs and captions: Flickr8k, Hodosh et al. 2013; recordings:" \
        "Flickr 8k Audio Caption Corpus, Harwath and Glass 2015; without --corpus they are downloaded)" >&2
    exit 1
}

if [[ -n $models ]]; then
    "$SPEECHCLIP_PYTHON" ../../utils/obtain_models.py "$model" "$models"
fi
if [[ -z $corpus ]]; then
    corpus=corpus
    "$SPEECHCLIP_PYTHON" -m speechclip.bin.download --what flickr8k --to "$corpus" --mirror "$mirror"
fi
[[ -d $corpus/Flicker8k_Dataset || -d $corpus/Flickr8k_Dataset || -d $corpus/Images ]] ||
    missing "no photographs: neither Flicker8k_Dataset/ nor Images/"
[[ -d $corpus/Flickr8k_text || -f $corpus/captions.txt || -f $corpus/Flickr8k.token.txt ]] ||
    missing "no captions: neither Flickr8k_text/ nor captions.txt"
[[ -d $corpus/flickr_audio/wavs ]] || missing "no recordings: no flickr_audio/wavs/"
echo "$corpus: photographs, captions and recordings are there"
