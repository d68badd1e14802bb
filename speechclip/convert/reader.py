"""A published SpeechCLIP checkpoint taken apart: settings, trained tensors, frozen encoders."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechclip.common.errors import UserError
from speechclip.config import ModelConfig
from speechclip.convert.layout import layout_of
from speechclip.convert.torchfile import read_torch_file

_HUBERT, _CLIP, _CLIP_COPY, _TABLE, _FULL = (
    "audio_encoder.encoder.",
    "clip.model.",
    "cascaded_branch.clip.",
    "token_embedding.weight",
    "original_text_emb_weight",  # which the authors' code registers where it reduces the table
)


@dataclass(frozen=True)
class PublishedCheckpoint:
    """What a published checkpoint holds. Every tensor of the file is in one of these, or known to be droppable.

    config: of the model, without paths. state: trained tensors under this project's names. hubert: fairseq's names.
    clip: OpenAI's names, without the subword table. table: [V, D] the reduced subword table, its ids unknown.
    full: [49408, D] the table it was reduced from, None where the file has none. dropped: names of tensors that no
    model is built from. facts: what the file says of its training.
    """

    source: str
    config: ModelConfig
    state: dict[str, Tensor]
    hubert: dict[str, Tensor]
    clip: dict[str, Tensor]
    table: Tensor
    full: Tensor | None
    dropped: tuple[str, ...]
    facts: dict[str, Any]


def read_published(path: str | Path) -> PublishedCheckpoint:
    """Read a Lightning ``.ckpt`` of SpeechCLIP without running anything in it.

    Raises:
        UserError: missing, damaged, no such checkpoint, a tensor too many or too few, two copies of CLIP that differ,
            subword tables of different widths.
    """
    source = str(path)
    content = read_torch_file(path)
    tensors = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(name, str) for name in tensors):
        raise UserError(f"{source}: no Lightning checkpoint: no state_dict in it")
    tensors = dict(tensors)
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise UserError(f"{source}: {name} is a {type(value).__name__}, not a tensor")
    layout = layout_of(tensors, source)
    try:
        config, state = layout(tensors)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    hubert, clip = _take_prefix(tensors, _HUBERT), _take_prefix(tensors, _CLIP)
    full = tensors.pop(f"clip.{_FULL}", None)
    dropped = [] if full is None else [f"clip.{_FULL}"]
    first = {f"model.{name}": value for name, value in clip.items()} | ({} if full is None else {_FULL: full})
    dropped += [*_drop_copy(tensors, first, source), *_drop_buffers(tensors)]
    if tensors:
        raise UserError(f"{source}: unknown tensor {sorted(tensors)[0]}, and {len(tensors) - 1} more")
    if not hubert or _TABLE not in clip:
        raise UserError(f"{source}: no tensors under {_HUBERT if not hubert else _CLIP + _TABLE}")
    table = clip.pop(_TABLE)
    if full is not None and (full.ndim != 2 or full.shape[1:] != table.shape[1:]):
        raise UserError(f"{source}: clip.{_FULL} is {list(full.shape)}, {_CLIP}{_TABLE} {list(table.shape)}")
    config = _with_published_heads(config, content.get("hyper_parameters"))
    return PublishedCheckpoint(source, config, state, hubert, clip, table, full, tuple(dropped), _facts(content))


def _take_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors below a prefix, without it, taken out."""
    names = [name for name in tensors if name.startswith(prefix)]
    return {name.removeprefix(prefix): tensors.pop(name) for name in names}


def _drop_copy(tensors: dict[str, Tensor], firsts: Mapping[str, Tensor], source: str) -> Iterator[str]:
    """Take out the cascaded head's own copy of CLIP, which has to be equal. firsts: by their names below ``clip.``."""
    for name, value in _take_prefix(tensors, _CLIP_COPY).items():
        first = firsts.get(name)
        if first is None or first.shape != value.shape:
            raise UserError(f"{source}: {_CLIP_COPY}{name} has no counterpart below clip.")
        shared = first.data_ptr() == value.data_ptr() and first.stride() == value.stride()
        if not shared and not torch.equal(first, value):
            raise UserError(f"{source}: {_CLIP_COPY}{name} differs from clip.{name}")
        yield _CLIP_COPY + name


def _drop_buffers(tensors: dict[str, Tensor]) -> Iterator[str]:
    """Take out the loss's identity matrices."""
    for name in [name for name in tensors if name.startswith("criterion.") and "eye_mat" in name]:
        del tensors[name]
        yield name


def _with_published_heads(config: ModelConfig, settings: Any) -> ModelConfig:
    """The number of attention heads is no tensor; where the file's settings tell it, they win."""
    branch = "parallel_branch" if config.head.name == "parallel" else "cascaded_branch"  # where SpeechCLIP+ lies, too
    told = set(_find(settings, branch, "nhead"))
    if len(told) != 1:
        return config
    heads = told.pop()
    if not isinstance(heads, int) or isinstance(heads, bool) or heads < 1:
        return config
    return dataclasses.replace(config, head=dataclasses.replace(config.head, attention_heads=heads))


def _find(node: Any, branch: str, key: str, inside: bool = False, depth: int = 0) -> Iterator[Any]:
    """Values of ``key`` anywhere below ``branch``."""
    if depth > 20:
        return
    items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, (list, tuple)) else ()
    for name, value in items:
        if inside and name == key and isinstance(value, (int, float, str)):
            yield value
        else:
            yield from _find(value, branch, key, inside or name == branch, depth + 1)


def _facts(content: Mapping[str, Any]) -> dict[str, Any]:
    """Plain facts on the training, for the provenance."""
    names = {"epoch": "epoch", "global_step": "step", "pytorch-lightning_version": "lightning"}
    return {new: content[old] for old, new in names.items() if isinstance(content.get(old), (int, str))}
