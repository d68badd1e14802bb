#!/usr/bin/env bash
# Stage 1: data/{train,dev,test}/ from the corpus as it was published.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. ./path.sh

corpus=  #: folder with the photographs, captions and recordings
nj=2     #: processes
. ../../utils/parse_options.sh "$@"

if [[ -z $corpus ]]; then
    echo "error: --corpus DIR: name the folder of Flickr8k" >&2
    exit 1
fi
"$SPEECHCLIP_PYTHON" -m speechclip.bin.prepare_flickr8k --corpus "$corpus" --out data --nj "$nj"
