# Shortcuts for the scripts in tools/.
.PHONY: install test lint doctor pictures bench bench-check

install:
	tools/install.sh --extras "dev s3prl fairseq search"

test:
	tools/test.sh

lint:
	tools/lint.sh

doctor:
	tools/doctor

# Draw the pictures of README.md again, and write the output of its example.
pictures:
	tools/screenshots.py
	python test/test_readme.py

# Compare with plain baselines: hours for all of them (see BENCHMARKS.md). CI runs bench-check.
bench:
	tools/bench/bench.sh

bench-check:
	tools/bench/bench.sh --check
