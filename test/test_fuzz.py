"""Parsers of text files on random input: each returns the right value or ends in a one-line error."""

from __future__ import annotations

import string
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from speechclip.common.errors import UserError
from speechclip.config import Config, known_keys, load, save, to_dict
from speechclip.data.alignments import AlignedWord, read_ctm
from speechclip.data.corpora import flickr8k
from speechclip.data.features import INDEX, FeatureStore
from speechclip.data.kaldi import DataDir, read_table, write_table
from speechclip.data.vocabulary import Vocabulary

FUZZ = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
SLOW = settings(FUZZ, max_examples=25)

# bytes close to the formats of the parsers, and random ones
PIECES = st.sampled_from(
    [b" ", b"\t", b"\n", b"\r\n", b"\xff", b"\xef\xbb\xbf", b"\x00", b"a", b"utt1", b"-1", b"0.5", b"1e400", b"nan",
     b"#0", b"1.jpg#0\ta dog\n", b"utt1 1 0.0 0.5 dog\n", b"a.wav |", b";;", b"[", b"{", b":", b"&a", b"*a",
     b"optim:\n  lr: ", "\u2028".encode(), "\u0660".encode(), "\u00b2".encode()]
)  # fmt: skip
CONTENTS = st.lists(PIECES | st.binary(max_size=12), max_size=20).map(b"".join)
KEYS = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), min_size=1, max_size=12)
KEYS = KEYS.filter(lambda key: not any(c.isspace() for c in key) and not key.startswith("\ufeff"))
VALUES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r"), min_size=1, max_size=20)
VALUES = VALUES.filter(lambda value: value.strip() != "" and value == value.strip(" \t"))
WORDS = st.text(string.ascii_letters + "'\u00e9", min_size=1, max_size=8)


def parsed(name: str, content: bytes, parse: Callable[[Path], Any]) -> Any:
    """Return the result of ``parse`` for a file, or None if it raised a one-line UserError."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(content)
        try:
            return parse(path)
        except UserError as error:
            message = str(error)
            assert message and len(message.splitlines()) == 1, message
            # the file, or for a value the key
            assert str(folder) in message or message.lstrip('"').startswith(tuple(known_keys())), message
            return None


@FUZZ
@given(CONTENTS)
@example(b"a\x0bb c\n")
@example(b"a \x85\n")
def test_read_table_survives_random_bytes(content: bytes) -> None:
    table = parsed("wav.scp", content, read_table)
    if table is not None:
        assert list(table) == sorted(table)
        with tempfile.TemporaryDirectory() as folder:
            write_table(Path(folder, "wav.scp"), table)
            assert read_table(Path(folder, "wav.scp")) == table


@FUZZ
@given(st.dictionaries(KEYS, VALUES, min_size=1, max_size=8))
def test_read_table_reads_what_write_table_wrote(table: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_table(Path(folder, "text"), table)
        assert read_table(Path(folder, "text")) == table


@FUZZ
@given(CONTENTS)
def test_feature_index_survives_random_bytes(content: bytes) -> None:
    for name, parse in (
        (INDEX, lambda path: FeatureStore(path.parent)),
        ("wav.scp", lambda path: DataDir.load(path.parent)),
    ):
        assert parsed(name, content, parse) is None  # shards and the other tables are missing


@FUZZ
@given(CONTENTS)
def test_flickr8k_lists_survive_random_bytes(content: bytes) -> None:
    captions = parsed("Flickr8k.token.txt", content, flickr8k._read_captions)
    for (image, number), text in (captions or {}).items():
        assert image and number >= 0 and text == " ".join(text.split())
    parsed("captions.txt", b"image,caption\n" + content, flickr8k._read_captions)
    parsed("wav2capt.txt", content, flickr8k._read_recordings)
    parsed("wav2spk.txt", content, flickr8k._read_speakers)
    parsed("train.txt", content, lambda path: flickr8k._read_splits({"train": path}))


@FUZZ
@given(st.dictionaries(st.tuples(WORDS, st.integers(0, 9)), st.lists(WORDS, min_size=1, max_size=5), max_size=6))
def test_flickr8k_token_file_is_read_back(captions: dict[tuple[str, int], list[str]]) -> None:
    text = "".join(f"{image}#{number}\t{' '.join(words)}\n" for (image, number), words in captions.items())
    found = parsed("Flickr8k.token.txt", text.encode(), flickr8k._read_captions)
    assert found == {key: " ".join(words) for key, words in captions.items()}


@FUZZ
@given(CONTENTS)
def test_ctm_survives_random_bytes(content: bytes) -> None:
    for words in (parsed("ctm", content, read_ctm) or {}).values():
        assert all(0 <= word.start <= word.end < float("inf") for word in words)
        assert [word.start for word in words] == sorted(word.start for word in words)


@FUZZ
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**4), WORDS), max_size=8))
def test_ctm_is_read_back(words: list[tuple[int, int, str]]) -> None:
    text = "".join(f"u 1 {start / 1000:.3f} {length / 1000:.3f} {word}\n" for start, length, word in words)
    found = (parsed("ctm", text.encode(), read_ctm) or {"u": []}).get("u", [])
    wanted = [AlignedWord(word, s / 1000, s / 1000 + n / 1000) for s, n, word in words]
    assert found == sorted(wanted, key=lambda word: word.start)


@FUZZ
@given(CONTENTS)
@example("\u0661\t\u0662\ta\n".encode())
def test_vocabulary_survives_random_bytes(content: bytes) -> None:
    vocabulary = parsed("v.tsv", content, Vocabulary.load)
    if vocabulary is not None:
        assert len(set(vocabulary.ids)) == len(vocabulary) > 0


YAML_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**6) | st.floats() | st.text(string.printable, max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["lr", "name", "x", "1"]), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


@SLOW
@given(CONTENTS)
@example(b"optim: {lr: 1e400}")
@example(b"optim: {betas: [.nan, 0.9]}")
@example(b"? [a]\n: b\n")
@example(b"optim: 2020-13-45")
def test_config_survives_random_files(content: bytes) -> None:
    config = parsed("c.yaml", content, lambda path: load([path]))
    assert config is None or isinstance(config, Config)


@SLOW
@given(st.sampled_from(known_keys()), YAML_VALUES)
@example("optim.lr", float("nan"))
@example("optim.lr", float("inf"))
@example("model.head.keywords", True)
@example("model.speech_encoder.path", None)
@example("model.speech_encoder.layers", {"lr": 1})
def test_config_survives_random_values(key: str, value: Any) -> None:
    node: Any = value
    for name in reversed(key.split(".")):
        node = {name: node}
    config = parsed("c.yaml", yaml.safe_dump(node).encode(), lambda path: load([path]))
    if config is not None:  # a valid configuration is saved and read back
        with tempfile.TemporaryDirectory() as folder:
            save(config, Path(folder, "c.yaml"))
            assert to_dict(load([Path(folder, "c.yaml")])) == to_dict(config)
