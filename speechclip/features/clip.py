"""What stage 2 computes with CLIP: embeddings of images and captions, and the reduced vocabulary."""

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
KEEP_SECONDS = 30.0  # of work that a kill may cost
SAY_SECONDS = 10.0

Stop = Callable[[], bool]
Encode = Callable[[int], Iterator[np.ndarray]]


def embed_images(
    directory: DataDir, out: Path, clip: OpenClip | None, given: str | None, *, stop: Stop = lambda: False
) -> int:
    """Write ``image_embeddings.npz`` of a data directory's images: by CLIP, or the rows of a user's own file ``given``.

    By CLIP, what an earlier call embedded of the same files with the same weights is kept, also of one that was cut.
    Image files are decoded beside the tower, by as many threads as there are processors.

    Args:
        stop: asked after each batch; once it is true, what there is is stored.
    Returns:
        the number of images.
    Raises:
        UserError: ``given`` lacks an image, or a file is none. Stopped: by ``stop``.
    """
    target, ids = out / "image_embeddings.npz", list(directory.images)
    if given:
        _, rows = load_embeddings(given, ids)
        save_embeddings(target, ids, rows, {"path": given})
        return len(ids)
    assert clip is not None
    paths = [Path(path) for path in directory.images.values()]

    def encode(start: int) -> Iterator[np.ndarray]:
        for pixels in _batches_of_pixels(paths[start:], clip):
            yield clip.encode_pixels(pixels).cpu().numpy()

    of = lines_fingerprint(f"{item} {_size_and_time(path)}" for item, path in zip(ids, paths))
    _embed(target, ids, clip.description | {"of": of}, encode, stop)
    return len(ids)


def embed_texts(
    directory: DataDir, out: Path, clip: OpenClip | None, given: str | None, *, stop: Stop = lambda: False
) -> int:
    """Write ``text_embeddings.npz`` of the captions: by CLIP, or those utterances that a user's file ``given`` has.

    The file's ids are utterance ids, or such ids without the speaker in front (as the corpus names its recordings).
    Earlier work is kept and ``stop`` asked as in :func:`embed_images`.

    Returns:
        the number of captions embedded; with 0 no file is written, and one of an earlier run is removed.
    Raises:
        UserError: ``given`` cannot be read. Stopped: by ``stop``.
    """
    target = out / "text_embeddings.npz"
    if given:
        stored, table = load_embeddings(given)
        row_of = {item: row for row, item in enumerate(stored)}
        pairs = [
            (u.id, row_of.get(u.id, row_of.get(u.id.removeprefix(f"{u.speaker}-"), -1))) for u in directory.utterances
        ]
        kept = [(item, row) for item, row in pairs if row >= 0]
        if kept:
            save_embeddings(target, [item for item, _ in kept], table[[row for _, row in kept]], {"path": given})
    elif clip is not None:
        kept = [(utterance.id, at) for at, utterance in enumerate(directory.utterances)]
        texts = [utterance.text for utterance in directory.utterances]

        def encode(start: int) -> Iterator[np.ndarray]:
            for at in range(start, len(texts), BATCH):
                yield clip.encode_texts(texts[at : at + BATCH]).cpu().numpy()

        of = lines_fingerprint(f"{item} {text}" for (item, _), text in zip(kept, texts))
        _embed(target, [item for item, _ in kept], clip.description | {"of": of}, encode, stop)
    else:
        kept = []
    if not kept:
        target.unlink(missing_ok=True)
    return len(kept)


def _embed(target: Path, ids: Sequence[str], source: Mapping[str, str], encode: Encode, stop: Stop) -> None:
    """Write the embeddings of ``ids``, unless they are there, in batches from ``encode(start)``.

    What is done goes into a folder of parts beside ``target`` every half a minute and is there after a kill. Batches
    are the same wherever a run was cut, and so is what is stored.
    """
    if _stored(target, source) is not None:
        return
    folder = target.with_name(f".{target.stem}.parts")
    parts, start = _kept(folder, source)
    fresh: list[np.ndarray] = []
    began = said = written = time.monotonic()
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
        if now - said > SAY_SECONDS:
            said = now
            left = (now - began) / (start - first) * (len(ids) - start)
            logger.info("%s: %d/%d, %.0f s left", target, start, len(ids), left)
    save_embeddings(target, ids, np.concatenate([*parts, *fresh]), source)
    shutil.rmtree(folder, ignore_errors=True)


def _stored(path: Path, source: Mapping[str, str]) -> np.ndarray | None:
    """The embeddings in a file as they are, if ``source`` made them; None for another file, or one that is damaged."""
    try:
        arrays = read_arrays(path)
        return arrays["embeddings"] if json.loads(str(arrays["source"])) == dict(source) else None
    except (UserError, ValueError, KeyError):  # to be made anew, whatever ails it
        return None


def _kept(folder: Path, source: Mapping[str, str]) -> tuple[list[np.ndarray], int]:
    """The parts of an earlier run, up to the first that is missing or not of this one, and how many rows they have."""
    parts: list[np.ndarray] = []
    start = 0
    while (rows := _stored(folder / f"{start:09d}.npz", source)) is not None:
        parts.append(rows)
        start += len(rows)
    return parts, start


def _batches_of_pixels(paths: Sequence[Path], clip: OpenClip) -> Iterator[Tensor]:
    """Preprocessed images, BATCH at a time, [N, 3, side, side]; the next batch is decoded meanwhile."""
    decoded = map_ahead(lambda path: clip.preprocess(load_image(path)), paths, ahead=2 * BATCH)
    while batch := list(itertools.islice(decoded, BATCH)):
        yield torch.stack(batch)


def _size_and_time(path: Path) -> str:
    """Changes with the file; empty for one that is not there, which its decoder will say better."""
    if not path.is_file():
        return ""
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def count_vocabulary(texts: Iterable[str], clip: OpenClip) -> Vocabulary:
    """The reduced vocabulary of captions, special tokens and padding included and counted, as the published one."""
    tokenizer = clip.tokenizer
    rows = [add_special_tokens(tokenizer, tokenizer.encode(text), clip.context_length) for text in texts]
    used = {token for row in rows for token in row}
    return Vocabulary.from_rows(rows, {token: tokenizer.subword(token) for token in used})


def vocabulary_texts(directories: Sequence[DataDir], captions: Path, *, only_train: bool) -> list[str]:
    """The captions a vocabulary is counted from.

    Args:
        directories: the splits. captions: ``captions.tsv`` of the preparation, all captions of the corpus, recorded or
            not; the splits' own where there is none. only_train: those of the training split alone.
    Raises:
        UserError: a line of ``captions`` without a tab.
    """
    if not captions.is_file():
        return [u.text for part in directories if part.path.name == "train" or not only_train for u in part.utterances]
    texts = []
    for number, line in enumerate(captions.read_text(encoding="utf-8").splitlines(), 1):
        split, tab, text = line.partition("\t")
        if not tab:
            raise UserError(f"{captions}: line {number}: expected split and caption, separated by a tab")
        if split == "train" or not only_train:
            texts.append(text)
    return texts
