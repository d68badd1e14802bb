"""Word alignments from ctm files."""

from __future__ import annotations

from pathlib import Path

import pytest

from speechclip.data.alignments import AlignedWord, load_alignments
from speechclip.errors import UserError


def test_words_by_utterance_in_order(tmp_path: Path) -> None:
    path = tmp_path / "ctm"
    path.write_text(";; made by hand\nb 1 0.5 0.25 dog 0.9\nb 1 0.0 0.5 red\n\na A 0.1 0.2 tree\nc 1 0 1 boat\n")
    found = load_alignments(path, ["a", "b", "z"])
    assert found == {
        "a": [AlignedWord("tree", 0.1, pytest.approx(0.3))],
        "b": [AlignedWord("red", 0.0, 0.5), AlignedWord("dog", 0.5, 0.75)],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a 1 0.0 0.5 dog\na 1 x 0.5 dog\n", "line 2: expected utterance, channel, start, duration and word"),
        (b"a 1 0.0 0.5\n", "line 1: expected"),
        (b"a 1 -0.5 0.5 dog\n", "line 1: expected"),
        (b"a 1 0.5 -0.5 dog\n", "line 1: expected"),
        (b"a 1 nan 0.5 dog\n", "line 1: expected"),
        (b"a 1 0 \xff dog\n", "not UTF-8"),
        (b"b 1 0.0 0.5 dog\n", "has an alignment of none of the 1 utterances"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "ctm").write_bytes(text)
    with pytest.raises(UserError, match=message) as caught:
        load_alignments(tmp_path / "ctm", ["a"])
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no such file"):
        load_alignments(tmp_path / "none", ["a"])
