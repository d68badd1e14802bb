"""A subword table on a circle, whose neighbours are easy to see.

Ids 10, 11, ..., 18 are every 10 degrees from 0. PAD, SOT and EOT are between the first two. 11 and 13 are stop words.
"""

from __future__ import annotations

import numpy as np

from speechclip.eval.neighbours import Subwords

PAD, SOT, EOT = 0, 98, 99
ANGLES = {PAD: 4.0, SOT: 1.0, EOT: 2.0, **{10 + i: 10.0 * i for i in range(9)}}
STRINGS = {i: f"w{i}</w>" for i in ANGLES}


def on_circle(*degrees: float) -> np.ndarray:
    """Return unit vectors, [len(degrees), 2]."""
    return np.stack([np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))], axis=-1)


def circle_table() -> Subwords:
    """Return the table. Its rows are not in the order of the ids."""
    ids = np.array(sorted(ANGLES, reverse=True))
    return Subwords(on_circle(*(ANGLES[i] for i in ids)), ids, frozenset({PAD, SOT, EOT}), frozenset({11, 13}))


def padded(*content: int) -> set[int]:
    """Return the ids of a padded token sequence."""
    return {SOT, EOT, PAD, *content}
