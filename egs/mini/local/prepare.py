#!/usr/bin/env python3
"""Write Kaldi data directories DATA_DIR/{train,dev,test}, each with a ctm of word alignments, from a mini corpus.

The paths in them start with CORPUS_DIR as it is given. Run it in the folder of the recipe with a relative path.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

from generate import COLUMNS, Record, columns_of

from speechclip.common.errors import MissingFileError, UserError
from speechclip.data.kaldi import Utterance, write_data_dir


def read_captions(corpus: Path) -> list[Record]:
    """Read CORPUS_DIR/captions.tsv.

    Raises:
        MissingFileError: the file is missing.
        UserError: the file is not a table of `generate.py`.
    """
    path = corpus / "captions.tsv"
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


def read_ctm(corpus: Path) -> dict[str, list[str]]:
    """Read the lines of CORPUS_DIR/ctm by utterance.

    Raises:
        MissingFileError: the file is missing.
    """
    path = corpus / "ctm"
    lines: dict[str, list[str]] = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            lines.setdefault(line.split(" ", 1)[0], []).append(line)
    except FileNotFoundError:
        raise MissingFileError(path) from None
    return lines


def prepare(corpus: Path, data: Path) -> dict[str, int]:
    """Write all data directories and return the number of utterances of each split."""
    records, alignments = read_captions(corpus), read_ctm(corpus)
    for record in records:
        for path in (
            corpus / "images" / f"{record.image}.png",
            corpus / "audio" / record.split / f"{record.utterance}.flac",
        ):
            if not path.is_file():
                raise MissingFileError(path)
        if record.utterance not in alignments:
            raise UserError(f"{corpus / 'ctm'}: no alignment of {record.utterance}")
    sizes = {}
    for split in dict.fromkeys(record.split for record in records):
        mine = sorted((record for record in records if record.split == split), key=lambda record: record.utterance)
        utterances = [
            Utterance(
                id=r.utterance,
                wav=corpus / "audio" / split / f"{r.utterance}.flac",
                text=r.caption,
                speaker=r.speaker,
                image_id=r.image,
                language=r.language,
            )
            for r in mine
        ]
        write_data_dir(data / split, utterances, {r.image: corpus / "images" / f"{r.image}.png" for r in mine})
        ctm = "".join(line + "\n" for record in mine for line in alignments[record.utterance])
        temporary = data / split / ".ctm"
        temporary.write_text(ctm, encoding="utf-8")
        temporary.replace(data / split / "ctm")
        sizes[split] = len(mine)
    return sizes


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
