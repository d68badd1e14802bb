"""The tables of a Kaldi data directory line by line: their names, the rules of a line, and every problem."""

from __future__ import annotations

import os
import re
from pathlib import Path

TABLES = ("wav.scp", "text", "utt2spk", "spk2utt", "img.scp", "utt2img")
CLIP_TABLE = "text_clip"
LANGUAGE_TABLE = "utt2lang"
#: Optional tables with a value for every utterance.
OPTIONAL_TABLES = (CLIP_TABLE, LANGUAGE_TABLE)
#: Tables that change what an utterance is, with the reason. An utterance here is a whole recording, all channels mixed.
REFUSED_TABLES = {
    "segments": "cuts recordings into utterances",
    "subsegments": "cuts utterances into parts",
    "reco2file_and_channel": "selects a channel of each recording",
    "vad.scp": "selects frames of each utterance",
}

ID_TABLES = ("utt2spk", "utt2img", LANGUAGE_TABLE)  # their values have no white space


def key_problem(key: str) -> str | None:
    """Return the reason why a table cannot hold an id, or None."""
    if not key:
        return "no id at the start of the line"
    if key.startswith("\ufeff"):
        return "starts with a byte order mark"
    if key.split() != [key]:  # several times faster than isspace() of each character
        return f"white space in the id {key!r}"
    return None


def value_problem(value: str) -> str | None:
    """Return the reason why a table cannot hold a value, or None."""
    if not value.strip():
        return "no value"
    if value != value.strip(" \t"):
        return "white space at the start or end of the value"
    if "\n" in value or "\r" in value:
        return "a line break in the value"
    return None


def is_command(value: str) -> bool:
    """Return whether an entry of an scp table is a command and not a path."""
    return value.endswith("|") or value.startswith(("|", "<"))


def scan(directory: Path) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Return the readable tables of ``directory`` and all problems."""
    if not directory.is_dir():
        return {}, [f"{directory}: is not a data directory"]
    tables: dict[str, dict[str, str]] = {}
    problems = refused(directory)
    optional = [name for name in OPTIONAL_TABLES if (directory / name).exists()]
    for name in (*TABLES, *optional):
        tables[name], found = scan_table(directory / name)
        problems += found
    if all((directory / name).is_file() for name in TABLES):
        problems += _counterpart_problems(directory, tables)
        problems += _speaker_problems(directory, tables)
        problems += _language_problems(directory, tables)
    problems += _file_problems(directory / "wav.scp", tables["wav.scp"], "audio")
    problems += _file_problems(directory / "img.scp", tables["img.scp"], "image")
    return tables, problems


def refused(directory: Path) -> list[str]:
    """Return the tables that change what an utterance is."""
    return [
        f"{directory / name}: {effect}, which is not supported. Write each utterance to a file of its own and remove "
        f"{name}."
        for name, effect in REFUSED_TABLES.items()
        if (directory / name).exists()
    ]


def scan_table(path: Path) -> tuple[dict[str, str], list[str]]:
    """Return the readable lines of a table and the problems of the other lines."""
    if not path.is_file():
        return {}, [f"{path}: is missing"]
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
    """Return key and value of one line. Raises ValueError with the reason if the line does not have them."""
    try:
        line = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte 0x{raw[error.start]:02x} at column {error.start + 1})") from None
    if line.endswith("\r"):
        raise ValueError("ends in a carriage return (Windows line end)")
    key, *rest = re.split(r"[ \t]+", line, maxsplit=1)
    value = rest[0].rstrip(" \t") if rest else ""
    problem = key_problem(key)
    if problem:
        raise ValueError(problem)
    problem = value_problem(value)
    if problem:
        raise ValueError(f"{key!r}: {problem}")
    return key, value


def _counterpart_problems(directory: Path, tables: dict[str, dict[str, str]]) -> list[str]:
    """Return the utterances and images that one table has and another lacks."""
    problems = []
    utterance_tables = [name for name in ("wav.scp", "text", "utt2spk", "utt2img", *OPTIONAL_TABLES) if name in tables]
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
    """Return the speakers for which ``spk2utt`` is not the inverse of ``utt2spk``."""
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


def _language_problems(directory: Path, tables: dict[str, dict[str, str]]) -> list[str]:
    """Return the languages with white space."""
    return [
        f"{directory / LANGUAGE_TABLE}: {key!r}: {value!r}: not one language"
        for key, value in tables.get(LANGUAGE_TABLE, {}).items()
        if key_problem(value)
    ]


def _file_problems(path: Path, table: dict[str, str], kind: str) -> list[str]:
    """Return the entries of an scp table that are commands or name a file that is missing."""
    problems = []
    for key, value in table.items():
        if is_command(value):
            problems.append(f"{path}: {key!r}: a command, not a path: {value}")
        elif not os.path.isfile(value):
            problems.append(f"{path}: {key!r}: missing {kind} file {value}")
    return problems
