"""The attention span of a keyword: solved by hand, and against every window."""

import numpy as np
import pytest

from speechclip.model.heads.spans import attention_span


@pytest.mark.parametrize(
    ("weights", "mass", "frames"),
    [
        ([1.0], 0.5, (0, 1)),
        ([0.1, 0.6, 0.1, 0.2], 0.5, (1, 2)),
        ([0.3, 0.3, 0.1, 0.3], 0.5, (0, 2)),
        ([0.1] * 10, 0.5, (0, 5)),
        ([0.0, 0.2, 0.0, 0.8, 0.0], 1.0, (1, 4)),
        ([2.0, 2.0, 6.0, 4.0, 2.0], 0.6, (2, 4)),  # sums of any size
        ([0.5, 0.0, 0.0, 0.5], 0.5, (0, 1)),  # the earliest of equally short spans
    ],
)
def test_attention_span_by_hand(weights, mass, frames):
    assert attention_span(weights, 0.02, mass) == pytest.approx((frames[0] * 0.02, frames[1] * 0.02))


def test_attention_span_against_every_window():
    generator = np.random.default_rng(4)
    for length in (1, 2, 5, 23):
        weights = generator.dirichlet(np.full(length, 0.3))
        for mass in (0.1, 0.5, 0.9):
            windows = [
                (e - s, s, e) for s in range(length) for e in range(s + 1, length + 1) if weights[s:e].sum() >= mass
            ]
            assert attention_span(weights, 1.0, mass) == min(windows)[1:]


@pytest.mark.parametrize("weights", [[], [0.0, 0.0], [0.5, -0.1], [np.nan, 1.0], [[1.0]]])
def test_attention_span_refuses_other_weights(weights):
    with pytest.raises(ValueError, match="^weights: must be"):
        attention_span(weights, 0.02)
    with pytest.raises(ValueError, match="mass"):
        attention_span([1.0], 0.02, mass=0.0)
