"""The tables between markers in the results of SUPERB."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from speechclip.common.errors import UserError

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "egs" / "superb" / "local"))
from markdown_tables import Table, parse_tables, read_block, write_block  # noqa: E402

TABLE = Table("T", ("name", "score"), ({"name": "a", "score": "1.5 [1.0, 2.0]"}, {"name": "b"}))


def test_block_is_written_and_read_back() -> None:
    text = write_block("# Mine\n\nText.\n", "scores", "R.md", "About.", [TABLE], before="")
    assert text.startswith("# Mine\n\nText.\n") and "About." in text
    assert read_block(text, "scores", "R.md") == {"T": TABLE}
    assert write_block(text, "scores", "R.md", "About.", [TABLE], before="") == text
    assert write_block("# Mine\n", "scores", "R.md", "About.", [Table("T", ("name",), ())], before="") == "# Mine\n"


def test_new_block_comes_before_the_named_one() -> None:
    text = write_block("", "second", "R.md", "", [TABLE], before="")
    text = write_block(text, "first", "R.md", "", [TABLE], before="second")
    assert text.index("begin first") < text.index("begin second")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<!-- results: begin scores -->", "must occur once each"),
        ("<!-- results: end scores --><!-- results: begin scores -->", "must occur once each"),
    ],
)
def test_broken_markers_are_refused(text: str, reason: str) -> None:
    with pytest.raises(UserError, match=f"R.md: .*{reason}"):
        read_block(text, "scores", "R.md")


def test_line_of_a_bad_row_is_named() -> None:
    with pytest.raises(UserError, match=r"R\.md: line 13: 1 cells, the header has 2"):
        parse_tables("### T\n| a | b |\n| - | - |\n| 1 |\n", "R.md", first_line=10)
