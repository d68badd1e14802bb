"""The items of an index: pictures, and windows of recordings."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from speechclip.common.errors import UserError
from speechclip.common.files import read_json

ITEMS = "items.json"
IMAGE, RECORDING = "image", "recording"
KINDS = (IMAGE, RECORDING)
WINDOW_MARK = "#t="


class Duplicate(NamedTuple):
    """Another file with the content of a row: its id and its path."""

    id: str
    file: str


@dataclasses.dataclass(frozen=True)
class Items:
    """The content of ``items.json``.

    Attributes:
        ids: ids, row by row.
        files: files, row by row; empty if no file is known.
        spans: start and end of the window in seconds, row by row from the first row of a recording.
        duplicates: the other files with the content of a row, by row.
    """

    ids: list[str]
    files: list[str] = dataclasses.field(default_factory=list)
    spans: list[tuple[float, float]] = dataclasses.field(default_factory=list)
    duplicates: dict[int, tuple[Duplicate, ...]] = dataclasses.field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the content for JSON."""
        duplicates = {str(row): [list(one) for one in others] for row, others in self.duplicates.items()}
        return {"ids": self.ids, "files": self.files, "spans": self.spans, "duplicates": duplicates}


def read_items(folder: Path) -> Items:
    """Read ``items.json`` of a folder.

    Raises:
        UserError: the file is missing or damaged.
    """
    content = read_json(folder / ITEMS)
    ids, files = content.get("ids"), content.get("files")
    spans, duplicates = content.get("spans", []), content.get("duplicates", {})
    if not isinstance(ids, list) or not isinstance(files, list) or len(files) not in (0, len(ids)):
        raise UserError(f"{folder / ITEMS}: damaged: needs the lists ids and files. Index the files again.")
    try:
        return Items(
            [str(item) for item in ids],
            [str(item) for item in files],
            [(float(start), float(end)) for start, end in spans],
            {int(row): tuple(Duplicate(str(a), str(b)) for a, b in others) for row, others in duplicates.items()},
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{folder / ITEMS}: damaged: spans or duplicates. Index the files again.") from error


def window_id(recording: str, span: tuple[float, float]) -> str:
    """Return the id of a window: that of the recording and a media fragment (W3C, 2012), ``talk.wav#t=12.5,18.02``."""
    return f"{recording}{WINDOW_MARK}{span[0]:.10g},{span[1]:.10g}"


def recording_of(item: str) -> str:
    """Return the id of the recording of a window's id."""
    return item.rpartition(WINDOW_MARK)[0] or item
