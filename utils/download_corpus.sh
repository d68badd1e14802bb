#!/usr/bin/env bash
# Stage 0 of a published corpus: download_corpus.sh CORPUS OPTIONS. Its local/download.sh calls this in the recipe's folder.
#
# Downloads missing files of the encoders into --models, and the corpus into corpus/ unless --corpus is given. Then it checks
# that the corpus has all its parts.
# shellcheck disable=SC2034 # every recipe has the same options, also if it does not use them
set -euo pipefail

name=$1
shift
corpus=  #: folder of the published corpus; empty: it is downloaded into corpus/
nj=2     #: not used
models=  #: folder of the encoders' original files; empty: stage 2 downloads them from the hub
model=   #: name of the model, which decides the encoders
mirror=  #: URL of a folder with the corpus's files, tried first
parts=   #: names that the downloaded files begin with, for a corpus with parts; empty: all
# shellcheck source=utils/parse_options.sh
. "$SPEECHCLIP_ROOT/utils/parse_options.sh" "$@"

if [[ -n $models ]]; then
    "$SPEECHCLIP_PYTHON" "$SPEECHCLIP_ROOT/utils/download_models.py" "$model" "$models"
fi
if [[ -z $corpus ]]; then
    corpus=corpus
    "$SPEECHCLIP_PYTHON" -m speechclip.bin.download --what "$name" --to "$corpus" --mirror "$mirror" --only "$parts"
fi
"$SPEECHCLIP_PYTHON" "$SPEECHCLIP_ROOT/utils/check_corpus.py" "$name" "$corpus"
# the output of stage 0 for a corpus without a small file of a known name
[[ $corpus != corpus ]] || echo "$name" >corpus/.complete
