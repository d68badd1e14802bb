#!/usr/bin/env bash
# Stage 0: check the corpus in --corpus DIR, or download it into corpus/. Download the encoders' files that --models lacks.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. ./path.sh

bash ../../utils/download_corpus.sh yfacc "$@"
