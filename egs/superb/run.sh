#!/usr/bin/env bash
# SUPERB tasks with a SpeechCLIP as the upstream, through s3prl.
#
#   stage 0  corpus   checks --corpus, or with --pseudo true generates data/
#   stage 1  task     exp/<task>/<upstream>/lr_*/: trained and tested for each learning rate
#   stage 2  report   exp/RESULTS.md, exp/results.jsonl and a picture of the layer weights
#
# ./run.sh --help prints the options.
# shellcheck disable=SC2034 # the loop below reads them by name
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. ./path.sh

stage=0                    #: first stage
stop_stage=2               #: last stage
task=                      #: pr asr ks ic sf er sid asv sd qbe
upstream=speechclip_local  #: name in s3prl's hub
checkpoint=                #: checkpoint of the upstream, if its name needs one
baseline=speechclip_encoder_local  #: upstream to compare with, e.g. hubert; empty for none.
                           #: speechclip_encoder_local is the checkpoint's own speech encoder without the head
baseline_checkpoint=       #: checkpoint of the baseline; empty uses the upstream's
corpus=                    #: folder of the task's corpus, as published
pseudo=false               #: use generated speech, for tests and first trials
scale=1                    #: amount of generated speech, 1 to 10
folds=                     #: for er: folds to train and average, "0 1 2 3 4"; empty for all five, as SUPERB does
lr=                        #: learning rates to try, "1e-3 1e-2 1e-1"; empty uses s3prl's rate
seed=0                     #: seed of generated data and training
nj=1                       #: learning rates trained at the same time; qbe: number of processes
workers=0                  #: loader processes of each training
device=cpu                 #: cpu or cuda
config=                    #: YAML layer over conf/<task>.yaml
tag=                       #: suffix of the experiment folder
force=false                #: start over, and delete earlier results
list_options="lr folds" usage_text="Usage: ./run.sh --task TASK --checkpoint DIR [options] [-- --train.total_steps 20000]"
. ../../utils/recipe_command.sh "$@"
. ../../utils/parse_options.sh "$@"
options=()
for name in stage stop_stage task upstream checkpoint baseline baseline_checkpoint corpus pseudo scale folds lr seed nj workers device config tag force; do options+=("--$name=${!name}"); done
exec "$SPEECHCLIP_PYTHON" local/superb.py "${options[@]}" -- ${overrides[@]+"${overrides[@]}"}
