"""The upstream at the published sizes, with random weights."""

from __future__ import annotations

import pytest
import torch
from fixtures import settings

from speechclip.common.compat import prepare
from speechclip.model.encoders.transformers import WaveformEncoder
from speechclip.model.network import Dimensions, build_network


@pytest.mark.slow
@pytest.mark.parametrize(("large", "states", "width", "joint"), [(False, 14, 768, 512), (True, 26, 1024, 768)])
def test_full_size_states_of_base_and_large(large: bool, states: int, width: int, joint: int) -> None:
    prepare()
    import transformers

    torch.manual_seed(0)
    shape = {
        "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
        "feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True,
    }  # fmt: skip
    hubert = transformers.HubertModel(transformers.HubertConfig(**(shape if large else {})))
    encoder = WaveformEncoder(hubert, normalize=large, description={"path": "random", "weights": "random"})
    config = settings(model__head__attention_heads=8).model
    model = build_network(config, Dimensions(width, states - 1, joint), speech_encoder=encoder).eval()
    found, frames = model.hidden_states([torch.randn(16000) * 0.1, torch.randn(800) * 0.1])
    assert len(found) == states and {state.shape for state in found} == {(2, 49, width)}
    assert frames.tolist() == [49, 2] and all(torch.isfinite(state).all() for state in found)
