"""Embed the files of an index: only those whose content is not known, with progress."""

from __future__ import annotations

import io
import itertools
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from speechclip.common.constants import SAMPLE_RATE
from speechclip.common.devices import cpu_count
from speechclip.common.errors import UserError
from speechclip.common.files import file_sha256
from speechclip.common.parallel import map_ahead
from speechclip.data.audio import check_not_silent, load_audio
from speechclip.data.images import load_image
from speechclip.search.items import IMAGE, RECORDING
from speechclip.search.journal import Journal, Stat
from speechclip.search.sources import Sources, printable
from speechclip.search.windows import WindowSettings, cut_windows

if TYPE_CHECKING:
    from torch import Tensor

    from speechclip.api import SpeechCLIP

logger = logging.getLogger(__name__)

THUMBNAIL_SIZE, THUMBNAIL_QUALITY = 320, 85  # pixels of the longer side, JPEG quality
BATCH = 64  # images that are embedded at once
WINDOW_BATCH = 16  # windows that are embedded at once
MIN_SAMPLES = SAMPLE_RATE // 5  # of a recording: no word is shorter
LOG_SECONDS = 10.0


class FileRecord(NamedTuple):
    """A file that is indexed: its kind, path, size, time of change in nanoseconds, and SHA-256."""

    kind: str
    path: str
    size: int
    changed: int
    digest: str


class Embedded(NamedTuple):
    """The result of :func:`embed_files`.

    Attributes:
        files: the files that are indexed, by id; the journal has their embeddings.
        not_indexed: the other ones, with the reason.
        new: number of files that were read because they are new or changed.
    """

    files: dict[str, FileRecord]
    not_indexed: list[tuple[Path, str]]
    new: int


class _Prepared(NamedTuple):
    """A file that was read. A known content has neither pixels nor windows.

    Attributes:
        id: its id.
        stat: its size and time of change before it was read.
        digest: SHA-256 of its content.
        pixels: the input of CLIP [3, side, side].
        thumbnail: a small JPEG.
        windows: the waveforms of the windows.
        spans: their starts and ends in seconds.
    """

    id: str
    stat: Stat
    digest: str
    pixels: Tensor | None = None
    thumbnail: bytes = b""
    windows: tuple[NDArray[np.float32], ...] = ()
    spans: tuple[tuple[float, float], ...] = ()


class Progress:
    """Logs the number of files, the rate and the remaining time every few seconds.

    Args:
        total: number of files.
    """

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self._began = self._logged = time.monotonic()

    def step(self) -> None:
        """Count one file."""
        self.done += 1
        now = time.monotonic()
        if now - self._logged > LOG_SECONDS:
            self._logged, rate = now, self.done / (now - self._began)
            left = (self.total - self.done) / rate
            logger.info("%d/%d files, %.1f files/s, %.0f s left", self.done, self.total, rate, left)


def embed_files(
    model: SpeechCLIP, sources: Sources, journal: Journal, settings: WindowSettings, branch: str | None
) -> Embedded:
    """Embed the files whose content the journal does not know, and add them to the journal.

    Files are decoded on all CPUs while the model works. In memory are one decoded image per CPU and the inputs of CLIP
    for two batches, whatever the size of the images. A file that cannot be read is logged and left out.

    Args:
        model: the model.
        sources: the files.
        journal: the known embeddings.
        settings: how recordings are cut.
        branch: see :meth:`SpeechCLIP.encode_speech`.

    Raises:
        UserError: the model has no CLIP, and there are pictures.
    """
    found = Embedded({}, list(sources.others), 0)
    files = {IMAGE: sources.images, RECORDING: sources.recordings}
    changed = {kind: _changed(kind, paths, journal, found.files) for kind, paths in files.items()}
    total = sum(map(len, changed.values()))
    if found.files:
        logger.info("%d files have not changed, %d are new or changed", len(found.files), total)
    progress = Progress(total)
    if changed[IMAGE]:
        _embed_images(model, changed[IMAGE], journal, found, progress)
    if changed[RECORDING]:
        _embed_recordings(model, changed[RECORDING], journal, found, progress, settings, branch)
    return found._replace(new=total)


def _changed(kind: str, paths: Mapping[str, Path], journal: Journal, found: dict[str, FileRecord]) -> dict[str, Path]:
    """Add the files that have not changed to ``found``, and return the other ones."""
    rest = {}
    for item, path in paths.items():
        place = str(path.resolve())
        try:
            stat = Stat.of(path)
        except OSError:  # reading it gives the reason
            rest[item] = path
            continue
        digest = journal.digest_of(place, stat)
        if digest is None or journal.get(kind, digest) is None:
            rest[item] = path
        else:
            found[item] = FileRecord(kind, place, *stat, digest)
    return rest


def _read(
    kind: str, paths: Mapping[str, Path], results: Iterator[_Prepared | UserError], journal: Journal, found: Embedded,
    progress: Progress,
) -> Iterator[_Prepared]:  # fmt: skip
    """Yield the files that have to be embedded. Count, log and list the other ones."""
    for item, result in zip(paths, results):
        progress.step()
        if isinstance(result, UserError):
            found.not_indexed.append((paths[item], str(result)))
            logger.info("left out: %s", printable(str(result)))
            continue
        found.files[item] = FileRecord(kind, str(paths[item].resolve()), *result.stat, result.digest)
        if journal.get(kind, result.digest) is None:
            yield result


def _embed_images(
    model: SpeechCLIP, paths: dict[str, Path], journal: Journal, found: Embedded, progress: Progress
) -> None:
    import torch

    clip = model.network.require_clip()

    def prepare(item: str) -> _Prepared | UserError:
        try:
            stat, digest = _identify(paths[item], "image")
            if journal.get(IMAGE, digest) is not None:
                return _Prepared(item, stat, digest)
            image = load_image(paths[item])
        except UserError as error:  # one bad image does not stop an index of thousands
            return error
        return _Prepared(item, stat, digest, clip.preprocess(image), make_thumbnail(image))

    results = map_ahead(prepare, paths, ahead=2 * BATCH)
    ready = _read(IMAGE, paths, results, journal, found, progress)
    while batch := list(itertools.islice(ready, BATCH)):
        pixels = torch.stack([image.pixels for image in batch if image.pixels is not None])
        vectors = clip.encode_pixels(pixels).cpu().numpy()
        for image, vector in zip(batch, vectors, strict=True):
            place = found.files[image.id].path
            journal.append(IMAGE, place, image.stat, image.digest, vector[None], thumbnail=image.thumbnail)
        journal.flush()


def _embed_recordings(
    model: SpeechCLIP, paths: dict[str, Path], journal: Journal, found: Embedded, progress: Progress,
    settings: WindowSettings, branch: str | None,
) -> None:  # fmt: skip
    def prepare(item: str) -> _Prepared | UserError:
        try:
            stat, digest = _identify(paths[item], "audio")
            if journal.get(RECORDING, digest) is not None:
                return _Prepared(item, stat, digest)
            wave = load_audio(paths[item])
            check_not_silent(paths[item], wave)
            spans = tuple(cut_windows(wave, settings))
            windows = tuple(cut_wave(wave, span) for span in spans)
            if not spans or min(map(len, windows)) < MIN_SAMPLES:
                raise UserError(
                    f"{paths[item]}: no speech of at least {MIN_SAMPLES / SAMPLE_RATE:g} s. Record it again."
                )
        except UserError as error:
            return error
        return _Prepared(item, stat, digest, windows=windows, spans=spans)

    results = map_ahead(prepare, paths, ahead=1 + cpu_count())
    ready = _read(RECORDING, paths, results, journal, found, progress)
    while batch := _fill(ready):
        windows = [window for recording in batch for window in recording.windows]
        vectors = model.encode_speech(windows, branch).float().cpu().numpy()
        at = 0
        for one in batch:
            rows = vectors[at : at + len(one.windows)]
            journal.append(RECORDING, found.files[one.id].path, one.stat, one.digest, rows, one.spans)
            at += len(one.windows)
        journal.flush()


def _fill(ready: Iterator[_Prepared]) -> list[_Prepared]:
    """Return recordings with at least WINDOW_BATCH windows together, fewer at the end."""
    batch: list[_Prepared] = []
    for recording in ready:
        batch.append(recording)
        if sum(len(one.windows) for one in batch) >= WINDOW_BATCH:
            break
    return batch


def cut_wave(wave: NDArray[np.float32], span: tuple[float, float]) -> NDArray[np.float32]:
    """Return a window of a waveform [n]. span: start and end in seconds."""
    return wave[round(span[0] * SAMPLE_RATE) : round(span[1] * SAMPLE_RATE)]


def _identify(path: Path, kind: str) -> tuple[Stat, str]:
    """Return size, time and SHA-256 of a file.

    Raises:
        UserError: the file cannot be read.
    """
    if not path.is_file():
        raise UserError(f"{path}: {'not a file' if path.exists() else f'missing {kind} file'}")
    try:
        return Stat.of(path), file_sha256(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). Check the path.") from error


def try_thumbnail(path: Path) -> bytes | UserError:
    """Return the thumbnail of an image file, or the error if it cannot be read."""
    try:
        return make_thumbnail(load_image(path))
    except UserError as error:
        return error


def make_thumbnail(image: Image.Image) -> bytes:
    """Return a small JPEG of an RGB image, which is reduced in place."""
    image.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=THUMBNAIL_QUALITY)
    return buffer.getvalue()
