#!/usr/bin/env bash
# Stage 1: data/{train,dev,test}/ from the corpus as it was published.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. ./path.sh

corpus=  #: folder with the photographs, captions and recordings; corpus/ where stage 0 has downloaded it
nj=2     #: processes
. ../../utils/parse_options.sh "$@"

"$SPEECHCLIP_PYTHON" -m speechclip.bin.prepare_flickr8k --corpus "${corpus:-corpus}" --out data --nj "$nj"
