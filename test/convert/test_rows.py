"""Subword ids from the rows of a reduced table."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from speechclip.common.errors import UserError
from speechclip.convert.rows import match_rows


def test_rows_are_found_where_counts_tie() -> None:
    full = torch.randn(50, 6).half()
    counts = Counter({token: 2 if token % 2 else 1 for token in range(50)})  # two counts for fifty ids
    generator = torch.Generator().manual_seed(3)
    shuffled = torch.randperm(50, generator=generator).tolist()
    unstable = sorted(shuffled, key=lambda token: -counts[token])  # ties in no particular order
    by_count = sorted(counts, key=lambda token: (-counts[token], token))
    found = match_rows(full[unstable].float(), full, "f")
    assert found == tuple(unstable) and list(found) != by_count


def test_zeros_of_either_sign_are_equal() -> None:
    full = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    assert match_rows(torch.tensor([[2.0, -0.0]]), full, "f") == (1,)


@pytest.mark.parametrize(
    ("reduced", "message"),
    [
        ([[1.0, 2.0], [5.0, 6.0]], "row 1 .* is in CLIP's table nowhere"),
        ([[1.0, 2.0], [9.0, 9.0]], "row 1 .* is both subword 2 and 3"),
        ([[3.0, 4.0], [3.0, 4.0]], "rows 0 and 1 .* are the same subword"),
        ([[3.0, float("nan")]], "nowhere"),
        ([[3.0, 4.0, 5.0]], r"\[1, 3\], CLIP's table \[4, 2\]"),
    ],
)
def test_missing_ambiguous_and_repeated_rows_fail(reduced: list[list[float]], message: str) -> None:
    full = torch.tensor([[1.0, 2.0], [3.0, 4.0], [9.0, 9.0], [9.0, 9.0]])
    with pytest.raises(UserError, match=message):
        match_rows(torch.tensor(reduced), full, "f.ckpt")


def test_a_row_that_differs_in_the_last_bit_is_no_match() -> None:
    full = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    near = full.clone()
    near[2, 1] = torch.nextafter(near[2, 1], torch.tensor(torch.inf))
    with pytest.raises(UserError, match="row 2"):
        match_rows(near, full, "f")
