"""Kaldi data directories: the six tables that tie recordings, captions, speakers and images together.

``wav.scp`` (utterance, audio file), ``text`` (utterance, caption), ``utt2spk``, ``spk2utt``, ``img.scp`` (image, image
file) and ``utt2img`` (utterance, image). Tables are UTF-8, one ``key value`` a line, sorted by key in byte order
(``LC_ALL=C sort``). Files are named by path, absolute or relative to the current folder; a path may hold spaces;
commands (``sph2pipe ... |``) are refused.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from speechclip.common.errors import UserError, writing
from speechclip.common.files import replace_file

TABLES = ("wav.scp", "text", "utt2spk", "spk2utt", "img.scp", "utt2img")

StrPath = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Utterance:
    """One spoken caption of one image."""

    id: str
    wav: Path
    text: str
    speaker: str
    image_id: str


@dataclass(frozen=True)
class DataDir:
    """A validated data directory: ``utterances`` sorted by id, ``images`` from image id to file, sorted by id."""

    path: Path
    utterances: tuple[Utterance, ...]
    images: dict[str, Path]

    @classmethod
    def load(cls, path: StrPath) -> DataDir:
        """Read and validate ``path``.

        Raises:
            UserError: naming the first problem of :func:`find_problems` and how many more there are.
        """
        directory = Path(path)
        tables, problems = _scan(directory)
        _raise_first(problems)
        wav, text, speaker, image = tables["wav.scp"], tables["text"], tables["utt2spk"], tables["utt2img"]
        utterances = tuple(Utterance(key, Path(wav[key]), text[key], speaker[key], image[key]) for key in sorted(wav))
        images = {key: Path(value) for key, value in sorted(tables["img.scp"].items())}
        return cls(directory, utterances, images)

    @property
    def speakers(self) -> tuple[str, ...]:
        """The speakers, sorted."""
        return tuple(sorted({utterance.speaker for utterance in self.utterances}))


def find_problems(path: StrPath) -> list[str]:
    """Everything wrong with a data directory that can be found without opening audio or images, one line each."""
    return _scan(Path(path))[1]


def read_table(path: StrPath) -> dict[str, str]:
    """Read one table: key to the rest of its line.

    Raises:
        UserError: the file is missing or empty, a line is not UTF-8 (with its number), has no value or repeats a key,
            or the keys are not in byte order.
    """
    table, problems = _scan_table(Path(path))
    _raise_first(problems)
    return table


def write_table(path: StrPath, mapping: Mapping[str, str]) -> None:
    """Write a table sorted by key; ``path`` holds either the old content or the whole new one, whenever it is read.

    Raises:
        UserError: a key or value that could not be read back the same (white space in a key, an empty value, a line
            break).
    """
    path = Path(path)
    lines = []
    for key in sorted(mapping):
        problem = _key_problem(key) or _value_problem(mapping[key])
        if problem:
            raise UserError(f"{path}: {key!r}: {problem}")
        lines.append(f"{key} {mapping[key]}\n")
    try:
        data = "".join(lines).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{path}: cannot be written as UTF-8 ({error.reason})") from error
    replace_file(path, data)


def write_data_dir(path: StrPath, utterances: Iterable[Utterance], images: Mapping[str, StrPath]) -> None:
    """Write all six tables. A new directory appears whole; in an existing one other files are left alone.

    Args:
        path: the directory.
        utterances: in any order; ids must differ.
        images: image id to file, exactly the images the utterances name.

    Raises:
        UserError: an id given twice, an utterance whose image is not in ``images``, an image without utterance, a
            command in place of a path, or an id or caption that the tables cannot hold.
    """
    path = Path(path)
    tables = _tables(path, utterances, images)
    part = path.with_name(f".{path.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        for name, table in tables.items():
            with writing(path / name):
                write_table(part / name, table)
        move_into_place(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def move_into_place(source: Path, target: Path) -> None:
    """Rename the folder ``source`` to ``target``; if that exists, file by file, leaving its other files alone."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, target)
        return
    for item in sorted(source.iterdir()):
        if item.is_dir():
            move_into_place(item, target / item.name)
        else:
            os.replace(item, target / item.name)
    shutil.rmtree(source, ignore_errors=True)


def _tables(path: Path, utterances: Iterable[Utterance], images: Mapping[str, StrPath]) -> dict[str, dict[str, str]]:
    """The six tables of ``utterances``, checked against each other."""
    tables: dict[str, dict[str, str]] = {name: {} for name in TABLES}
    by_speaker: dict[str, list[str]] = {}
    for utterance in sorted(utterances, key=lambda item: item.id):
        if utterance.id in tables["wav.scp"]:
            raise UserError(f"{path}: duplicate utterance id {utterance.id!r}")
        if utterance.image_id not in images:
            raise UserError(f"{path}: utterance {utterance.id!r}: its image {utterance.image_id!r} is not given")
        tables["wav.scp"][utterance.id] = os.fspath(utterance.wav)
        tables["text"][utterance.id] = utterance.text
        tables["utt2spk"][utterance.id] = utterance.speaker
        tables["utt2img"][utterance.id] = utterance.image_id
        by_speaker.setdefault(utterance.speaker, []).append(utterance.id)
    tables["spk2utt"] = {speaker: " ".join(ids) for speaker, ids in by_speaker.items()}
    tables["img.scp"] = {key: os.fspath(value) for key, value in images.items()}
    for key in sorted(set(images) - set(tables["utt2img"].values())):
        raise UserError(f"{path}: image {key!r} has no utterance")
    for name in ("wav.scp", "img.scp"):
        for key, value in tables[name].items():
            if _is_command(value):
                raise UserError(f"{path / name}: {key!r}: a command, not a path: {value}")
    for name in ("utt2spk", "utt2img"):
        for key, value in tables[name].items():
            problem = _key_problem(value)
            if problem:
                raise UserError(f"{path / name}: {key!r}: {value!r}: {problem}")
    return tables


def _scan(directory: Path) -> tuple[dict[str, dict[str, str]], list[str]]:
    """All tables of ``directory``, as far as they can be read, and everything wrong with them."""
    if not directory.is_dir():
        return {}, [f"{directory}: no such data directory"]
    tables: dict[str, dict[str, str]] = {}
    problems: list[str] = []
    for name in TABLES:
        tables[name], found = _scan_table(directory / name)
        problems += found
    if all((directory / name).is_file() for name in TABLES):
        problems += _counterpart_problems(directory, tables)
        problems += _speaker_problems(directory, tables)
    problems += _file_problems(directory / "wav.scp", tables["wav.scp"], "audio")
    problems += _file_problems(directory / "img.scp", tables["img.scp"], "image")
    return tables, problems


def _scan_table(path: Path) -> tuple[dict[str, str], list[str]]:
    """The readable lines of a table and what is wrong with the others."""
    if not path.is_file():
        return {}, [f"{path}: missing"]
    table: dict[str, str] = {}
    problems: list[str] = []
    last = ""
    lines = path.read_bytes().split(b"\n")
    if lines and not lines[-1]:
        lines.pop()
    if not lines:
        return {}, [f"{path}: empty"]
    for number, raw in enumerate(lines, start=1):
        try:
            key, value = _split_line(raw)
        except ValueError as error:
            problems.append(f"{path}:{number}: {error}")
            continue
        if key in table:
            problems.append(f"{path}:{number}: duplicate id {key!r}")
            continue
        if key < last:  # code-point order of str is byte order of UTF-8
            problems.append(f"{path}:{number}: not sorted: {key!r} after {last!r} (sort with LC_ALL=C)")
        last = key
        table[key] = value
    return table, problems


def _split_line(raw: bytes) -> tuple[str, str]:
    """Key and value of one line; ValueError with the reason when it has none."""
    try:
        line = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte 0x{raw[error.start]:02x} at column {error.start + 1})") from None
    if line.endswith("\r"):
        raise ValueError("ends in a carriage return (Windows line end)")
    key, *rest = re.split(r"[ \t]+", line, maxsplit=1)
    value = rest[0].rstrip(" \t") if rest else ""
    problem = _key_problem(key)
    if problem:
        raise ValueError(problem)
    problem = _value_problem(value)
    if problem:
        raise ValueError(f"{key!r}: {problem}")
    return key, value


def _key_problem(key: str) -> str | None:
    if not key:
        return "no id at the start of the line"
    if key.startswith("\ufeff"):
        return "starts with a byte order mark"
    if any(character.isspace() for character in key):
        return f"white space in the id {key!r}"
    return None


def _value_problem(value: str) -> str | None:
    if not value.strip():
        return "no value"
    if value != value.strip(" \t"):
        return "white space at the start or end of the value"
    if "\n" in value or "\r" in value:
        return "a line break in the value"
    return None


def _counterpart_problems(directory: Path, tables: dict[str, dict[str, str]]) -> list[str]:
    """Utterances and images that one table has and another lacks."""
    problems = []
    utterance_tables = ("wav.scp", "text", "utt2spk", "utt2img")
    for key in sorted(set().union(*(tables[name] for name in utterance_tables))):
        having = [name for name in utterance_tables if key in tables[name]]
        problems += [
            f"{directory / name}: utterance {key!r} of {having[0]} is missing"
            for name in utterance_tables
            if key not in tables[name]
        ]
    used = set(tables["utt2img"].values())
    for key, image in tables["utt2img"].items():
        if image not in tables["img.scp"]:
            problems.append(f"{directory / 'img.scp'}: image {image!r} of utterance {key!r} is missing")
    for image in tables["img.scp"]:
        if image not in used:
            problems.append(f"{directory / 'utt2img'}: image {image!r} of img.scp has no utterance")
    return problems


def _speaker_problems(directory: Path, tables: dict[str, dict[str, str]]) -> list[str]:
    """Where ``spk2utt`` is not the inverse of ``utt2spk``."""
    expected: dict[str, list[str]] = {}
    for key, speaker in tables["utt2spk"].items():
        expected.setdefault(speaker, []).append(key)
    path = directory / "spk2utt"
    problems = []
    for speaker in sorted(expected.keys() | tables["spk2utt"].keys()):
        if speaker not in tables["spk2utt"]:
            problems.append(f"{path}: speaker {speaker!r} of utt2spk is missing")
        elif speaker not in expected:
            problems.append(f"{path}: speaker {speaker!r} has no utterance in utt2spk")
        elif sorted(tables["spk2utt"][speaker].split()) != sorted(expected[speaker]):
            problems.append(f"{path}: speaker {speaker!r}: not the utterances that utt2spk gives this speaker")
    return problems


def _file_problems(path: Path, table: dict[str, str], kind: str) -> list[str]:
    """Entries of an scp table that are commands or name no file."""
    problems = []
    for key, value in table.items():
        if _is_command(value):
            problems.append(f"{path}: {key!r}: a command, not a path: {value}")
        elif not os.path.isfile(value):
            problems.append(f"{path}: {key!r}: missing {kind} file {value}")
    return problems


def _is_command(value: str) -> bool:
    return value.endswith("|") or value.startswith(("|", "<"))


def _raise_first(problems: list[str]) -> None:
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(problems[0] + more)
