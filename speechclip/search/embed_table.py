"""Embeddings of recordings, pictures or texts as one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from speechclip.common.errors import UserError
from speechclip.common.parallel import map_ahead
from speechclip.data.audio import check_not_silent, load_audio
from speechclip.data.images import load_image
from speechclip.search.items import IMAGE, RECORDING
from speechclip.search.sources import find_images, find_recordings, printable

if TYPE_CHECKING:
    from speechclip.api import SpeechCLIP

BATCH = 16  # items that are embedded at once


def find_inputs(paths: Sequence[str], kind: str) -> dict[str, str]:
    """Return files by id: a file's id is its path as it is given, those of a folder are found at any depth.

    Args:
        paths: files, folders or data directories.
        kind: "image" or "recording".

    Raises:
        UserError: a folder has no such files, or two files have the same id.
    """
    find = find_images if kind == IMAGE else find_recordings
    found: dict[str, str] = {}
    for path in paths:
        here = (
            {item: str(file) for item, file in find(path).items()} if Path(path).is_dir() else {printable(path): path}
        )
        if both := here.keys() & found.keys():
            raise UserError(f"{path}: its id {min(both)!r} is given twice. Embed it in a file of its own.")
        found |= here
    return found


def embed_table(
    model: SpeechCLIP, kind: str, items: Mapping[str, str], branch: str | None = None
) -> tuple[list[str], NDArray[np.float32], list[str]]:
    """Embed recordings, pictures or texts.

    Args:
        model: the model.
        kind: "recording", "image" or "text".
        items: files, or texts, by id.
        branch: see :meth:`SpeechCLIP.encode_speech`.

    Returns:
        The ids that were embedded, their embeddings [N, D], and the problems of the others.

    Raises:
        UserError: the model has no CLIP for pictures or texts, or it does not have the branch.
    """
    read: Callable[[str], Any]
    if kind == RECORDING:
        read, encode = _read_recording, lambda batch: model.encode_speech(batch, branch)
    elif kind == IMAGE:
        model.network.require_clip()
        read, encode = load_image, model.encode_image
    else:
        model.network.require_clip()
        read, encode = _read_text, model.encode_text

    def attempt(item: str) -> Any:
        try:
            return read(items[item])
        except UserError as error:
            return error

    ids: list[str] = []
    parts: list[NDArray[np.float32]] = []
    problems: list[str] = []
    batch: list[Any] = []
    for number, (item, content) in enumerate(zip(items, map_ahead(attempt, items, ahead=BATCH)), start=1):
        if isinstance(content, UserError):
            problems.append(str(content) if kind != "text" else f"{item}: {content}")
        else:
            ids.append(item)
            batch.append(content)
        if batch and (len(batch) == BATCH or number == len(items)):
            parts.append(encode(batch).float().cpu().numpy())
            batch = []
    return ids, np.concatenate(parts) if parts else np.empty((0, 0), np.float32), problems


def _read_recording(path: str) -> NDArray[np.float32]:
    wave = load_audio(path)
    check_not_silent(path, wave)
    return wave


def _read_text(text: str) -> str:
    if not text.strip():
        raise UserError("an empty text. Write a few words.")
    return text
