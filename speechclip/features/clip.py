"""CLIP embeddings of images and captions, and the reduced vocabulary."""

from __future__ import annotations

import itertools
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from speechclip.common.errors import MissingFileError, Stopped, UserError
from speechclip.common.files import lines_fingerprint
from speechclip.common.parallel import map_ahead
from speechclip.data.embeddings import (
    load_embeddings,
    read_arrays,
    read_shape,
    save_embedding_blocks,
    save_embeddings,
)
from speechclip.data.images import load_image
from speechclip.data.kaldi import DataDir
from speechclip.data.mapped import Column
from speechclip.data.vocabulary import Vocabulary
from speechclip.model.encoders.clip import OpenClip
from speechclip.model.encoders.tokenizers import add_special_tokens

logger = logging.getLogger(__name__)

BATCH = 64
KEEP_SECONDS = 30.0  # between two saves of finished batches
LOG_SECONDS = 10.0  # between two log lines

Stop = Callable[[], bool]
Encode = Callable[[int, int], Iterator[np.ndarray]]


class Job(NamedTuple):
    """One of several processes that embed the same data directories.

    Attributes:
        number: from 1 to ``total``; 0 for the process that merges the finished parts.
        total: number of jobs. A single job embeds and merges.
    """

    number: int = 1
    total: int = 1

    def rows(self, count: int) -> tuple[int, int]:
        """Return the first row of this job's share of ``count`` rows, and the row after it. Batches stay whole."""
        if not self.number:
            return 0, 0
        batches = -(-count // BATCH)
        first, end = (batches * number // self.total * BATCH for number in (self.number - 1, self.number))
        return first, min(end, count)

    @property
    def merges(self) -> bool:
        """Return whether this process writes the final files."""
        return self.number == 0 or self.total == 1


ALONE = Job()


def embed_images(
    directory: DataDir, out: Path, clip: OpenClip | None, given: str | None, *, stop: Stop = lambda: False,
    job: Job = ALONE,
) -> int:  # fmt: skip
    """Write ``image_embeddings.npz`` of a data directory's images, from CLIP or from the file ``given``.

    Embeddings of the same files with the same weights and preprocessing are kept, also those of an interrupted call.
    One thread per CPU decodes images while CLIP runs. Several jobs each embed a share; the job 0, after them, merges
    the shares. The file does not depend on their number. On CPUs it depends on the number of threads, up to rounding.

    Args:
        directory: the data directory.
        out: folder of the embeddings.
        clip: CLIP; may be None if ``given`` is a file.
        given: an ``.npz`` file with the user's own embeddings, or None.
        stop: called after each batch. If it returns True, the finished batches are stored.
        job: the share of this process.

    Returns:
        The number of images in the share, or of all images after merging.

    Raises:
        UserError: ``given`` lacks an image, or a file is not an image.
        MissingFileError: the job 0 lacks the embeddings of another job.
        Stopped: ``stop`` returned True.
    """
    target, ids = out / "image_embeddings.npz", directory.images.ids
    if given:
        if job.merges:
            _, rows = load_embeddings(given, ids)
            save_embeddings(target, ids, rows, {"path": given})
        return len(ids) if job.merges else 0
    assert clip is not None
    files = directory.images.files

    def encode(start: int, end: int) -> Iterator[np.ndarray]:
        for pixels in batches_of_pixels((Path(files[at]) for at in range(start, end)), clip):
            yield clip.encode_pixels(pixels).cpu().numpy()

    of = lines_fingerprint(f"{item} {_size_and_time(path)}" for item, path in directory.images.items())
    return _embed(target, ids, clip.description | {"of": of}, encode, stop, job)


def embed_texts(
    directory: DataDir, out: Path, clip: OpenClip | None, given: str | None, *, stop: Stop = lambda: False,
    job: Job = ALONE,
) -> int:  # fmt: skip
    """Write ``text_embeddings.npz`` of the captions as CLIP reads them, from CLIP or from the file ``given``.

    Finished batches are kept, and several jobs share the work, as in :func:`embed_images`.

    Args:
        directory: the data directory.
        out: folder of the embeddings.
        clip: CLIP, or None.
        given: an ``.npz`` file with the user's own embeddings of all or some utterances, or None. Its ids are utterance
            ids, with or without the speaker and the dash at the start.
        stop: called after each batch. If it returns True, the finished batches are stored.
        job: the share of this process.

    Returns:
        The number of embedded captions. If it is 0, no file is written, and an earlier file is removed.

    Raises:
        UserError: ``given`` cannot be read.
        MissingFileError: the job 0 lacks the embeddings of another job.
        Stopped: ``stop`` returned True.
    """
    target = out / "text_embeddings.npz"
    if not given and clip is not None:
        texts = directory.utterances.clip_texts

        def encode(start: int, end: int) -> Iterator[np.ndarray]:
            return encode_captions(texts, clip, start, end)

        of = lines_fingerprint(f"{item} {text}" for item, text in zip(directory.ids, texts))
        source = {key: value for key, value in clip.description.items() if key != "preprocess"}  # of images
        return _embed(target, directory.ids, source | {"of": of}, encode, stop, job)
    if not job.merges:
        return 0
    kept = []
    if given:
        stored, table = load_embeddings(given)
        kept = _rows_of_utterances(directory, stored)
        if kept:
            save_embeddings(target, [item for item, _ in kept], table[[row for _, row in kept]], {"path": given})
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


def encode_captions(
    texts: Sequence[str], clip: OpenClip, start: int = 0, end: int | None = None
) -> Iterator[np.ndarray]:
    """Yield CLIP embeddings [N, J] of texts from number ``start`` to before ``end``, a batch at a time.

    Equal lists of texts give equal bits, because the batches are the same.
    """
    end = len(texts) if end is None else end
    for at in range(start, end, BATCH):
        yield clip.encode_texts(texts[at : min(at + BATCH, end)]).cpu().numpy()


def _embed(target: Path, ids: Column, source: Mapping[str, str], encode: Encode, stop: Stop, job: Job) -> int:
    """Write the embeddings of ``ids``, unless they exist, in batches from ``encode(start, end)``.

    Finished batches are saved every :data:`KEEP_SECONDS` to a folder next to ``target``, so that a killed run resumes,
    also with another number of jobs. The batches, and therefore the stored values, do not depend on interruptions.

    Returns:
        The number of rows in the share of the job, or of all rows after merging.
    """
    first, end = job.rows(len(ids))
    if read_shape(target, source) is None:
        folder = target.with_name(f".{target.stem}.parts")
        if job.number:
            _embed_share(target, folder, ids, source, encode, stop, (first, end))
        if job.merges:
            _merge(target, folder, ids, source)
            shutil.rmtree(folder, ignore_errors=True)
    return len(ids) if job.merges else end - first


def _embed_share(
    target: Path, folder: Path, ids: Column, source: Mapping[str, str], encode: Encode, stop: Stop,
    share: tuple[int, int],
) -> None:  # fmt: skip
    """Write the parts of a share that do not exist yet. A part is named by its first row, a multiple of a batch."""
    at, end = share
    fresh: list[np.ndarray] = []
    began = logged = written = time.monotonic()
    encoded = 0

    def keep() -> None:
        if fresh:
            rows = np.concatenate(fresh)
            first = at - len(rows)
            save_embeddings(folder / f"{first:09d}.npz", ids[first:at], rows, source)
            fresh.clear()

    while at < end:
        if shape := read_shape(folder / f"{at:09d}.npz", source):
            at += shape[0]
            continue
        # to the next part of an earlier run, if there is one
        limit = next((item for item in _starts(folder, at, end) if read_shape(folder / f"{item:09d}.npz", source)), end)
        for rows in encode(at, limit):
            fresh.append(rows)
            at += len(rows)
            encoded += len(rows)
            now = time.monotonic()
            if stop() and at < end:
                keep()
                raise Stopped(f"{target}: stopped after {at - share[0]} of {end - share[0]}, which are stored")
            if now - written > KEEP_SECONDS:
                keep()
                written = now
            if now - logged > LOG_SECONDS:
                logged = now
                left = (now - began) / encoded * (end - at)
                logger.info("%s: %d/%d, %.0f s left", target, at - share[0], end - share[0], left)
        keep()


def _starts(folder: Path, after: int, end: int) -> list[int]:
    """Return the first rows of the parts of a folder between two rows, ascending."""
    found = (int(path.stem) for path in folder.glob("*.npz") if path.stem.isdecimal())
    return sorted(start for start in found if after < start < end)


def _merge(target: Path, folder: Path, ids: Column, source: Mapping[str, str]) -> None:
    """Write one file from all parts, one part in memory at a time.

    Raises:
        MissingFileError: a part is missing.
    """
    starts, at, dim = [], 0, 0
    while at < len(ids):
        shape = read_shape(folder / f"{at:09d}.npz", source)
        if shape is None:
            raise MissingFileError(target, f"no embedding of {ids[at]!r}: a job is not finished")
        starts.append(at)
        at, dim = at + shape[0], shape[1]

    def blocks() -> Iterator[np.ndarray]:
        ends = [*starts[1:], len(ids)]
        for start, end in zip(starts, ends):
            yield read_arrays(folder / f"{start:09d}.npz")["embeddings"][: end - start]

    save_embedding_blocks(target, ids, blocks(), dim, source)


def batches_of_pixels(paths: Iterable[Path], clip: OpenClip) -> Iterator[Tensor]:
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
    rows = (add_special_tokens(tokenizer, tokenizer.encode(text), clip.context_length) for text in texts)
    return Vocabulary.from_rows(rows, tokenizer.subword)


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
