"""Batches of positions: shuffled and bucketed for training, longest first for scoring."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from speechclip.common.errors import UserError
from speechclip.data.mapped import new_array

_LARGEST = np.iinfo(np.int32).max
_BLOCK = 1 << 16  # positions that are written at a time


class PositionBatches(Sequence[list[int]]):
    """Batches that are cut from one array of positions when they are asked for.

    Args:
        order: [N], positions. In a large corpus the array is mapped.
        size: of a batch. The last one may be smaller.
        batches: numbers of the batches, in the order of the epoch; None: all in order.
        share: (r, n) keeps the positions r, r + n, r + 2n, ... of each batch.
    """

    def __init__(
        self, order: np.ndarray, size: int, batches: np.ndarray | None = None, share: tuple[int, int] = (0, 1)
    ) -> None:
        self._order, self._size, self._share = order, size, share
        self._batches = np.arange(-(-len(order) // size)) if batches is None else batches

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._batches)

    def __getitem__(self, at: Any) -> Any:
        """Return the positions of a batch, or the batches of a slice."""
        if isinstance(at, slice):
            return PositionBatches(self._order, self._size, self._batches[at], self._share)
        start = int(self._batches[at]) * self._size
        return self._order[start : start + self._size][self._share[0] :: self._share[1]].tolist()

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the positions of each batch."""
        return (self[at] for at in range(len(self)))

    def __eq__(self, other: object) -> bool:
        """Return whether another sequence holds the same batches."""
        return isinstance(other, Sequence) and len(self) == len(other) and all(a == b for a, b in zip(self, other))

    __hash__ = None  # type: ignore[assignment]

    def share(self, rank: int, world: int) -> PositionBatches:
        """Return the share of one of several processes in each batch."""
        return PositionBatches(self._order, self._size, self._batches, (rank, world))


def bucketed_batches(
    lengths: np.ndarray, batch_size: int, *, bucket_batches: int, seed: int, epoch: int
) -> PositionBatches:
    """Return shuffled training batches of utterances of similar length.

    The shuffled utterances are divided into pools of ``bucket_batches`` batches. Each pool is sorted by length and
    divided into batches, and all batches are shuffled. The last utterances that do not fill a batch are not in the
    epoch. The result depends on the arguments only. The order of a large corpus is in a temporary map.

    Args:
        lengths: [N], in any unit.
        batch_size: global batch size.
        bucket_batches: batches per pool; 1 for no sorting.
        seed: of the run.
        epoch: from 0.

    Returns:
        N // batch_size lists of positions.

    Raises:
        UserError: there are fewer utterances than ``batch_size``.
    """
    if len(lengths) < batch_size:
        raise UserError(
            f"data.batch_size: {batch_size} is more than the {len(lengths)} training utterances."
            " Choose a smaller batch."
        )
    rng = np.random.default_rng((seed, epoch))
    order = new_array((len(lengths),), np.int32 if len(lengths) <= _LARGEST else np.int64)
    for start in range(0, len(order), _BLOCK):
        order[start : start + _BLOCK] = np.arange(start, min(start + _BLOCK, len(order)))
    rng.shuffle(order)  # as rng.permutation does with an array of its own
    order = order[: len(order) // batch_size * batch_size]
    if bucket_batches > 1:
        for start in range(0, len(order), batch_size * bucket_batches):
            pool = order[start : start + batch_size * bucket_batches]
            pool[:] = pool[np.argsort(lengths[pool], kind="stable")]
    return PositionBatches(order, batch_size, rng.permutation(len(order) // batch_size))


def evaluation_batches(lengths: np.ndarray, batch_size: int) -> PositionBatches:
    """Return batches that hold every utterance once, longest first, so that lack of memory shows at the start."""
    order = new_array((len(lengths),), np.int64)
    order[:] = np.argsort(-np.asarray(lengths), kind="stable")
    return PositionBatches(order, batch_size)
