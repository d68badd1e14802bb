"""Tests of the nine published SpeechCLIP+ checkpoints: embeddings against plain tensor operations on the file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from fixtures import wave
from plain_operations import attend, linear, mixed, nearest_ids, norm, read_by_clip
from published_files import (
    JOINT,
    KEYWORDS,
    PLUS,
    WIDTH,
    clip_tensors,
    reduced_ids,
    save_checkpoint_file,
    save_script,
    state_dict,
)
from torch import Tensor
from torch.nn.functional import gelu, normalize

from speechclip.api import SpeechCLIP
from speechclip.bin.convert_checkpoint import main as convert
from speechclip.checkpoint.pretrained import load_published_states
from speechclip.common.errors import UserError
from speechclip.config import published_config
from speechclip.convert.reader import read_published
from speechclip.upstream.expert import UpstreamExpert

WAVES = [torch.from_numpy(wave(9000, 1)), torch.from_numpy(wave(5000, 2))]
B = "cascaded_branch"


class Published(NamedTuple):
    """A published checkpoint.

    Attributes:
        head: the name of the head.
        large: whether it is a Large model.
        corpus: "flickr" or "coco".
        heads: number of attention heads.
        layers: linear layers of the keyword projection.
        learned: whether the temperature was trained.
        block: "attention" or "transformer".
    """

    head: str
    large: bool
    corpus: str
    heads: int
    layers: int
    learned: bool
    block: str = "attention"

    @property
    def ids(self) -> list[int]:
        """The reduced vocabulary. Each corpus has its own."""
        return reduced_ids(60, seed=4) if self.corpus == "flickr" else reduced_ids(90, seed=5)

    def state(self) -> dict[str, Tensor]:
        """Return a state dict in its layout."""
        return state_dict(
            self.head, self.ids, large=self.large, layers=self.layers, learned=self.learned, block=self.block
        )


NINE = [
    Published("hybrid", False, "flickr", 1, 1, True),
    Published("hybrid", True, "flickr", 1, 2, True),
    Published("hybrid", True, "coco", 1, 2, False, "transformer"),
    Published("cascaded_plus", False, "flickr", 1, 1, True),
    Published("cascaded_plus", True, "flickr", 8, 2, True),
    Published("cascaded_plus", True, "coco", 8, 2, True),
    Published("hybrid_plus", False, "flickr", 8, 1, True),
    Published("hybrid_plus", True, "flickr", 8, 2, True),
    Published("hybrid_plus", True, "coco", 8, 2, True),
]
NAMES = [f"{item.head}-{'large' if item.large else 'base'}-{item.corpus}" for item in NINE]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_script(tmp_path_factory.mktemp("clip") / "ViT-tiny.pt", clip_tensors())


def _keyword_projection(x: Tensor, state: dict[str, Tensor]) -> Tensor:
    """Apply one linear layer (Base), or two with a ReLU between them."""
    name = f"{B}.linear_proj"
    if f"{name}.weight" in state:
        return linear(x, state, name)
    return linear(linear(x, state, f"{name}.sequential.0").clamp(min=0), state, f"{name}.sequential.3")


def _fire(frames: Tensor, state: dict[str, Tensor]) -> Tensor:
    """Apply integrate-and-fire to [T, d], frame by frame. The tail fires from 0.5 on, as in evaluation."""
    weight, bias = state[f"{B}.downsampling.conv.0.weight"], state[f"{B}.downsampling.conv.0.bias"]
    around = torch.cat([torch.zeros(1, WIDTH), frames, torch.zeros(1, WIDTH)])
    hidden = torch.stack(
        [sum(around[t + s] @ weight[:, :, s].T for s in range(3)) + bias for t in range(len(frames))]
    ).clamp(min=0)
    alpha = linear(hidden, state, f"{B}.downsampling.weight_proj.1")[:, 0].sigmoid()
    done: list[Tensor] = []
    held, unit = 0.0, torch.zeros(WIDTH)
    for frame, share in zip(frames, alpha.tolist(), strict=True):
        if held + share < 1:
            held, unit = held + share, unit + share * frame
            continue
        done.append(unit + (1 - held) * frame)
        held += share - 1
        unit = held * frame
    if held >= 0.5 or not done:
        done.append(unit / held if done else unit)
    return torch.stack(done)


def _batch_norm(vectors: Tensor, state: dict[str, Tensor], shared: bool) -> Tensor:
    """Normalise [K, D]: flattened with the dimension major, or each position with the shared statistics."""
    weight, bias, mean, variance = (
        state[f"{B}.bn_layer.bn_layer.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
    )
    flat = vectors if shared else vectors.T.reshape(-1)  # (d, k) -> d * K + k
    flat = (flat - mean) / (variance + 1e-5).sqrt() * weight + bias
    return flat if shared else flat.reshape(-1, len(vectors)).T


def _transformer(tokens: Tensor, state: dict[str, Tensor], heads: int) -> Tensor:
    """Apply the post-norm transformer layer to tokens [N, d]."""
    layer, everything = f"{B}.self_att.model.layers.0", torch.zeros(len(tokens), dtype=torch.bool)
    x = norm(tokens + attend(tokens, state, f"{layer}.self_attn", heads, everything), state, f"{layer}.norm1")
    inner = gelu(linear(x, state, f"{layer}.linear1"))
    return norm(x + linear(inner, state, f"{layer}.linear2"), state, f"{layer}.norm2")


def _plain(item: Published, state: dict[str, Tensor], frames: Tensor) -> tuple[Tensor | None, Tensor]:
    """Compute the parallel embedding [J], or None, and the keyword vectors [K, D] of mixed frames [T, d]."""
    names = {"hybrid": ("parallel_cls", "cascaded_cls"), "cascaded_plus": (), "hybrid_plus": ("cls",)}[item.head]
    cls = [state[f"{B}.{name}"][0] for name in names]
    tokens, count = torch.cat([*cls, frames]), sum(map(len, cls))
    everything = torch.zeros(len(tokens), dtype=torch.bool)
    if item.block == "transformer":
        out = norm(_transformer(tokens, state, item.heads), state, f"{B}.self_att.model.norm")
    else:
        attended = attend(tokens, state, f"{B}.self_att.multihead_attn_layer", item.heads, everything)
        out = norm(tokens + attended, state, f"{B}.self_att.attentionBlock_Norm")
    embedding = linear(out[0], state, f"{B}.parallel_proj") if count else None
    units = out[1:count] if item.head == "hybrid" else _fire(out[count:], state)
    vectors = _batch_norm(_keyword_projection(units, state), state, shared=item.head != "hybrid")
    return embedding, vectors


@pytest.mark.parametrize("item", NINE, ids=NAMES)
def test_plus_checkpoint_equals_plain_operations(tmp_path: Path, clip: Path, item: Published) -> None:
    state, full = item.state(), clip_tensors()
    path = save_checkpoint_file(tmp_path / "plus.ckpt", state, nhead=item.heads if item.large else None)
    model = SpeechCLIP.from_pretrained(str(path), clip=str(clip))
    settings, encoder = model.network.config.head, model.network.config.speech_encoder
    assert (settings.name, settings.attention_heads, settings.projection_layers, settings.block) == (
        item.head, item.heads, item.layers, item.block
    )  # fmt: skip
    normed = item.large and item.head == "hybrid"
    assert (encoder.normalize, encoder.state_norm) == (item.large, normed)
    assert model.network.config.loss.learn_temperature is item.learned
    assert model.network.loss.scale.item() == pytest.approx(math.exp(2.5) if item.learned else 1 / 0.07, rel=1e-5)
    assert model.network.vocabulary is not None and model.network.vocabulary.ids == tuple(item.ids)
    features, found = model.network.encode_waves(WAVES), model.keywords(WAVES, top_k=1)
    parallel, cascaded, counts = [], [], []
    for row, length, keywords in zip(features.states, features.frames.tolist(), found, strict=True):
        embedding, vectors = _plain(item, state, mixed(row[:, :length], state, normed))
        nearest = nearest_ids(vectors, item.ids)
        assert [k.subwords[0] for k in keywords] == [model.network.clip.tokenizer.subword(token) for token in nearest]
        cascaded.append(read_by_clip(full["token_embedding.weight"][nearest], full))
        parallel += [] if embedding is None else [embedding]
        counts.append(len(nearest))
    assert counts == [KEYWORDS] * 2 if item.head == "hybrid" else len(set(counts)) == 2 and min(counts) > 2
    for name, expected in (("parallel", parallel), ("cascaded", cascaded)):
        if expected:
            mine = model.encode_speech(WAVES, branch=name)
            torch.testing.assert_close(mine, normalize(torch.stack(expected), dim=-1), rtol=0, atol=2e-5)


def test_converted_plus_checkpoint_equals_original(tmp_path: Path, clip: Path) -> None:
    item = NINE[NAMES.index("hybrid_plus-large-coco")]
    path = save_checkpoint_file(tmp_path / "plus.ckpt", item.state())
    model = SpeechCLIP.from_pretrained(path, clip=str(clip))
    convert(["--checkpoint", str(path), "--out", str(tmp_path / "out"), "--clip", str(clip)])
    path.unlink()
    again = SpeechCLIP.from_pretrained(tmp_path / "out")
    for name in ("parallel", "cascaded"):
        assert torch.equal(again.encode_speech(WAVES, branch=name), model.encode_speech(WAVES, branch=name))
    assert again.keywords(WAVES) == model.keywords(WAVES)


@pytest.mark.parametrize(
    ("head", "change", "message"),
    [
        ("hybrid", {f"{B}.parallel_cls": None}, f"the tensor {B}.parallel_cls is missing"),
        ("hybrid", {f"{B}.parallel_proj.weight": torch.ones(JOINT, 9)}, "checkpoint for other dimensions"),
        (
            "cascaded_plus",
            {f"{B}.downsampling.weight_proj.1.bias": None},
            f"the tensor {B}.downsampling.weight_proj.1.bias is missing",
        ),
        ("cascaded_plus", {f"{B}.downsampling.more": torch.ones(1)}, f"unknown tensor {B}.downsampling.more, and 0"),
        ("hybrid_plus", {f"{B}.clip.model.more": torch.ones(1)}, "is not below clip. with the same shape"),
    ],
)
def test_plus_reader_names_unfit_tensor(
    tmp_path: Path, clip: Path, head: str, change: dict[str, Any], message: str
) -> None:
    state = {**state_dict(head, reduced_ids()), **change}
    path = save_checkpoint_file(tmp_path / "plus.ckpt", {k: v for k, v in state.items() if v is not None})
    with pytest.raises(UserError, match=message) as caught:
        SpeechCLIP.from_pretrained(path, clip=str(clip))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("head", PLUS)
def test_plus_reader_takes_attention_heads_from_settings(tmp_path: Path, head: str) -> None:
    path = save_checkpoint_file(tmp_path / "plus.ckpt", state_dict(head, reduced_ids()), nhead=4)
    assert read_published(path).config.head.attention_heads == 4


@pytest.mark.parametrize("item", NINE, ids=NAMES)
def test_published_settings_agree_with_the_files(item: Published) -> None:
    size, corpus = "large" if item.large else "base", {"flickr": "flickr8k", "coco": "spokencoco"}[item.corpus]
    model = published_config(size, item.head, corpus).model
    assert (model.head.name, model.head.attention_heads, model.head.projection_layers, model.head.block) == (
        item.head, item.heads, item.layers, item.block
    )  # fmt: skip
    assert model.loss.learn_temperature is item.learned
    assert model.speech_encoder.state_norm is (item.large and item.head == "hybrid")


def test_transformer_block_gives_states_before_last_norm(tmp_path: Path) -> None:
    """The authors' upstream returns the transformer layer's output without the additional LayerNorm."""
    item = NINE[NAMES.index("hybrid-large-coco")]
    state = item.state()
    network = load_published_states(save_checkpoint_file(tmp_path / "plus.ckpt", state))
    states, frames = network.hidden_states(WAVES)
    cls = torch.cat([state[f"{B}.parallel_cls"][0], state[f"{B}.cascaded_cls"][0]])
    for row, count in enumerate(frames.tolist()):
        mix = mixed(torch.stack(states[:-1], dim=1)[row, :, :count], state, True)
        expected = _transformer(torch.cat([cls, mix]), state, item.heads)[len(cls) :]
        torch.testing.assert_close(states[-1][row, :count], expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("head", PLUS)
def test_normalize_waveform_is_followed_except_upstream(tmp_path: Path, clip: Path, head: str) -> None:
    """A Base file that says so gets normalised waveforms everywhere, but raw ones in the s3prl upstream."""
    state = state_dict(head, reduced_ids())
    raw = save_checkpoint_file(tmp_path / "raw.ckpt", state)
    path = save_checkpoint_file(tmp_path / "normalised.ckpt", state, normalize_waveform=True)
    reference, model = (SpeechCLIP.from_pretrained(file, clip=str(clip)) for file in (raw, path))
    shifted = [3 * wave + 0.1 for wave in WAVES]
    normalised = [(wave - wave.mean()) / (wave.var(correction=0) + 1e-5).sqrt() for wave in shifted]
    for branch in model.branches:
        expected = reference.encode_speech(normalised, branch=branch)
        torch.testing.assert_close(model.encode_speech(shifted, branch=branch), expected, rtol=0, atol=1e-5)
    assert (model.encode_speech(shifted) - reference.encode_speech(shifted)).abs().max() > 1e-3
    assert [[k.subwords for k in row] for row in model.keywords(shifted)] == [
        [k.subwords for k in row] for row in reference.keywords(normalised)
    ]
    convert(["--checkpoint", str(path), "--out", str(tmp_path / "out"), "--clip", str(clip)])
    again = SpeechCLIP.from_pretrained(tmp_path / "out")
    assert torch.equal(again.encode_speech(shifted), model.encode_speech(shifted))
    expected_states = UpstreamExpert(raw).eval()(shifted)["hidden_states"]
    for upstream in (path, tmp_path / "out"):
        states = UpstreamExpert(upstream).eval()(shifted)["hidden_states"]
        assert all(torch.equal(a, b) for a, b in zip(states, expected_states, strict=True))


def test_normalize_waveform_false_changes_nothing(tmp_path: Path) -> None:
    for large in (False, True):
        state = state_dict("hybrid", reduced_ids(), large=large)
        path = save_checkpoint_file(tmp_path / "plus.ckpt", state, normalize_waveform=False)
        published = read_published(path)
        assert published.config.speech_encoder.normalize is published.encoder_normalize is large
        assert "normalize_waveform" not in published.facts
