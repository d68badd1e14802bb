"""Word alignments: when each word of an utterance is spoken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from speechclip.errors import UserError


@dataclass(frozen=True)
class AlignedWord:
    """A word and where it is spoken, in seconds from the start of the utterance."""

    text: str
    start: float
    end: float


def read_ctm(path: str | Path) -> dict[str, list[AlignedWord]]:
    """Words by utterance, in time's order, from lines ``utterance channel start duration word [confidence]``.

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
        words.setdefault(utterance, []).append(word)
    return {utterance: sorted(found, key=lambda word: word.start) for utterance, found in words.items()}


def load_alignments(path: str | Path, ids: Sequence[str]) -> dict[str, list[AlignedWord]]:
    """Those of a ctm file's words that belong to the utterances. Raises UserError where it has none of them."""
    every = read_ctm(path)
    found = {identity: every[identity] for identity in ids if identity in every}
    if not found:
        raise UserError(f"{path}: has an alignment of none of the {len(ids)} utterances")
    return found
