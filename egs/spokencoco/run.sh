#!/usr/bin/env bash
# SpeechCLIP on SpokenCOCO: 123,000 photographs with five spoken captions each, Karpathy split.
#
#   stage 0  download   downloads the corpus, or finds it under --corpus DIR
#   stage 1  prepare    data/{train,dev,test}/
#   stage 2  features   dump/: CLIP embeddings and the speech encoder's hidden states
#   stage 3  train      exp/<model>_<head>/best/
#   stage 4  retrieval  exp/<model>_<head>/scores/retrieval.json
#   stage 5  keywords   exp/<model>_<head>/scores/keywords.json
#   stage 6  report     RESULTS.md, exp/<model>_<head>/{figures,report}/
#   stage 7  pack       exp/<model>_<head>/pack/, with --stop_stage 7
#
# ./run.sh --help prints the options. The stages themselves stand in utils/stages.sh.
# shellcheck disable=SC2034 # utils/driver.sh reads what is set here
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. ./path.sh
. ./cmd.sh
. ../../utils/options.sh

title="Trains and scores SpeechCLIP heads on SpokenCOCO."
models="base large"
heads="parallel cascaded hybrid cascaded_plus hybrid_plus"
downloaded="corpus/SpokenCOCO/ksplit corpus/annotations/captions_val2014.json"
download_options=(models model mirror)
prepare_options=(min_seconds max_seconds max_bad)

model=large
head=parallel
feats=online  # 605,000 utterances of 4.4 s would take 2.5 TB (Base) or 6.6 TB (Large)
mirror=                  #: URL of a folder with the corpus's files, tried before the published places
min_seconds=0.3          #: shorter recordings are left out and counted
max_seconds=60.0         #: so are longer ones
max_bad=0.01             #: share of the utterances that may be left out

. ../../utils/driver.sh "$@"
