"""Word alignments: when each word of an utterance is spoken.

A data directory may have them as ``ctm``, one file, or as ``textgrid/<utterance>.TextGrid``, a file an utterance, as
the Montreal Forced Aligner and Praat write them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from speechclip.common.errors import UserError

PAUSES = frozenset({"", "sil", "sp", "spn", "<eps>", "<sil>", "<p:>"})  # labels of aligners where no word is spoken


@dataclass(frozen=True)
class AlignedWord:
    """A word and where it is spoken, in seconds from the start of the utterance."""

    text: str
    start: float
    end: float


def read_ctm(path: str | Path) -> dict[str, list[AlignedWord]]:
    """Words by utterance, in time's order, from lines ``utterance channel start duration word [confidence]``.

    Pauses are left out.

    Raises:
        UserError: missing, not UTF-8, or a malformed line, with its number.
    """
    words: dict[str, list[AlignedWord]] = {}
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8") from None
    for number, line in enumerate(lines, 1):
        fields = line.split()
        if not fields or line.startswith(";;"):
            continue
        try:
            utterance, _, start, duration, text = fields[:5]
            word = AlignedWord(text, float(start), float(start) + float(duration))
        except ValueError:
            word = AlignedWord("", -1.0, -1.0)
        if not 0 <= word.start <= word.end < float("inf"):
            raise UserError(f"{path}: line {number}: expected utterance, channel, start, duration and word")
        if not _pause(text):
            words.setdefault(utterance, []).append(word)
    return {utterance: sorted(found, key=lambda word: word.start) for utterance, found in words.items()}


def read_textgrid(path: str | Path) -> list[AlignedWord]:
    """Words of a Praat TextGrid in time's order, pauses left out.

    They stand in the interval tier named "words" or "word", as such or at the end of the name ("speaker - words"), or
    in the only interval tier there is.

    Raises:
        UserError: missing, no TextGrid, or without one such tier.
    """
    from praatio import textgrid
    from praatio.utilities.errors import PraatioException

    file = Path(path)
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    try:
        grid = textgrid.openTextgrid(str(file), includeEmptyIntervals=False, reportingMode="error")
    except (PraatioException, ValueError, IndexError, KeyError, UnicodeError) as error:
        raise UserError(
            f"{file}: not a readable TextGrid ({' '.join(str(error).split()) or type(error).__name__})"
        ) from error
    tiers = {tier.name: tier for tier in grid.tiers if isinstance(tier, textgrid.IntervalTier)}
    named = [name for name in tiers if re.search(r"(^|\W)words?$", name.strip().lower())] or list(tiers)
    if len(named) != 1:
        raise UserError(f"{file}: one interval tier 'words' is needed, there are {', '.join(tiers) or 'none'}")
    words = [AlignedWord(entry.label.strip(), entry.start, entry.end) for entry in tiers[named[0]].entries]
    return [word for word in words if not _pause(word.text)]


def _pause(label: str) -> bool:
    return label.lower() in PAUSES


def find_alignments(data: str | Path) -> Path | None:
    """Where a data directory has its alignments: the file ``ctm`` or the folder ``textgrid``, None for neither."""
    for path in (Path(data) / "ctm", Path(data) / "textgrid"):
        if path.exists():
            return path
    return None


def load_alignments(path: str | Path, ids: Sequence[str]) -> dict[str, list[AlignedWord]]:
    """Those words of a ctm file, or of a folder of TextGrids, that belong to the utterances.

    Raises UserError where it has none of them.
    """
    if Path(path).is_dir():
        files = {identity: Path(path) / f"{identity}.TextGrid" for identity in ids}
        every = {identity: read_textgrid(file) for identity, file in files.items() if file.exists()}
    else:
        every = read_ctm(path)
    found = {identity: every[identity] for identity in ids if every.get(identity)}
    if not found:
        raise UserError(f"{path}: has an alignment of none of the {len(ids)} utterances")
    return found
