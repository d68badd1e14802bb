"""The script of tables, figures and pages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from result_runs import write_run
from scored_runs import scored_data, scored_run

from speechclip.bin.results import main


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "exp" / "tiny_parallel_seed1", 40.0, 1).directory


def test_script_prints_every_file(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--exp", str(run), "--out", str(tmp_path / "exp" / "RESULTS.md")])
    assert capsys.readouterr().out.splitlines() == [
        f"wrote {tmp_path}/exp/results.jsonl: 2 rows",
        f"wrote {tmp_path}/exp/RESULTS.md",
        f"wrote {run}/figures/retrieval.svg",
        f"wrote {run}/figures/retrieval.png",
    ]
    assert "40.00" in (tmp_path / "exp" / "RESULTS.md").read_text()


def test_commit_to_changes_only_the_results(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "egs" / "mini"
    folder.mkdir(parents=True)
    (folder / "RESULTS.template.md").write_text("# Mini\n\n<!-- tables: retrieval -->\n")
    main(["--commit_to", str(folder), "--exp", str(run)])
    said = [f"wrote {folder}/results.jsonl: 2 rows", f"wrote {folder}/RESULTS.md"]
    assert capsys.readouterr().out.splitlines() == said
    assert '"recipe": "mini"' in (folder / "results.jsonl").read_text()
    assert sorted(path.name for path in folder.iterdir()) == ["RESULTS.md", "RESULTS.template.md", "results.jsonl"]
    assert not (run / "figures").exists() and not (tmp_path / "exp" / "RESULTS.md").exists()
    main(["--commit_to", str(folder)])  # renders again
    assert capsys.readouterr().out.splitlines() == said


def test_a_bad_run_writes_nothing(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--exp", str(run), str(tmp_path / "none"), "--out", str(tmp_path / "RESULTS.md")])
    assert end.value.code == 1
    assert capsys.readouterr().err == f"error: {tmp_path}/none: is not a directory. Give the folder of a run.\n"
    assert not (tmp_path / "RESULTS.md").exists() and not (run / "figures").exists()


def test_data_dir_adds_a_page_for_every_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = scored_data(tmp_path / "mini", images=3, each=1)
    runs = [scored_run(recipe, f"tiny_parallel_seed{seed}", noise=0.5, seed=seed) for seed in (1, 2)]
    monkeypatch.chdir(recipe)
    main(["--exp", *(str(run) for run in runs), "--data_dir", "data/test", "--dump_dir", "dump/test"])
    lines = capsys.readouterr().out.splitlines()
    for run in runs:
        assert f"wrote {run}/report/index.html" in lines
        assert f"<h1>{run.name}</h1>" in (run / "report" / "index.html").read_text(encoding="utf-8")
    assert (recipe / "exp" / "RESULTS.md").exists()  # the default


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--exp", "exp/a", "--data_dir", "d"], "give both or none"),
        (["--exp", "exp/a", "--output", "R.md"], "--output"),
        (["--exp", "exp/a", "--replace"], "--replace: needs --commit_to"),
        ([], "--exp: give at least one folder"),
    ],
)
def test_wrong_options_give_one_line(words: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    error = capsys.readouterr().err
    assert end.value.code == 2 and reason in error and len(error.splitlines()) == 1


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from speechclip.bin.results import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'numpy', 'torch', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
