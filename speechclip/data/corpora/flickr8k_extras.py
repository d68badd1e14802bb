"""Labels and times of the Flickr8k recordings that others published: words, phonemes and fitting keywords.

They are read if they are in the corpus folder or at most two folders deeper:

* ``flickr_8k.ctm`` (kamperh/recipe_semantic_flickraudio): times of words, in lines
  ``<image>.jpg_#<number> <channel> <start> <duration> <word>``
* ``flickr_labels/align_<recording>.txt`` (JSALT 2017 Rosetta): times of phonemes, in lines ``<phoneme> <start> <end>``
  with seconds; or one file ``flickr_labels.txt``, where a line ``align_<recording>.txt`` begins a recording
* ``semantic_flickraudio_labels.csv`` (kamperh/semantic_flickraudio, CC BY-SA 4.0): fitting keywords of 1,000 test
  captions, in rows ``<recording>,<caption>,<keyword>|<keyword>``
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from speechclip.common.errors import UserError
from speechclip.data.alignments import PAUSES, AlignedWord
from speechclip.data.kaldi import KEYWORD_TABLE

WORDS, PHONEMES = "ctm", "phones.ctm"
_CTM_FILE, _PHONEME_FOLDER, _LABELS = "flickr_8k.ctm", "flickr_labels", "semantic_flickraudio_labels.csv"
_NO_PHONEME = re.compile(r"^(SIL|\+.*\+)$")  # silence, +NOISE+, +BREATH+, +LAUGH+, +HUMAN+


def find_extras(corpus: Path) -> dict[str, Path]:
    """Return the place of each extra that a corpus folder has, by the name of its file in a data directory."""
    first = [item for item in sorted(corpus.iterdir()) if item.is_dir()]
    small = [item for item in first if "Dataset" not in item.name and item.name != "Images"]
    roots = [corpus, *first, *(item for root in small for item in sorted(root.iterdir())
                               if item.is_dir() and item.name not in ("wavs", _PHONEME_FOLDER))]  # fmt: skip
    found = {}
    for name, forms in (
        (WORDS, (_CTM_FILE,)), (PHONEMES, (_PHONEME_FOLDER, f"{_PHONEME_FOLDER}.txt")), (KEYWORD_TABLE, (_LABELS,)),
    ):  # fmt: skip
        paths = (root / form for root in roots for form in forms)
        if place := next((path for path in paths if path.exists()), None):
            found[name] = place
    return found


def read_words(file: Path) -> Iterator[tuple[str, AlignedWord]]:
    """Yield recording and word of each line of ``flickr_8k.ctm``, in lower case.

    Raises:
        UserError: a line is malformed.
    """
    for number, line in _lines(file):
        fields = line.split()
        match = re.fullmatch(r"(.+)\.jpg_?#(\d+)", fields[0])
        times = _times(fields[2:4])
        if match is None or len(fields) < 5 or times is None:
            raise UserError(
                f"{file}:{number}: not <image>.jpg_#<number> <channel> <start> <duration> <word>. Correct the line."
            )
        text = fields[4].lower()
        if text not in PAUSES:
            yield f"{match.group(1)}_{match.group(2)}", AlignedWord(text, times[0], times[0] + times[1])


def read_phonemes(place: Path) -> Iterator[tuple[str, AlignedWord]]:
    """Yield recording and phoneme of each line of the labels, without silence and noise.

    Args:
        place: the folder, or the file with all recordings.

    Raises:
        UserError: a line is malformed.
    """
    files = sorted(place.glob("align_*.txt")) if place.is_dir() else [place]
    for file in files:
        recording = _recording(file.name)
        for number, line in _lines(file):
            fields = line.split()
            if len(fields) == 1 and fields[0].startswith("align_") and not place.is_dir():
                recording = _recording(fields[0])
                continue
            times = _times(fields[1:])
            if len(fields) != 3 or times is None or times[1] < times[0] or not recording:
                raise UserError(f"{file}:{number}: not <phoneme> <start> <end>. Correct the line.")
            if not _NO_PHONEME.match(fields[0]):
                yield recording, AlignedWord(fields[0], *times)


def read_keywords(file: Path) -> dict[str, str]:
    """Return the fitting keywords of each recording, with blanks between them. A header is skipped.

    Raises:
        UserError: a row is malformed, or a recording has two rows.
    """
    found: dict[str, str] = {}
    rows = csv.reader((line for _, line in _lines(file)), strict=True)
    try:
        for number, row in enumerate(rows, 1):
            if number == 1 and row and not re.search(r"_\d+$", row[0]):
                continue
            if len(row) != 3 or not row[0]:
                raise UserError(f"{file}:{number}: not <recording>,<caption>,<keywords>. Correct the line.")
            if row[0] in found:
                raise UserError(f"{file}:{number}: another row of {row[0]}. Remove one of them.")
            found[row[0]] = " ".join(row[2].replace("|", " ").split())
    except csv.Error as error:
        raise UserError(f"{file}:{rows.line_num}: not a CSV row ({error}). Correct the line.") from error
    return found


def _recording(name: str) -> str:
    return name.removeprefix("align_").removesuffix(".txt").removesuffix(".wav")


def _times(fields: list[str]) -> tuple[float, float] | None:
    """Return two times, or None."""
    try:
        first, second = float(fields[0]), float(fields[1])
    except (ValueError, IndexError):
        return None
    return (first, second) if 0 <= first < 1e5 and 0 <= second < 1e5 else None


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Yield number and content of the lines that are not blank."""
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, line.rstrip("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8. Save it as UTF-8.") from error
