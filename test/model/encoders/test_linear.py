"""Products by oneDNN against torch's: values, gradients, and tensors that torch computes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from speechclip.model.encoders.kernels import linear as matmul
from speechclip.model.encoders.kernels.linear import FrozenLinear, by_onednn, freeze_linears, is_gelu, linear


def _tensors(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(size, generator=generator) for size in ((3, 5, 40), (70, 40), (70,)))
    return x.to(dtype), weight.to(dtype), bias.to(dtype)


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_linear_equals_torch(gelu: bool, with_bias: bool, dtype: torch.dtype) -> None:
    x, weight, bias = _tensors(dtype)
    wanted = nn.functional.linear(x, weight, bias if with_bias else None)
    wanted = nn.functional.gelu(wanted) if gelu else wanted
    found = linear(x, weight, bias if with_bias else None, gelu=gelu)
    assert found.dtype == dtype and torch.allclose(found, wanted, atol=2e-5, rtol=1e-5)
    turned = linear(x.transpose(0, 1), weight)  # not contiguous
    assert torch.allclose(turned, nn.functional.linear(x.transpose(0, 1), weight), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_linear_gradients_equal_torch(gelu: bool, frozen: bool) -> None:
    found, wanted = [], []
    for grads, plain in ((found, False), (wanted, True)):
        x, weight, bias = _tensors()
        weight.requires_grad_(not frozen)
        x.requires_grad_()
        y = nn.functional.linear(x, weight, bias) if plain else linear(x, weight, bias, gelu=gelu)
        y = nn.functional.gelu(y) if gelu and plain else y
        y.square().sum().backward()
        grads += [x.grad] if frozen else [x.grad, weight.grad]
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-3)


def test_linear_uses_torch_for_other_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = _tensors()
    assert not by_onednn(x.double(), weight) and not by_onednn(x[:0], weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not by_onednn(x, weight)
    assert linear(x[:0], weight, bias).shape == (0, 5, 70)
    monkeypatch.setattr(matmul, "_HAS_ONEDNN", False)
    assert torch.equal(linear(x, weight, bias), nn.functional.linear(x, weight, bias))


def test_freeze_linears_keeps_names_and_parameters() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Sequential(nn.Linear(6, 4, bias=False)))
    model.append(nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True))  # its MultiheadAttention stays
    model.requires_grad_(False).eval()
    before, x = {name: value.data_ptr() for name, value in model.state_dict().items()}, torch.randn(2, 3, 8)
    wanted = model(x)
    freeze_linears(model)
    assert {name: value.data_ptr() for name, value in model.state_dict().items()} == before
    assert isinstance(model[0], FrozenLinear) and isinstance(model[2][0], FrozenLinear)
    assert type(model[3].self_attn.out_proj) is not FrozenLinear
    assert torch.allclose(model(x), wanted, atol=1e-6)


def test_is_gelu_accepts_only_the_exact_gelu() -> None:
    assert is_gelu(nn.GELU()) and is_gelu(nn.functional.gelu)
    assert not is_gelu(nn.GELU(approximate="tanh")) and not is_gelu(nn.ReLU()) and not is_gelu(None)
