"""The files in scores/: atomic writes, readers, and paired tests of two runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from speechclip.common.errors import MissingFileError, UserError
from speechclip.data.embeddings import load_embeddings
from speechclip.eval.score_files import (
    compare_keyword_files,
    compare_rank_files,
    compare_stage_files,
    read_attention,
    read_keyword_lines,
    read_scores,
    write_attention,
    write_contributions,
    write_keywords,
    write_ranks,
    write_retrieval,
)

WEIGHTS = [np.array([[0.25, 0.75], [1.0, 0.0]]), np.empty((0, 3)), np.array([[0.5, 0.25, 0.25]])]


def test_retrieval_files_have_every_branch(tmp_path: Path) -> None:
    report = {"speech->image": {"R@1": 50.0}, "provenance": {"data": {"test": "x"}}}
    branches = {"parallel": np.eye(2, dtype=np.float32), "cascaded": np.eye(2, dtype=np.float32)[::-1]}
    ranks = {"speech->image": (np.array([1, 2]), np.array([0, 1]))}
    write_retrieval(tmp_path / "scores", report, ["a", "b"], branches, ranks)
    names = ["ranks.npz", "retrieval.json", "speech_embeddings.npz", "speech_embeddings_cascaded.npz"]
    assert sorted(path.name for path in (tmp_path / "scores").iterdir()) == names
    assert read_scores(tmp_path / "scores" / "retrieval.json") == report
    assert load_embeddings(tmp_path / "scores" / names[2])[1].tolist() == [[1, 0], [0, 1]]
    assert load_embeddings(tmp_path / "scores" / names[3])[1].tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("kept", [0, 3])
def test_keyword_files_are_replaced_together(tmp_path: Path, kept: int) -> None:
    write_attention(tmp_path / "attention.npz", ["old"], WEIGHTS[:1])
    records = [{"utterance": "a", "keyword": 1, "caption": "ä"}]
    arrays = {"clean": np.ones((3, 2))}
    write_keywords(tmp_path, {"clean": {"avg": 1.0}}, iter(records), list("abc"), list("xxy"), arrays, WEIGHTS[:kept])
    names = ["attention.npz"] * bool(kept) + ["keywords.json", "keywords.jsonl", "keywords.npz"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert [json.loads(line) for line in (tmp_path / "keywords.jsonl").read_text().splitlines()] == records
    assert list(read_attention(tmp_path / "attention.npz")) == list("abc")[:kept]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "keywords.jsonl").write_text("old\n")

    def records() -> Any:
        yield {"utterance": "a"}
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_keywords(tmp_path, {}, records(), ["a"], ["x"], {}, [])
    assert [path.name for path in tmp_path.iterdir()] == ["keywords.jsonl"]
    assert (tmp_path / "keywords.jsonl").read_text() == "old\n"


def test_attention_is_stored_flat_in_half_precision(tmp_path: Path) -> None:
    path = tmp_path / "attention.npz"
    write_attention(path, ["a", "b", "c"], WEIGHTS)
    with np.load(path, allow_pickle=False) as file:
        stored = {name: file[name] for name in file.files}
    assert stored["ids"].tolist() == ["a", "b", "c"] and stored["weights"].dtype == np.float16
    assert (stored["keywords"].tolist(), stored["frames"].tolist()) == ([2, 0, 1], [2, 3, 3])
    for weights, wanted in zip(read_attention(path).values(), WEIGHTS, strict=True):
        assert weights.tolist() == wanted.tolist()


def test_keyword_lines_are_sorted_by_number(tmp_path: Path) -> None:
    lines = [{"utterance": name, "keyword": number} for name in "abc" for number in (2, 1)]
    path = tmp_path / "keywords.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_keyword_lines(path, ["c", "a", "none"])
    numbers = {name: [record["keyword"] for record in records] for name, records in found.items()}
    assert numbers == {"a": [1, 2], "c": [1, 2]}


def ranks_of(path: Path, ranks: list[int], images: list[int], data: str = "x") -> Path:
    write_ranks(path, {"speech->image": (np.array(ranks), np.array(images))}, {"test": data})
    return path


def test_rank_files_are_compared_by_image(tmp_path: Path) -> None:
    first = ranks_of(tmp_path / "a.npz", [1, 1, 2], [0, 0, 1])
    second = ranks_of(tmp_path / "b.npz", [1, 3, 2], [0, 0, 1])
    tests = compare_rank_files([first], [second], n=50)
    row = tests["speech->image"]["R@1"]
    assert [row[key] for key in ("first", "second", "difference")] == pytest.approx([200 / 3, 100 / 3, 100 / 3])
    assert list(tests) == ["speech->image"] and list(tests["speech->image"]) == ["R@1", "R@5", "R@10", "MRR"]


def test_keyword_files_are_compared_by_id(tmp_path: Path) -> None:
    rows = np.array([[1, 2], [2, 2], [0, 2]])
    for name, order in (("a", [0, 1, 2]), ("b", [2, 1, 0])):
        ids, images = [list("uvw")[at] for at in order], [list("xxy")[at] for at in order]
        write_contributions(tmp_path / f"{name}.npz", ids, images, {"clean": rows[order]})
    tests = compare_keyword_files([tmp_path / "a.npz"], [tmp_path / "b.npz"], n=20)
    assert (tests["clean"]["first"], tests["clean"]["difference"]) == (pytest.approx(50.0), 0.0)
    assert compare_keyword_files([tmp_path / "a.npz"], [tmp_path / "none.npz"]) == {}


def test_seeds_are_compared_in_one_test(tmp_path: Path) -> None:
    """All queries of an image, of both seeds, change systems together: two images have four exchanges."""
    for name, ranks in {"a0": [1, 1], "a1": [1, 1], "b0": [3, 3], "b1": [1, 3]}.items():
        ranks_of(tmp_path / f"{name}.npz", ranks, [0, 1])
    first, second = ([tmp_path / f"{name}{seed}.npz" for seed in (0, 1)] for name in "ab")
    row = compare_rank_files(first, second, n=4000)["speech->image"]["R@1"]
    assert (row["first"], row["second"], row["difference"]) == (100, 25, 75)
    assert row["p"] == pytest.approx(0.5, abs=0.05)  # two of four exchanges; four queries alone would give 0.25
    ranks_of(tmp_path / "b1.npz", [1, 3], [0, 1], data="y")
    with pytest.raises(UserError, match="b1.npz: scored on other data than .*a0.npz. Score both runs on the same data"):
        compare_rank_files(first, second)
    ranks_of(tmp_path / "b1.npz", [1, 3], [1, 0])
    with pytest.raises(UserError, match="b0.npz: speech->image: other queries than in .*a0.npz"):
        compare_rank_files(first, second)


def test_second_stage_is_compared_over_seeds(tmp_path: Path) -> None:
    images, files = np.array([0, 1]), [tmp_path / "a.npz", tmp_path / "b.npz"]
    for path, coarse, fine in zip(files, ([2, 1], [2, 2]), ([1, 1], [1, 3])):
        rows = {name: (np.array(value), images) for name, value in (("x->y", coarse), ("x->y (coarse to fine)", fine))}
        write_ranks(path, rows, {"test": "x"})
    tests = compare_stage_files(files, n=50)
    assert list(tests) == ["x->y", "mean"]
    assert [tests[name]["R@1"]["difference"] for name in tests] == [50, 50]
    assert (tests["x->y"]["R@1"]["first"], tests["x->y"]["R@1"]["second"]) == (75, 25)
    with pytest.raises(UserError, match="c.npz: has no scores of a second stage. Score a head with one"):
        compare_stage_files([ranks_of(tmp_path / "c.npz", [1, 2], [0, 1])])


def test_keywords_are_compared_over_seeds(tmp_path: Path) -> None:
    for name, hits in {"a0": [2, 1], "a1": [2, 2], "b0": [1, 1], "b1": [0, 0]}.items():
        rows = {"clean": np.array([[h, 2] for h in hits])}
        write_contributions(tmp_path / f"{name}.npz", ["u", "v"], ["x", "y"], rows)
    first, second = ([tmp_path / f"{name}{seed}.npz" for seed in (0, 1)] for name in "ab")
    row = compare_keyword_files(first, second, n=20)["clean"]
    assert (row["first"], row["second"]) == (pytest.approx(87.5), pytest.approx(25))


def _short(path: Path) -> None:
    np.savez(path, ids=np.array(["a"]), images=np.array(["x"]), clean=np.zeros((2, 2)))


def _unfit(path: Path) -> None:
    np.savez(path, ids=np.array(["a"]), keywords=np.array([2]), frames=np.array([3]), weights=np.zeros(9))


@pytest.mark.parametrize(
    ("name", "write", "read", "reason"),
    [
        ("ranks.npz", None, lambda p: compare_rank_files([p], [p]), "is missing"),
        ("ranks.npz", lambda p: p.write_text("x"), lambda p: compare_rank_files([p], [p]), "not a readable"),
        ("ranks.npz", _short, lambda p: compare_rank_files([p], [p]), "the array 'data' is missing"),
        ("keywords.npz", _short, lambda p: compare_keyword_files([p], [p]), "the arrays differ in length"),
        ("keywords.npz", lambda p: p.write_text("x"), lambda p: compare_keyword_files([p], [p]), "not a readable"),
        ("attention.npz", _unfit, read_attention, "9 weights do not fit 1 utterances"),
        ("attention.npz", _short, read_attention, "the array 'frames' is missing"),
        ("attention.npz", lambda p: p.write_text("x"), read_attention, "not a readable"),
        ("keywords.jsonl", None, lambda p: read_keyword_lines(p, ["a"]), "is missing"),
        ("keywords.jsonl", lambda p: p.write_text('{"utterance": "b"}\n{"utt'), lambda p: read_keyword_lines(p, ["a"]),
         "line 2 is not a keyword"),
        ("retrieval.json", None, read_scores, "is missing"),
        ("retrieval.json", lambda p: p.write_text("[1]"), read_scores, "a JSON object"),
    ],
)  # fmt: skip
def test_bad_files_give_one_line(
    tmp_path: Path, name: str, write: Callable[[Path], Any] | None, read: Callable[[Path], Any], reason: str
) -> None:
    path = tmp_path / name
    if write:
        write(path)
    with pytest.raises(UserError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}: {reason}") and "stage" not in str(error.value)
    assert isinstance(error.value, MissingFileError) == (write is None)


def test_runs_on_other_data_are_not_compared(tmp_path: Path) -> None:
    first = ranks_of(tmp_path / "a.npz", [1, 1], [0, 1])
    for name, images, data, reason in (("b", [0, 1], "y", "other data"), ("c", [0, 0], "x", "other queries")):
        second = ranks_of(tmp_path / f"{name}.npz", [1, 1], images, data)
        with pytest.raises(UserError, match=reason):
            compare_rank_files([first], [second])
