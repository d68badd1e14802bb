# Shortcuts for the scripts in tools/.
.PHONY: install test lint doctor readme bench bench-check

install:
	tools/install.sh --extras "dev s3prl fairseq search asr"

test:
	tools/test.sh

lint:
	tools/lint.sh

doctor:
	tools/doctor

# Draw the pictures of README.md again, then write its table of results and the output of its example.
readme:
	tools/screenshots.py
	tools/readme.py

# Compare with plain baselines: hours for all of them (see BENCHMARKS.md). CI runs bench-check.
bench:
	tools/bench/bench.sh

bench-check:
	tools/bench/bench.sh --check
