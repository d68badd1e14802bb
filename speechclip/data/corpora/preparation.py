"""One module a corpus: from the layout it is published in to data directories.

What a corpus module has to do is to say which caption, recording, speaker and picture belong together
(:class:`Candidate`); opening the files, leaving out the bad ones and writing is the same for all
(:func:`write_corpus`).
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from speechclip.common.errors import UserError, writing
from speechclip.data.kaldi import Utterance, move_into_place, write_data_dir

T = TypeVar("T")

SPLITS = ("train", "dev", "test")
SKIPPED_FILE = "skipped.tsv"
CAPTIONS_FILE = "captions.tsv"
NO_SPLIT = "-"

_CHUNK = 128  # files a worker process takes at a time


@dataclass(frozen=True, slots=True)
class Candidate:
    """An utterance as the corpus describes it, before its files were opened."""

    utterance: Utterance
    image: Path
    split: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something left out: the utterance's id (or the nearest thing to it), the file that is to blame, and why."""

    id: str
    file: str
    reason: str

    @property
    def kind(self) -> str:
        """The reason without its particulars, for counting."""
        return self.reason.split(":")[0].split(" (")[0].split(". ")[0]


@dataclass(frozen=True, slots=True)
class SplitSummary:
    """The size of one split."""

    images: int
    utterances: int
    hours: float
    speakers: int


@dataclass(frozen=True)
class Summary:
    """What a preparation wrote (by split) and left out (by kind of reason)."""

    splits: dict[str, SplitSummary]
    skipped: dict[str, int]

    def __str__(self) -> str:
        """A table for the terminal."""
        lines = [f"{'split':<8}{'images':>8}{'utterances':>12}{'hours':>8}{'speakers':>10}"]
        for name, size in self.splits.items():
            lines.append(f"{name:<8}{size.images:>8}{size.utterances:>12}{size.hours:>8.2f}{size.speakers:>10}")
        lines.append(f"skipped {sum(self.skipped.values())}" + (f", listed in {SKIPPED_FILE}:" if self.skipped else ""))
        lines += [f"{count:>8}  {kind}" for kind, count in sorted(self.skipped.items(), key=lambda item: -item[1])]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Limits:
    """What is tolerated, and how thoroughly it is looked for.

    Attributes:
        max_bad: share of the utterances that may be skipped.
        min_seconds: shortest utterance taken.
        max_seconds: longest utterance taken.
        check_samples: decode audio whose header cannot tell that it is whole and finite (all but integer wav).
        nj: number of processes that open files.
    """

    max_bad: float = 0.01
    min_seconds: float = 0.3
    max_seconds: float = 60.0
    check_samples: bool = True
    nj: int = 1

    def __post_init__(self) -> None:
        """UserError for limits that make no sense."""
        if not 0 <= self.max_bad <= 1:
            raise UserError(f"max_bad {self.max_bad:g}: not a share between 0 and 1")
        if not 0 <= self.min_seconds < self.max_seconds:
            raise UserError(f"min_seconds {self.min_seconds:g}, max_seconds {self.max_seconds:g}: no length fits")
        if self.nj < 1:
            raise UserError(f"nj {self.nj}: at least one process is needed")


def write_corpus(
    source: Path,
    data_dir: Path,
    candidates: Sequence[Candidate],
    skipped: Iterable[Skipped],
    *,
    limits: Limits,
    splits: Sequence[str] = SPLITS,
    captions: Iterable[tuple[str, str]] = (),
) -> Summary:
    """Open every file, leave out the bad ones, and write ``data_dir/<split>/`` and ``data_dir/skipped.tsv``.

    ``captions`` are all captions of the corpus with their splits (``-`` for none), recorded or not: where there are
    any, ``data_dir/captions.tsv`` keeps them for the reduced vocabulary.

    Args:
        source: the corpus, for messages.
        data_dir: where the splits' data directories go; all of them are written, or none.
        candidates: the utterances; ids must differ.
        skipped: what has already been found unusable.
        limits: see there.
        splits: the names of the splits. captions: see above.

    Raises:
        UserError: more than ``limits.max_bad`` would be skipped, or a split be left empty. Nothing is written then.
    """
    bad = list(skipped)
    total = len(candidates) + len(bad)
    good, seconds, found = _check_files(candidates, limits)
    bad += found
    if len(bad) > limits.max_bad * total:
        raise UserError(
            f"{source}: {len(bad)} of {total} utterances cannot be used, more than max_bad {limits.max_bad:g} allows; "
            f"the first: {bad[0].file}: {bad[0].reason}"
        )
    by_split = {split: [item for item in good if item.split == split] for split in splits}
    for split, items in by_split.items():
        if not items:
            raise UserError(f"{source}: no usable utterance for {split}")
    part = data_dir.with_name(f".{data_dir.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        with writing(data_dir):
            for split, items in by_split.items():
                images = {item.utterance.image_id: item.image for item in items}
                write_data_dir(part / split, [item.utterance for item in items], images)
            rows = ["id\tfile\treason", *(f"{item.id}\t{item.file}\t{item.reason}" for item in bad)]
            (part / SKIPPED_FILE).write_text("\n".join(rows) + "\n", encoding="utf-8")
            lines = [f"{split}\t{' '.join(text.split())}\n" for split, text in captions]
            if lines:
                (part / CAPTIONS_FILE).write_text("".join(lines), encoding="utf-8")
            move_into_place(part, data_dir)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    sizes = {split: _size(items, seconds) for split, items in by_split.items()}
    return Summary(sizes, dict(Counter(item.kind for item in bad)))


def _check_files(
    candidates: Sequence[Candidate], limits: Limits
) -> tuple[list[Candidate], dict[str, float], list[Skipped]]:
    """The candidates whose files are good, the length in seconds by utterance id, and the others."""
    images = sorted({os.fspath(item.image) for item in candidates})
    image_reasons = dict(zip(images, _map(_image_reason, images, limits.nj), strict=True))
    waves = [os.fspath(item.utterance.wav) for item in candidates]
    measure = _decoded_seconds if limits.check_samples else _header_seconds
    lengths: list[float | str] = _map(measure, waves, limits.nj)
    good, seconds, bad = [], {}, []
    for item, wave, length in zip(candidates, waves, lengths, strict=True):
        image = os.fspath(item.image)
        reason = image_reasons[image]
        if reason is not None:
            bad.append(Skipped(item.utterance.id, image, reason))
        elif isinstance(length, str):
            bad.append(Skipped(item.utterance.id, wave, length))
        elif length < limits.min_seconds:
            bad.append(Skipped(item.utterance.id, wave, f"too short: {length:.2f} s"))
        elif length > limits.max_seconds:
            bad.append(Skipped(item.utterance.id, wave, f"too long: {length:.2f} s"))
        else:
            good.append(item)
            seconds[item.utterance.id] = length
    return good, seconds, bad


def _size(items: Sequence[Candidate], seconds: dict[str, float]) -> SplitSummary:
    utterances = [item.utterance for item in items]
    return SplitSummary(
        images=len({item.image_id for item in utterances}),
        utterances=len(utterances),
        hours=sum(seconds[item.id] for item in utterances) / 3600,
        speakers=len({item.speaker for item in utterances}),
    )


def _map(function: Callable[[str], T], paths: Sequence[str], nj: int) -> list[T]:
    """``function`` of every path, in order, by ``nj`` processes."""
    if nj == 1 or len(paths) <= _CHUNK:
        return [function(path) for path in paths]
    from concurrent.futures import ProcessPoolExecutor  # takes longer to import than the rest of the script

    with ProcessPoolExecutor(nj) as pool:
        return list(pool.map(function, paths, chunksize=_CHUNK))


def _image_reason(path: str) -> str | None:
    """Why an image cannot be used, or None."""
    from speechclip.data.images import check_image

    try:
        check_image(path)
    except UserError as error:
        return str(error).removeprefix(f"{path}: ")
    return None


def _decoded_seconds(path: str) -> float | str:
    """Length of a recording that will decode, or why it will not."""
    from speechclip.data.audio import SAMPLE_RATE, check_audio

    try:
        return check_audio(path) / SAMPLE_RATE
    except UserError as error:
        return str(error).removeprefix(f"{path}: ")


def _header_seconds(path: str) -> float | str:
    """Length of a recording by its header, or what is wrong with that."""
    from speechclip.data.audio import SAMPLE_RATE, num_samples

    try:
        return num_samples(path) / SAMPLE_RATE
    except UserError as error:
        return str(error).removeprefix(f"{path}: ")
