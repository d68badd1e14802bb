"""What utterances add to keyword scores: their sums are the scores, and two runs are compared by them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from circle import circle_table, on_circle, padded

from speechclip.common.errors import UserError
from speechclip.eval.contributions import compare_keywords, contributions, save_contributions
from speechclip.eval.gold import Word
from speechclip.eval.keywords import Settings, find_neighbours, score
from speechclip.eval.words import word_measures

COUNTS = {11: 9, 13: 8, 12: 7, 18: 6, 17: 5, 10: 4}
IDS = [f"u{number}" for number in range(30)]
IMAGES = [f"i{number // 2}" for number in range(30)]


def case_of(seed: int):
    """A case of 30 utterances with up to four keywords, and the words of the captions, which no seed changes."""
    generator = np.random.default_rng(0)
    words = [[Word(f"w{i}", (i, i + 1)) for i in generator.integers(10, 18, 3)] for _ in IDS]
    golds = [{identity for word in caption for identity in word.ids} for caption in words]
    golds[0] = set()
    generator = np.random.default_rng(seed)
    mask = np.arange(4)[None, :] < generator.integers(0, 5, len(IDS))[:, None]
    z = on_circle(*generator.uniform(-90, 90, mask.size)).reshape(*mask.shape, 2)
    reference = [padded(*gold) if number else set() for number, gold in enumerate(golds)]
    images = [int(name[1:]) for name in IMAGES]
    return find_neighbours(z, mask, circle_table(), golds, reference, COUNTS, images, Settings(bootstrap=0)), words


def test_their_sums_are_the_scores() -> None:
    case, words = case_of(1)
    found, report = contributions(case, words), score(case, words, Settings(bootstrap=0))
    for name in ("clean", "reference", "content_top1"):
        hits, counted = found[name].sum(axis=0)
        assert 100 * hits / counted == pytest.approx(report[name]["avg"])
        assert counted == report["n_keywords"][name]["avg"]
        assert found[name][0].tolist() == [0, 0]  # its caption holds nothing
    for kind in ("all", "content"):
        cosines, counted = found[f"gold_cosine {kind}"].sum(axis=0)
        assert cosines / counted == pytest.approx(report["gold_cosine"][kind]["avg"])
        measured = word_measures(found[f"words {kind}"].sum(axis=0))
        assert measured[2] == pytest.approx(report["words"][kind]["f1"])
    assert len(found) == 7 and all(len(rows) == len(IDS) for rows in found.values())


def saved(path: Path, seed: int, rows: slice = slice(None)) -> Path:
    case, words = case_of(seed)
    save_contributions(
        path, IDS[rows], IMAGES[rows], {name: columns[rows] for name, columns in contributions(case, words).items()}
    )
    return path


def test_two_runs_are_compared_on_every_score(tmp_path: Path) -> None:
    paths = [saved(tmp_path / f"{seed}.npz", seed) for seed in (1, 2)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.npz", "2.npz"]
    found = compare_keywords(*paths, n=50, seed=3)
    reports = [score(*case_of(seed), Settings(bootstrap=0)) for seed in (1, 2)]
    for key, report in zip(("first", "second"), reports, strict=True):
        assert found["clean"][key] == pytest.approx(report["clean"]["avg"])
        assert found["gold_cosine content"][key] == pytest.approx(report["gold_cosine"]["content"]["avg"])
        assert found["words content whole_recall"][key] == pytest.approx(report["words"]["content"]["whole_recall"])
    assert len(found) == 3 + 2 + 2 * 6
    for row in found.values():
        assert row["difference"] == pytest.approx(row["first"] - row["second"])
        assert row["ci95"][0] <= row["difference"] <= row["ci95"][1] and 0 < row["p"] <= 1
    assert found == compare_keywords(*paths, n=50, seed=3)
    assert all(row["p"] == 1.0 for row in compare_keywords(paths[0], paths[0], n=50).values())


def test_only_utterances_of_both_count(tmp_path: Path) -> None:
    whole, part = saved(tmp_path / "whole.npz", 1), saved(tmp_path / "part.npz", 1, slice(12, 4, -1))
    found = compare_keywords(whole, part, n=20)
    assert found["clean"]["difference"] == 0.0  # and in the order of their ids, not of the files
    case, words = case_of(1)
    hits, counted = contributions(case, words)["clean"][5:13].sum(axis=0)
    assert found["clean"]["first"] == pytest.approx(100 * hits / counted)
    assert compare_keywords(part, saved(tmp_path / "other.npz", 1, slice(20, 25)), n=20) == {}


def test_what_is_missing_or_damaged(tmp_path: Path) -> None:
    whole = saved(tmp_path / "whole.npz", 1)
    assert compare_keywords(whole, tmp_path / "none.npz") == {}
    np.savez(tmp_path / "short.npz", ids=np.array(IDS), images=np.array(IMAGES), clean=np.zeros((2, 2)))
    for name, reason in (("short.npz", "not what stage 5 writes"), ("text.npz", "not a readable")):
        if name == "text.npz":
            (tmp_path / name).write_text("x")
        with pytest.raises(UserError, match=f"{name}: {reason}"):
            compare_keywords(whole, tmp_path / name)
