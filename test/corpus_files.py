"""Photographs and recordings for the tests of corpora."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image


def photograph(path: Path, number: int) -> None:
    """Write a small JPEG with a colour of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = (number * 37 % 256, number * 91 % 256, number * 53 % 256)
    Image.new("RGB", (40, 30), colour).save(path)


def recording(path: Path, number: int = 1, seconds: float = 0.6) -> None:
    """Write a tone of 16 kHz, in the format of the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = 0.1 * np.sin(np.arange(int(16000 * seconds)) * 0.02 * (1 + number % 9))
    soundfile.write(path, wave, 16000)


def archive(files: dict[str, Path | bytes]) -> bytes:
    """Return a tar.gz file with files or folders, by name."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            if isinstance(content, bytes):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            else:
                tar.add(content, name)
    return buffer.getvalue()
