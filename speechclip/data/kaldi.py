"""Kaldi data directories: the tables that connect recordings, captions, speakers and images.

Six tables are required: ``wav.scp`` (utterance, audio file), ``text`` (utterance, caption), ``utt2spk``, ``spk2utt``,
``img.scp`` (image, image file) and ``utt2img`` (utterance, image). ``text_clip`` (utterance, caption as CLIP reads it)
is optional: without it CLIP reads ``text``. ``utt2lang`` (utterance, language such as ``en``) is optional, too: without
it the language is unknown.

Tables are UTF-8 with one ``key value`` per line, sorted by key in byte order (``LC_ALL=C sort``). A path is absolute or
relative to the current folder, and may hold spaces. Commands (``sph2pipe ... |``) are refused. So are the tables that
change what an utterance is, such as ``segments``, because a reader that ignores them would use other audio.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speechclip.common.errors import MissingFileError, UserError, writing
from speechclip.common.files import replacing
from speechclip.data.kaldi_columns import VERSION, Checks, UnusualTable, columns_of, open_columns, write_columns
from speechclip.data.kaldi_lines import (
    CLIP_TABLE,
    ID_TABLES,
    LANGUAGE_TABLE,
    OPTIONAL_TABLES,
    TABLES,
    is_command,
    key_problem,
    refused,
    scan,
    scan_table,
    value_problem,
)
from speechclip.data.mapped import Column, files_stamp, is_large, mapped_folder
from speechclip.data.utterances import ImageTable, Utterance, UtteranceTable

logger = logging.getLogger(__name__)

#: Fitting keywords of some utterances, for keyword spotting: an id and words on each line. It is not validated.
KEYWORD_TABLE = "utt2keywords"
_MAX_DIGITS = 18  # of a count; int() refuses several thousand

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class DataDir:
    """A validated data directory.

    The columns of a large directory are memory-mapped: the first load writes them to a hidden folder in the directory,
    and later loads, also of other processes, use them until a table changes (size or modification time). Then audio
    and image files are checked again.

    Attributes:
        path: the directory.
        utterances: sorted by id.
        images: image id to file, sorted by id.
        rows: positions of the utterances in the tables, if only some were selected; else None.
    """

    path: Path
    utterances: UtteranceTable
    images: ImageTable
    rows: NDArray[np.int64] | None = field(default=None, compare=False)

    @classmethod
    def load(cls, path: StrPath) -> DataDir:
        """Read and validate a data directory.

        Raises:
            MissingFileError: the directory or its ``wav.scp`` is missing.
            UserError: the first problem of :func:`find_problems`, and the number of further ones.
        """
        directory = Path(path)
        if not (directory / "wav.scp").is_file():
            raise MissingFileError(directory / "wav.scp")
        _raise_first(refused(directory))
        try:
            return cls(directory, *_load_columns(directory))
        except UnusualTable:  # not valid, or in a form that only the reader of single lines knows
            tables, problems = scan(directory)
            _raise_first(problems)
            return cls(directory, *columns_of(tables))

    @property
    def ids(self) -> Column:
        """Return the ids of the utterances, sorted."""
        return self.utterances.ids

    @property
    def speakers(self) -> tuple[str, ...]:
        """Return the speakers, sorted."""
        table = self.utterances
        return tuple(table.speaker_ids[at] for at in np.unique(table.speakers).tolist())

    @property
    def languages(self) -> tuple[str, ...]:
        """Return the languages, sorted. Empty if they are unknown."""
        table = self.utterances
        return () if table.languages is None else tuple(table.language_ids[at] for at in np.unique(table.languages))

    def only(self, languages: Collection[str]) -> DataDir:
        """Return the utterances in some languages, and their images. Without languages, return the directory itself.

        Raises:
            UserError: no utterance has one of the languages.
        """
        if not languages:
            return self
        for language in languages:
            if language not in self.languages:
                known = " ".join(self.languages) or "none, because utt2lang is missing"
                raise UserError(f"{self.path}: no utterance in the language {language!r}. Its languages: {known}.")
        table = self.utterances
        assert table.languages is not None
        wanted = [at for at, language in enumerate(table.language_ids) if language in languages]
        rows = np.flatnonzero(np.isin(table.languages, wanted))
        kept = np.unique(table.images[rows])
        return DataDir(self.path, table.take(rows, kept), self.images.take(kept), rows)


def find_problems(path: StrPath) -> list[str]:
    """Return one line per problem of a data directory. Audio and images are not opened."""
    return scan(Path(path))[1]


def read_table(path: StrPath) -> dict[str, str]:
    """Read one table: key to the rest of its line.

    Raises:
        MissingFileError: the file is missing.
        UserError: the file is empty, a line is not UTF-8, has no value or repeats a key, or the keys are not in byte
            order. The message has the number of the line.
    """
    if not Path(path).is_file():
        raise MissingFileError(path)
    table, problems = scan_table(Path(path))
    _raise_first(problems)
    return table


def write_table(path: StrPath, mapping: Mapping[str, str]) -> None:
    """Write a table sorted by key. ``path`` is always either the old or the new file.

    Raises:
        UserError: a key or value that would not be read back the same (white space in a key, an empty value, a line
            break).
    """
    path = Path(path)
    with replacing(path) as part, part.open("w", encoding="utf-8", newline="\n") as file:
        for key in sorted(mapping):
            problem = key_problem(key) or value_problem(mapping[key])
            if problem:
                raise UserError(f"{path}: {key!r}: {problem}. Rename it.")
            try:
                file.write(f"{key} {mapping[key]}\n")
            except UnicodeEncodeError as error:
                raise UserError(f"{path}: cannot be written as UTF-8 ({error.reason}). Rename it.") from error


def write_data_dir(path: StrPath, utterances: Iterable[Utterance], images: Mapping[str, StrPath]) -> None:
    """Write the tables of a data directory.

    A new directory appears as a whole. In an existing directory the tables are replaced and other files are kept.
    ``text_clip`` is written if it differs from ``text`` for any utterance, and ``utt2lang`` if the utterances have a
    language. Otherwise they are removed.

    Args:
        path: the directory.
        utterances: in any order; ids must differ.
        images: image id to file; exactly the images that the utterances name.

    Raises:
        UserError: an id that occurs twice, an utterance whose image is not in ``images``, an image without utterance, a
            command instead of a path, an utterance without language next to one with a language, or an id or caption
            that the tables cannot hold.
    """
    path, utterances = Path(path), sorted(utterances, key=lambda item: item.id)
    _check_utterances(path, utterances, images)
    part = path.with_name(f".{path.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        for name in (
            *TABLES,
            *OPTIONAL_TABLES,
        ):  # one table at a time: together they take more memory than all utterances
            table = _table(name, utterances, images)
            if table is not None:
                with writing(path / name):
                    write_table(part / name, table)
        move_into_place(part, path, replaces=OPTIONAL_TABLES)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def move_into_place(source: Path, target: Path, replaces: Collection[str] = ()) -> None:
    """Rename a folder. If ``target`` exists, move the files one by one and keep the other files of ``target``.

    Args:
        source: the folder.
        target: its new name.
        replaces: names of optional files. They are removed from ``target`` if ``source`` lacks them.
    """
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, target)
        return
    for name in replaces:  # first: after a kill an old file must not be next to new ones
        if not (source / name).exists():
            (target / name).unlink(missing_ok=True)
    for item in sorted(source.iterdir()):
        if item.is_dir():
            move_into_place(item, target / item.name, replaces)
        else:
            os.replace(item, target / item.name)
    shutil.rmtree(source, ignore_errors=True)


def parse_count(text: str) -> int | None:
    """Return the whole number that ``text`` holds in decimal digits, or None if it does not hold one."""
    return int(text) if text.isdecimal() and len(text) <= _MAX_DIGITS else None


#: The checks of keys and values for the reader of blocks.
CHECKS = Checks(key_problem, value_problem)


def _load_columns(directory: Path) -> tuple[UtteranceTable, ImageTable]:
    """Return the columns of a data directory: in memory if it is small, and else mapped.

    Raises:
        UnusualTable: see :mod:`speechclip.data.kaldi_columns`.
    """
    optional = [name for name in OPTIONAL_TABLES if (directory / name).exists()]
    paths = [directory / name for name in (*TABLES, *optional)]
    try:
        size = sum(path.stat().st_size for path in paths)
    except OSError as error:
        raise UnusualTable(str(error)) from error
    if not is_large(size):
        table, files = write_columns(directory, None, optional, CHECKS)
        return table, ImageTable(table.image_ids, files)

    def build(folder: Path) -> None:
        logger.info("%s: building its memory-mapped columns", directory)
        write_columns(directory, folder, optional, CHECKS)

    return mapped_folder(directory / ".columns", lambda: files_stamp(paths, VERSION), build, open_columns)


def _check_utterances(path: Path, utterances: Sequence[Utterance], images: Mapping[str, StrPath]) -> None:
    """Check utterances, sorted by id, and images against each other. UserError as in :func:`write_data_dir`."""
    last, used = None, set()
    for utterance in utterances:
        if utterance.id == last:
            raise UserError(f"{path}: duplicate utterance id {utterance.id!r}. Rename one of them.")
        if utterance.image_id not in images:
            raise UserError(
                f"{path}: utterance {utterance.id!r}: its image {utterance.image_id!r} is not given."
                " Add the image, or remove the utterance."
            )
        last = utterance.id
        used.add(utterance.image_id)
    for key in sorted(set(images) - used):
        raise UserError(f"{path}: image {key!r} has no utterance. Add one, or remove the image.")
    for name in ("wav.scp", "img.scp"):
        for key, value in (_table(name, utterances, images) or {}).items():
            if is_command(value):
                raise UserError(
                    f"{path / name}: {key!r}: a command, not a path: {value}."
                    " Write the output of the command to a file, and give its path."
                )
    for name in ID_TABLES:
        for key, value in (_table(name, utterances, images) or {}).items():
            problem = "no language" if name == LANGUAGE_TABLE and not value else key_problem(value)
            if problem:
                raise UserError(f"{path / name}: {key!r}: {value!r}: {problem}")


def _table(name: str, utterances: Sequence[Utterance], images: Mapping[str, StrPath]) -> dict[str, str] | None:
    """Return one table. None for an optional table that is not needed."""
    if name == "img.scp":
        return {key: os.fspath(value) for key, value in images.items()}
    if name == "spk2utt":
        by_speaker: dict[str, list[str]] = {}
        for utterance in utterances:
            by_speaker.setdefault(utterance.speaker, []).append(utterance.id)
        return {speaker: " ".join(ids) for speaker, ids in by_speaker.items()}
    if name == CLIP_TABLE and all(item.clip_text == item.text for item in utterances):
        return None
    if name == LANGUAGE_TABLE and not any(item.language for item in utterances):
        return None
    values: dict[str, Callable[[Utterance], str]] = {
        "wav.scp": lambda item: os.fspath(item.wav),
        "text": lambda item: item.text,
        CLIP_TABLE: lambda item: item.clip_text,
        LANGUAGE_TABLE: lambda item: item.language,
        "utt2spk": lambda item: item.speaker,
        "utt2img": lambda item: item.image_id,
    }
    return {utterance.id: values[name](utterance) for utterance in utterances}


def _raise_first(problems: list[str]) -> None:
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(problems[0] + more)
