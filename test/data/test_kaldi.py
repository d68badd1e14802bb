"""Data directories: round trips, and one line for everything that can be wrong with them."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechclip.bin.validate_data_dir import main as validate
from speechclip.common.errors import UserError
from speechclip.data.kaldi import (
    DataDir,
    Utterance,
    find_problems,
    parse_count,
    read_table,
    write_data_dir,
    write_table,
)

LINE_BREAKS = "\n\r"
ids = st.text(st.characters(exclude_categories=["Z", "C"]), min_size=1).filter(
    lambda key: not any(character.isspace() for character in key) and not key.startswith("\ufeff")
)
values = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=LINE_BREAKS), min_size=1).filter(
    lambda value: bool(value.strip()) and value == value.strip(" \t")
)


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write two speakers, two images and three utterances to ``data/train`` and change to the recipe folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my audio").mkdir()
    for name in ("a.wav", "b.wav", "c.wav"):
        (tmp_path / "my audio" / name).touch()
    for name in ("x.jpg", "y.jpg"):
        (tmp_path / name).touch()
    utterances = [
        Utterance("s2-y_0", Path("my audio/c.wav"), "a cat", "s2", "y"),
        Utterance("s1-x_0", Path("my audio/a.wav"), "ein Hund läuft", "s1", "x"),
        Utterance("s1-x_1", (tmp_path / "my audio" / "b.wav").absolute(), "a dog runs", "s1", "x"),
    ]
    write_data_dir("data/train", utterances, {"y": "y.jpg", "x": "x.jpg"})
    return tmp_path


def edit(name: str, old: str, new: str) -> None:
    path = Path("data/train") / name
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new, 1))


def test_data_dir_returns_what_was_written(corpus: Path) -> None:
    data = DataDir.load("data/train")
    assert [item.id for item in data.utterances] == ["s1-x_0", "s1-x_1", "s2-y_0"]
    assert data.utterances[0] == Utterance("s1-x_0", Path("my audio/a.wav"), "ein Hund läuft", "s1", "x")
    assert data.utterances[1].wav == corpus / "my audio" / "b.wav"
    assert data.images == {"x": Path("x.jpg"), "y": Path("y.jpg")}
    assert data.speakers == ("s1", "s2")
    assert read_table("data/train/spk2utt") == {"s1": "s1-x_0 s1-x_1", "s2": "s2-y_0"}


def test_write_data_dir_keeps_other_files(corpus: Path) -> None:
    Path("data/train/note").write_text("mine")
    data = DataDir.load("data/train")
    write_data_dir("data/train", [item for item in data.utterances if item.image_id == "y"], {"y": "y.jpg"})
    assert len(DataDir.load("data/train").utterances) == 1
    assert Path("data/train/note").read_text() == "mine"
    assert sorted(path.name for path in Path("data").iterdir()) == ["train"]


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(ids, values, min_size=1, max_size=20))
def test_table_returns_what_was_written(tmp_path_factory: pytest.TempPathFactory, table: dict[str, str]) -> None:
    path = tmp_path_factory.getbasetemp() / "round trip"
    write_table(path, table)
    assert read_table(path) == table
    lines = path.read_bytes().split(b"\n")[:-1]
    keys = [line.split(b" ")[0] for line in lines]
    assert keys == sorted(keys)


def test_table_order_is_that_of_sort_in_the_c_locale(tmp_path: Path) -> None:
    table = {key: "v" for key in ("b", "B", "a-1", "a_1", "a1", "é", "z", "\U0001f600", "\uff5e")}
    write_table(tmp_path / "t", table)
    command = ["sort", "-c", str(tmp_path / "t")]
    ordered = subprocess.run(command, env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"}, capture_output=True, check=False)
    assert ordered.returncode == 0, ordered.stderr


def test_table_accepts_tabs(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("a\tone two\nb  three \n")
    assert read_table(tmp_path / "t") == {"a": "one two", "b": "three"}


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"", "t: empty"),
        (b"b 1\na 2\n", "t:2: not sorted: 'a' after 'b'"),
        (b"a 1\na 2\n", "t:2: duplicate id 'a'"),
        (b"a 1\nb\n", "t:2: 'b': no value"),
        (b"a 1\nb  \n", "t:2: 'b': no value"),
        (b"a 1\n\nb 2\n", "t:2: no id at the start of the line"),
        (b"a 1\n b 2\n", "t:2: no id at the start of the line"),
        (b"a 1\nb caf\xe9 x\n", "t:2: not UTF-8 (byte 0xe9 at column 6)"),
        (b"a 1\r\n", "t:1: ends in a carriage return"),
        (b"\xef\xbb\xbfa 1\n", "t:1: starts with a byte order mark"),
        ("a\u00a0b 1\n".encode(), "t:1: white space in the id"),
        (b"a\x0bb 1\n", "t:1: white space in the id"),
    ],
)
def test_read_table_reports_a_bad_line(tmp_path: Path, content: bytes, fragment: str) -> None:
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_table(tmp_path / "t")
    assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)


def test_read_table_reports_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: is missing$"):
        read_table(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("table", "fragment"),
    [
        ({"a b": "v"}, "white space in the id 'a b'"),
        ({"": "v"}, "no id"),
        ({"a": ""}, "no value"),
        ({"a": "x\ny"}, "a line break"),
        ({"a": " x"}, "white space at the start or end"),
        ({"a": "\ud800"}, "cannot be written as UTF-8"),
    ],
)
def test_write_table_refuses_bad_entries(tmp_path: Path, table: dict[str, str], fragment: str) -> None:
    with pytest.raises(UserError, match=fragment):
        write_table(tmp_path / "t", table)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "old", "new", "fragment"),
    [
        ("wav.scp", "my audio/a.wav", "sph2pipe a.sph |", "wav.scp: 's1-x_0': a command, not a path: sph2pipe a.sph |"),
        ("wav.scp", "my audio/a.wav", "| cat a.wav", "wav.scp: 's1-x_0': a command, not a path"),
        ("wav.scp", "my audio/a.wav", "< a.wav", "wav.scp: 's1-x_0': a command, not a path"),
        ("img.scp", "y.jpg", "convert y.png |", "img.scp: 'y': a command, not a path"),
        ("wav.scp", "my audio/a.wav", "my audio/no.wav", "wav.scp: 's1-x_0': missing audio file my audio/no.wav"),
        ("img.scp", "y.jpg", "z.jpg", "img.scp: 'y': missing image file z.jpg"),
        ("wav.scp", "s2-y_0 my audio/c.wav\n", "", "wav.scp: utterance 's2-y_0' of text is missing"),
        ("text", "s2-y_0 a cat\n", "", "text: utterance 's2-y_0' of wav.scp is missing"),
        ("text", "a cat", "", "text:3: 's2-y_0': no value"),
        ("utt2img", "s2-y_0 y\n", "", "utt2img: utterance 's2-y_0' of wav.scp is missing"),
        ("utt2spk", "s2-y_0 s2\n", "", "utt2spk: utterance 's2-y_0' of wav.scp is missing"),
        ("img.scp", "x x.jpg\n", "", "img.scp: image 'x' of utterance 's1-x_0' is missing"),
        ("utt2img", "s2-y_0 y", "s2-y_0 x", "utt2img: image 'y' of img.scp has no utterance"),
        ("spk2utt", "s2 s2-y_0\n", "", "spk2utt: speaker 's2' of utt2spk is missing"),
        ("spk2utt", "s1-x_0 s1-x_1", "s1-x_0", "spk2utt: speaker 's1': not the utterances"),
        ("spk2utt", "s2 s2-y_0\n", "s2 s2-y_0\ns3 s2-y_0\n", "spk2utt: speaker 's3' has no utterance"),
        ("text", "s1-x_1", "s1-x_0", "text:2: duplicate id 's1-x_0'"),
        ("text", "s1-x_0", "s3-x_0", "text:2: not sorted: 's1-x_1' after 's3-x_0'"),
    ],
)
def test_data_dir_reports_its_first_problem(corpus: Path, name: str, old: str, new: str, fragment: str) -> None:
    edit(name, old, new)
    with pytest.raises(UserError) as caught:
        DataDir.load("data/train")
    assert str(caught.value).startswith(f"data/train/{fragment}")
    assert "\n" not in str(caught.value)


def test_data_dir_counts_its_problems(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (corpus / "my audio" / "a.wav").unlink()
    (corpus / "my audio" / "b.wav").unlink()
    (corpus / "y.jpg").unlink()
    assert len(find_problems("data/train")) == 3
    with pytest.raises(UserError, match=r"missing audio file my audio/a.wav \(and 2 more\)"):
        DataDir.load("data/train")
    with pytest.raises(SystemExit) as caught:
        validate(["data/train"])
    assert caught.value.code == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: data/train/wav.scp: 's1-x_0': missing audio file my audio/a.wav (and 2 more)\n"
    with pytest.raises(SystemExit):
        validate(["--list", "data/train"])
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_data_dir_reports_missing_files(corpus: Path) -> None:
    Path("data/train/text").unlink()
    with pytest.raises(UserError, match=r"^data/train/text: is missing$"):
        DataDir.load("data/train")
    with pytest.raises(UserError, match=r"^data/dev/wav.scp: is missing$"):
        DataDir.load("data/dev")


def test_validate_prints_counts(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    validate(["data/train"])
    assert capsys.readouterr().out == "data/train: valid: 3 utterances, 2 images, 2 speakers\n"


def test_validate_refuses_an_unknown_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        validate(["--strict", "data/train"])
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: unknown option: --strict (known: --help --list)\n"


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        ({"id": "s1-x_1"}, "duplicate utterance id 's1-x_1'"),
        ({"image_id": "z"}, "utterance 's1-x_0': its image 'z' is not given"),
        ({"wav": Path("sox a.wav |")}, "a command, not a path"),
        ({"text": ""}, "'s1-x_0': no value"),
        ({"speaker": "s 1"}, "white space in the id 's 1'"),
    ],
)
def test_write_data_dir_refuses_bad_utterances(corpus: Path, change: dict[str, str], fragment: str) -> None:
    data = DataDir.load("data/train")
    first = dataclasses.replace(data.utterances[0], **change)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=fragment):
        write_data_dir("data/new", [first, *data.utterances[1:]], data.images)
    assert sorted(path.name for path in Path("data").iterdir()) == ["train"]


def test_write_data_dir_refuses_unused_images(corpus: Path) -> None:
    data = DataDir.load("data/train")
    with pytest.raises(UserError, match="image 'w' has no utterance"):
        write_data_dir("data/new", data.utterances, {**data.images, "w": "w.jpg"})


def test_data_dir_reads_captions_for_clip(corpus: Path) -> None:
    assert [u.clip_text for u in DataDir.load("data/train").utterances] == ["ein Hund läuft", "a dog runs", "a cat"]
    write_table("data/train/text_clip", {"s1-x_0": "ein hund", "s1-x_1": "a dog", "s2-y_0": "a cat"})
    data = DataDir.load("data/train")
    assert [u.text for u in data.utterances] == ["ein Hund läuft", "a dog runs", "a cat"]
    assert [u.clip_text for u in data.utterances] == ["ein hund", "a dog", "a cat"]


def test_write_data_dir_writes_text_clip_if_needed(corpus: Path) -> None:
    data = DataDir.load("data/train")
    assert not Path("data/train/text_clip").exists()
    first = dataclasses.replace(data.utterances[0], clip_text="a dog")
    write_data_dir("data/train", [first, *data.utterances[1:]], data.images)
    assert read_table("data/train/text_clip") == {"s1-x_0": "a dog", "s1-x_1": "a dog runs", "s2-y_0": "a cat"}
    assert read_table("data/train/text")["s1-x_0"] == "ein Hund läuft"
    write_data_dir("data/train", data.utterances, data.images)
    assert not Path("data/train/text_clip").exists()


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        ("s1-x_0 a\ns1-x_1 b\n", "text_clip: utterance 's2-y_0' of wav.scp is missing"),
        ("s1-x_0 a\ns1-x_1 b\ns2-y_0 c\ns3 d\n", "wav.scp: utterance 's3' of text_clip is missing (and 3 more)"),
        ("s1-x_0\n", "text_clip:1: 's1-x_0': no value"),
        ("", "text_clip: empty"),
    ],
)
def test_data_dir_refuses_a_bad_text_clip(corpus: Path, content: str, fragment: str) -> None:
    Path("data/train/text_clip").write_text(content)
    with pytest.raises(UserError) as caught:
        DataDir.load("data/train")
    assert str(caught.value).startswith(f"data/train/{fragment}")


def test_data_dir_reads_languages(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert DataDir.load("data/train").languages == ()
    Path("data/train/utt2lang").write_text("s1-x_0 de\ns1-x_1 en\ns2-y_0 en\n")
    data = DataDir.load("data/train")
    assert [utterance.language for utterance in data.utterances] == ["de", "en", "en"]
    assert data.languages == ("de", "en")
    validate(["data/train"])
    assert capsys.readouterr().out == "data/train: valid: 3 utterances, 2 images, 2 speakers, languages: de en\n"


def test_data_dir_selects_languages(corpus: Path) -> None:
    data = DataDir.load("data/train")
    assert data.only([]) is data
    with pytest.raises(UserError, match="language 'de'. Its languages: none, because utt2lang is missing"):
        data.only(["de"])
    Path("data/train/utt2lang").write_text("s1-x_0 de\ns1-x_1 en\ns2-y_0 en\n")
    data = DataDir.load("data/train")
    german = data.only(["de"])
    assert [utterance.id for utterance in german.utterances] == ["s1-x_0"] and list(german.images) == ["x"]
    assert data.only(["en", "de"]) == data
    with pytest.raises(UserError, match="^data/train: no utterance in the language 'fr'. Its languages: de en."):
        data.only(["de", "fr"])


def test_write_data_dir_writes_languages_if_known(corpus: Path) -> None:
    data = DataDir.load("data/train")
    spoken = [dataclasses.replace(u, language="de" if u.id == "s1-x_0" else "en") for u in data.utterances]
    write_data_dir("data/train", spoken, data.images)
    assert Path("data/train/utt2lang").read_text() == "s1-x_0 de\ns1-x_1 en\ns2-y_0 en\n"
    assert DataDir.load("data/train").utterances == tuple(spoken)
    write_data_dir("data/train", data.utterances, data.images)
    assert not Path("data/train/utt2lang").exists()


@pytest.mark.parametrize(
    ("languages", "fragment"),
    [(("de", "en", ""), "'s2-y_0': '': no language"), (("a b", "en", "en"), "'s1-x_0': 'a b': white space in the id")],
)
def test_write_data_dir_refuses_a_bad_language(corpus: Path, languages: tuple[str, ...], fragment: str) -> None:
    data = DataDir.load("data/train")
    spoken = [dataclasses.replace(u, language=word) for u, word in zip(data.utterances, languages, strict=True)]
    with pytest.raises(UserError) as caught:
        write_data_dir("data/new", spoken, data.images)
    assert str(caught.value).startswith(f"data/new/utt2lang: {fragment}")


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        ("s1-x_0 en\ns1-x_1 en\n", "utt2lang: utterance 's2-y_0' of wav.scp is missing"),
        ("s1-x_0 en\ns1-x_1 de en\ns2-y_0 en\n", "utt2lang: 's1-x_1': 'de en': not one language"),
        ("s1-x_0 en\ns1-x_1\ns2-y_0 en\n", "utt2lang:2: 's1-x_1': no value"),
        ("", "utt2lang: empty"),
    ],
)
def test_data_dir_refuses_bad_languages(corpus: Path, content: str, fragment: str) -> None:
    Path("data/train/utt2lang").write_text(content)
    with pytest.raises(UserError) as caught:
        DataDir.load("data/train")
    assert str(caught.value).startswith(f"data/train/{fragment}")


@pytest.mark.parametrize("name", ["segments", "subsegments", "reco2file_and_channel", "vad.scp"])
def test_data_dir_refuses_tables_that_change_utterances(corpus: Path, name: str) -> None:
    Path("data/train", name).write_text("s1-x_0 s1-x_0 0.0 1.0\n")
    with pytest.raises(UserError) as caught:
        DataDir.load("data/train")
    message = str(caught.value)
    assert message.startswith(f"data/train/{name}: ") and message.endswith(f"and remove {name}.")
    assert len(find_problems("data/train")) == 1


@pytest.mark.parametrize("name", ["utt2dur", "reco2dur", "spk2gender", "feats.scp", "cmvn.scp", "ctm"])
def test_data_dir_ignores_tables_about_utterances(corpus: Path, name: str) -> None:
    Path("data/train", name).write_text("s1-x_0 1\n")
    assert len(DataDir.load("data/train").utterances) == 3


@pytest.mark.parametrize(
    ("text", "count"),
    [("0", 0), ("007", 7), ("٣", 3), ("", None), ("-1", None), ("1.0", None), ("²", None), ("9" * 5000, None)],
)
def test_parse_count_reads_decimal_digits(text: str, count: int | None) -> None:
    assert parse_count(text) == count
