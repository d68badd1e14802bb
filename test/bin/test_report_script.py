"""The script of the report stage."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from scored_runs import scored_data, scored_run

from speechclip.bin.results import main

LEVEL = {"R@1": 1.0, "R@5": 5.0, "R@10": 10.0, "MRR": 3.0}
DIRECTION = LEVEL | {"n_queries": 5, "n_gallery": 5, "ci95": dict.fromkeys(LEVEL, [0.0, 20.0])}


@pytest.fixture
def run(tmp_path):
    names = ["speech->image", "image->speech"]
    scores = dict.fromkeys(names, DIRECTION) | {"random": dict.fromkeys(names, LEVEL), "mean_R@10": 10.0}
    scores["provenance"] = {"command": "score", "seed": 1, "commit": None}
    path = tmp_path / "exp" / "tiny_parallel" / "scores" / "retrieval.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(scores))
    return path.parent.parent


def test_a_line_for_every_file_written(run, tmp_path, capsys):
    main(["--exp", str(run), "--out", str(tmp_path / "RESULTS.md")])
    assert capsys.readouterr().out.splitlines() == [
        f"wrote {tmp_path}/RESULTS.md: rows of 1 run",
        f"wrote {run}/figures/retrieval.svg",
        f"wrote {run}/figures/retrieval.png",
    ]
    assert "| tiny  | parallel | 1    | retrieval | unknown" in (tmp_path / "RESULTS.md").read_text().replace(
        "|    1", "| 1   "
    )


def test_a_bad_run_ends_it_before_anything_is_written(run, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["--exp", str(run), str(tmp_path / "none"), "--out", str(tmp_path / "RESULTS.md")])
    assert end.value.code == 1
    assert capsys.readouterr().err == f"error: {tmp_path}/none: no such folder\n"
    assert not (tmp_path / "RESULTS.md").exists()
    assert not (run / "figures").exists()


def test_the_page_of_every_run_where_the_split_is_named(tmp_path, monkeypatch, capsys):
    recipe = scored_data(tmp_path / "mini", images=3, each=1)
    runs = [scored_run(recipe, f"tiny_parallel_seed{seed}", noise=0.5, seed=seed) for seed in (1, 2)]
    monkeypatch.chdir(recipe)
    words = ["--exp", *(str(run) for run in runs), "--data_dir", "data/test"]
    main([*words, "--dump_dir", "dump/test"])
    said = capsys.readouterr().out.splitlines()
    for run in runs:
        assert f"wrote {run}/report/index.html" in said
        assert f"<h1>{run.name}</h1>" in (run / "report" / "index.html").read_text(encoding="utf-8")
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert "give both or none" in capsys.readouterr().err


def test_an_unknown_option_names_the_known_ones(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--exp", "exp/a", "--output", "R.md"])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "--output" in error and "--exp" in error and "--out" in error


def test_help_needs_no_heavy_import():
    code = (
        "import sys\n"
        "from speechclip.bin.results import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'numpy', 'torch', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
