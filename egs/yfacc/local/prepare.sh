#!/usr/bin/env bash
# Stage 1: write data/{train,dev,test}/ from the published corpus.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. ./path.sh

corpus=  #: folder of the published corpus; empty: corpus/, where stage 0 downloads it
nj=2     #: number of processes
min_seconds=0.3   #: shorter recordings are skipped
max_seconds=60.0  #: longer recordings are skipped
max_bad=0.01      #: fraction of the utterances that may be skipped
. ../../utils/parse_options.sh "$@"

"$SPEECHCLIP_PYTHON" -m speechclip.bin.prepare_corpus --name yfacc --corpus "${corpus:-corpus}" --out data --nj "$nj" \
    --min_seconds "$min_seconds" --max_seconds "$max_seconds" --max_bad "$max_bad"
