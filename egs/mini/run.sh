#!/usr/bin/env bash
# SpeechCLIP on the mini corpus: rendered scenes, spoken captions, tiny encoders. Minutes on two CPU cores.
#
#   stage 0  download   corpus/: scenes, captions, speech (and, with --pretrain true, models/)
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

title="Trains and scores SpeechCLIP heads on a generated corpus of scenes and spoken captions."
models="tiny"
heads="parallel cascaded hybrid cascaded_plus hybrid_plus"
downloaded="corpus/captions.tsv corpus/images corpus/audio models/hubert models/clip"
download_options=(scenes pretrain)

model=tiny
head="parallel cascaded"
scenes=4000     #: training scenes of the corpus; dev and test have a twentieth each
pretrain=false  #: make the tiny CLIP and the tiny HuBERT again before anything else

. ../../utils/driver.sh "$@"
