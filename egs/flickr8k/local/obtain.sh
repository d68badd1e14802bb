#!/usr/bin/env bash
# Stage 0: the corpus cannot be fetched without asking its owners, so this looks whether it is there.
# shellcheck disable=SC2034 # each recipe takes the same options, whether it needs them or not
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. ./path.sh

corpus=  #: folder with the photographs, captions and recordings
nj=2     #: not used, nothing is computed
. ../../utils/parse_options.sh "$@"

missing() {
    echo "error: ${corpus:-"--corpus DIR"}: $1 (photographs and captions: Flickr8k, Hodosh et al. 2013; recordings:" \
        "Flickr 8k Audio Caption Corpus, Harwath and Glass 2015)" >&2
    exit 1
}

[[ -n $corpus ]] || missing "name the folder of Flickr8k"
[[ -d $corpus/Flicker8k_Dataset || -d $corpus/Images ]] || missing "no photographs: neither Flicker8k_Dataset/ nor Images/"
[[ -d $corpus/Flickr8k_text || -f $corpus/captions.txt ]] || missing "no captions: neither Flickr8k_text/ nor captions.txt"
[[ -d $corpus/flickr_audio/wavs ]] || missing "no recordings: no flickr_audio/wavs/"
echo "$corpus: photographs, captions and recordings are there"
