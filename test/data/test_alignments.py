"""Tests of word alignments in ctm and TextGrid files."""

from __future__ import annotations

from pathlib import Path

import pytest

from speechclip.common.errors import UserError
from speechclip.data.alignments import (
    AlignedWord,
    LabelSpool,
    find_alignments,
    load_alignments,
    read_ctm,
    read_textgrid,
)


def test_load_alignments_sorts_the_words_of_a_ctm(tmp_path: Path) -> None:
    path = tmp_path / "ctm"
    path.write_text(";; made by hand\nb 1 0.5 0.25 dog 0.9\nb 1 0.0 0.5 red\n\na A 0.1 0.2 tree\nc 1 0 1 boat\n")
    found = load_alignments(path, ["a", "b", "z"])
    assert found == {
        "a": [AlignedWord("tree", 0.1, pytest.approx(0.3))],
        "b": [AlignedWord("red", 0.0, 0.5), AlignedWord("dog", 0.5, 0.75)],
    }


def test_load_alignments_leaves_out_pauses(tmp_path: Path) -> None:
    path = tmp_path / "ctm"
    path.write_text("a 1 0 0.5 <eps>\na 1 0.5 0.5 red\na 1 1.0 0.1 SIL\na 1 1.1 0.5 sp\nb 1 0 1 sil\n")
    assert load_alignments(path, ["a", "b"]) == {"a": [AlignedWord("red", 0.5, 1.0)]}
    with pytest.raises(UserError, match="no alignment of the 1 utterances. Check the utterance ids."):
        load_alignments(path, ["b"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a 1 0.0 0.5 dog\na 1 x 0.5 dog\n", "line 2: not valid. Write utterance, channel, start, duration and word."),
        (b"a 1 0.0 0.5\n", "line 1: not valid."),
        (b"a 1 -0.5 0.5 dog\n", "line 1: not valid."),
        (b"a 1 0.5 -0.5 dog\n", "line 1: not valid."),
        (b"a 1 nan 0.5 dog\n", "line 1: not valid."),
        (b"a 1 0 \xff dog\n", "not UTF-8. Save it as UTF-8."),
        (b"b 1 0.0 0.5 dog\n", "no alignment of the 1 utterances"),
    ],
)
def test_bad_ctm_is_one_line(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "ctm").write_bytes(text)
    with pytest.raises(UserError, match=message) as caught:
        load_alignments(tmp_path / "ctm", ["a"])
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="is missing. Check the path."):
        load_alignments(tmp_path / "none", ["a"])


LONG = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 1.5
tiers? <exists>
size = 2
item []:
    item [1]:
        class = "IntervalTier"
        name = "%s"
        xmin = 0
        xmax = 1.5
        intervals: size = 4
        intervals [1]:
            xmin = 0
            xmax = 0.25
            text = ""
        intervals [2]:
            xmin = 0.25
            xmax = 0.5
            text = "café"
        intervals [3]:
            xmin = 0.5
            xmax = 0.75
            text = "sil"
        intervals [4]:
            xmin = 0.75
            xmax = 1.5
            text = "dog"
    item [2]:
        class = "IntervalTier"
        name = "%s"
        xmin = 0
        xmax = 1.5
        intervals: size = 1
        intervals [1]:
            xmin = 0
            xmax = 1.5
            text = "D AO1 G"
"""
SHORT = """File type = "ooTextFile"
Object class = "TextGrid"

0
1
<exists>
1
"IntervalTier"
"whatever"
0
1
2
0
0.5
"red"
0.5
1
"dog"
"""
CAFE = [AlignedWord("café", 0.25, 0.5), AlignedWord("dog", 0.75, 1.5)]


@pytest.mark.parametrize("tier", ["words", "Words", "word", "anna - words"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_read_textgrid_finds_the_tier_of_words(tmp_path: Path, tier: str, encoding: str) -> None:
    (tmp_path / "a.TextGrid").write_text(LONG % (tier, "phones"), encoding=encoding)
    assert read_textgrid(tmp_path / "a.TextGrid") == CAFE


def test_read_textgrid_accepts_any_name_of_one_tier(tmp_path: Path) -> None:
    (tmp_path / "a.TextGrid").write_text(SHORT)
    assert read_textgrid(tmp_path / "a.TextGrid") == [AlignedWord("red", 0.0, 0.5), AlignedWord("dog", 0.5, 1.0)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LONG % ("orthography", "phones"), "no single interval tier for words .interval tiers: orthography, phones."),
        (LONG % ("a - words", "b - words"), "interval tiers: a - words, b - words"),
        ("not a grid", "not a readable TextGrid"),
        ("", "not a readable TextGrid"),
        (LONG[:600] % "words", "not a readable TextGrid"),
    ],
)
def test_bad_textgrid_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.TextGrid").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_textgrid(tmp_path / "a.TextGrid")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="is missing. Check the path."):
        read_textgrid(tmp_path / "b.TextGrid")


def test_load_alignments_reads_a_folder_of_textgrids(tmp_path: Path) -> None:
    assert find_alignments(tmp_path) is None
    folder = tmp_path / "textgrid"
    folder.mkdir()
    (folder / "u1.TextGrid").write_text(LONG % ("words", "phones"), encoding="utf-8")
    assert find_alignments(tmp_path) == folder
    assert load_alignments(folder, ["u1", "u2"]) == {"u1": CAFE}
    with pytest.raises(UserError, match="no alignment of the 1 utterances. Check the utterance ids."):
        load_alignments(folder, ["u2"])
    (tmp_path / "ctm").write_text("u1 1 0 1 dog\n")
    assert find_alignments(tmp_path) == tmp_path / "ctm"


def test_label_spool_writes_the_labels_of_each_folder(tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("train", "test", "dev")}
    for folder in folders.values():
        folder.mkdir()
    with LabelSpool() as spool:
        spool.add("b", [AlignedWord("d\u00f3g", 0.5, 0.75), AlignedWord("\ud800", 1, 2)])
        spool.add("lost", [AlignedWord("x", 0, 1)])
        spool.add("a", [AlignedWord("cat", 0, 0.1)])
        spool.add("b", [AlignedWord("runs", 2, 2.5)])
        places = {"a": folders["train"], "b": folders["test"], "c": folders["dev"]}
        spool.write("ctm", places)
        spool.write("again.ctm", places)
    assert (
        folders["test"] / "ctm"
    ).read_text() == "b 1 0.500 0.250 d\u00f3g\nb 1 1.000 1.000 \\ud800\nb 1 2.000 0.500 runs\n"
    assert read_ctm(folders["train"] / "ctm") == {"a": [AlignedWord("cat", 0, 0.1)]}
    assert (folders["test"] / "again.ctm").read_bytes() == (folders["test"] / "ctm").read_bytes()
    assert not (folders["dev"] / "ctm").exists()
