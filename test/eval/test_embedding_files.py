"""Retrieval scores of two files of embeddings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from speechclip.bin.score_embeddings import main as score
from speechclip.data.embeddings import save_embeddings


def test_embedding_files_are_scored_both_ways(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_embeddings(tmp_path / "speech.npz", ["u1", "u2", "u3"], np.array([[1, 0], [0.9, 0.1], [0, 1]]))
    save_embeddings(tmp_path / "images.npz", ["x", "y", "z"], np.array([[0, 1], [1, 0], [1, 1]]))
    (tmp_path / "utt2img").write_text("u1 y\nu2 x\nu3 x\n")
    score([
        "--queries", str(tmp_path / "speech.npz"), "--gallery", str(tmp_path / "images.npz"),
        "--query_groups", str(tmp_path / "utt2img"), "--out", str(tmp_path / "scores.json"), "--bootstrap", "10",
    ])  # fmt: skip
    report = json.loads((tmp_path / "scores.json").read_text())
    # u1 ranks y first, u3 ranks x first, u2 ranks y, z, x. z has no utterance and is not a query. x and y rank
    # theirs first
    assert report["queries->gallery"]["R@1"] == pytest.approx(200 / 3)
    assert report["queries->gallery"]["MRR"] == pytest.approx(100 * (1 + 1 + 1 / 3) / 3)
    assert report["gallery->queries"]["R@1"] == 100.0 and report["gallery->queries"]["n_queries"] == 2
    assert report["chance queries->gallery"]["R@1"] == pytest.approx(100 / 3)
    assert "queries->gallery" in capsys.readouterr().out
    with pytest.raises(SystemExit):  # ids are not groups of the other file
        score(["--queries", str(tmp_path / "speech.npz"), "--gallery", str(tmp_path / "images.npz")])
    assert "no item of the group u1" in capsys.readouterr().err
