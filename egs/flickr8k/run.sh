#!/usr/bin/env bash
# SpeechCLIP on Flickr8k: 8,000 photographs with five spoken captions each.
#
#   stage 0  download   corpus/, unless --corpus DIR is given
#   stage 1  prepare    data/{train,dev,test}/
#   stage 2  features   dump/: CLIP embeddings and hidden states of the speech encoder
#   stage 3  train      exp/<run>/best/
#   stage 4  retrieval  exp/<run>/scores/retrieval.json
#   stage 5  keywords   exp/<run>/scores/keywords.json
#   stage 6  report     exp/RESULTS.md, exp/<run>/{figures,report}/
#   stage 7  pack       exp/<run>/pack/, with --stop_stage 7
#
# ./run.sh --help prints the options. The stages are defined in utils/stages.sh.
# shellcheck disable=SC2034 # utils/driver.sh reads these variables
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. ./path.sh
. ./cmd.sh
. ../../utils/options.sh

title="Trains and scores SpeechCLIP heads on Flickr8k with spoken captions."
models="base large"
heads="parallel cascaded hybrid cascaded_plus hybrid_plus mean reranker fast_vgs"
downloaded="corpus/flickr_audio/wav2capt.txt corpus/Flickr8k_text/Flickr8k.token.txt"
download_options=(models model mirror)
prepare_options=(min_seconds max_seconds max_bad)

model=base
head=parallel
mirror=                  #: URL of a folder with the files of the corpus, tried first
min_seconds=0.3          #: shorter recordings are skipped and counted
max_seconds=60.0         #: longer recordings are skipped and counted
max_bad=0.01             #: largest share of skipped utterances

. ../../utils/driver.sh "$@"
