"""Losses on the quantiser's probabilities equal NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from speechclip.model.keyword_losses import repetition, uncovered, usage

MASK = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])


def _probabilities() -> torch.Tensor:
    return torch.rand(3, 3, 5, generator=torch.Generator().manual_seed(0)).softmax(dim=2)


def test_repetition_equals_numpy() -> None:
    p = _probabilities().numpy()
    expected = []
    for row, count in enumerate((3, 2, 1)):
        pairs = [p[row, a] @ p[row, b] for a in range(count) for b in range(a)]
        expected.append(np.mean(pairs) if pairs else 0.0)
    assert repetition(_probabilities(), MASK).item() == pytest.approx(np.mean(expected), abs=1e-6)


@pytest.mark.parametrize(("rows", "expected"), [([0, 0, 0], 1.0), ([0, 1, 2], 0.0), ([0, 0, 1], 1 / 3)])
def test_repetition_of_certain_keywords(rows: list[int], expected: float) -> None:
    certain = torch.eye(5)[rows][None]
    assert repetition(certain, MASK[:1]).item() == pytest.approx(expected, abs=1e-6)


def test_uncovered_equals_numpy() -> None:
    p, valid = _probabilities(), torch.tensor([True, True, False, True, True])
    used = [p[row, :count].numpy().mean(axis=0) for row, count in enumerate((3, 2, 1))]
    np.testing.assert_allclose(usage(p, MASK).numpy(), used, atol=1e-6)
    mean = np.mean(used, axis=0)[valid.numpy()]
    expected = 1 + (mean * np.log(mean)).sum() / np.log(4)
    assert uncovered(usage(p, MASK), valid).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("used", "expected"), [([0.25] * 4, 0.0), ([1.0, 0, 0, 0], 1.0), ([0.5, 0.5, 0, 0], 0.5)])
def test_uncovered_of_known_use(used: list[float], expected: float) -> None:
    every = torch.ones(4, dtype=torch.bool)
    assert uncovered(torch.tensor([used]), every).item() == pytest.approx(expected, abs=1e-6)
