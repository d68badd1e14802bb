"""Small random files in the published formats of SpeechCLIP, HuBERT and CLIP, for tests."""

from __future__ import annotations

import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WIDTH, LAYERS, CHANNELS = 64, 2, 16  # of the speech encoder, whose attention head is as wide as a published one
TEXT, JOINT, CONTEXT, SUBWORDS = 64, 48, 77, 49408  # of the CLIP
KEYWORDS = 3
PLUS = ("hybrid", "cascaded_plus", "hybrid_plus")


def random_tensors(shapes: dict[str, tuple[int, ...]], seed: int, scale: float = 0.3) -> dict[str, Tensor]:
    """Return random tensors that half precision represents exactly, as those of CLIP. LayerNorm scales are around 1."""
    generator = torch.Generator().manual_seed(seed)
    made = {name: torch.randn(shape, generator=generator) * scale for name, shape in shapes.items()}
    return {
        name: (value + ("norm" in name or "ln_" in name) * ("weight" in name)).half().float()
        for name, value in made.items()
    }


def hubert_tensors(*, large: bool = False, seed: int = 1) -> dict[str, Tensor]:
    """Return a HuBERT under fairseq's names, with the parts of its pretraining."""
    shapes: dict[str, tuple[int, ...]] = {"mask_emb": (WIDTH,), "label_embs_concat": (10, 16)}
    for i, kernel in enumerate((10, 3, 3, 3, 3, 2, 2)):
        conv = f"feature_extractor.conv_layers.{i}"
        shapes[f"{conv}.0.weight"] = (CHANNELS, CHANNELS if i else 1, kernel)
        if large:
            shapes[f"{conv}.0.bias"] = (CHANNELS,)
        if large or not i:
            norm = f"{conv}.2.1" if large else f"{conv}.2"
            shapes |= {f"{norm}.weight": (CHANNELS,), f"{norm}.bias": (CHANNELS,)}
    shapes |= {f"layer_norm.{part}": (CHANNELS,) for part in ("weight", "bias")}
    shapes |= {"post_extract_proj.weight": (WIDTH, CHANNELS), "post_extract_proj.bias": (WIDTH,)}
    shapes |= {"encoder.pos_conv.0.bias": (WIDTH,), "encoder.pos_conv.0.weight_g": (1, 1, 16)}
    shapes |= {"encoder.pos_conv.0.weight_v": (WIDTH, WIDTH // 4, 16)}
    for i in range(LAYERS):
        layer = f"encoder.layers.{i}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= {f"{layer}.self_attn.{part}.weight": (WIDTH, WIDTH), f"{layer}.self_attn.{part}.bias": (WIDTH,)}
        shapes |= {f"{layer}.fc1.weight": (2 * WIDTH, WIDTH), f"{layer}.fc1.bias": (2 * WIDTH,)}
        shapes |= {f"{layer}.fc2.weight": (WIDTH, 2 * WIDTH), f"{layer}.fc2.bias": (WIDTH,)}
        for norm in ("self_attn_layer_norm", "final_layer_norm"):
            shapes |= {f"{layer}.{norm}.{part}": (WIDTH,) for part in ("weight", "bias")}
    shapes |= {f"encoder.layer_norm.{part}": (WIDTH,) for part in ("weight", "bias")}
    shapes |= {"final_proj.weight": (16, WIDTH), "final_proj.bias": (16,)}
    tensors = random_tensors(shapes, seed)
    tensors["feature_extractor.conv_layers.2.0.weight"] *= 2
    return tensors


def clip_tensors(seed: int = 2) -> dict[str, Tensor]:
    """Return a CLIP under OpenAI's names, with the whole BPE vocabulary."""
    shapes: dict[str, tuple[int, ...]] = {
        "positional_embedding": (CONTEXT, TEXT), "text_projection": (TEXT, JOINT), "logit_scale": (),
        "token_embedding.weight": (SUBWORDS, TEXT), "visual.class_embedding": (WIDTH,),
        "visual.positional_embedding": (5, WIDTH), "visual.proj": (WIDTH, JOINT),
        "visual.conv1.weight": (WIDTH, 3, 16, 16),
    }  # fmt: skip
    for tower, width in (("visual.", WIDTH), ("", TEXT)):
        block = f"{tower}transformer.resblocks.0"
        shapes |= {f"{block}.attn.in_proj_weight": (3 * width, width), f"{block}.attn.in_proj_bias": (3 * width,)}
        shapes |= {f"{block}.attn.out_proj.weight": (width, width), f"{block}.attn.out_proj.bias": (width,)}
        shapes |= {f"{block}.mlp.c_fc.weight": (4 * width, width), f"{block}.mlp.c_fc.bias": (4 * width,)}
        shapes |= {f"{block}.mlp.c_proj.weight": (width, 4 * width), f"{block}.mlp.c_proj.bias": (width,)}
        shapes |= {f"{block}.ln_{i}.{part}": (width,) for i in (1, 2) for part in ("weight", "bias")}
    shapes |= {
        f"{norm}.{part}": (WIDTH,) for norm in ("visual.ln_pre", "visual.ln_post") for part in ("weight", "bias")
    }
    shapes |= {f"ln_final.{part}": (TEXT,) for part in ("weight", "bias")}
    return random_tensors(shapes, seed)


def head_tensors(
    head: str, *, layers: int = 1, one_cls: bool = False, seed: int = 3, block: str = "attention"
) -> dict[str, Tensor]:
    """Return the trained tensors of a published head and its weighted sum.

    Args:
        head: the name of the head.
        layers: linear layers of the keyword projection, 1 or 2.
        one_cls: store the [CLS] vectors of a hybrid head in one tensor.
        seed: of the random numbers.
        block: "attention", or "transformer" for the layout of COCO's Large Hybrid.
    """
    shapes: dict[str, tuple[int, ...]] = {"audio_encoder.weightedsum_layer.weights": (LAYERS + 1,)}
    if head == "parallel":
        shapes |= {"parallel_branch.cls": (1, 1, WIDTH), **_transformer("parallel_branch")}
        shapes |= {"parallel_branch.linear_proj.weight": (JOINT, WIDTH), "parallel_branch.linear_proj.bias": (JOINT,)}
        return random_tensors(shapes, seed)
    branch = "cascaded_branch"
    if block == "transformer":
        shapes |= _transformer(branch)
    else:
        shapes |= _attention(f"{branch}.self_att.multihead_attn_layer")
        shapes |= {f"{branch}.self_att.attentionBlock_Norm.{part}": (WIDTH,) for part in ("weight", "bias")}
    split = head == "hybrid" and not one_cls
    cls = {"cascaded": KEYWORDS, "hybrid": 1 + KEYWORDS, "cascaded_plus": 0, "hybrid_plus": 1}[head]
    counts = {"parallel_cls": 1, "cascaded_cls": KEYWORDS} if split else {"cls": cls}
    shapes |= {f"{branch}.{name}": (1, count, WIDTH) for name, count in counts.items() if count}
    shapes |= _projection(f"{branch}.linear_proj", TEXT, layers)
    if head in ("hybrid", "hybrid_plus"):
        shapes |= _projection(f"{branch}.parallel_proj", JOINT, 1)
    keywords = KEYWORDS if head in ("cascaded", "hybrid") else 1
    if head.endswith("plus"):
        fire = f"{branch}.downsampling"
        shapes |= {f"{fire}.conv.0.weight": (WIDTH, WIDTH, 3), f"{fire}.conv.0.bias": (WIDTH,)}
        shapes |= {f"{fire}.weight_proj.1.weight": (1, WIDTH), f"{fire}.weight_proj.1.bias": (1,)}
    norm = f"{branch}.bn_layer.bn_layer"
    shapes |= {f"{norm}.{part}": (TEXT * keywords,) for part in ("weight", "bias", "running_mean", "running_var")}
    tensors = random_tensors(shapes, seed)
    tensors[f"{norm}.running_var"] = tensors[f"{norm}.running_var"].abs() + 0.5
    tensors[f"{norm}.num_batches_tracked"] = torch.tensor(7)
    if head.endswith("plus"):  # about every second frame ends a keyword
        tensors[f"{branch}.downsampling.weight_proj.1.weight"] *= 0.25
    tensors[f"{branch}.vector_quantizer.curr_temp"] = torch.tensor([0.1])
    return tensors


def _projection(name: str, width: int, layers: int) -> dict[str, tuple[int, ...]]:
    parts = {1: {"": width}, 2: {".sequential.0": WIDTH, ".sequential.3": width}}[layers]
    weights = {f"{name}{part}.weight": (out, WIDTH) for part, out in parts.items()}
    return weights | {f"{name}{part}.bias": (out,) for part, out in parts.items()}


def _transformer(branch: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a transformer layer and the additional LayerNorm."""
    layer = f"{branch}.self_att.model.layers.0"
    shapes = _attention(f"{layer}.self_attn")
    shapes |= {f"{layer}.linear1.weight": (4 * WIDTH, WIDTH), f"{layer}.linear1.bias": (4 * WIDTH,)}
    shapes |= {f"{layer}.linear2.weight": (WIDTH, 4 * WIDTH), f"{layer}.linear2.bias": (WIDTH,)}
    for norm in (f"{layer}.norm1", f"{layer}.norm2", f"{branch}.self_att.model.norm"):
        shapes |= {f"{norm}.{part}": (WIDTH,) for part in ("weight", "bias")}
    return shapes


def _attention(name: str) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.in_proj_weight": (3 * WIDTH, WIDTH), f"{name}.in_proj_bias": (3 * WIDTH,),
        f"{name}.out_proj.weight": (WIDTH, WIDTH), f"{name}.out_proj.bias": (WIDTH,),
    }  # fmt: skip


def reduced_ids(count: int = 60, seed: int = 4) -> list[int]:
    """Return subword ids in random order, with padding, SOT and EOT."""
    generator = torch.Generator().manual_seed(seed)
    ids = [0, SUBWORDS - 2, SUBWORDS - 1, *(torch.randperm(SUBWORDS - 3, generator=generator)[:count] + 1).tolist()]
    return [ids[at] for at in torch.randperm(len(ids), generator=generator).tolist()]


def state_dict(
    head: str, ids: list[int], *, large: bool = False, layers: int = 1, learned: bool | None = None,
    original: bool = True, block: str = "attention",
) -> dict[str, Tensor]:  # fmt: skip
    """Return the ``state_dict`` of a published checkpoint: encoders, head, second copy of CLIP, buffers of the loss.

    Args:
        head: the name of the head.
        ids: the reduced vocabulary.
        large: use the layout of a Large model.
        layers: linear layers of the keyword projection, 1 or 2.
        learned: whether the temperature is trained; None for True in Large and in SpeechCLIP+.
        original: include CLIP's full subword table, as the authors' code does.
        block: see :func:`head_tensors`.
    """
    clip = clip_tensors()
    full = clip["token_embedding.weight"]
    clip["token_embedding.weight"] = full[ids].clone()
    clip = {f"model.{name}": value for name, value in clip.items()}
    if original:
        clip = {"original_text_emb_weight": full, **clip}
    state = {f"audio_encoder.encoder.{name}": value for name, value in hubert_tensors(large=large).items()}
    state |= {f"clip.{name}": value for name, value in clip.items()}
    state |= head_tensors(head, layers=layers, block=block)
    if head != "parallel":
        state |= {f"cascaded_branch.clip.{name}": value for name, value in clip.items()}
    eye = torch.eye(4, dtype=torch.bool)
    state |= {"criterion.eye_mat": eye, "criterion.neg_eye_mat": ~eye, "criterion.eye_mat_fl": eye.float()}
    if (large or head in PLUS) if learned is None else learned:
        state["criterion.temperature"] = torch.tensor(2.5)
    return state


def save_checkpoint_file(
    path: Path, state: dict[str, Tensor], *, legacy: bool = False, nhead: int | None = None,
    normalize_waveform: bool | None = None,
) -> Path:  # fmt: skip
    """Write a Lightning checkpoint. Its settings are objects of classes that exist only while it is written."""
    module = types.ModuleType("avssl.base")
    kind = type("OrderedNamespace", (), {"__module__": "avssl.base"})
    module.OrderedNamespace = kind  # type: ignore[attr-defined]
    sys.modules |= {"avssl": types.ModuleType("avssl"), "avssl.base": module}
    try:
        settings, branch, transformer = kind(), kind(), kind()
        transformer.__dict__["nhead"] = nhead
        branch.__dict__["transformer_args"] = transformer
        if normalize_waveform is not None:
            dataset = kind()
            dataset.__dict__["normalize_waveform"] = normalize_waveform
            settings.__dict__["data"] = {"dataset": dataset}
        settings.__dict__["model_settings"] = {"parallel_branch": branch, "cascaded_branch": branch}
        content: dict[str, Any] = {
            "epoch": 3, "global_step": 50000, "pytorch-lightning_version": "1.5.10", "state_dict": OrderedDict(state),
            "hyper_parameters": settings, "callbacks": {kind: {"best": torch.tensor(1.0)}},
            "optimizer_states": [{"state": {0: {"step": 1, "exp_avg": torch.zeros(3)}}}],
        }  # fmt: skip
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    finally:
        del sys.modules["avssl"], sys.modules["avssl.base"]
    return path


class _Module(torch.nn.Module):
    """A module for tensors under given names."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """Return the input. TorchScript needs a forward."""
        return x


def save_script(path: Path, tensors: dict[str, Tensor]) -> Path:
    """Write a TorchScript archive in half precision, as OpenAI published CLIP."""
    root = _Module()
    for name, value in tensors.items():
        node = root
        *parents, leaf = name.split(".")
        for parent in parents:
            if not hasattr(node, parent):
                node.add_module(parent, _Module())
            node = getattr(node, parent)
        node.register_parameter(leaf, torch.nn.Parameter(value.half(), requires_grad=False))
    for name, fact in (("input_resolution", 32), ("context_length", CONTEXT), ("vocab_size", SUBWORDS)):
        root.register_buffer(name, torch.tensor(fact))
    torch.jit.save(torch.jit.script(root), str(path))
    return path
