"""Tests of the published SpeechCLIP+ layout: a loaded model against plain operations on the file."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from fixtures import CONTEXT, JOINT, STATES, SUBWORD, WIDTH, captions, save_clip, vocabulary_of
from torch import Tensor

from speechclip.checkpoint.folder import load_weights
from speechclip.common.errors import UserError
from speechclip.config import ClipConfig
from speechclip.convert.plus_layout import convert_plus as convert
from speechclip.model.encoders.clip import OpenClip, load_clip
from speechclip.model.encoders.tokenizers import add_special_tokens
from speechclip.model.heads.base import CASCADED, PARALLEL
from speechclip.model.network import Dimensions, build_network, reduced_subword_embeddings

KEYWORDS = 3
HEADS = ("hybrid", "cascaded_plus", "hybrid_plus")
B = "cascaded_branch."


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> OpenClip:
    return load_clip(ClipConfig(str(save_clip(tmp_path_factory.mktemp("clip") / "clip"))))


def _linear(name: str, out: int, inside: int) -> dict[str, Tensor]:
    return {f"{name}.weight": torch.randn(out, inside) / inside**0.5, f"{name}.bias": torch.randn(out) * 0.3}


def _file(head: str, *, large: bool = False, two: bool = False, one_cls: bool = False) -> dict[str, Tensor]:
    """Return the tensors of a published checkpoint.

    Args:
        head: the name of the head.
        large: whether it is a Large model.
        two: use two-layer projections and two convolutions.
        one_cls: store all [CLS] vectors in one tensor.
    """
    torch.manual_seed(11)
    has_cif, features = head != "hybrid", SUBWORD * (KEYWORDS if head == "hybrid" else 1)
    tensors = {
        "audio_encoder.weightedsum_layer.weights": torch.randn(STATES),
        "criterion.temperature": torch.tensor(2.5),
        f"{B}self_att.multihead_attn_layer.in_proj_weight": torch.randn(3 * WIDTH, WIDTH) / WIDTH**0.5,
        f"{B}self_att.multihead_attn_layer.in_proj_bias": torch.randn(3 * WIDTH) * 0.3,
        **_linear(f"{B}self_att.multihead_attn_layer.out_proj", WIDTH, WIDTH),
        f"{B}self_att.attentionBlock_Norm.weight": 1 + torch.randn(WIDTH) * 0.3,
        f"{B}self_att.attentionBlock_Norm.bias": torch.randn(WIDTH) * 0.3,
        f"{B}bn_layer.bn_layer.weight": 1 + torch.rand(features),
        f"{B}bn_layer.bn_layer.bias": torch.randn(features),
        f"{B}bn_layer.bn_layer.running_mean": torch.randn(features),
        f"{B}bn_layer.bn_layer.running_var": 0.5 + torch.rand(features),
        f"{B}bn_layer.bn_layer.num_batches_tracked": torch.tensor(7),
        f"{B}vector_quantizer.curr_temp": torch.tensor(0.1),
    }
    projections = [("linear_proj", SUBWORD)] + ([] if head == "cascaded_plus" else [("parallel_proj", JOINT)])
    for name, width in projections:
        layers = {f"{name}.sequential.0": WIDTH, f"{name}.sequential.3": width} if two else {name: width}
        for layer, out in layers.items():
            tensors |= _linear(B + layer, out, WIDTH)
    if head == "hybrid":
        cls = torch.randn(1, 1 + KEYWORDS, WIDTH)
        split = {"parallel_cls": cls[:, :1], "cascaded_cls": cls[:, 1:]}
        tensors |= {f"{B}cls": cls} if one_cls else {B + name: value for name, value in split.items()}
    if head == "hybrid_plus":
        tensors[f"{B}cls"] = torch.randn(1, 1, WIDTH)
    if has_cif:
        for at in (0, 3) if two else (0,):
            weight = torch.randn(WIDTH, WIDTH, 5 if two else 3) / (3 * WIDTH) ** 0.5
            tensors[f"{B}downsampling.conv.{at}.weight"] = weight
            tensors[f"{B}downsampling.conv.{at}.bias"] = torch.randn(WIDTH) * 0.2
        tensors |= _linear(f"{B}downsampling.weight_proj.1", 1, WIDTH)
        tensors[f"{B}downsampling.weight_proj.1.bias"] -= 1  # so that all keywords fit into the small text tower
    if large:
        tensors["audio_encoder.encoder.feature_extractor.conv_layers.0.2.1.weight"] = torch.ones(16)
    return tensors


def _layers(file: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """Apply one linear layer, or two with a ReLU between them."""
    name = B + name
    if f"{name}.weight" in file:
        return x @ file[f"{name}.weight"].T + file[f"{name}.bias"]
    hidden = (x @ file[f"{name}.sequential.0.weight"].T + file[f"{name}.sequential.0.bias"]).clamp(min=0)
    return hidden @ file[f"{name}.sequential.3.weight"].T + file[f"{name}.sequential.3.bias"]


def _norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * weight + bias


def _block(file: dict[str, Tensor], tokens: Tensor, heads: int) -> Tensor:
    """Apply self-attention to tokens [N, d], head by head, then residual and LayerNorm."""
    old = f"{B}self_att.multihead_attn_layer"
    qkv = tokens @ file[f"{old}.in_proj_weight"].T + file[f"{old}.in_proj_bias"]
    size, parts = WIDTH // heads, []
    for head in range(heads):
        q, k, v = (qkv[:, part * WIDTH + head * size : part * WIDTH + (head + 1) * size] for part in range(3))
        scores = (q @ k.T / size**0.5).exp()
        parts.append(scores / scores.sum(dim=1, keepdim=True) @ v)
    attended = torch.cat(parts, dim=1) @ file[f"{old}.out_proj.weight"].T + file[f"{old}.out_proj.bias"]
    norm = f"{B}self_att.attentionBlock_Norm"
    return _norm(tokens + attended, file[f"{norm}.weight"], file[f"{norm}.bias"])


def _integrate_and_fire(file: dict[str, Tensor], frames: Tensor) -> Tensor:
    """Apply integrate-and-fire to one utterance [T, d], frame by frame. The tail fires from 0.5 on."""
    hidden, at = frames, 0
    while f"{B}downsampling.conv.{at}.weight" in file:
        weight, bias = file[f"{B}downsampling.conv.{at}.weight"], file[f"{B}downsampling.conv.{at}.bias"]
        reach = weight.shape[2] // 2
        padded = torch.cat([torch.zeros(reach, WIDTH), hidden, torch.zeros(reach, WIDTH)])
        hidden = torch.stack(
            [sum(padded[t + s] @ weight[:, :, s].T for s in range(2 * reach + 1)) + bias for t in range(len(frames))]
        ).clamp(min=0)
        at += 3
    old = f"{B}downsampling.weight_proj.1"
    alpha = torch.sigmoid(hidden @ file[f"{old}.weight"].T + file[f"{old}.bias"])[:, 0]
    done: list[Tensor] = []
    state, held = torch.zeros(WIDTH), 0.0
    for frame, weight in zip(frames, alpha.tolist(), strict=True):
        if held + weight >= 1:
            done.append(state + (1 - held) * frame)
            state, held = (held + weight - 1) * frame, held + weight - 1
        else:
            state, held = state + weight * frame, held + weight
    if done and held >= 0.5:
        done.append(state / held)
    return torch.stack(done or [state])


def _batch_norm(file: dict[str, Tensor], keywords: Tensor, shared: bool) -> Tensor:
    """Normalise [K, D] as published: flattened with the dimension major, or each position by itself."""
    weight, bias, mean, variance = (
        file[f"{B}bn_layer.bn_layer.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
    )
    if shared:
        return (keywords - mean) / (variance + 1e-5).sqrt() * weight + bias
    flat = keywords.T.reshape(-1)  # (d, k) -> d * K + k
    return ((flat - mean) / (variance + 1e-5).sqrt() * weight + bias).reshape(SUBWORD, -1).T


def _expected(
    head: str, file: dict[str, Tensor], states: Tensor, clip: OpenClip, ids: list[int], *, large: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Compute parallel embedding, keyword vectors and cascaded embedding of hidden states [L, T, d]."""
    if large and head == "hybrid":
        states = _norm(states, torch.ones(WIDTH), torch.zeros(WIDTH))
    mix = file["audio_encoder.weightedsum_layer.weights"].exp()
    frames = (states * (mix / mix.sum())[:, None, None]).sum(dim=0)
    heads = {"hybrid": 1, "cascaded_plus": 8 if large else 1, "hybrid_plus": 8}[head]
    if head == "hybrid":
        cls = [file[B + n][0] for n in ("cls", "parallel_cls", "cascaded_cls") if B + n in file]
    else:
        cls = [file[f"{B}cls"][0]] if head == "hybrid_plus" else []
    count = sum(map(len, cls))
    out = _block(file, torch.cat([*cls, frames]), heads)
    parallel = None if head == "cascaded_plus" else _layers(file, "parallel_proj", out[0])
    units = out[1:count] if head == "hybrid" else _integrate_and_fire(file, out[count:])
    vectors = _batch_norm(file, _layers(file, "linear_proj", units), shared=head != "hybrid")
    subword_embeddings, valid = (
        clip.subword_embeddings[torch.tensor(ids)],
        [i not in (clip.tokenizer.pad, clip.tokenizer.sot, clip.tokenizer.eot) for i in ids],
    )
    keywords = []
    for vector in vectors:
        cosines = [(vector @ row / row.norm()).item() if a else -math.inf for row, a in zip(subword_embeddings, valid)]
        keywords.append(ids[max(range(len(ids)), key=cosines.__getitem__)])
    tokens = torch.tensor([add_special_tokens(clip.tokenizer, keywords, CONTEXT)])
    return parallel, vectors, clip.model.encode_text(tokens)[0]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("large", "two", "one_cls"), [(False,) * 3, (True,) * 3], ids=["base", "large"])
def test_plus_layout_equals_plain_operations(clip: OpenClip, head: str, large: bool, two: bool, one_cls: bool) -> None:
    file = _file(head, large=large, two=two, one_cls=one_cls)
    left = dict(file)
    config, state = convert(left)
    assert set(left) <= {"audio_encoder.encoder.feature_extractor.conv_layers.0.2.1.weight"}  # of the encoder
    assert config.head.name == head
    words = vocabulary_of(captions(30), clip)
    model = build_network(config, Dimensions(WIDTH, STATES, JOINT), clip=clip, vocabulary=words).eval()
    load_weights(model, state, "file")  # raises an error if a tensor is missing or unused
    assert reduced_subword_embeddings(clip, words)[0].shape == (len(words), SUBWORD)
    torch.manual_seed(2)
    frames = torch.tensor([30, 9])
    states = torch.randn(2, STATES, 30, WIDTH)
    with torch.no_grad():
        output = model.apply_head(states, frames)
        for row, count in enumerate(frames.tolist()):
            wanted = _expected(head, file, states[row, :, :count], clip, list(words.ids), large=large)
            keywords = output.keywords
            assert keywords is not None
            mine = keywords.vectors[row][keywords.mask[row]]
            torch.testing.assert_close(mine, wanted[1], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(output.branches[CASCADED][row], wanted[2], rtol=0, atol=1e-5)
            if wanted[0] is not None:
                torch.testing.assert_close(output.branches[PARALLEL][row], wanted[0], rtol=0, atol=1e-4)
    assert model.loss.log_scale.item() == 2.5


def test_plus_layout_follows_published_settings() -> None:
    heads: dict[tuple[str, bool], int] = {}
    for head in HEADS:
        for large in (False, True):
            config, _ = convert(_file(head, large=large))
            heads[head, large] = config.head.attention_heads
            assert config.speech_encoder.normalize is large
            assert config.speech_encoder.state_norm is (large and head == "hybrid")
            assert config.loss.learn_temperature
    assert heads == {
        ("hybrid", False): 1, ("hybrid", True): 1, ("cascaded_plus", False): 1, ("cascaded_plus", True): 8,
        ("hybrid_plus", False): 8, ("hybrid_plus", True): 8,
    }  # fmt: skip
    fixed = _file("hybrid", large=True)
    del fixed["criterion.temperature"]  # COCO Large Hybrid
    config, state = convert(fixed)
    assert not config.loss.learn_temperature
    assert state["loss.log_scale"].item() == pytest.approx(math.log(1 / 0.07))


def test_plus_layout_reads_sizes_from_keys() -> None:
    config, _ = convert(_file("hybrid_plus", two=True))
    assert (config.head.projection_layers, config.head.parallel_layers) == (2, 2)
    assert (config.head.cif.layers, config.head.cif.width) == (2, 5)
    config, _ = convert(_file("hybrid"))
    assert (config.head.keywords, config.head.projection_layers, config.head.parallel_layers) == (KEYWORDS, 1, 1)


def test_plus_layout_leaves_unused_tensors() -> None:
    names = ("clip.model.logit_scale", f"{B}clip.model.logit_scale", "criterion.eye_mat")
    more = {name: torch.ones(()) for name in names}
    file = {**_file("cascaded_plus"), **more, f"{B}surprise": torch.ones(1)}
    convert(file)
    assert set(file) == {*more, f"{B}surprise"}


BROKEN: list[tuple[str, str, Any, str]] = [
    ("hybrid", f"{B}parallel_cls", None, f"the tensor {B}parallel_cls is missing"),
    ("hybrid", f"{B}parallel_cls", torch.ones(1, 2, WIDTH), r"parallel_cls is \[1, 2, 32\], not \[1, 1, width\]"),
    ("hybrid", f"{B}cascaded_cls", torch.ones(3, WIDTH), r"cascaded_cls is \[3, 32\], not \[1, vectors, width\]"),
    ("hybrid", f"{B}bn_layer.bn_layer.running_var", torch.ones(10), "not a multiple of 3 keywords"),
    ("hybrid", f"{B}linear_proj.bias", None, f"the tensor {B}linear_proj.bias is missing"),
    ("cascaded_plus", f"{B}downsampling.conv.0.bias", None, f"the tensor {B}downsampling.conv.0.bias is missing"),
    ("cascaded_plus", f"{B}downsampling.weight_proj.1.weight", None, "the tensor .*weight_proj.1.weight is missing"),
    ("hybrid_plus", f"{B}parallel_proj.weight", None, f"the tensor {B}parallel_proj.weight is missing"),
    (
        "hybrid_plus",
        "audio_encoder.weightedsum_layer.weights",
        None,
        "the tensor audio_encoder.weightedsum_layer.weights is",
    ),
]


@pytest.mark.parametrize(("head", "name", "value", "message"), BROKEN, ids=[f"{r[0]}-{r[1]}" for r in BROKEN])
def test_plus_layout_names_damaged_tensor(head: str, name: str, value: Tensor | None, message: str) -> None:
    file = _file(head)
    if value is None:
        del file[name]
    else:
        file[name] = value
    with pytest.raises(UserError, match=message) as caught:
        convert(file)
    assert "\n" not in str(caught.value)
