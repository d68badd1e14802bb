"""The convolutional front end on a CPU against transformers' own modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from speechclip.common.compat import prepare
from speechclip.model.encoders.kernels import linear as matmul
from speechclip.model.encoders.kernels.convolutions import can_run, convolve
from speechclip.model.encoders.transformers import WaveformEncoder

LENGTHS = (33000, 20001, 640, 399)  # more than one piece of a second, and less than one frame


def _extractor(**settings: Any) -> Any:
    prepare()
    import transformers

    torch.manual_seed(3)
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    config = transformers.HubertConfig(**{**small, "conv_dim": [24] * 7, "num_conv_pos_embeddings": 8,
                                          "num_conv_pos_embedding_groups": 2, **settings})  # fmt: skip
    model = transformers.HubertModel(config).eval().requires_grad_(False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def _batch() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    waves = [torch.randn(n, generator=generator) * 0.1 + 0.3 for n in LENGTHS]  # the norm removes the offset
    return torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)


@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("bias", [False, True])
def test_convolve_equals_transformers_where_frames_see_speech(norm: str, bias: bool) -> None:
    extractor = _extractor(feat_extract_norm=norm, conv_bias=bias).feature_extractor
    batch = _batch()
    assert can_run(extractor, batch)
    wanted = extractor(batch).transpose(1, 2)
    found = convolve(extractor, batch, LENGTHS, 400)
    assert found.shape == wanted.shape
    for row, samples in enumerate(LENGTHS):
        seen = -(-samples // 320)
        assert torch.allclose(found[row, :seen], wanted[row, :seen], atol=1e-5, rtol=1e-4)
        assert not found[row, seen:].any()


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_hidden_states_equal_without_the_kernel(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = WaveformEncoder(_extractor(feat_extract_norm=norm), normalize=False, description={"path": "test"})
    waves = [row[:n] for row, n in zip(_batch(), LENGTHS)]
    found = encoder(waves)
    monkeypatch.setattr(matmul, "_HAS_ONEDNN", False)
    assert not can_run(encoder.model.feature_extractor, _batch())
    wanted = encoder(waves)
    assert torch.equal(found.frames, wanted.frames)
    assert torch.allclose(found.states, wanted.states, atol=2e-5)
    assert not torch.equal(found.states, wanted.states)  # two different computations


def test_can_run_refuses_unknown_modules() -> None:
    batch = _batch()
    assert not can_run(_extractor(feat_extract_activation="relu").feature_extractor, batch)
    assert not can_run(_extractor().feature_extractor, batch.double())
    assert not can_run(torch.nn.Identity(), batch)
    other = _extractor().feature_extractor
    other.conv_layers[2].conv.dilation = (2,)
    assert not can_run(other, batch)
