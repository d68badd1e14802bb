#!/usr/bin/env bash
# Stage 0 of a corpus that can be downloaded: download_corpus.sh CORPUS OPTIONS. A recipe's local/download.sh calls it in
# the recipe's folder.
#
# It downloads the encoders' files that --models lacks. It downloads the corpus into corpus/ unless --corpus names a folder.
# Then it checks that the corpus has all parts.
# shellcheck disable=SC2034 # all recipes have the same options
set -euo pipefail

name=$1
shift
corpus=  #: folder of the published corpus; empty: download it into corpus/
nj=2     #: not used
models=  #: folder of the encoders' original files; empty: stage 2 takes those of the hub
model=   #: model size, whose encoders are downloaded
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
