"""Functions that write bad inputs of every kind and read them, for ``test_bad_inputs``."""

from __future__ import annotations

import io
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from PIL import Image
from safetensors.torch import save_file

from speechclip.checkpoint.folder import read_checkpoint
from speechclip.config import load
from speechclip.convert.torchfile import read_torch_file
from speechclip.data.alignments import load_alignments
from speechclip.data.audio import load_audio
from speechclip.data.corpora.download import RemoteFile, download
from speechclip.data.corpora.flickr8k import prepare_flickr8k
from speechclip.data.embeddings import load_embeddings
from speechclip.data.features import FeatureStore
from speechclip.data.kaldi import DataDir, read_table
from speechclip.data.vocabulary import Vocabulary
from speechclip.eval.embedding_files import score_embedding_files
from speechclip.model.encoders.clip import load_clip
from speechclip.model.encoders.factory import load_speech_encoder

Act = Callable[[Path], Any]


def wrote(folder: Path, name: str, content: bytes | str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def table(content: bytes | str) -> Act:
    return lambda t: read_table(wrote(t, "wav.scp", content))


def ctm(content: bytes | str) -> Act:
    return lambda t: load_alignments(wrote(t, "ctm", content), ["a"])


def words(content: bytes | str) -> Act:
    return lambda t: Vocabulary.load(wrote(t, "v.tsv", content))


def layer(content: bytes | str) -> Act:
    return lambda t: load([wrote(t, "c.yaml", content)])


def option(*given: str) -> Act:
    return lambda t: load([], given)


def arrays(**given: Any) -> Act:
    def act(t: Path) -> Any:
        np.savez(t / "e.npz", **given)
        return load_embeddings(t / "e.npz", ["a"])

    return act


def two_widths(t: Path) -> Any:
    for name, width in (("q", 2), ("g", 3)):
        np.savez(t / f"{name}.npz", ids=["a"], embeddings=np.ones((1, width)))
    return score_embedding_files((t / "q.npz", ""), (t / "g.npz", ""))


def encoder(path: Act, kind: str = "speech_encoder") -> Act:
    """Return a function that loads the encoder at ``path``."""

    def act(t: Path) -> Any:
        model = load([], [f"--model.{kind}.path={path(t)}"]).model
        return load_clip(model.clip) if kind == "clip" else load_speech_encoder(model.speech_encoder)

    return act


def torch_file(content: bytes) -> Act:
    return lambda t: read_torch_file(wrote(t, "f.pt", content))


def copied(good: Path, t: Path) -> None:
    shutil.copytree(good, t, dirs_exist_ok=True)
    for name in ("wav.scp", "img.scp"):
        table = t / "d" / name
        table.write_text(table.read_text().replace(str(good), str(t)))


def in_data(name: str, old: str, new: str, act: Act = lambda t: DataDir.load(t / "d")) -> Act:
    """Return a function that loads the data directory after a change in one of its files."""

    def changed(t: Path) -> Any:
        path = t / "d" / name
        assert re.search(old, path.read_text())
        path.write_text(re.sub(old, new, path.read_text(), count=1, flags=re.MULTILINE))
        return act(t)

    return changed


def without(name: str, act: Act) -> Act:
    """Return a function that loads the data directory and its dump without one file."""

    def changed(t: Path) -> Any:
        (t / name).unlink()
        return act(t)

    return changed


def in_dump(name: str, change: Callable[[bytes], bytes], act: Act = lambda t: FeatureStore(t / "dump")) -> Act:
    def changed(t: Path) -> Any:
        (t / "dump" / name).write_bytes(change((t / "dump" / name).read_bytes()))
        return act(t)

    return changed


def audio(content: bytes) -> Act:
    return lambda t: load_audio(wrote(t, "a.wav", content))


def wav(samples: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 16000, format="WAV", **options)
    return buffer.getvalue()


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def archive(name: str, content: bytes, **changes: Any) -> Act:
    """Unpack an archive that has been downloaded already and should leave ``x``."""

    def act(t: Path) -> None:
        wrote(t, name, content)
        remote = RemoteFile(**{
            "name": name, "urls": (), "bytes": 1, "unpacked": 1, "leaves": ("x",), "into": "", "about": "ask",
            **changes,
        })  # fmt: skip
        download([remote], t)

    return act


def zipped(*members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as made:
        for name, content in members:
            made.writestr(name, content)
    return buffer.getvalue()


def tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as made:
        for info, content in members:
            info.size = len(content)
            made.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def link(name: str, to: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, to
    return info


class Evil:
    """An object that prints when Python's own unpickler reads it."""

    def __reduce__(self) -> Any:
        return print, ("this ran",)


def key_bomb() -> bytes:
    """Return a pickle whose dictionary key is a nested tuple: its hash takes 2**60 steps."""
    return b"\x80\x02}K\x01K\x02\x86" + b"2\x86" * 60 + b"K\x00s."


def saved(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def checkpoint(**files: str) -> Act:
    """Return a function that reads a checkpoint folder with these texts, by name without suffix."""

    def act(t: Path) -> Any:
        names = {"config": "config.yaml", "provenance": "provenance.json", "sums": "SHA256SUMS"}
        save_file({"a": torch.ones(1)}, wrote(t, "c/model.safetensors", ""))
        for name, text in files.items():
            wrote(t, f"c/{names[name]}", text)
        return read_checkpoint(t / "c")

    return act


def corpus(name: str, content: bytes | str) -> Act:
    """Return a function that prepares a Flickr8k of one image, after one of its files was damaged."""

    def act(t: Path) -> Any:
        files = {
            "Flickr8k_text/Flickr8k.token.txt": "1.jpg#0\ta dog\n", "flickr_audio/wav2capt.txt": "1_0.wav 1.jpg #0\n",
            "flickr_audio/wav2spk.txt": "1_0.wav 7\n", "flickr_audio/wavs/1_0.wav": b"", "Flicker8k_Dataset/1.jpg": b"",
            **{f"Flickr8k_text/Flickr_8k.{part}Images.txt": f"{at}.jpg\n"
               for at, part in enumerate(("train", "dev", "test"), 1)},
            name: content,
        }  # fmt: skip
        for file, text in files.items():
            wrote(t / "f", file, text)
        return prepare_flickr8k(t / "f", t / "data")

    return act


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join(['*' + old] * 9)}]\n" for old, new in zip("abcdefg", "bcdefgh", strict=True)
)
C = "optim:\n  lr: 1\n"
P = '{"dimensions": {"speech": 4, "states": 2, "joint": 3}}'
