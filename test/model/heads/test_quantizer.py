"""The quantiser: exact rows forward, the soft gradient backward, and no huge tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures import SUBWORD, captions, save_clip, vocabulary_of
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from speechclip.config import ClipConfig, HeadConfig
from speechclip.model.encoders.clip import load_clip
from speechclip.model.heads.cascaded import CascadedHead
from speechclip.model.heads.keyword_head import keyword_settings
from speechclip.model.heads.quantizer import Annealing, SubwordQuantizer
from speechclip.model.network import reduced_subword_embeddings

TEMPERATURE = 0.1


def _parts(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Return vectors [5, 3, 8], a table [40, 8] with rows of different lengths, and the mask of valid rows."""
    torch.manual_seed(4)
    table = torch.randn(40, 8, dtype=dtype) * torch.rand(40, 1, dtype=dtype) * 5
    valid_mask = torch.ones(40, dtype=torch.bool)
    valid_mask[[0, 17, 39]] = False
    return torch.randn(5, 3, 8, dtype=dtype), table, valid_mask


def _plain_cosines(vectors: Tensor, table: Tensor) -> Tensor:
    """Compute every cosine by its definition, [..., V]."""
    dots = (vectors[..., None, :] * table).sum(dim=-1)
    lengths = vectors.square().sum(dim=-1).sqrt()[..., None] * table.square().sum(dim=-1).sqrt()
    return dots / lengths


def test_quantizer_returns_the_row_of_highest_cosine() -> None:
    vectors, table, valid_mask = _parts()
    quantized, rows = SubwordQuantizer(table, valid_mask, temperature=TEMPERATURE)(vectors)
    expected = _plain_cosines(vectors, table).masked_fill(~valid_mask, -2).argmax(dim=-1)
    assert torch.equal(rows, expected)
    assert torch.equal(quantized, table[expected])


def test_quantizer_ignores_lengths() -> None:
    vectors, table, valid_mask = _parts()
    longer = table * torch.linspace(0.1, 9, len(table))[:, None]
    rows = SubwordQuantizer(table, valid_mask, temperature=TEMPERATURE)(vectors)[1]
    assert torch.equal(rows, SubwordQuantizer(longer, valid_mask, temperature=TEMPERATURE)(vectors * 7)[1])


def test_quantizer_never_chooses_special_rows() -> None:
    _, table, valid_mask = _parts()
    quantizer = SubwordQuantizer(table, valid_mask, temperature=TEMPERATURE)
    at_special = table[~valid_mask][None]  # the nearest row is the special one
    quantized, rows = quantizer(at_special)
    assert valid_mask[rows].all()
    assert not torch.equal(quantized, at_special)
    assert torch.equal(quantizer.cosines(at_special).argmax(dim=-1)[0], torch.tensor([0, 17, 39]))


def test_quantizer_gradient_equals_the_soft_sum() -> None:
    vectors, table, valid_mask = _parts(torch.float64)
    quantizer = SubwordQuantizer(table, valid_mask, temperature=TEMPERATURE)
    quantizer.normalized = nn.functional.normalize(table, dim=-1)  # the module stores it in single precision
    ours, plain = vectors.clone().requires_grad_(), vectors.clone().requires_grad_()
    into = torch.randn_like(vectors)
    (quantizer(ours)[0] * into).sum().backward()
    shares = (_plain_cosines(plain, table[valid_mask]) / TEMPERATURE).softmax(dim=-1)
    ((shares @ table[valid_mask]) * into).sum().backward()
    assert ours.grad is not None
    assert plain.grad is not None
    torch.testing.assert_close(ours.grad, plain.grad, rtol=0, atol=1e-10)
    assert ours.grad.abs().min() > 1e-6


def test_quantizer_chooses_equal_rows_in_half_precision() -> None:
    torch.manual_seed(0)
    table, vectors = torch.randn(5000, 8), torch.randn(16, 8, 8)
    quantizer = SubwordQuantizer(table, torch.ones(5000, dtype=torch.bool), temperature=TEMPERATURE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        quantized, rows = quantizer(vectors)
    assert torch.equal(rows, quantizer(vectors)[1])
    assert torch.equal(quantized, table[rows])


def test_soft_quantizer_returns_the_expected_subword() -> None:
    vectors, table, valid_mask = _parts()
    quantizer = SubwordQuantizer(table, valid_mask, temperature=TEMPERATURE)
    quantizer.soft = True
    logits = (_plain_cosines(vectors, table) / TEMPERATURE).numpy()
    logits[..., ~valid_mask.numpy()] = -np.inf
    shares = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    quantized, rows, probabilities = quantizer.train().quantize(vectors)
    np.testing.assert_allclose(probabilities.numpy(), shares, atol=1e-5)
    np.testing.assert_allclose(quantized.numpy(), shares @ table.numpy(), atol=1e-4)
    assert torch.equal(rows, probabilities.argmax(dim=-1))
    assert torch.equal(quantizer.eval()(vectors)[0], table[rows])  # evaluation is hard


ANNEALED = [(0, 0.2, True), (4, 0.1, True), (5, 0.2 * 0.25**0.625, False), (8, 0.05, False), (100, 0.05, False)]


@pytest.mark.parametrize(("step", "temperature", "soft"), ANNEALED)
def test_head_anneals_its_quantizer(step: int, temperature: float, soft: bool) -> None:
    _, table, valid_mask = _parts()
    annealing = Annealing(first=0.2, last=0.05, steps=8, soft_steps=5)
    head = CascadedHead(16, table, valid_mask, keywords=3, heads=2, dropout=0.0, annealing=annealing)
    head.set_step(step)
    assert head.quantizer.temperature == pytest.approx(temperature)
    assert head.quantizer.soft == soft


SETTINGS = [({}, None), ({"quantizer_final_temperature": 0.1}, None), ({"quantizer_soft_steps": 3}, (0.1, 0.1, 0, 3))]
SETTINGS += [({"quantizer_final_temperature": 0.02, "quantizer_steps": 9}, (0.1, 0.02, 9, 0))]


@pytest.mark.parametrize(("changes", "expected"), SETTINGS)
def test_annealing_follows_the_settings(changes: dict[str, Any], expected: tuple[float, ...] | None) -> None:
    found = keyword_settings(HeadConfig(**changes))["annealing"]
    assert found == (None if expected is None else Annealing(*expected))


def test_cls_std_scales_the_published_start() -> None:
    _, table, valid_mask = _parts()
    heads = []
    for std in (1.0, 0.1):
        torch.manual_seed(2)
        heads.append(CascadedHead(16, table, valid_mask, keywords=3, heads=2, dropout=0.0, cls_std=std))
    torch.testing.assert_close(heads[1].cls, heads[0].cls * 0.1)
    torch.manual_seed(2)
    assert torch.equal(heads[0].cls, torch.randn(3, 16))


class _Largest(TorchDispatchMode):
    """Record the size of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.numel = max([self.numel, *sizes])
        return result


def test_quantizer_makes_no_huge_tensor() -> None:
    batch, keywords, width, vocabulary = 4, 8, 64, 3000
    table = torch.randn(vocabulary, width)
    quantizer = SubwordQuantizer(table, torch.ones(vocabulary, dtype=torch.bool), temperature=TEMPERATURE)
    vectors = torch.randn(batch, keywords, width, requires_grad=True)
    with _Largest() as largest:
        quantizer(vectors)[0].square().sum().backward()
    assert largest.numel == max(batch * keywords * vocabulary, vocabulary * width)
    with _Largest() as expanded:  # the measure detects one
        _plain_cosines(vectors.detach(), table)
    assert expanded.numel == batch * keywords * vocabulary * width


def test_gradients_reach_the_cls_through_clip(tmp_path: Path) -> None:
    clip = load_clip(ClipConfig(str(save_clip(tmp_path / "clip"))))
    table, valid_mask = reduced_subword_embeddings(clip, vocabulary_of(captions(20), clip))
    assert table.shape[1] == SUBWORD
    assert int((~valid_mask).sum()) == 3
    head = CascadedHead(16, table, valid_mask, keywords=3, heads=2, dropout=0.0)
    frames = torch.randn(4, 9, 16)
    padding = torch.arange(9)[None, :] >= torch.tensor([9, 5, 9, 2])[:, None]
    keywords = head(frames, padding).keywords
    embedding = nn.functional.normalize(clip.encode_keywords(keywords.quantized), dim=-1)
    (embedding * torch.randn_like(embedding)).sum().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        if name not in ("projection.bias", "norm.bias"):  # a shift before BatchNorm has no effect
            assert parameter.grad.abs().max() > 1e-6, name
    assert all(parameter.grad is None for parameter in clip.parameters())
