#!/usr/bin/env bash
# Stage 1: data/{train,dev,test}/ from the corpus as it was published.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. ./path.sh

corpus=  #: folder with the photographs, captions and recordings; corpus/ where stage 0 has downloaded it
nj=2     #: processes
min_seconds=0.3   #: shorter recordings are left out
max_seconds=60.0  #: so are longer ones
max_bad=0.01      #: share of the utterances that may be left out
. ../../utils/parse_options.sh "$@"

"$SPEECHCLIP_PYTHON" -m speechclip.bin.prepare_corpus --name flickr8k --corpus "${corpus:-corpus}" --out data --nj "$nj" \
    --min_seconds "$min_seconds" --max_seconds "$max_seconds" --max_bad "$max_bad"
