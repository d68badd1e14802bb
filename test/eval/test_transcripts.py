"""Word error rates and files of transcripts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from speechclip.common.errors import MissingFileError, UserError
from speechclip.eval.transcripts import normalize_text, read_transcripts, wer_report, word_errors, write_transcripts

pytest.importorskip("jiwer", reason="the extra asr is not installed")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("A Dog, runs.", "a dog runs"), ("  don't  STOP! ", "don't stop"), ("'quoted' word", "quoted word"), ("?!", "")],
)
def test_text_is_normalised(text: str, expected: str) -> None:
    assert normalize_text(text) == expected


@pytest.mark.parametrize(
    ("said", "heard", "errors"),
    [
        ("a red dog", "A red dog.", [0, 0, 0]),
        ("a red dog", "a blue dog", [1, 0, 0]),
        ("a red dog", "a dog", [0, 1, 0]),
        ("a red dog", "a big red dog", [0, 0, 1]),
        ("a red dog", "", [0, 3, 0]),
        ("...", "a dog", [0, 0, 2]),
    ],
)
def test_word_errors_by_hand(said: str, heard: str, errors: list[int]) -> None:
    counts, words = word_errors([said], [heard])
    assert counts.tolist() == [errors] and words.tolist() == [len(normalize_text(said).split())]


def test_wer_is_over_all_words() -> None:
    report = wer_report(["a b c d", "e f"], ["a b c d", "x y"], [0, 1], n_bootstrap=200)
    assert report["wer"] == pytest.approx(100 * 2 / 6) and report["sentences"] == 50.0
    assert report["substitutions"] == pytest.approx(100 * 2 / 6) and report["words"] == 6
    low, high = report["ci95"]["wer"]
    assert low == 0.0 and high == 100.0  # a resample has only one of the images


def test_wer_needs_words() -> None:
    with pytest.raises(ValueError, match="no words"):
        wer_report(["..."], ["a"], np.array([0]))


def test_transcripts_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    write_transcripts(path, {"u2": "ein Häuschen", "u1": ""}, {"name": "x", "kind": "ctc"})
    assert read_transcripts(path, ["u1", "u2"]) == (["", "ein Häuschen"], {"name": "x", "kind": "ctc"})


@pytest.mark.parametrize(
    ("content", "words"),
    [("", "u1 has no transcript"), ("x\n", "line 1"), ('{"recognizer": {}}\n{"utterance": "u1"}\n', "line 2")],
)
def test_damaged_transcripts_are_one_line(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "test.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=words):
        read_transcripts(path, ["u1"])


def test_missing_transcripts_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"test\.jsonl"):
        read_transcripts(tmp_path / "test.jsonl", ["u1"])
