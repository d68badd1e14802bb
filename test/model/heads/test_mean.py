"""The mean head, by hand."""

from __future__ import annotations

import torch

from speechclip.config import HeadConfig
from speechclip.model.heads.base import HeadInputs
from speechclip.model.heads.factory import has_keywords, make_head


def test_mean_head_is_a_mean_and_a_linear() -> None:
    torch.manual_seed(0)
    head = make_head(HeadConfig(name="mean", attention_heads=4), HeadInputs(8, 5)).eval()
    frames = torch.randn(2, 6, 8)
    padding = torch.arange(6)[None, :] >= torch.tensor([6, 2])[:, None]
    output = head(frames, padding)
    assert output.embedding is not None and output.attention is not None
    expected = torch.stack([head.projection(frames[0].mean(0)), head.projection(frames[1, :2].mean(0))])
    assert torch.allclose(output.embedding, expected, atol=1e-6)
    assert output.attention[1, 0].tolist() == [0.5, 0.5, 0, 0, 0, 0]
    frames[1, 2:] = 9.0  # padding has no effect
    assert torch.equal(head(frames, padding).embedding, output.embedding)
    assert sum(p.numel() for p in head.parameters()) == 8 * 5 + 5
    assert not has_keywords("mean")
