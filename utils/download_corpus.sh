#!/usr/bin/env bash
# Stage 0 of a corpus that is downloaded: download_corpus.sh CORPUS OPTIONS, called by its local/download.sh in the recipe's folder.
#
# Downloads the encoders' files that --models lacks, and the corpus into corpus/ unless --corpus names a folder; then looks
# whether all parts are there.
# shellcheck disable=SC2034 # each recipe takes the same options, whether it needs them or not
set -euo pipefail

name=$1
shift
corpus=  #: folder of the corpus as it is published; empty: it is downloaded into corpus/
nj=2     #: not used, nothing is computed
models=  #: folder of the encoders' original files; empty: the hub's are taken in stage 2
model=   #: whose encoders
mirror=  #: URL of a folder with the corpus's files, tried first
# shellcheck source=utils/parse_options.sh
. "$SPEECHCLIP_ROOT/utils/parse_options.sh" "$@"

if [[ -n $models ]]; then
    "$SPEECHCLIP_PYTHON" "$SPEECHCLIP_ROOT/utils/download_models.py" "$model" "$models"
fi
if [[ -z $corpus ]]; then
    corpus=corpus
    "$SPEECHCLIP_PYTHON" -m speechclip.bin.download --what "$name" --to "$corpus" --mirror "$mirror"
fi
"$SPEECHCLIP_PYTHON" "$SPEECHCLIP_ROOT/utils/check_corpus.py" "$name" "$corpus"
