"""The reduced vocabulary of a corpus: the subword ids that occur in its captions, most frequent first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from speechclip.common.errors import MissingFileError, UserError
from speechclip.common.files import replace_file
from speechclip.data.kaldi import parse_count


@dataclass(frozen=True)
class Vocabulary:
    """The rows of the reduced embedding table. Equal counts are ordered by id, so that equal captions give equal rows.

    Attributes:
        ids: V ids of CLIP's text tower.
        counts: the number of times that each id occurs.
        subwords: the text of each id.
    """

    ids: tuple[int, ...]
    counts: tuple[int, ...]
    subwords: tuple[str, ...]

    def __len__(self) -> int:
        """Return V, the number of rows."""
        return len(self.ids)

    @classmethod
    def from_rows(cls, rows: Iterable[list[int]], subword_of: Callable[[int], str]) -> Vocabulary:
        """Count the ids of token sequences. As in the published code, special tokens and padding count too.

        Args:
            rows: token ids of each caption, with special tokens and padding.
            subword_of: returns the text of an id.
        """
        counter: Counter[int] = Counter()
        for row in rows:
            counter.update(row)
        order = sorted(counter, key=lambda token: (-counter[token], token))
        return cls(tuple(order), tuple(counter[t] for t in order), tuple(map(subword_of, order)))

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Read ``id<TAB>count<TAB>subword`` lines.

        Raises:
            MissingFileError: the file is missing.
            UserError: a malformed line, with its number, or an id that occurs twice.
        """
        ids, counts, subwords = [], [], []
        try:
            lines = Path(path).read_text(encoding="utf-8").split("\n")
        except FileNotFoundError:
            raise MissingFileError(path) from None
        except UnicodeDecodeError:
            raise UserError(f"{path}: not UTF-8. Extract the CLIP embeddings again.") from None
        for number, line in enumerate(lines, 1):
            if not line:
                continue
            parts = line.split("\t")
            token, count = (parse_count(part) for part in parts[:2]) if len(parts) == 3 else (None, None)
            if token is None or count is None:
                raise UserError(
                    f"{path}: line {number}: expected id, count and subword, separated by tabs. Correct the line."
                )
            ids.append(token)
            counts.append(count)
            subwords.append(parts[2])
        if len(set(ids)) != len(ids):
            raise UserError(f"{path}: an id occurs twice. Extract the CLIP embeddings again.")
        if not ids:
            raise UserError(f"{path}: empty. Extract the CLIP embeddings again.")
        return cls(tuple(ids), tuple(counts), tuple(subwords))

    def save(self, path: str | Path) -> None:
        """Write the file that :meth:`load` reads. It is always either the old or the new one."""
        rows = zip(self.ids, self.counts, self.subwords)
        replace_file(Path(path), "".join(f"{i}\t{c}\t{s}\n" for i, c, s in rows).encode())
