"""The folder of a scored run: names, seeds, and errors that name the file and the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from result_runs import keyword_scores, write, write_run

from speechclip.common.errors import MissingFileError, UserError
from speechclip.report.runs import Scores, load_run


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tiny_parallel", ("tiny", "parallel", "")),
        ("tiny_parallel_seed2", ("tiny", "parallel", "")),
        ("tiny_hybrid_plus_seed2", ("tiny", "hybrid_plus", "")),
        ("large_cascaded_two_layers_seed2", ("large", "cascaded", "two_layers")),
        ("base_hybrid+_t0.1", ("base", "hybrid+", "t0.1")),
        ("tiny_fast_vgs", ("tiny", "fast_vgs", "")),
        ("tiny_fast_vgs_frcnn_seed2", ("tiny", "fast_vgs", "frcnn")),
    ],
)
def test_folder_name_gives_model_head_and_tag(tmp_path: Path, name: str, expected: tuple[str, str, str]) -> None:
    run = write_run(tmp_path / name, 40)
    assert (run.model, run.head, run.tag) == expected


def test_provenance_wins_over_the_folder_name(tmp_path: Path) -> None:
    run = write_run(tmp_path / "mine", 40, model="base", head="parallel")
    assert (run.model, run.head, run.tag) == ("base", "parallel", "")
    with pytest.raises(UserError, match="mine: the name has no model and head"):
        write_run(tmp_path / "mine", 40)


@pytest.mark.parametrize("name", ["retrieval.json", "keywords.json"])
@pytest.mark.parametrize("key", ["command", "seed", "commit"])
def test_a_missing_key_is_named(tmp_path: Path, name: str, key: str) -> None:
    run = write_run(tmp_path / "tiny_cascaded", 40, rate=20.0)
    scores = run.keywords if name == "keywords.json" else run.retrieval
    assert scores is not None
    content: dict[str, Any] = {**scores.content}
    content["provenance"] = {name: value for name, value in content["provenance"].items() if name != key}
    write(scores.path, content)
    with pytest.raises(UserError, match=f"{name}: the key '{key}' is missing in 'provenance'"):
        load_run(run.directory)


def test_bad_folders_give_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: is not a directory"):
        load_run(tmp_path / "nowhere")
    (tmp_path / "tiny_parallel").mkdir()
    with pytest.raises(MissingFileError, match=r"scores/retrieval\.json: is missing$"):
        load_run(tmp_path / "tiny_parallel")
    run = write_run(tmp_path / "tiny_cascaded", 40, seed=1, rate=20.0)
    other = {"command": "", "seed": 2, "commit": ""}
    write(run.directory / "scores" / "keywords.json", {**keyword_scores(20.0), "provenance": other})
    with pytest.raises(UserError, match="keywords.json: made with another seed than"):
        load_run(run.directory)
    write(run.directory / "best" / "provenance.json", other)
    with pytest.raises(UserError, match="retrieval.json: made with seed 1, .* with another one. Score the run again"):
        load_run(run.directory)
    run.retrieval.path.write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="not valid JSON"):
        load_run(run.directory)


@pytest.mark.parametrize("value", [None, True, "1", float("nan")])
def test_a_score_must_be_a_finite_number(value: Any) -> None:
    scores = Scores(Path("s.json"), {"a": {"b": value}})
    with pytest.raises(UserError, match="s.json: 'a' / 'b' is .*, not a number"):
        scores.number("a", "b")
