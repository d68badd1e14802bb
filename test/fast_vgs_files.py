"""Small random files in the published layout of FaST-VGS, and its scores by plain tensor operations."""

from __future__ import annotations

import argparse
import math
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv1d, group_norm, layer_norm

WIDTH, HIDDEN, CHANNELS, REGION = 8, 12, 6, 5
HEADS, SPEECH_HEADS, KERNEL, GROUPS = 2, 4, 4, 2
WIDTHS = (4, 4, 6, 8)
SECONDS = 0.3  # fixed length in evaluation
STRIDES = (5, 2, 2, 2, 2, 2, 2)
KERNELS = (10, 3, 3, 3, 3, 2, 2)
TOWER = "conv1_trm1_trm3"


def _linear(name: str, out: int, inner: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, inner), f"{name}.bias": (out,)}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _batch_norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {**_norm(name, width), f"{name}.running_mean": (width,), f"{name}.running_var": (width,)}


def _bert(name: str, d: int, f: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for part in ("query", "key", "value"):
        shapes |= _linear(f"{name}.attention.self.{part}", d, d)
    shapes |= _linear(f"{name}.attention.output.dense", d, d) | _norm(f"{name}.attention.output.LayerNorm", d)
    shapes |= _linear(f"{name}.intermediate.dense", f, d) | _linear(f"{name}.output.dense", d, f)
    return shapes | _norm(f"{name}.output.LayerNorm", d)


def dual_shapes(
    layers: int, *, d: int = WIDTH, f: int = HIDDEN, c: int = CHANNELS, region: int = REGION, kernel: int = KERNEL,
    groups: int = GROUPS, widths: tuple[int, ...] = WIDTHS, image_layers: int = 2, codes: tuple[int, int] = (6, 2),
    final: int = 4,
) -> dict[str, tuple[int, ...]]:  # fmt: skip
    """Return the shapes of ``dual_encoder``, without num_batches_tracked."""
    shapes: dict[str, tuple[int, ...]] = {f"{TOWER}.cls_token": (1, 1, d), f"{TOWER}.mask_emb": (d,)}
    for i, size in enumerate(KERNELS):
        shapes[f"{TOWER}.feature_extractor.conv_layers.{i}.0.weight"] = (c, c if i else 1, size)
    shapes |= _norm(f"{TOWER}.feature_extractor.conv_layers.0.2", c)
    shapes |= _norm(f"{TOWER}.layer_norm", c) | _linear(f"{TOWER}.post_extract_proj", d, c)
    shapes |= {f"{TOWER}.encoder.pos_conv.0.bias": (d,), f"{TOWER}.encoder.pos_conv.0.weight_g": (1, 1, kernel)}
    shapes |= {f"{TOWER}.encoder.pos_conv.0.weight_v": (d, d // groups, kernel)} | _norm(
        f"{TOWER}.encoder.layer_norm", d
    )
    for i in range(layers):
        layer = f"{TOWER}.encoder.layers.{i}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _linear(f"{layer}.self_attn.{part}", d, d)
        shapes |= _norm(f"{layer}.self_attn_layer_norm", d) | _norm(f"{layer}.final_layer_norm", d)
        shapes |= _linear(f"{layer}.fc1", f, d) | _linear(f"{layer}.fc2", d, f)
    shapes |= {f"{TOWER}.quantizer.vars": (1, codes[0], codes[1])} | _linear(
        f"{TOWER}.quantizer.weight_proj", codes[0], c
    )
    shapes |= _linear(f"{TOWER}.project_q", final, final) | _linear(f"{TOWER}.final_proj", final, d)
    shapes |= _linear("conv2.linear", widths[0], d) | _batch_norm("conv2.bn1", widths[0])
    for stage, (inner, outer) in enumerate(zip(widths, widths[1:]), 1):
        for block in range(2):
            at, width = f"conv2.layer{stage}.{block}", outer if block else inner
            shapes |= {f"{at}.conv1.weight": (outer, width, 1, 9), f"{at}.conv2.weight": (outer, outer, 1, 9)}
            shapes |= _batch_norm(f"{at}.bn1", outer) | _batch_norm(f"{at}.bn2", outer)
        shapes |= {f"conv2.layer{stage}.0.downsample.0.weight": (outer, inner, 1, 1)}
        shapes |= _batch_norm(f"conv2.layer{stage}.0.downsample.1", outer)
    for name in ("audio_cls_token_proj_coarse", "audio_cls_token_proj_pre", "visual_cls_token_proj_coarse"):
        shapes |= _linear(f"{name}.0", 2 * d, d) | _linear(f"{name}.2", d, 2 * d)
    shapes |= _bert("trm2", d, f) | _linear("trm2_proj", d, d) | {"visual_cls_token": (1, 1, d)}
    shapes |= _linear("visn_fc.visn_fc", d, region) | _norm("visn_fc.visn_layer_norm", d)
    shapes |= _linear("visn_fc.box_fc", d, 4) | _norm("visn_fc.box_layer_norm", d)
    for i in range(image_layers):
        shapes |= _bert(f"trm.{i}", d, f)
    return shapes


def cross_shapes(d: int = WIDTH, f: int = HIDDEN, layers: int = 2) -> dict[str, tuple[int, ...]]:
    """Return the shapes of ``cross_encoder``."""
    shapes = _linear("fc.0", d, 2 * d) | _linear("fc.2", 1, d)
    for i in range(layers):
        at = f"xtrm.{i}"
        for attention in ("visual_attention.att", "audio_self_att", "visn_self_att"):
            for part in ("query", "key", "value"):
                shapes |= _linear(f"{at}.{attention}.{part}", d, d)
        shapes |= _linear(f"{at}.visual_attention.output.dense", d, d)
        shapes |= _norm(f"{at}.visual_attention.output.LayerNorm", d)
        for side in ("audio", "visn"):
            shapes |= _linear(f"{at}.{side}_inter.dense", f, d) | _linear(f"{at}.{side}_output.dense", d, f)
            shapes |= _norm(f"{at}.{side}_output.LayerNorm", d)
    return shapes


def random_state(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = {name: torch.randn(shape, generator=generator) * 0.6 for name, shape in shapes.items()}
    for name in list(state):
        if "running_var" in name or "weight_g" in name:
            state[name] = state[name].abs() + 0.5
        if name.endswith("running_mean"):
            state[name.replace("running_mean", "num_batches_tracked")] = torch.tensor(7)
    return state


def write_bundle(folder: Path, layers: int = 2, **changes: Any) -> dict[str, Tensor]:
    """Write best_bundle.pth and args.pkl, and return the tensors of both encoders."""
    dual, cross = random_state(dual_shapes(layers), 1), random_state(cross_shapes(), 2)
    bundle = {"dual_encoder": dual, "cross_encoder": cross, "optimizer": {"state": {}, "param_groups": []}}
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({**bundle, "indices": [1, 2], "libri_indices": None, **changes}, folder / "best_bundle.pth")
    settings = argparse.Namespace(
        layer_use=1, num_attention_heads=HEADS, encoder_attention_heads=SPEECH_HEADS, audio_feat_len=0.2,
        val_audio_feat_len=SECONDS, margin=1.0, topk=100.0,
    )  # fmt: skip
    (folder / "args.pkl").write_bytes(pickle.dumps(settings))
    return {**dual, **cross}


# -- plain tensor operations, one utterance and one image at a time ---------------------------------------------------


def linear(x: Tensor, s: dict[str, Tensor], name: str) -> Tensor:
    return x @ s[f"{name}.weight"].T + s[f"{name}.bias"]


def norm(x: Tensor, s: dict[str, Tensor], name: str, eps: float = 1e-12) -> Tensor:
    return layer_norm(x, x.shape[-1:], s[f"{name}.weight"], s[f"{name}.bias"], eps)


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, valid: Tensor | None) -> Tensor:
    size, parts = q.shape[1] // heads, []
    for h in range(heads):
        at = slice(h * size, (h + 1) * size)
        scores = q[:, at] @ k[:, at].T / math.sqrt(size)
        if valid is not None:
            scores = scores + (~valid) * -10000.0
        parts.append(scores.softmax(-1) @ v[:, at])
    return torch.cat(parts, -1)


def project(x: Tensor, y: Tensor, s: dict[str, Tensor], name: str, parts: tuple[str, str, str]) -> tuple[Tensor, ...]:
    return tuple(linear(z, s, f"{name}.{part}") for z, part in zip((x, y, y), parts))


QKV = ("query", "key", "value")


def bert(x: Tensor, s: dict[str, Tensor], name: str, valid: Tensor | None) -> Tensor:
    out = attend(*project(x, x, s, f"{name}.attention.self", QKV), HEADS, valid)
    x = norm(linear(out, s, f"{name}.attention.output.dense") + x, s, f"{name}.attention.output.LayerNorm")
    inner = gelu(linear(x, s, f"{name}.intermediate.dense"))
    return norm(linear(inner, s, f"{name}.output.dense") + x, s, f"{name}.output.LayerNorm")


def batch_norm(x: Tensor, s: dict[str, Tensor], name: str) -> Tensor:
    """Normalise channels [C, T] with the stored statistics."""
    mean, var = s[f"{name}.running_mean"][:, None], s[f"{name}.running_var"][:, None]
    return (x - mean) / (var + 1e-5).sqrt() * s[f"{name}.weight"][:, None] + s[f"{name}.bias"][:, None]


def convolve(wave: Tensor, s: dict[str, Tensor]) -> Tensor:
    """Return [T, C] of a padded waveform [N]."""
    x = wave[None, None]
    for i, stride in enumerate(STRIDES):
        at = f"{TOWER}.feature_extractor.conv_layers.{i}"
        x = conv1d(x, s[f"{at}.0.weight"], stride=stride)
        if not i:
            x = group_norm(x, CHANNELS, s[f"{at}.2.weight"], s[f"{at}.2.bias"])
        x = gelu(x)
    return x[0].T


def wav2vec_states(features: Tensor, valid: Tensor, s: dict[str, Tensor], layers: int) -> list[Tensor]:
    """Return the input of layer 0 and the output of each layer, [1 + T, d], with the [CLS]."""
    x = linear(norm(features, s, f"{TOWER}.layer_norm", 1e-5), s, f"{TOWER}.post_extract_proj")
    x = torch.cat([s[f"{TOWER}.cls_token"][0], x])
    v, g = s[f"{TOWER}.encoder.pos_conv.0.weight_v"], s[f"{TOWER}.encoder.pos_conv.0.weight_g"]
    weight = g * v / v.square().sum(dim=(0, 1), keepdim=True).sqrt()
    moved = conv1d(x.T[None], weight, s[f"{TOWER}.encoder.pos_conv.0.bias"], padding=KERNEL // 2, groups=GROUPS)
    x = norm(x + gelu(moved[0, :, :-1].T), s, f"{TOWER}.encoder.layer_norm", 1e-5)
    mask, states = torch.cat([torch.ones(1, dtype=torch.bool), valid]), [x]
    for i in range(layers):
        at = f"{TOWER}.encoder.layers.{i}"
        out = attend(*project(x, x, s, f"{at}.self_attn", ("q_proj", "k_proj", "v_proj")), SPEECH_HEADS, mask)
        x = norm(x + linear(out, s, f"{at}.self_attn.out_proj"), s, f"{at}.self_attn_layer_norm", 1e-5)
        x = norm(x + linear(gelu(linear(x, s, f"{at}.fc1")), s, f"{at}.fc2"), s, f"{at}.final_layer_norm", 1e-5)
        states.append(x)
    return states


def resdavenet(x: Tensor, s: dict[str, Tensor]) -> Tensor:
    x = batch_norm(linear(x, s, "conv2.linear").T, s, "conv2.bn1").relu()
    for stage in range(1, len(WIDTHS)):
        for block in range(2):
            at, stride = f"conv2.layer{stage}.{block}", 1 if block else 2
            y = conv1d(x[None], s[f"{at}.conv1.weight"][:, :, 0], stride=stride, padding=4)[0]
            y = batch_norm(y, s, f"{at}.bn1").relu()
            y = batch_norm(conv1d(y[None], s[f"{at}.conv2.weight"][:, :, 0], padding=4)[0], s, f"{at}.bn2")
            if not block:
                x = conv1d(x[None], s[f"{at}.downsample.0.weight"][:, :, 0], stride=2)[0]
                x = batch_norm(x, s, f"{at}.downsample.1")
            x = (x + y).relu()
    return x.T


def padded(wave: Tensor, seconds: float = SECONDS) -> tuple[Tensor, Tensor]:
    """Return the normalised waveform of a fixed length, and its valid frames."""
    count = round(seconds * 16000)
    cut = wave[:count]
    fixed = torch.zeros(count)
    fixed[: len(cut)] = (cut - cut.mean()) / cut.std(unbiased=False)
    frames = count
    for kernel, stride in zip(KERNELS, STRIDES):
        frames = (frames - kernel) // stride + 1
    padding = torch.arange(count) >= len(cut)
    padding = padding[: count - count % frames].view(frames, -1).all(-1)
    return fixed, ~padding


def speech_tower(wave: Tensor, s: dict[str, Tensor], layers: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sequence [1 + T', d], its mask, and the coarse vector [d]."""
    fixed, valid = padded(wave)
    x = wav2vec_states(convolve(fixed, s), valid, s, layers)[-1]
    frames = resdavenet(x[1:], s)
    count = int(valid.sum()) // round(len(x[1:]) / len(frames))
    mask = torch.cat([torch.ones(1, dtype=torch.bool), torch.arange(len(frames)) < count])
    cls = linear(gelu(linear(x[:1], s, "audio_cls_token_proj_pre.0")), s, "audio_cls_token_proj_pre.2")
    sequence = bert(torch.cat([cls, frames]), s, "trm2", mask)
    return sequence, mask, linear(sequence[0], s, "trm2_proj")


def image_tower(features: Tensor, boxes: Tensor, s: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the sequence [1 + R, d] and the coarse vector [d]."""
    x = norm(linear(features, s, "visn_fc.visn_fc"), s, "visn_fc.visn_layer_norm")
    x = (x + norm(linear(boxes, s, "visn_fc.box_fc"), s, "visn_fc.box_layer_norm")) / 2
    x = torch.cat([s["visual_cls_token"][0], x])
    for i in range(2):
        x = bert(x, s, f"trm.{i}", None)
    coarse = gelu(linear(x[0], s, "visual_cls_token_proj_coarse.0"))
    return x, linear(coarse, s, "visual_cls_token_proj_coarse.2")


def fine_score(audio: Tensor, mask: Tensor, image: Tensor, s: dict[str, Tensor]) -> Tensor:
    """Return the score of one pair: a shared cross-attention, bare self-attentions, an MLP on both [CLS]."""
    for i in range(2):
        at, cross = f"xtrm.{i}", f"xtrm.{i}.visual_attention"
        sides = []
        for x, context, valid in ((audio, image, None), (image, audio, mask)):
            out = attend(*project(x, context, s, f"{cross}.att", QKV), HEADS, valid)
            sides.append(norm(linear(out, s, f"{cross}.output.dense") + x, s, f"{cross}.output.LayerNorm"))
        done = []
        for x, side, valid in ((sides[0], "audio", mask), (sides[1], "visn", None)):
            x = attend(*project(x, x, s, f"{at}.{side}_self_att", QKV), HEADS, valid)
            inner = gelu(linear(x, s, f"{at}.{side}_inter.dense"))
            done.append(norm(linear(inner, s, f"{at}.{side}_output.dense") + x, s, f"{at}.{side}_output.LayerNorm"))
        audio, image = done
    return linear(gelu(linear(torch.cat([audio[0], image[0]]), s, "fc.0")), s, "fc.2")[0]
