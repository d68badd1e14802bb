"""Tests of the subword ids of a reduced table."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from speechclip.common.errors import UserError
from speechclip.convert.rows import match_rows


def test_match_rows_does_not_depend_on_counts() -> None:
    full = torch.randn(50, 6).half()
    counts = Counter({token: 2 if token % 2 else 1 for token in range(50)})  # two counts for fifty ids
    generator = torch.Generator().manual_seed(3)
    shuffled = torch.randperm(50, generator=generator).tolist()
    unstable = sorted(shuffled, key=lambda token: -counts[token])  # ties in no particular order
    by_count = sorted(counts, key=lambda token: (-counts[token], token))
    found = match_rows(full[unstable].float(), full, "f")
    assert found == tuple(unstable) and list(found) != by_count


def test_match_rows_ignores_sign_of_zero() -> None:
    full = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    assert match_rows(torch.tensor([[2.0, -0.0]]), full, "f") == (1,)


@pytest.mark.parametrize(
    ("reduced", "message"),
    [
        ([[1.0, 2.0], [5.0, 6.0]], "row 1 .* is not in CLIP's table"),
        ([[1.0, 2.0], [9.0, 9.0]], "row 1 .* is both subword 2 and 3"),
        ([[3.0, 4.0], [3.0, 4.0]], "rows 0 and 1 .* are the same subword"),
        ([[3.0, float("nan")]], "not in CLIP's table"),
        ([[3.0, 4.0, 5.0]], r"\[1, 3\], CLIP's table \[4, 2\]"),
    ],
)
def test_match_rows_refuses_unclear_rows(reduced: list[list[float]], message: str) -> None:
    full = torch.tensor([[1.0, 2.0], [3.0, 4.0], [9.0, 9.0], [9.0, 9.0]])
    with pytest.raises(UserError, match=message):
        match_rows(torch.tensor(reduced), full, "f.ckpt")


def test_match_rows_compares_every_bit() -> None:
    full = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    near = full.clone()
    near[2, 1] = torch.nextafter(near[2, 1], torch.tensor(torch.inf))
    with pytest.raises(UserError, match="row 2"):
        match_rows(near, full, "f")
