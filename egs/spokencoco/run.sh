#!/usr/bin/env bash
# SpeechCLIP on SpokenCOCO: 123,000 photographs with five spoken captions each, Karpathy split.
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

title="Trains and scores SpeechCLIP heads on SpokenCOCO."
models="base large"
heads="parallel cascaded hybrid cascaded_plus hybrid_plus mean reranker fast_vgs"
downloaded="corpus/SpokenCOCO/ksplit corpus/annotations/captions_val2014.json"
download_options=(models model mirror)
prepare_options=(min_seconds max_seconds max_bad)

model=large
head=parallel
feats=online  # 605,000 utterances of 4.4 s would take 2.5 TB (Base) or 6.6 TB (Large)
mirror=                  #: URL of a folder with the files of the corpus, tried first
min_seconds=0.3          #: shorter recordings are skipped and counted
max_seconds=60.0         #: longer recordings are skipped and counted
max_bad=0.01             #: largest share of skipped utterances

. ../../utils/driver.sh "$@"
