"""Word alignments: the start and end of each word of an utterance.

A data directory stores them as one file ``ctm``, or as one file ``textgrid/<utterance>.TextGrid`` per utterance. The
Montreal Forced Aligner and Praat write TextGrid files.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from speechclip.common.errors import UserError

PAUSES = frozenset({"", "sil", "sp", "spn", "<eps>", "<sil>", "<p:>"})  # labels of aligners for pauses


@dataclass(frozen=True)
class AlignedWord:
    """A word of an utterance.

    Attributes:
        text: the word.
        start: in seconds from the start of the utterance.
        end: in seconds from the start of the utterance.
    """

    text: str
    start: float
    end: float


class LabelSpool:
    """Labels with times of a whole corpus, in a temporary file on disk. Use it in a ``with`` statement.

    The words of a large corpus do not fit into memory. A corpus module adds the labels of each utterance while it reads
    the corpus. Later the labels of the usable utterances are written to the data directories.
    """

    def __init__(self) -> None:
        """Create the temporary file. It has no name and disappears with the object."""
        self._file = tempfile.TemporaryFile(  # noqa: SIM115 - __exit__ closes it
            "w+", encoding="utf-8", errors="backslashreplace", newline="\n"
        )

    def __enter__(self) -> LabelSpool:
        """Return the object."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Delete the file."""
        self._file.close()

    def add(self, utterance: str, labels: Iterable[AlignedWord]) -> None:
        """Keep the labels of an utterance, in any order of utterances. Labels must not contain white space."""
        lines = [f"{utterance} 1 {item.start:.3f} {item.end - item.start:.3f} {item.text}\n" for item in labels]
        self._file.writelines(lines)

    def write(self, name: str, folders: Mapping[str, Path]) -> None:
        """Write ctm files.

        Args:
            name: of the file in each folder. A folder without labels gets no file.
            folders: the folder of each utterance. Labels of other utterances are left out.
        """
        self._file.seek(0)
        paths = {folder: folder / name for folder in set(folders.values())}
        with ExitStack() as stack:
            files = {
                folder: stack.enter_context(path.open("w", encoding="utf-8", newline="\n"))
                for folder, path in paths.items()
            }
            last, file = "", None
            for line in self._file:  # the lines of an utterance follow each other
                utterance = line.partition(" ")[0]
                if utterance != last:
                    folder = folders.get(utterance)
                    last, file = utterance, None if folder is None else files[folder]
                if file is not None:
                    file.write(line)
        for path in paths.values():
            if not path.stat().st_size:
                path.unlink()


def timed_words(text: str, start: float, end: float) -> list[AlignedWord]:
    """Return the words of a text that was spoken from ``start`` to ``end``, without punctuation around them.

    The time is divided among several words by their number of characters.

    Args:
        text: one or more words.
        start: in seconds.
        end: in seconds.
    """
    if text.isalnum():
        return [AlignedWord(text, start, end)]
    words = text.split()
    total = sum(map(len, words))
    found, done = [], 0
    for word in words:
        first, last = (start + (end - start) * share / total for share in (done, done + len(word)))
        done += len(word)
        if plain := re.sub(r"^[^\w]+|[^\w]+$", "", word):
            found.append(AlignedWord(plain, first, last))
    return found


def read_ctm(path: str | Path) -> dict[str, list[AlignedWord]]:
    """Read the words of each utterance from lines ``utterance channel start duration word [confidence]``.

    Returns:
        The words by utterance id, in order of time, without pauses.

    Raises:
        UserError: the file is missing or not UTF-8, or a line is malformed.
    """
    words: dict[str, list[AlignedWord]] = {}
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path}: is missing. Check the path.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8. Save it as UTF-8.") from None
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
            raise UserError(f"{path}: line {number}: not valid. Write utterance, channel, start, duration and word.")
        if not _pause(text):
            words.setdefault(utterance, []).append(word)
    return {utterance: sorted(found, key=lambda word: word.start) for utterance, found in words.items()}


def read_textgrid(path: str | Path) -> list[AlignedWord]:
    """Read the words of a Praat TextGrid.

    They are in the interval tier whose name is or ends in "words" or "word" ("speaker - words"). A file with one
    interval tier may use any name.

    Returns:
        The words in order of time, without pauses.

    Raises:
        UserError: the file is missing or not a TextGrid, or has no such tier or several.
    """
    from praatio import textgrid
    from praatio.utilities.errors import PraatioException

    file = Path(path)
    if not file.is_file():
        raise UserError(f"{file}: is missing. Check the path.")
    try:
        grid = textgrid.openTextgrid(str(file), includeEmptyIntervals=False, reportingMode="error")
    except (PraatioException, ValueError, IndexError, KeyError, UnicodeError) as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise UserError(f"{file}: not a readable TextGrid ({reason}). Export it again.") from error
    tiers = {tier.name: tier for tier in grid.tiers if isinstance(tier, textgrid.IntervalTier)}
    named = [name for name in tiers if re.search(r"(^|\W)words?$", name.strip().lower())] or list(tiers)
    if len(named) != 1:
        found = ", ".join(tiers) or "none"
        raise UserError(f"{file}: no single interval tier for words (interval tiers: {found}). Name one tier 'words'.")
    words = [AlignedWord(entry.label.strip(), entry.start, entry.end) for entry in tiers[named[0]].entries]
    return [word for word in words if not _pause(word.text)]


def _pause(label: str) -> bool:
    return label.lower() in PAUSES


def find_alignments(data: str | Path) -> Path | None:
    """Return the file ``ctm`` or the folder ``textgrid`` of a data directory, None without both."""
    for path in (Path(data) / "ctm", Path(data) / "textgrid"):
        if path.exists():
            return path
    return None


def load_alignments(path: str | Path, ids: Sequence[str]) -> dict[str, list[AlignedWord]]:
    """Read the words of utterances.

    Args:
        path: a ctm file or a folder of TextGrid files.
        ids: the utterances.

    Returns:
        The words by utterance id. Utterances without words are left out.

    Raises:
        UserError: a file cannot be read, or no utterance has an alignment.
    """
    if Path(path).is_dir():
        files = {identity: Path(path) / f"{identity}.TextGrid" for identity in ids}
        every = {identity: read_textgrid(file) for identity, file in files.items() if file.exists()}
    else:
        every = read_ctm(path)
    found = {identity: every[identity] for identity in ids if every.get(identity)}
    if not found:
        raise UserError(f"{path}: no alignment of the {len(ids)} utterances. Check the utterance ids.")
    return found
