"""What stage 5 tells about each utterance: its keywords, their attention over time, and the words said."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechclip.common.errors import UserError

Record = dict[str, Any]


def read_keywords(path: Path, wanted: Collection[str]) -> dict[str, list[Record]]:
    """The lines of keywords.jsonl of the wanted utterances, in the order of the keywords. Raises UserError."""
    found: dict[str, list[Record]] = {}
    names, number = set(wanted), 0
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                number += 1
                record = json.loads(line)
                if record["utterance"] in names:
                    found.setdefault(record["utterance"], []).append(record)
    except FileNotFoundError:
        raise UserError(f"{path}: missing, stage 5 makes it") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: line {number}: no keyword of stage 5") from error
    for records in found.values():
        records.sort(key=lambda record: record["keyword"])
    return found


def read_attention(path: Path) -> dict[str, NDArray[np.float32]]:
    """Weights over frames [keywords, frames] of every utterance that stage 5 kept; none where it kept no file.

    Raises UserError for a file that is not what stage 5 writes.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            ids, weights = archive["ids"].tolist(), archive["weights"]
            shapes = list(zip(archive["keywords"].tolist(), archive["frames"].tolist(), strict=True))
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise UserError(f"{path}: not the attention that stage 5 writes") from error
    ends = np.cumsum([keywords * frames for keywords, frames in shapes])
    if len(ids) != len(shapes) or (len(ends) and ends[-1] != len(weights)):
        raise UserError(f"{path}: {len(weights)} weights do not fit the {len(ids)} utterances named")
    starts = [0, *ends[:-1].tolist()]
    return {
        name: weights[start : start + shape[0] * shape[1]].reshape(shape).astype(np.float32)
        for name, start, shape in zip(ids, starts, shapes, strict=True)
    }
