#!/usr/bin/env bash
# SpeechCLIP on Localized Narratives: 870,000 spontaneous descriptions of COCO, Flickr30k, ADE20k and Open Images.
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

title="Trains and scores SpeechCLIP heads on Localized Narratives."
models="base large"
heads="parallel cascaded hybrid cascaded_plus hybrid_plus"
downloaded="corpus/.complete"
download_options=(models model mirror parts)
prepare_options=(min_seconds max_seconds max_bad)

model=large
head=parallel
feats=online  # up to 870,000 utterances, some of them minutes long
mirror=                  #: URL of a folder with the files of the corpus, tried first
parts=                   #: names that the downloaded files begin with: "coco_ val2017 train2017"; empty: all
min_seconds=0.3          #: shorter recordings are skipped and counted
max_seconds=300.0        #: longer recordings are skipped and counted
max_bad=0.01             #: largest share of skipped utterances

. ../../utils/driver.sh "$@"
