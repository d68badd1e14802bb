"""CLIP embeddings of images and captions, and the reduced vocabulary."""

from __future__ import annotations

import itertools
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from speechclip.common.errors import Stopped, UserError
from speechclip.common.files import lines_fingerprint
from speechclip.common.parallel import map_ahead
from speechclip.data.embeddings import load_embeddings, read_arrays, save_embeddings
from speechclip.data.images import load_image
from speechclip.data.kaldi import DataDir
from speechclip.data.vocabulary import Vocabulary
from speechclip.model.encoders.clip import OpenClip
from speechclip.model.encoders.tokenizers import add_special_tokens

logger = logging.getLogger(__name__)

BATCH = 64
KEEP_SECONDS = 30.0  # between two saves of finished batches
LOG_SECONDS = 10.0  # between two log lines

Stop = Callable[[], bool]
Encode = Callable[[int], Iterator[np.ndarray]]


def embed_images(
    directory: DataDir, out: Path, clip: OpenClip | None, given: str | None, *, stop: Stop = lambda: False
) -> int:
    """Write ``image_embeddings.npz`` of a data directory's images, from CLIP or from the file ``given``.

    Embeddings of the same files with the same weights and preprocessing are kept, also those of an interrupted call.
    One thread per CPU decodes images while CLIP runs.

    Args:
        directory: the data directory.
        out: folder of the embeddings.
        clip: CLIP; may be None if ``given`` is a file.
        given: an ``.npz`` file with the user's own embeddings, or None.
        stop: called after each batch. If it returns True, the finished batches are stored.

    Returns:
        The number of images.

    Raises:
        UserError: ``given`` lacks an image, or a file is not an image.
        Stopped: ``stop`` returned True.
    """
    target, ids = out / "image_embeddings.npz", list(directory.images)
    if given:
        _, rows = load_embeddings(given, ids)
        save_embeddings(target, ids, rows, {"path": given})
        return len(ids)
    assert clip is not None
    paths = [Path(path) for path in directory.images.values()]

    def encode(start: int) -> Iterator[np.ndarray]:
        for pixels in batches_of_pixels(paths[start:], clip):
            yield clip.encode_pixels(pixels).cpu().numpy()

    of = lines_fingerprint(f"{item} {_size_and_time(path)}" for item, path in zip(ids, paths))
    _embed(target, ids, clip.description | {"of": of}, encode, stop)
    return len(ids)


def embed_texts(
    directory: DataDir, out: Path, clip: OpenClip | None, given: str | None, *, stop: Stop = lambda: False
) -> int:
    """Write ``text_embeddings.npz`` of the captions as CLIP reads them, from CLIP or from the file ``given``.

    Finished batches are kept as in :func:`embed_images`.

    Args:
        directory: the data directory.
        out: folder of the embeddings.
        clip: CLIP, or None.
        given: an ``.npz`` file with the user's own embeddings of all or some utterances, or None. Its ids are utterance
            ids, with or without the speaker and the dash at the start.
        stop: called after each batch. If it returns True, the finished batches are stored.

    Returns:
        The number of embedded captions. If it is 0, no file is written, and an earlier file is removed.

    Raises:
        UserError: ``given`` cannot be read.
        Stopped: ``stop`` returned True.
    """
    target = out / "text_embeddings.npz"
    if given:
        stored, table = load_embeddings(given)
        kept = _rows_of_utterances(directory, stored)
        if kept:
            save_embeddings(target, [item for item, _ in kept], table[[row for _, row in kept]], {"path": given})
    elif clip is not None:
        kept = [(utterance.id, at) for at, utterance in enumerate(directory.utterances)]
        texts = [utterance.clip_text for utterance in directory.utterances]

        def encode(start: int) -> Iterator[np.ndarray]:
            return encode_captions(texts, clip, start)

        of = lines_fingerprint(f"{item} {text}" for (item, _), text in zip(kept, texts))
        source = {key: value for key, value in clip.description.items() if key != "preprocess"}  # of images
        _embed(target, [item for item, _ in kept], source | {"of": of}, encode, stop)
    else:
        kept = []
    if not kept:
        target.unlink(missing_ok=True)
    return len(kept)


def check_given_texts(directories: Sequence[DataDir], given: str) -> None:
    """Raise an error if the user's own caption embeddings belong to none of the utterances.

    Raises:
        UserError: none of the ids is an utterance, or the file cannot be read.
    """
    stored, _ = load_embeddings(given)
    if not any(_rows_of_utterances(directory, stored) for directory in directories):
        names = " and ".join(str(directory.path) for directory in directories)
        first = f" The first id is {stored[0]!r}." if stored else ""
        raise UserError(
            f"{given}: none of its {len(stored)} ids is an utterance of {names}.{first} Use the ids of the file 'text'."
        )


def _rows_of_utterances(directory: DataDir, stored: Sequence[str]) -> list[tuple[str, int]]:
    """Return the id and the row of each utterance that is stored, with or without its speaker and a dash in front."""
    row_of = {item: row for row, item in enumerate(stored)}
    pairs = [(u.id, row_of.get(u.id, row_of.get(u.id.removeprefix(f"{u.speaker}-"), -1))) for u in directory.utterances]
    return [(item, row) for item, row in pairs if row >= 0]


def encode_captions(texts: Sequence[str], clip: OpenClip, start: int = 0) -> Iterator[np.ndarray]:
    """Yield CLIP embeddings [N, J] of texts from number ``start`` on, a batch at a time.

    Equal lists of texts give equal bits, because the batches are the same.
    """
    for at in range(start, len(texts), BATCH):
        yield clip.encode_texts(texts[at : at + BATCH]).cpu().numpy()


def _embed(target: Path, ids: Sequence[str], source: Mapping[str, str], encode: Encode, stop: Stop) -> None:
    """Write the embeddings of ``ids``, unless they exist, in batches from ``encode(start)``.

    Finished batches are saved every :data:`KEEP_SECONDS` to a folder next to ``target``, so that a killed run resumes.
    The batches, and therefore the stored values, do not depend on interruptions.
    """
    if _stored(target, source) is not None:
        return
    folder = target.with_name(f".{target.stem}.parts")
    parts, start = _kept(folder, source)
    fresh: list[np.ndarray] = []
    began = logged = written = time.monotonic()
    first = start

    def keep() -> None:
        if fresh:
            count = sum(map(len, fresh))
            rows = np.concatenate(fresh)
            save_embeddings(folder / f"{start - count:09d}.npz", ids[start - count : start], rows, source)
            parts.append(rows)
            fresh.clear()

    for rows in encode(start):
        fresh.append(rows)
        start += len(rows)
        now = time.monotonic()
        if stop() and start < len(ids):
            keep()
            raise Stopped(f"{target}: stopped after {start} of {len(ids)}, which are stored")
        if now - written > KEEP_SECONDS:
            keep()
            written = now
        if now - logged > LOG_SECONDS:
            logged = now
            left = (now - began) / (start - first) * (len(ids) - start)
            logger.info("%s: %d/%d, %.0f s left", target, start, len(ids), left)
    save_embeddings(target, ids, np.concatenate([*parts, *fresh]), source)
    shutil.rmtree(folder, ignore_errors=True)


def _stored(path: Path, source: Mapping[str, str]) -> np.ndarray | None:
    """Return the embeddings in a file, or None if the file is damaged or has another source."""
    try:
        arrays = read_arrays(path)
        return arrays["embeddings"] if json.loads(str(arrays["source"])) == dict(source) else None
    except (UserError, ValueError, KeyError):  # missing or damaged: computed again
        return None


def _kept(folder: Path, source: Mapping[str, str]) -> tuple[list[np.ndarray], int]:
    """Return the parts of an earlier run before the first missing or different one, and their number of rows."""
    parts: list[np.ndarray] = []
    start = 0
    while (rows := _stored(folder / f"{start:09d}.npz", source)) is not None:
        parts.append(rows)
        start += len(rows)
    return parts, start


def batches_of_pixels(paths: Sequence[Path], clip: OpenClip) -> Iterator[Tensor]:
    """Yield batches of preprocessed images [N, 3, side, side]. Threads decode the next batch meanwhile."""
    decoded = map_ahead(lambda path: clip.preprocess(load_image(path)), paths, ahead=2 * BATCH)
    while batch := list(itertools.islice(decoded, BATCH)):
        yield torch.stack(batch)


def _size_and_time(path: Path) -> str:
    """Return size and modification time of a file; empty for a missing file, which the decoder reports."""
    if not path.is_file():
        return ""
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def count_vocabulary(texts: Iterable[str], clip: OpenClip) -> Vocabulary:
    """Return the reduced vocabulary of captions. As in the published one, special tokens and padding count too.

    Args:
        texts: the captions as CLIP reads them.
        clip: provides the tokenizer and the context length.
    """
    tokenizer = clip.tokenizer
    rows = [add_special_tokens(tokenizer, tokenizer.encode(text), clip.context_length) for text in texts]
    used = {token for row in rows for token in row}
    return Vocabulary.from_rows(rows, {token: tokenizer.subword(token) for token in used})


def vocabulary_texts(directories: Sequence[DataDir], captions: Path, *, only_train: bool) -> list[str]:
    """Return the captions that a vocabulary is counted from, as CLIP reads them.

    Args:
        directories: the splits. Their captions are used if ``captions`` is missing.
        captions: ``captions.tsv`` of the preparation, with all captions of the corpus, recorded or not.
        only_train: use the captions of the training split only.

    Raises:
        UserError: a line of ``captions`` has no tab, or is not UTF-8.
    """
    if not captions.is_file():
        used = [part for part in directories if part.path.name == "train" or not only_train]
        return [utterance.clip_text for part in used for utterance in part.utterances]
    texts = []
    try:
        lines = captions.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{captions}: not UTF-8. Prepare the data again.") from error
    for number, line in enumerate(lines, 1):
        split, tab, text = line.partition("\t")
        if not tab:
            raise UserError(
                f"{captions}: line {number}: expected split and caption, separated by a tab. Correct the line."
            )
        if split == "train" or not only_train:
            texts.append(text)
    return texts
