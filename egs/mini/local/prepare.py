#!/usr/bin/env python3
"""Write Kaldi data directories DATA_DIR/{train,dev,test}, each with a ctm of word alignments, from a mini corpus.

If the corpus has narratives, they are in DATA_DIR/{dev_long,test_long}. DATA_DIR/test has ``utt2keywords`` for keyword
spotting: a shape or colour fits an English utterance if any English caption of the image has the word.

The paths in them start with CORPUS_DIR as it is given. Run it in the folder of the recipe with a relative path.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import narrate
from generate import COLUMNS, Record, columns_of
from scenes import COLOURS, SHAPES

from speechclip.common.errors import MissingFileError, UserError
from speechclip.common.files import replace_file
from speechclip.data.kaldi import KEYWORD_TABLE, Utterance, write_data_dir

LONG = "_long"  # end of the names of the data directories of narratives


def read_captions(path: Path) -> list[Record]:
    """Read captions.tsv or narratives.tsv.

    Raises:
        MissingFileError: the file is missing.
        UserError: the file is not a table of `generate.py`.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    except FileNotFoundError:
        raise MissingFileError(path) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8") from error
    columns = tuple(rows[0]) if rows else ()
    if columns not in (COLUMNS, columns_of(())):
        raise UserError(f"{path}: its columns are not {' '.join(COLUMNS)}")
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(columns):
            raise UserError(f"{path}: line {number} has {len(row)} columns, not {len(columns)}")
    return [Record(*row) for row in rows[1:]]


def read_ctm(path: Path) -> dict[str, list[str]]:
    """Read the lines of a ctm file by utterance.

    Raises:
        MissingFileError: the file is missing.
    """
    lines: dict[str, list[str]] = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            lines.setdefault(line.split(" ", 1)[0], []).append(line)
    except FileNotFoundError:
        raise MissingFileError(path) from None
    return lines


def prepare(corpus: Path, data: Path) -> dict[str, int]:
    """Write all data directories and return the number of utterances of each split."""
    sizes = write_splits(corpus, data, corpus / "captions.tsv", corpus / "ctm", corpus / "audio", "")
    table, times = corpus / narrate.TABLE, corpus / narrate.TIMES
    if table.exists():
        return sizes | write_splits(corpus, data, table, times, corpus / narrate.FOLDER, LONG)
    for old in data.glob(f"*{LONG}"):
        shutil.rmtree(old)
    return sizes


def write_splits(corpus: Path, data: Path, table: Path, ctm: Path, audio: Path, suffix: str) -> dict[str, int]:
    """Write the data directories of a table. Return their numbers of utterances.

    Args:
        corpus: folder with the images.
        data: folder of the data directories.
        table: the utterances.
        ctm: their words.
        audio: folder with a folder of recordings for each split.
        suffix: of the names of the directories.
    """
    records, alignments = read_captions(table), read_ctm(ctm)
    for record in records:
        for path in (
            corpus / "images" / f"{record.image}.png",
            audio / record.split / f"{record.utterance}.flac",
        ):
            if not path.is_file():
                raise MissingFileError(path)
        if record.utterance not in alignments:
            raise UserError(f"{ctm}: no alignment of {record.utterance}")
    sizes = {}
    for split in dict.fromkeys(record.split for record in records):
        mine = sorted((record for record in records if record.split == split), key=lambda record: record.utterance)
        utterances = [
            Utterance(
                id=r.utterance,
                wav=audio / split / f"{r.utterance}.flac",
                text=r.caption,
                speaker=r.speaker,
                image_id=r.image,
                language=r.language,
            )
            for r in mine
        ]
        name = split + suffix
        write_data_dir(data / name, utterances, {r.image: corpus / "images" / f"{r.image}.png" for r in mine})
        times = "".join(line + "\n" for record in mine for line in alignments[record.utterance])
        replace_file(data / name / "ctm", times.encode())
        if name == "test":
            labels = keyword_lines(mine)
            (data / name / KEYWORD_TABLE).unlink(missing_ok=True)
            if labels:
                replace_file(data / name / KEYWORD_TABLE, labels.encode())
        sizes[name] = len(mine)
    return sizes


def keyword_lines(records: Sequence[Record]) -> str:
    """Return the content of ``utt2keywords`` for the English utterances, "" if they all describe one image."""
    english = [record for record in records if record.language in ("", "en")]
    words: dict[str, set[str]] = {}
    if len({record.image for record in english}) < 2:
        return ""
    for record in english:
        words.setdefault(record.image, set()).update({*SHAPES, *COLOURS} & set(record.caption.split()))
    return "".join(f"{' '.join([record.utterance, *sorted(words[record.image])])}\n" for record in english)


def main() -> int:
    """Parse the options and write the data directories."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path, metavar="CORPUS_DIR", help="folder that generate.py wrote")
    parser.add_argument("data", type=Path, metavar="DATA_DIR", help="folder for train, dev and test")
    args = parser.parse_args()
    try:
        for split, size in prepare(args.corpus, args.data).items():
            print(f"{args.data / split}: {size} utterances")
    except (UserError, OSError) as error:
        hint = ". Run stage 0." if isinstance(error, MissingFileError) else ""
        print(f"error: {error}{hint}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
