#!/usr/bin/env bash
# SpeechCLIP on the mini corpus: rendered scenes, spoken captions, tiny encoders. Minutes on two CPU cores.
#
#   stage 0  download   generates corpus/: scenes, captions, speech (and models/ with --pretrain true)
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

title="Trains and scores SpeechCLIP heads on a generated corpus of scenes and spoken captions."
models="tiny"
heads="parallel cascaded hybrid cascaded_plus hybrid_plus mean reranker fast_vgs"
extra_splits="dev_long test_long"
may_download="corpus/narratives.tsv"
downloaded="corpus/captions.tsv corpus/images corpus/audio models/hubert models/clip"
download_options=(scenes pretrain languages long_seconds)

model=tiny
head="parallel cascaded"
scenes=4000     #: training scenes of the corpus; dev and test have one twentieth each
languages=en    #: languages of the captions, and of training and scoring: en, es or "en es"
long_seconds=0  #: also score descriptions of this many seconds or more (data/test_long); 0 for none
pretrain=false  #: pretrain the tiny CLIP and the tiny HuBERT again first

. ../../utils/driver.sh "$@"
