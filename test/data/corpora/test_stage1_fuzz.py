"""Random files in a corpus: stage 1 writes valid data directories or prints one line of error, never a traceback."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from speechclip.bin.prepare_corpus import main
from speechclip.data.kaldi import DataDir, find_problems

QUICK = settings(
    max_examples=30, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
THOROUGH = settings(QUICK, max_examples=300)

FLICKR8K_TEXTS = [
    "Flickr8k_text/Flickr8k.token.txt", "Flickr8k_text/Flickr_8k.trainImages.txt", "flickr_audio/wav2capt.txt",
    "flickr_audio/wav2spk.txt", "captions.txt",
]  # fmt: skip
AUDIO = ["wav", "flac", "ogg", "mp3", "aiff", "au", "caf", "w64", "rf64", "voc"]
PHOTOGRAPHS = ["jpeg", "png", "gif", "bmp", "tiff", "webp", "ppm"]
PIECES = st.sampled_from(
    [b" ", b"\t", b"\n", b"\r\n", b"\r", b'"', b",", b"#0", b"\xff", b"\xef\xbb\xbf", b"\0", b"1.jpg", b"0_0.wav", b"7",
     b"1.jpg#0\ta dog .\n", b'1.jpg,"a\ndog"\n', b"..", b"/", "\u2028".encode(), "\u0660".encode(), b"9" * 5000]
)  # fmt: skip
TEXTS = st.lists(PIECES | st.binary(max_size=8), max_size=12).map(b"".join)
#: A damage of a file: positions as a fraction of its length, and bytes that replace those at the position.
DAMAGE = st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=12)), max_size=6)
ENDS = st.just(1.0) | st.floats(0, 1)  # the fraction of a file that is kept
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(
        ["", "a dog", "m1", "m1-x_1_2", "wavs/0.wav", "val2014/0.jpg", "../0.jpg", "/", ".", "\ud800", "\0", "a |"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["data", "image", "captions", "caption", "text", "speaker", "uttid", "wav", "annotations"]),
        inner, max_size=4,
    ),
    max_leaves=8,
)  # fmt: skip


def tone(number: int) -> np.ndarray:
    return 0.1 * np.sin(np.arange(6400) * (0.05 + 0.01 * number))


def encoded_audio(kind: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(0), 16000, format=kind.upper())
    return buffer.getvalue()


def encoded_image(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(32 * 24 * 3, dtype=np.uint8).reshape(24, 32, 3)).save(buffer, kind)
    return buffer.getvalue()


def write(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def flickr8k(folder: Path) -> None:
    """Write Flickr8k with two photographs for training, one for each other split, and a recording of each."""
    for number, split in enumerate(("train", "dev", "test", "train")):
        write(folder / f"Flicker8k_Dataset/{number}.jpg", encoded_image("jpeg"))
        soundfile.write(path := folder / f"{number}_0.wav", tone(number), 16000)
        write(folder / "flickr_audio/wavs" / path.name, path.read_bytes())
        path.unlink()
        images = "0.jpg\n3.jpg\n" if split == "train" else f"{number}.jpg\n"
        write(folder / f"Flickr8k_text/Flickr_8k.{split}Images.txt", images)
    for name, line in (
        ("Flickr8k_text/Flickr8k.token.txt", "{0}.jpg#0\tA dog runs .\n"),
        ("flickr_audio/wav2capt.txt", "{0}_0.wav {0}.jpg #0\n"),
        ("flickr_audio/wav2spk.txt", "{0}_0.wav 7\n"),
    ):
        write(folder / name, "".join(line.format(number) for number in range(4)))


def spokencoco(folder: Path) -> None:
    """Write SpokenCOCO with two photographs for training, one for each other split, and a recording of each."""
    entries: dict[str, list[Any]] = {"train": [], "val": [], "test": []}
    for number, split in enumerate(("train", "val", "test", "train")):
        write(folder / f"val2014/{number}.jpg", encoded_image("jpeg"))
        write(folder / f"SpokenCOCO/wavs/{number}.wav", encoded_audio("wav"))
        caption = {"text": "A DOG", "speaker": "m1", "uttid": f"m1-x_{number}_0", "wav": f"wavs/{number}.wav"}
        entries[split].append({"image": f"val2014/{number}.jpg", "captions": [caption]})
    for split, data in entries.items():
        write(folder / f"SpokenCOCO/SpokenCOCO_ksplit_{split}.json", json.dumps({"data": data}))


@cache
def template(name: str) -> Path:
    """Return the folder of an intact corpus."""
    folder = Path(tempfile.mkdtemp(prefix="speechclip_fuzz_"))
    {"flickr8k": flickr8k, "spokencoco": spokencoco}[name](folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def templates() -> Iterator[None]:
    yield
    for name in ("flickr8k", "spokencoco"):
        shutil.rmtree(template(name))
    template.cache_clear()


def prepare(name: str, files: dict[str, bytes]) -> str:
    """Run stage 1 on a corpus with these files. Return its error, or "" after checking the data directories."""
    with tempfile.TemporaryDirectory() as place:
        corpus, out = Path(place, "corpus"), Path(place, "data")
        shutil.copytree(template(name), corpus)
        for path, content in files.items():
            write(corpus / path, content)
        if "captions.txt" in files:
            (corpus / "Flickr8k_text/Flickr8k.token.txt").unlink()
        status: Any = 0
        captured = io.StringIO(), io.StringIO()
        words = ["--name", name, "--corpus", str(corpus), "--out", str(out), "--max_bad", "0.9", "--nj", "1"]
        with contextlib.redirect_stdout(captured[0]), contextlib.redirect_stderr(captured[1]):
            try:
                main(words)
            except SystemExit as end:
                status = end.code
        assert status == (0 if out.exists() else 1)
        lines = captured[1].getvalue().splitlines()
        message = "" if out.exists() else lines.pop()
        assert all(line.startswith("warning: ") for line in lines), lines
        if message:
            assert message.startswith("error: ") and str(place) in message
            assert sorted(os.listdir(place)) == ["corpus"]
            return message
        assert sorted(os.listdir(place)) == ["corpus", "data"]
        for split in ("train", "dev", "test"):
            assert find_problems(out / split) == []
            assert all(u.text.strip() and u.clip_text.strip() for u in DataDir.load(out / split).utterances)
        return ""


def damaged(content: bytes, damage: list[tuple[float, bytes]], end: float) -> bytes:
    changed = bytearray(content)
    for place, new in damage:
        at = int(place * len(changed))
        changed[at : at + len(new)] = new
    return bytes(changed[: round(end * len(changed))])


def check_text(name: str, content: bytes, keep: bool) -> None:
    """Replace a text file of Flickr8k, or append to it."""
    header = b"image,caption\n" if name == "captions.txt" else b""
    intact = b"".join(b"%d.jpg,A dog .\n" % number for number in range(4)) if header else b""
    if keep and not header:
        intact = (template("flickr8k") / name).read_bytes()
    prepare("flickr8k", {name: header + (intact if keep else b"") + content})


def check_audio_file(kind: str, damage: list[tuple[float, bytes]], end: float) -> None:
    prepare("flickr8k", {"flickr_audio/wavs/0_0.wav": damaged(encoded_audio(kind), damage, end)})


def check_image_file(kind: str, damage: list[tuple[float, bytes]], end: float) -> None:
    prepare("flickr8k", {"Flicker8k_Dataset/0.jpg": damaged(encoded_image(kind), damage, end)})


def check_json(key: str, value: Any) -> None:
    """Replace a part of a split file of SpokenCOCO, or the whole file."""
    path = "SpokenCOCO/SpokenCOCO_ksplit_train.json"
    content: Any = json.loads((template("spokencoco") / path).read_text())
    entry = content["data"][0]
    if key == "file":
        content = value
    elif key in ("data", "annotations"):
        content[key] = value
    elif key in entry:
        entry[key] = value
    else:
        entry["captions"][0][key] = value
    prepare("spokencoco", {path: json.dumps(content).encode()})


ANY_TEXT = given(st.sampled_from(FLICKR8K_TEXTS), TEXTS, st.booleans())
ANY_AUDIO = given(st.sampled_from(AUDIO), DAMAGE, ENDS)
ANY_IMAGE = given(st.sampled_from(PHOTOGRAPHS), DAMAGE, ENDS)
ANY_JSON = given(st.sampled_from(["file", "data", "image", "captions", "text", "speaker", "uttid", "wav"]), JSON)


def test_stage1_accepts_the_intact_corpora() -> None:
    assert prepare("flickr8k", {}) == prepare("spokencoco", {}) == ""
    rows = b"".join(b'%d.jpg,"A\ndog"\n' % number for number in range(4))
    assert prepare("flickr8k", {"captions.txt": b"image,caption\n" + rows}) == ""
    assert "wav2spk.txt:1: not <recording>" in prepare("flickr8k", {"flickr_audio/wav2spk.txt": b"x\n"})
    assert prepare("flickr8k", {"flickr_audio/wavs/0_0.wav": b"x"}) == ""  # skipped


@QUICK
@ANY_TEXT
@example("flickr_audio/wav2spk.txt", b"0_0.wav " + b"9" * 5000, False)
def test_stage1_survives_any_text_file(name: str, content: bytes, keep: bool) -> None:
    check_text(name, content, keep)


@QUICK
@ANY_AUDIO
def test_stage1_survives_any_audio_file(kind: str, damage: list[tuple[float, bytes]], end: float) -> None:
    check_audio_file(kind, damage, end)


@QUICK
@ANY_IMAGE
def test_stage1_survives_any_image_file(kind: str, damage: list[tuple[float, bytes]], end: float) -> None:
    check_image_file(kind, damage, end)


@QUICK
@ANY_JSON
@example("text", None)
@example("wav", "a |")
@example("file", [[]])
def test_stage1_survives_any_json_file(key: str, value: Any) -> None:
    check_json(key, value)


@pytest.mark.slow
@THOROUGH
@ANY_TEXT
def test_stage1_survives_300_text_files(name: str, content: bytes, keep: bool) -> None:
    check_text(name, content, keep)


@pytest.mark.slow
@THOROUGH
@ANY_AUDIO
@example("mp3", [(0.0113, b"\0\0\0\1\1")], 1.0)  # a frame count that needs 36 GB
def test_stage1_survives_300_audio_files(kind: str, damage: list[tuple[float, bytes]], end: float) -> None:
    check_audio_file(kind, damage, end)


@pytest.mark.slow
@THOROUGH
@ANY_IMAGE
def test_stage1_survives_300_image_files(kind: str, damage: list[tuple[float, bytes]], end: float) -> None:
    check_image_file(kind, damage, end)


@pytest.mark.slow
@THOROUGH
@ANY_JSON
def test_stage1_survives_300_json_files(key: str, value: Any) -> None:
    check_json(key, value)
