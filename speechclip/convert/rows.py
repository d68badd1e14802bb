"""Which subword each row of a reduced embedding table is.

A published cascaded checkpoint holds the rows of the subwords in its training captions and not their ids, and the order
came from an unstable sort by count: only the rows themselves tell.
"""

from __future__ import annotations

from torch import Tensor

from speechclip.common.errors import UserError


def match_rows(reduced: Tensor, full: Tensor, source: str) -> tuple[int, ...]:
    """The row of ``full`` [N, D] that equals each row of ``reduced`` [V, D], bit for bit (zeros of either sign alike).

    Raises:
        UserError: another width; a row that ``full`` has not, has twice, or that ``reduced`` has twice. Then the tables
            are of different models, and any decoding would be wrong without showing it.
    """
    if reduced.ndim != 2 or full.ndim != 2 or reduced.shape[1] != full.shape[1]:
        raise UserError(
            f"{source}: subword embeddings {list(reduced.shape)}, CLIP's table {list(full.shape)}: another CLIP"
        )
    # half precision is what CLIP was published in: both sides are exact in single
    known: dict[bytes, list[int]] = {}
    for at, row in enumerate((full.detach().float().cpu() + 0.0).numpy()):
        known.setdefault(row.tobytes(), []).append(at)
    ids: list[int] = []
    first: dict[int, int] = {}
    for at, row in enumerate((reduced.detach().float().cpu() + 0.0).numpy()):
        found = known.get(row.tobytes(), [])
        if not found:
            raise UserError(f"{source}: row {at} of the subword embeddings is in CLIP's table nowhere: another CLIP")
        if len(found) > 1:
            raise UserError(f"{source}: row {at} of the subword embeddings is both subword {found[0]} and {found[1]}")
        if found[0] in first:
            raise UserError(f"{source}: rows {first[found[0]]} and {at} of the subword embeddings are the same subword")
        first[found[0]] = at
        ids.append(found[0])
    return tuple(ids)
