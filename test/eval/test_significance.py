"""The paired test between two runs, and the scorer of two files."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from speechclip.bin.score_embeddings import main as score
from speechclip.common.errors import UserError
from speechclip.data.embeddings import save_embeddings
from speechclip.eval.significance import compare_runs, paired_scores, paired_test, save_ranks


def test_p_is_the_share_of_exchanges_that_reach_the_difference() -> None:
    # per image, hits of the first minus hits of the second: 2, 1, 1, -1
    first, second = [1, 1, 1, 1, 9, 9], [9, 9, 9, 9, 9, 1]
    clusters = [0, 0, 1, 2, 2, 3]
    found = paired_test(first, second, clusters, n=20000, seed=1)["R@1"]
    sums = np.array([2, 1, 1, -1])
    exact = np.mean([abs(np.dot(signs, sums)) >= 3 for signs in itertools.product((-1, 1), repeat=4)])
    assert found["difference"] == pytest.approx(50.0) and found["first"] == pytest.approx(100 * 4 / 6)
    assert found["p"] == pytest.approx(exact, abs=0.015)


def test_equal_runs_and_a_clear_difference() -> None:
    rng = np.random.default_rng(0)
    ranks, clusters = rng.integers(1, 20, 300), np.repeat(np.arange(60), 5)
    assert all(
        row["p"] == 1.0 and row["difference"] == 0 for row in paired_test(ranks, ranks, clusters, n=200).values()
    )
    clear = paired_test(np.ones(300), ranks + 1, clusters, n=999, seed=3)
    assert clear["R@1"]["p"] == pytest.approx(0.001) and clear == paired_test(
        np.ones(300), ranks + 1, clusters, n=999, seed=3
    )


def test_queries_of_one_image_count_once() -> None:
    # a hundred queries of one image that all improve are one draw: an exchange of it is as large
    assert paired_test([1] * 100, [9] * 100, [0] * 100, n=500)["R@1"]["p"] == 1.0


def test_misfits() -> None:
    for ranks, clusters in (([1, 2], [0]), ([], [])):
        with pytest.raises(ValueError, match="do not fit"):
            paired_test(ranks, ranks, clusters)


def rate(sums: np.ndarray) -> np.ndarray:
    """Hits of what is counted, in percent."""
    return 100 * sums[..., :1] / np.maximum(sums[..., 1:], 1)


def test_scores_that_are_ratios_against_every_exchange() -> None:
    # hits and keywords of each utterance, which the two runs have different numbers of; the first two are of one image
    first, second = [[2, 2], [1, 3], [4, 5], [0, 1], [2, 4]], [[0, 4], [1, 2], [1, 6], [1, 1], [1, 3]]
    images = np.array(["a", "a", "b", "c", "d"])
    found = paired_scores(first, second, images, rate, ["clean"], n=20000, seed=2)["clean"]
    assert (found["first"], found["second"]) == pytest.approx((100 * 9 / 15, 100 * 4 / 16))
    assert found["difference"] == pytest.approx(35.0)
    reached = []
    for exchanged in itertools.product((False, True), repeat=4):
        sums = np.zeros((2, 2))
        for row, image in enumerate(images):
            pair = [first[row], second[row]]
            sums += pair[::-1] if exchanged["abcd".index(image)] else pair
        reached.append(abs(np.diff(rate(sums)[:, 0])[0]) >= 35.0 - 1e-9)
    assert 0.1 < np.mean(reached) < 0.6
    assert found["p"] == pytest.approx(np.mean(reached), abs=0.015)


def test_the_interval_of_a_difference_by_hand() -> None:
    # of two images the first gains all, the second nothing; resamples hold one of them or both
    found = paired_scores([[1, 1], [1, 1]], [[0, 1], [1, 1]], [0, 1], rate, ["x"], n=10)["x"]
    assert (found["difference"], found["ci95"]) == (50.0, [0.0, 100.0])
    same = paired_scores([[1, 1], [0, 1]], [[1, 1], [0, 1]], [0, 1], rate, ["x"], n=10)["x"]
    assert (same["difference"], same["ci95"], same["p"]) == (0.0, [0.0, 0.0], 1.0)  # paired: both are drawn together
    assert paired_test([1, 1], [9, 1], [0, 1], n=10)["R@1"]["ci95"] == [0.0, 100.0]
    with pytest.raises(ValueError, match="do not fit"):
        paired_scores([[1, 1]], [[1, 1], [1, 1]], [0], rate, ["x"])
    with pytest.raises(ValueError, match="0 choices"):
        paired_scores([[1, 1]], [[1, 1]], [0], rate, ["x"], n=0)


def test_runs_are_compared_on_the_same_queries_only(tmp_path: Path) -> None:
    images = np.array([0, 0, 1])
    for name, ranks, data in (("a", [1, 1, 2], "x"), ("b", [1, 3, 2], "x"), ("c", [1, 1, 1], "y")):
        (tmp_path / name / "scores").mkdir(parents=True)
        save_ranks(
            tmp_path / name / "scores" / "ranks.npz", {"speech->image": (np.array(ranks), images)}, {"test": data}
        )
    found = compare_runs(*(tmp_path / name / "scores" / "ranks.npz" for name in "ab"), n=50)
    row = found["speech->image"]["R@1"]
    assert [row[key] for key in ("first", "second", "difference")] == pytest.approx([200 / 3, 100 / 3, 100 / 3])
    assert list(found) == ["speech->image"] and list(found["speech->image"]) == ["R@1", "R@5", "R@10", "MRR"]
    with pytest.raises(UserError, match="scored on other data"):
        compare_runs(*(tmp_path / name / "scores" / "ranks.npz" for name in "ac"))
    with pytest.raises(UserError, match="none.npz: is missing$"):
        compare_runs(tmp_path / "none.npz", tmp_path / "none.npz")
    (tmp_path / "bad.npz").write_text("x")
    with pytest.raises(UserError, match="not a readable"):
        compare_runs(tmp_path / "bad.npz", tmp_path / "bad.npz")


def test_two_files_with_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_embeddings(tmp_path / "speech.npz", ["u1", "u2", "u3"], np.array([[1, 0], [0.9, 0.1], [0, 1]]))
    save_embeddings(tmp_path / "images.npz", ["x", "y", "z"], np.array([[0, 1], [1, 0], [1, 1]]))
    (tmp_path / "utt2img").write_text("u1 y\nu2 x\nu3 x\n")
    score([
        "--queries", str(tmp_path / "speech.npz"), "--gallery", str(tmp_path / "images.npz"),
        "--query_groups", str(tmp_path / "utt2img"), "--out", str(tmp_path / "scores.json"), "--bootstrap", "10",
    ])  # fmt: skip
    report = json.loads((tmp_path / "scores.json").read_text())
    # u1 finds y first, u3 finds x first, u2 finds y, z, x; z has no utterance and does not ask; x and y find theirs
    assert report["queries->gallery"]["R@1"] == pytest.approx(200 / 3)
    assert report["queries->gallery"]["MRR"] == pytest.approx(100 * (1 + 1 + 1 / 3) / 3)
    assert report["gallery->queries"]["R@1"] == 100.0 and report["gallery->queries"]["n_queries"] == 2
    assert report["chance queries->gallery"]["R@1"] == pytest.approx(100 / 3)
    assert "queries->gallery" in capsys.readouterr().out
    with pytest.raises(SystemExit):  # ids that are no groups of the other file
        score(["--queries", str(tmp_path / "speech.npz"), "--gallery", str(tmp_path / "images.npz")])
    assert "nothing for u1" in capsys.readouterr().err
