# Shortcuts; the scripts in tools/ do the work.
.PHONY: install test lint doctor bench bench-check

install:
	tools/install.sh --extras "dev s3prl fairseq search"

test:
	tools/test.sh

lint:
	tools/lint.sh

doctor:
	tools/doctor

# against plain baselines, hours with everything (see BENCHMARKS.md); bench-check is what CI runs
bench:
	tools/bench/bench.sh

bench-check:
	tools/bench/bench.sh --check
