# Shortcuts; the scripts in tools/ do the work.
.PHONY: install test lint doctor

install:
	tools/install.sh --extras "dev s3prl fairseq"

test:
	tools/test.sh

lint:
	tools/lint.sh

doctor:
	tools/doctor
