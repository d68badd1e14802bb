"""The [CLS] attention against torch's own attention, and the weighted sum against its formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from speechclip.model.heads import weighted_sum
from speechclip.model.heads.attention import ClsAttention
from speechclip.model.heads.weighted_sum import WeightedSum

DIM = 16
FRAMES = (7, 4, 1)


def _inputs(count: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(2)
    cls = torch.randn(count, DIM, dtype=torch.float64, requires_grad=True)
    frames = torch.randn(len(FRAMES), max(FRAMES), DIM, dtype=torch.float64, requires_grad=True)
    padding = torch.arange(max(FRAMES))[None, :] >= torch.tensor(FRAMES)[:, None]
    return cls, frames, padding


def _attention(heads: int) -> ClsAttention:
    torch.manual_seed(heads)
    module = ClsAttention(DIM, heads, 0.1).double().eval()
    with torch.no_grad():  # torch starts the biases at zero, which hides a missing bias
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return module


def _plain(module: ClsAttention, cls: Tensor, frames: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
    """Run torch's attention on the concatenated sequence: outputs [B, N, d] and averaged weights [B, N, N]."""
    tokens = torch.cat([cls.expand(len(frames), -1, -1), frames], dim=1)
    mask = torch.cat([torch.zeros(len(frames), len(cls), dtype=torch.bool), padding], dim=1)
    outputs, weights = module.attention(tokens, tokens, tokens, key_padding_mask=mask, need_weights=True)
    return outputs, weights


@pytest.mark.parametrize("heads", [1, 8, 16])  # times three [CLS]: fewer and more queries than DIM
@pytest.mark.parametrize("count", [1, 3], ids=["one_cls", "three_cls"])
def test_cls_attention_equals_torch(heads: int, count: int) -> None:
    module, (cls, frames, padding) = _attention(heads), _inputs(count)
    outputs, weights = module(cls, frames, padding)
    expected, all_weights = _plain(module, cls, frames, padding)
    torch.testing.assert_close(outputs, expected[:, :count], rtol=0, atol=1e-12)
    torch.testing.assert_close(weights, all_weights[:, :count, count:], rtol=0, atol=1e-12)
    assert (weights[padding[:, None].expand_as(weights)] == 0).all()
    torch.testing.assert_close(module.everywhere(cls, frames, padding), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("heads", [1, 8, 16])
def test_cls_attention_gradients_equal_torch(heads: int) -> None:
    module, (cls, frames, padding) = _attention(heads), _inputs(3)
    module.train().attention.dropout = 0.0
    into = torch.randn(len(FRAMES), 3, DIM, dtype=torch.float64)
    wanted = [cls, frames, *module.parameters()]
    own = torch.autograd.grad((module(cls, frames, padding)[0] * into).sum(), wanted)
    plain = torch.autograd.grad((_plain(module, cls, frames, padding)[0][:, :3] * into).sum(), wanted)
    for ours, theirs in zip(own, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)
    assert all((gradient != 0).any() for gradient in own)
    assert (own[1][padding] == 0).all()  # padding gets no gradient


@pytest.mark.parametrize("heads", [1, 8, 16])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_cls_attention_drops_weights_in_training(heads: int, dropout: float) -> None:
    module, (cls, frames, padding) = _attention(heads), _inputs(3)
    copies = 3000 if dropout else 1
    many, masks = frames.detach()[:1].repeat(copies, 1, 1), padding[:1].repeat(copies, 1)
    module.attention.dropout = dropout
    with torch.no_grad():
        expected, _ = module(cls, many[:1], masks[:1])
        outputs, weights = module.train()(cls, many, masks)
    assert weights is None  # training does not need them
    torch.testing.assert_close(outputs.mean(dim=0), expected[0], rtol=0, atol=0.1 if dropout else 1e-12)
    assert (outputs.std(dim=0).min() > 0.01) if dropout else copies == 1


def _formula(weights: Tensor, states: Tensor, norm: bool) -> Tensor:
    """Compute the weighted sum by its definition, with states normalised over their features."""
    states = states.to(weights.dtype)
    if norm:
        mean = states.mean(dim=-1, keepdim=True)
        states = (states - mean) / ((states - mean).square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
    shares = weights.exp() / weights.exp().sum()
    mixed = torch.zeros_like(states[:, 0])
    for layer, share in enumerate(shares):
        mixed = mixed + share * states[:, layer]
    return mixed


@pytest.mark.parametrize("norm", [False, True], ids=["raw", "state_norm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weighted_sum_equals_the_formula(norm: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    states = (torch.randn(2, 4, 5, 6) * 3 + 1).to(dtype)
    mix = WeightedSum(4, state_norm=norm)
    assert mix.weights.tolist() == [0.0] * 4
    torch.nn.init.normal_(mix.weights)
    plain = mix.weights.detach().clone().requires_grad_()
    mixed, expected = mix(states), _formula(plain, states, norm)
    assert mixed.dtype == torch.float32
    assert mixed.shape == (2, 5, 6)
    torch.testing.assert_close(mixed, expected, rtol=0, atol=2e-6)
    into = torch.randn_like(mixed)
    (ours,) = torch.autograd.grad((mixed * into).sum(), mix.weights)
    (theirs,) = torch.autograd.grad((expected * into).sum(), plain)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", [False, True], ids=["raw", "state_norm"])
def test_weighted_sum_gradient_equals_autograd(norm: bool) -> None:
    torch.manual_seed(1)
    states = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    mix = WeightedSum(4, state_norm=norm).double()

    def forward(weights: Tensor) -> Tensor:
        return torch.func.functional_call(mix, {"weights": weights}, (states,))

    assert torch.autograd.gradcheck(forward, torch.randn(4, dtype=torch.float64, requires_grad=True))


def test_normalised_states_of_a_small_batch_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a large batch are computed again. The gradient is the same."""
    states, mix, found = torch.randn(2, 4, 5, 6).half(), WeightedSum(4, state_norm=True), []
    for limit, saved in ((4 * states.numel(), 5), (4 * states.numel() - 1, 1)):
        monkeypatch.setattr(weighted_sum, "_KEPT_BYTES", limit)
        mixed = mix(states)
        assert len(mixed.grad_fn.saved_tensors) == saved
        found.append(torch.autograd.grad((mixed * torch.arange(6.0)).sum(), mix.weights)[0])
    assert torch.equal(*found)


def test_weighted_sum_keeps_no_float_copy_of_half_states() -> None:
    states = torch.randn(2, 4, 5, 6).half()
    mixed = WeightedSum(4)(states)
    saved = mixed.grad_fn.saved_tensors
    assert [tensor.dtype for tensor in saved] == [torch.float16]
    assert saved[0].data_ptr() == states.data_ptr()
