"""The subword id of each row of a reduced embedding table.

A published checkpoint with keywords holds the rows of the subwords in its training captions, without their ids. Their
order came from an unstable sort by count. So the ids can only be found by comparing the rows with CLIP's full table.
"""

from __future__ import annotations

from torch import Tensor

from speechclip.common.errors import UserError


def match_rows(reduced: Tensor, full: Tensor, source: str) -> tuple[int, ...]:
    """Return the index of the row of ``full`` that equals each row of ``reduced``.

    All bits must be equal. Only the signs of zeros may differ.

    Args:
        reduced: [V, D], the reduced table.
        full: [N, D], CLIP's table.
        source: the file, for errors.

    Raises:
        UserError: the widths differ, or a row has no match or several, or two rows have the same one. Then the tables
            belong to different models, and decoding would give wrong subwords without an error.
    """
    if reduced.ndim != 2 or full.ndim != 2 or reduced.shape[1] != full.shape[1]:
        raise UserError(
            f"{source}: subword embeddings {list(reduced.shape)}, CLIP's table {list(full.shape)}: another CLIP."
            " Name its CLIP with --clip."
        )
    # CLIP was published in half precision. Single precision represents both sides exactly. Adding 0.0 removes -0.0.
    known: dict[bytes, list[int]] = {}
    for at, row in enumerate((full.detach().float().cpu() + 0.0).numpy()):
        known.setdefault(row.tobytes(), []).append(at)
    ids: list[int] = []
    first: dict[int, int] = {}
    for at, row in enumerate((reduced.detach().float().cpu() + 0.0).numpy()):
        found = known.get(row.tobytes(), [])
        if not found:
            raise UserError(
                f"{source}: row {at} of the subword embeddings is not in CLIP's table: another CLIP."
                " Name its CLIP with --clip."
            )
        if len(found) > 1:
            raise UserError(
                f"{source}: row {at} of the subword embeddings is both subword {found[0]} and {found[1]}."
                " Copy or download the file again."
            )
        if found[0] in first:
            raise UserError(
                f"{source}: rows {first[found[0]]} and {at} of the subword embeddings are the same subword."
                " Copy or download the file again."
            )
        first[found[0]] = at
        ids.append(found[0])
    return tuple(ids)
