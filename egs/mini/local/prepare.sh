#!/usr/bin/env bash
# Stage 1: write data/{train,dev,test}/ from corpus/.
# shellcheck disable=SC2034 # each recipe takes the same options, used or not
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. ./path.sh

corpus=  #: not used, the corpus is in corpus/
nj=2     #: processes
. ../../utils/parse_options.sh "$@"

"$SPEECHCLIP_PYTHON" local/prepare.py corpus data
