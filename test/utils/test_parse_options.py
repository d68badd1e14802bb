"""utils/parse_options.sh in a small script."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = f"""#!/usr/bin/env bash
set -euo pipefail
HIDDEN=1
nj=2            #: number of processes
force=false     #: run again whatever is up to date, a long help text that fills more than one line of a terminal
                #: and continues here
max_bad=        #: largest share of bad files
not_an_option=7 # no mark
. {ROOT}/utils/parse_options.sh "$@"
echo "nj=$nj force=$force max_bad=$max_bad overrides=${{overrides[*]}} n=${{#overrides[@]}}"
"""


@pytest.fixture
def parse(tmp_path: Path):
    script = tmp_path / "script.sh"
    script.write_text(SCRIPT)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["bash", script, *arguments], capture_output=True, text=True, timeout=30, check=False)

    return run


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        ([], "nj=2 force=false max_bad= overrides= n=0"),
        (["--nj", "4", "--force", "true"], "nj=4 force=true max_bad= overrides= n=0"),
        (["--nj=4", "--max-bad=0.1"], "nj=4 force=false max_bad=0.1 overrides= n=0"),
        (["--max_bad", "a b = c"], "nj=2 force=false max_bad=a b = c overrides= n=0"),
        (["--max_bad="], "nj=2 force=false max_bad= overrides= n=0"),
        (["--max_bad", ""], "nj=2 force=false max_bad= overrides= n=0"),
        (["--max_bad=--x"], "nj=2 force=false max_bad=--x overrides= n=0"),
        (
            ["--nj", "1", "--", "--optim.lr", "1e-4", "--nj"],
            "nj=1 force=false max_bad= overrides=--optim.lr 1e-4 --nj n=3",
        ),
        (["--"], "nj=2 force=false max_bad= overrides= n=0"),
    ],
)
def test_options_set_variables(parse, arguments, printed):
    result = parse(*arguments)
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, printed, "")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--njj", "4"], "unknown option --njj, did you mean --nj? (known: --nj --force --max_bad --help)"),
        (["--forse", "true"], "unknown option --forse, did you mean --force?"),
        (["--home", "x"], "unknown option --home (known"),
        (["--HIDDEN", "x"], "unknown option --HIDDEN (known"),
        (["--not_an_option", "x"], "unknown option --not_an_option (known"),
        (["--nj"], "--nj: a value is missing"),
        (["--nj", "--force", "true"], "--nj: a value is missing before '--force'"),
        (["--nj", "two"], "--nj: 'two' is not a whole number"),
        (["--nj", "-1"], "--nj: '-1' is not a whole number"),
        (["--nj="], "--nj: '' is not a whole number"),
        (["--force", "yes"], "--force: 'yes' is not true or false"),
        (["data/train"], "'data/train' is not an option"),
        (["-n", "3"], "'-n' is not an option"),
    ],
)
def test_a_wrong_option_is_one_line(parse, arguments, reason):
    result = parse(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: script.sh: ")
    assert reason in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_help_prints_options_and_defaults(parse):
    result = parse("--help")
    assert result.returncode == 0
    text = " ".join(result.stdout.split())
    assert "--nj 2 number of processes" in text
    assert '--max_bad "" largest share' in text
    assert "line of a terminal and continues here" in text
    assert "HIDDEN" not in text
    assert "not_an_option" not in text
    assert max(map(len, result.stdout.splitlines())) <= 80
