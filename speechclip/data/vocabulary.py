"""The reduced vocabulary of a corpus: the subword ids that occur in its captions, most frequent first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from speechclip.common.errors import UserError
from speechclip.common.files import replace_file


@dataclass(frozen=True)
class Vocabulary:
    """Subword ids of CLIP's text tower with counts and texts, row by row of the reduced embedding table.

    ``ids``, ``counts``, ``subwords``: of equal length V. Ties in the count are ordered by id, so that the same captions
    always give the same rows.
    """

    ids: tuple[int, ...]
    counts: tuple[int, ...]
    subwords: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def from_rows(cls, rows: Iterable[list[int]], subword_of: dict[int, str]) -> Vocabulary:
        """Count ids over token rows, special tokens and padding included as the published code does."""
        counter: Counter[int] = Counter()
        for row in rows:
            counter.update(row)
        order = sorted(counter, key=lambda token: (-counter[token], token))
        return cls(tuple(order), tuple(counter[t] for t in order), tuple(subword_of[t] for t in order))

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Read ``id<TAB>count<TAB>subword`` lines.

        Raises:
            UserError: missing or malformed, with the line's number, or an id given twice.
        """
        ids, counts, subwords = [], [], []
        try:
            lines = Path(path).read_text(encoding="utf-8").split("\n")
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; stage 2 makes it") from None
        except UnicodeDecodeError:
            raise UserError(f"{path}: not UTF-8") from None
        for number, line in enumerate(lines, 1):
            if not line:
                continue
            parts = line.split("\t")
            if len(parts) != 3 or not parts[0].isdecimal() or not parts[1].isdecimal():
                raise UserError(f"{path}: line {number}: expected id, count and subword, separated by tabs")
            ids.append(int(parts[0]))
            counts.append(int(parts[1]))
            subwords.append(parts[2])
        if len(set(ids)) != len(ids):
            raise UserError(f"{path}: an id occurs twice")
        if not ids:
            raise UserError(f"{path}: empty")
        return cls(tuple(ids), tuple(counts), tuple(subwords))

    def save(self, path: str | Path) -> None:
        """Write what :meth:`load` reads, atomically."""
        rows = zip(self.ids, self.counts, self.subwords)
        replace_file(Path(path), "".join(f"{i}\t{c}\t{s}\n" for i, c, s in rows).encode())
