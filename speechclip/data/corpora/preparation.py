"""The part of the preparation that all corpora share: check every file, skip the bad ones, write the data directories.

A corpus module describes its utterances as :class:`Candidate` objects and its unusable items as :class:`Skipped`
objects, and passes both to :func:`write_corpus`.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from speechclip.common.errors import UserError, writing
from speechclip.data.alignments import LabelSpool
from speechclip.data.corpora.file_checks import FileChecks, decoded_seconds, header_seconds, image_problem, is_utf8
from speechclip.data.kaldi import (
    OPTIONAL_TABLES,
    Utterance,
    key_problem,
    move_into_place,
    write_data_dir,
)

SPLITS = ("train", "dev", "test")
SKIPPED_FILE = "skipped.tsv"
CAPTIONS_FILE = "captions.tsv"
NO_SPLIT = "-"


@dataclass(frozen=True, slots=True)
class Candidate:
    """An utterance as the corpus describes it. Its files are not checked yet."""

    utterance: Utterance
    image: Path
    split: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """An item that cannot be used.

    Attributes:
        id: of the utterance, or the nearest id that is known.
        file: the file that has the problem.
        reason: the problem.
    """

    id: str
    file: str
    reason: str

    @property
    def kind(self) -> str:
        """Return the reason without its details, for counting."""
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
    """The result of a preparation.

    Attributes:
        splits: the size of each split.
        skipped: the number of skipped items by kind of reason.
    """

    splits: dict[str, SplitSummary]
    skipped: dict[str, int]

    def __str__(self) -> str:
        """Return a table for the terminal."""
        wide = max(8, *(len(name) + 2 for name in self.splits)) if self.splits else 8
        lines = [f"{'split':<{wide}}{'images':>8}{'utterances':>12}{'hours':>8}{'speakers':>10}"]
        for name, size in self.splits.items():
            lines.append(f"{name:<{wide}}{size.images:>8}{size.utterances:>12}{size.hours:>8.2f}{size.speakers:>10}")
        lines.append(f"skipped {sum(self.skipped.values())}" + (f", listed in {SKIPPED_FILE}:" if self.skipped else ""))
        lines += [f"{count:>8}  {kind}" for kind, count in sorted(self.skipped.items(), key=lambda item: -item[1])]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a preparation.

    Attributes:
        max_bad: fraction of the utterances that may be skipped, 0 to 1.
        min_seconds: shorter utterances are skipped.
        max_seconds: longer utterances are skipped.
        check_samples: decode audio if its header does not show that it is complete and finite.
        nj: number of processes that open files.
    """

    max_bad: float = 0.01
    min_seconds: float = 0.3
    max_seconds: float = 60.0
    check_samples: bool = True
    nj: int = 1

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            UserError: a value is out of range.
        """
        if not 0 <= self.max_bad <= 1:
            raise UserError(f"max_bad {self.max_bad:g}: not a fraction between 0 and 1. Change the value.")
        if not 0 <= self.min_seconds < self.max_seconds:
            raise UserError(
                f"min_seconds {self.min_seconds:g}, max_seconds {self.max_seconds:g}: no length fits."
                " Change one of them."
            )
        if self.nj < 1:
            raise UserError(f"nj {self.nj}: at least one process is needed. Change the value.")


def caption_problem(text: Any) -> str | None:
    """Return the reason why a value of a corpus file cannot be a caption, or None."""
    if not isinstance(text, str):
        return "caption is not a text"
    if not text.strip():
        return "empty caption"
    return None if is_utf8(text) else "caption is not valid Unicode"


def id_problem(*parts: str) -> str | None:
    """Return the reason why an id cannot consist of these parts, or None."""
    if not all(map(is_utf8, parts)):
        return "id is not valid Unicode"
    return next((f"unusable id: {problem}" for part in parts if (problem := key_problem(part)) is not None), None)


def make_image_ids(paths: Iterable[str]) -> dict[str, str]:
    """Return an id for every photograph: its file name without suffix, or a longer form if two photographs share it.

    The longer forms are the path without suffix, the path with it, and the path in URL encoding. White space and "/"
    become "_".

    Args:
        paths: of the photographs, relative to the corpus, with "/".

    Raises:
        UserError: a photograph has the id of another one in every form.
    """
    forms: tuple[Callable[[str], str], ...] = (
        lambda path: PurePosixPath(path).stem,
        lambda path: path.removesuffix(PurePosixPath(path).suffix),
        lambda path: path,
        lambda path: quote(path, safe="", errors="backslashreplace"),
    )
    left = sorted(set(paths))
    ids: dict[str, str] = {}
    for form in forms:
        proposed = {path: "_".join(form(path).replace("/", " ").split()) for path in left}
        count = Counter([*proposed.values(), *ids.values()])
        ids |= {path: key for path, key in proposed.items() if count[key] == 1}
        left = [path for path in left if path not in ids]
    if left:
        raise UserError(f"{left[0]}: its id is that of another photograph. Rename the file.")
    return ids


def without_repeats(items: Iterable[Candidate | Skipped], reason: str) -> Iterator[Candidate | Skipped]:
    """Yield the items; a candidate with the id of an earlier one is skipped for ``reason``."""
    seen: set[str] = set()
    for item in items:
        if isinstance(item, Candidate) and item.utterance.id in seen:
            yield Skipped(item.utterance.id, str(item.utterance.wav), reason)
            continue
        if isinstance(item, Candidate):
            seen.add(item.utterance.id)
        yield item


def write_corpus(
    source: Path,
    data_dir: Path,
    items: Iterable[Candidate | Skipped],
    *,
    limits: Limits,
    captions: Iterable[tuple[str, str]] = (),
    extra_splits: Sequence[str] = (),
    labels: Mapping[str, LabelSpool] | None = None,
    tables: Mapping[str, Mapping[str, str]] | None = None,
) -> Summary:
    """Check every file, skip the bad ones, and write ``data_dir/<split>/`` and ``data_dir/skipped.tsv``.

    All files are written, or none. An extra split without a usable utterance is not written, and its old directory is
    removed.

    Args:
        source: the corpus, for messages.
        data_dir: folder of the splits' data directories.
        items: the utterances, whose ids must differ, and the items that are known to be unusable. If this is an
            iterator, other processes check the files while it reads the corpus.
        limits: the limits.
        captions: split (``-`` for none) and text of all captions of the corpus, recorded or not, as CLIP reads them.
            ``data_dir/captions.tsv`` keeps them for the reduced vocabulary. They are read after all ``items``.
        extra_splits: names of further splits, such as a second test set.
        labels: by file name, such as ``ctm``, labels with times. Each split gets a file of its utterances.
        tables: by file name, a text for each of some utterances. Each split gets the rows of its utterances.

    Raises:
        UserError: more than ``limits.max_bad`` would be skipped, or a split would be empty.
    """
    good, seconds, bad = _check_files(items, limits)
    count = len(good) + len(bad)
    if len(bad) > limits.max_bad * count:
        raise UserError(
            f"{source}: {len(bad)} of {count} utterances cannot be used, more than max_bad {limits.max_bad:g} "
            f"allows; the first: {bad[0].file}: {bad[0].reason}"
        )
    by_split: dict[str, list[Candidate]] = {split: [] for split in (*SPLITS, *extra_splits)}
    for item in good:
        by_split[item.split].append(item)
    for split in SPLITS:
        if not by_split[split]:
            raise UserError(f"{source}: no usable utterance for {split}. Check that the corpus is complete.")
    absent = [split for split in extra_splits if not by_split[split]]
    by_split = {split: usable for split, usable in by_split.items() if usable}
    part = data_dir.with_name(f".{data_dir.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        with writing(data_dir):
            for split, usable in by_split.items():
                images = {item.utterance.image_id: item.image for item in usable}
                write_data_dir(part / split, [item.utterance for item in usable], images)
            if labels:
                places = {split: part / split for split in by_split}
                folders = {item.utterance.id: places[split] for split, usable in by_split.items() for item in usable}
                for name, spool in labels.items():
                    spool.write(name, folders)
            for name, table in (tables or {}).items():
                for split, usable in by_split.items():
                    ids = sorted(item.utterance.id for item in usable if item.utterance.id in table)
                    if ids:
                        _write_lines(part / split / name, (f"{key} {table[key]}".rstrip() for key in ids))
            _write_rows(part / SKIPPED_FILE, [("id", "file", "reason"), *((i.id, i.file, i.reason) for i in bad)])
            _write_rows(part / CAPTIONS_FILE, captions)
            if not (part / CAPTIONS_FILE).stat().st_size:
                (part / CAPTIONS_FILE).unlink()
            for split in absent:
                shutil.rmtree(data_dir / split, ignore_errors=True)
            move_into_place(
                part, data_dir, replaces={*OPTIONAL_TABLES, *(labels or ()), *(tables or ()), CAPTIONS_FILE}
            )
    finally:
        shutil.rmtree(part, ignore_errors=True)
    sizes = {split: _size(usable, seconds) for split, usable in by_split.items()}
    return Summary(sizes, dict(Counter(item.kind for item in bad)))


def _write_rows(path: Path, rows: Iterable[Sequence[str]]) -> None:
    """Write tab-separated rows. White space in a field becomes one blank; invalid Unicode is escaped."""
    _write_lines(path, ("\t".join(" ".join(field.split()) for field in row) for row in rows))


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)


def _check_files(
    items: Iterable[Candidate | Skipped], limits: Limits
) -> tuple[list[Candidate], dict[str, float], list[Skipped]]:
    """Return the candidates with good files, their lengths in seconds by utterance id, and the others as skipped."""
    candidates, bad = [], []
    with FileChecks(limits.nj) as checks:
        images: dict[str, str | None] = {}
        measure = decoded_seconds if limits.check_samples else header_seconds
        for item in items:
            if isinstance(item, Skipped):
                bad.append(item)
                continue
            candidates.append(item)
            image = os.fspath(item.image)
            if image not in images:
                images[image] = None
                checks.add(image_problem, image)
            checks.add(measure, os.fspath(item.utterance.wav))
        images.update(zip(images, checks.results(image_problem), strict=True))
        good, seconds = [], {}
        for item, length in zip(candidates, checks.results(measure), strict=True):
            if problem := _file_problem(item, images[os.fspath(item.image)], length, limits):
                bad.append(problem)
            else:
                good.append(item)
                seconds[item.utterance.id] = float(length)
    return good, seconds, bad


def _file_problem(item: Candidate, reason: str | None, length: float | str, limits: Limits) -> Skipped | None:
    """Return an utterance as skipped if a file of it cannot be used, or None.

    Args:
        item: the utterance.
        reason: the problem of its image, or None.
        length: of its recording in seconds, or the problem of the recording.
        limits: the limits.
    """
    key, wave = item.utterance.id, os.fspath(item.utterance.wav)
    if reason is not None:
        return Skipped(key, os.fspath(item.image), reason)
    if isinstance(length, str):
        return Skipped(key, wave, length)
    if length < limits.min_seconds:
        return Skipped(key, wave, f"too short: {length:.2f} s")
    return Skipped(key, wave, f"too long: {length:.2f} s") if length > limits.max_seconds else None


def _size(items: Sequence[Candidate], seconds: dict[str, float]) -> SplitSummary:
    utterances = [item.utterance for item in items]
    return SplitSummary(
        images=len({item.image_id for item in utterances}),
        utterances=len(utterances),
        hours=sum(seconds[item.id] for item in utterances) / 3600,
        speakers=len({item.speaker for item in utterances}),
    )
