"""results.jsonl: rows of runs, merging, and errors that name the line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from result_runs import COMMIT, SETTINGS, Make

from speechclip.common.errors import UserError
from speechclip.report.results.rows import merge_rows, read_rows, related, rows_of_run, write_rows
from speechclip.report.runs import load_run


def test_rows_hold_every_step_of_a_run(make: Make, tmp_path: Path) -> None:
    run = make("tiny_cascaded_x_seed3", 40, seed=3, rate=30.0, trained_at="abc", recipe_command="./run.sh --seed 3")
    rows = rows_of_run(run, "mini")
    assert [row.step for row in rows] == ["train", "retrieval", "keywords"]
    assert {row.run_key for row in rows} == {("mini", "tiny", "cascaded", "x", 3)}
    assert [row.commit for row in rows] == ["abc", COMMIT, COMMIT]
    assert {row.trained_at for row in rows} == {"abc"} and {row.settings for row in rows} == {SETTINGS}
    assert [row.recipe_command for row in rows] == ["", "./run.sh --seed 3", "./run.sh --seed 3"]
    assert rows[0].scores.content == {"trained": 7483917, "train_seconds": 61.4}
    assert rows[1].scores.number("speech->image", "R@1") == 40 and "provenance" not in rows[1].scores.content
    write_rows(tmp_path / "results.jsonl", rows)
    again = read_rows(tmp_path / "results.jsonl")
    assert [row.key for row in again] == [row.key for row in rows]
    assert [row.scores.content for row in again] == [row.scores.content for row in rows]
    line = json.loads((tmp_path / "results.jsonl").read_text().splitlines()[1])
    assert line["command"] == "score --data data/test | tee log" and line["scores"]["mean_R@10"] == 60.5


def test_numbers_are_stored_with_four_decimals(make: Make) -> None:
    row = rows_of_run(make("tiny_parallel", 100 / 3), "mini")[1]
    assert row.scores.number("speech->image", "R@1") == 33.3333


def test_published_weights_have_no_training_row(make: Make) -> None:
    run = make("large_parallel", 40, seed=None, tag="published")
    run.directory.joinpath("best/provenance.json").unlink()
    rows = rows_of_run(load_run(run.directory), "flickr8k")
    assert [(row.step, row.trained_at, row.seed_text, row.tag) for row in rows] == [
        ("retrieval", "", "unknown", "published")
    ]


def test_scores_repeat_the_training_of_other_weights(make: Make) -> None:
    training = {"command": "train there", "commit": "abc", "trained": 5000}
    run = make("large_parallel", 40, training=training)
    run.directory.joinpath("best/provenance.json").unlink()
    rows = rows_of_run(load_run(run.directory), "flickr8k")
    assert [(row.step, row.commit, row.command) for row in rows][0] == ("train", "abc", "train there")
    assert rows[0].scores.content == {"trained": 5000} and rows[1].trained_at == "abc"


@pytest.mark.parametrize(
    ("change", "replace", "left"),
    [
        ({}, False, [40.0]),  # the same measurement is replaced
        ({"commit": "f" * 40}, False, [40.0, 41.0]),
        ({"commit": "f" * 40}, True, [41.0]),
        ({"settings": "other"}, False, [40.0, 41.0]),
        ({"settings": "other"}, True, [41.0]),
        ({"seed": 1}, True, [40.0, 41.0]),  # another run
    ],
)
def test_merge_keeps_other_commits_and_settings(make: Make, change: dict, replace: bool, left: list[float]) -> None:
    old = rows_of_run(make("tiny_parallel", 40), "mini")
    new = rows_of_run(make("tiny_parallel_new", 41 if change else 40, tag="", **change), "mini")
    rows = [row for row in merge_rows(old, new, replace=replace) if row.step == "retrieval"]
    assert [row.scores.number("speech->image", "R@1") for row in rows] == left


def test_merge_refuses_two_folders_of_one_run(make: Make) -> None:
    rows = [*rows_of_run(make("tiny_parallel", 40), "mini"), *rows_of_run(make("tiny_parallel_seed0", 40), "mini")]
    with pytest.raises(UserError, match="tiny_parallel_seed0/best/.*: same model, head, tag and seed as .*Add a tag"):
        merge_rows([], rows, replace=True)


def test_related_prefers_settings_and_commit(make: Make) -> None:
    old = rows_of_run(make("tiny_cascaded", 40, rate=10.0, commit="a" * 40, trained_at="t"), "mini")
    new = rows_of_run(make("tiny_cascaded", 41, rate=20.0, commit="b" * 40, trained_at="t"), "mini")
    other = rows_of_run(make("tiny_cascaded", 42, rate=30.0, commit="c" * 40, trained_at="u"), "mini")
    rows = [*new, *old, *other]
    for run in (old, new, other):
        assert related(run[1], "keywords", rows) is run[2]
    assert related(old[1], "keywords", new) is new[2]  # only the keywords were scored again
    assert related(old[1], "keywords", other) is None  # other weights


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "line 2 is not a row of results"),
        ("[]", "line 2 is not a row of results"),
        ('{"scores": {}}', "line 2 is not a row of results"),
        ("STEP", "line 2 is not a row of results"),
    ],
)
def test_a_damaged_line_is_named(make: Make, tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "results.jsonl"
    write_rows(path, rows_of_run(make("tiny_parallel", 40), "mini")[:1])
    first = path.read_text()
    path.write_text(first + (first.replace('"train"', '"sing"') if text == "STEP" else text) + "\n")
    with pytest.raises(UserError, match=f"results.jsonl: {reason}"):
        read_rows(path)


def test_a_missing_file_has_no_rows(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "none.jsonl") == []
    (tmp_path / "bad.jsonl").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match="bad.jsonl: cannot be read"):
        read_rows(tmp_path / "bad.jsonl")
