"""Keywords for keyword spotting: labels of utterances, and spoken examples that are cut from aligned recordings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from speechclip.common.constants import SAMPLE_RATE
from speechclip.common.errors import MissingFileError, UserError
from speechclip.data.alignments import AlignedWord
from speechclip.data.audio import load_audio
from speechclip.data.dataset import Batch, Crop
from speechclip.data.kaldi import DataDir

_SHORTEST = 0.2  # seconds; a shorter word is cut with its surroundings


def read_keyword_table(path: Path) -> dict[str, set[str]]:
    """Read ``utt2keywords``: lines of an utterance and its fitting keywords, which may be none.

    Raises:
        MissingFileError: the file is missing.
        UserError: it is not UTF-8, is empty, or has an utterance twice.
    """
    if not path.is_file():
        raise MissingFileError(path)
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8. Save it as UTF-8.") from error
    table = {fields[0]: set(fields[1:]) for fields in lines}
    if not table or len(table) != len(lines):
        raise UserError(f"{path}: {'an utterance is listed twice' if table else 'empty'}. Run stage 1 again.")
    return table


def read_keyword_list(path: Path) -> list[str]:
    """Read a file with one keyword on each line.

    Raises:
        UserError: the file cannot be read, or has no keywords.
    """
    try:
        words = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text. Write one keyword on each line.") from error
    if not words:
        raise UserError(f"{path}: empty. Write one keyword on each line.")
    return sorted(set(words))


class SpokenExamples:
    """Spoken examples of keywords, as a source of speech.

    Args:
        data: a data directory, other than the one that is scored.
        alignments: the words of its utterances.
        keywords: the words to find, in lower case.
        count: examples for each keyword. They are spread over the utterances in the order of their ids.
    """

    def __init__(
        self, data: DataDir, alignments: Mapping[str, Sequence[AlignedWord]], keywords: Sequence[str], count: int
    ) -> None:
        found: dict[str, list[tuple[Path, float, float]]] = {word: [] for word in keywords}
        for utterance in data.utterances:
            for item in alignments.get(utterance.id, ()):
                if item.text.lower() in found and item.end > item.start:
                    found[item.text.lower()].append((utterance.wav, item.start, item.end))
        self.parts: list[tuple[Path, float, float]] = []
        owners: list[int] = []
        for number, places in enumerate(found.values()):
            step = max(1, len(places) // count)
            kept = places[::step][:count]
            self.parts += kept
            owners += [number] * len(kept)
        self.owner = np.array(owners, dtype=np.int64)  # [E], keyword of each example
        self.lengths = np.array([max(_SHORTEST, end - start) for _, start, end in self.parts])

    def batch(self, indices: Sequence[int], crop: Crop | None = None) -> Batch:
        """Read examples."""
        waves = []
        for index in indices:
            path, start, end = self.parts[index]
            wave = load_audio(path)
            extra = max(0.0, _SHORTEST - (end - start)) / 2
            first, last = (round(time * SAMPLE_RATE) for time in (max(0.0, start - extra), end + extra))
            part = wave[min(first, max(0, len(wave) - round(_SHORTEST * SAMPLE_RATE))) : last]
            waves.append(torch.from_numpy(part))
        return Batch(torch.tensor(list(indices)), None, None, tuple(waves))
