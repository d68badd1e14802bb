"""speechclip.bin.summary: the lines that end a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from speechclip.bin.summary import main, summary
from speechclip.common.errors import UserError


def _row(first: float, tenth: float) -> dict[str, float]:
    return {"R@1": first, "R@10": tenth}


RETRIEVAL: dict[str, Any] = {
    "speech->image": _row(12.34, 56.78), "image->speech": _row(23.45, 67.89), "text->image": _row(74.8, 97.0),
    "random": {"speech->image": _row(0.5, 5.0), "image->speech": _row(0.5, 4.9)},
}  # fmt: skip
KEYWORDS = {"content_top1": {"avg": 32.04}, "frequency_prior": {"content_top1": {"avg": 11.0}}}


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two scored runs below exp/; the second has keywords, a page and a checkpoint."""
    monkeypatch.chdir(tmp_path)
    folders = [Path("exp/tiny_parallel"), Path("exp/tiny_cascaded")]
    for folder in folders:
        (folder / "scores").mkdir(parents=True)
        (folder / "scores/retrieval.json").write_text(json.dumps(RETRIEVAL))
    (folders[1] / "scores/keywords.json").write_text(json.dumps(KEYWORDS))
    (folders[1] / "report").mkdir()
    (folders[1] / "report/index.html").write_text("")
    (folders[1] / "best").mkdir()
    return folders


def test_the_summary_shows_scores_topline_and_chance(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    main(["--exp", *map(str, runs), "--results", "exp/RESULTS.md"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[4:8]] == [
        ["tiny_parallel", "12.3", "56.8", "23.4", "67.9"],
        ["tiny_cascaded", "12.3", "56.8", "23.4", "67.9"],
        ["topline:", "written", "captions", "74.8", "97.0"],
        ["chance", "0.5", "5.0", "0.5", "4.9"],
    ]
    assert "  tiny_cascaded                   32.0   most frequent subwords  11.0" in lines
    assert lines.count("Page:    exp/tiny_cascaded/report/index.html") == 1
    assert "Tables:  exp/RESULTS.md" in lines
    assert "  speechclip index --model exp/tiny_cascaded/best \\" in lines


def test_the_summary_fits_80_columns(runs: list[Path]) -> None:
    long = runs[0].with_name("large_hybrid_plus_supervised_with_a_long_tag_seed12")
    runs[0].rename(long)
    lines = summary([long, runs[1]], Path("exp/RESULTS.md"))
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("  large_hybrid_p...tag_seed12 ") for line in lines)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"random": {}}, "retrieval.json: random / speech->image / R@1 is missing or is not a number"),
        ({"speech->image": _row("no", 3.0)}, "retrieval.json: speech->image / R@1 is missing"),  # type: ignore[arg-type]
    ],
)
def test_a_missing_score_is_one_line(runs: list[Path], change: dict[str, Any], problem: str) -> None:
    (runs[0] / "scores/retrieval.json").write_text(json.dumps({**RETRIEVAL, **change}))
    with pytest.raises(UserError, match=problem):
        summary(runs, None)


def test_missing_scores_name_their_stage(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    (runs[0] / "scores/retrieval.json").unlink()
    with pytest.raises(SystemExit, match="1"):
        main(["--exp", *map(str, runs)])
    assert capsys.readouterr().err == "error: exp/tiny_parallel/scores/retrieval.json: is missing. Run stage 4.\n"
