"""A published SpeechCLIP checkpoint as settings, trained tensors and frozen encoders."""

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
    "original_text_emb_weight",  # registered by the authors' code when it reduces the table
)
_MAX_DEPTH = 20  # of the settings in a file


@dataclass(frozen=True)
class PublishedCheckpoint:
    """The content of a published checkpoint. Every tensor of the file is in one of these fields, or may be dropped.

    Attributes:
        source: the file.
        config: the model's configuration, without paths.
        encoder_normalize: whether the HuBERT itself was trained on normalised waveforms (Large). The SpeechCLIP model
            may normalise although its HuBERT does not: see ``config.speech_encoder.normalize``.
        state: the trained tensors under this project's names.
        hubert: the speech encoder under fairseq's names.
        clip: CLIP under OpenAI's names, without the subword embeddings.
        table: [V, D], the reduced subword embeddings. Their ids are unknown.
        full: [49408, D], the embeddings that ``table`` was reduced from; None if the file does not hold them.
        dropped: names of tensors that no model needs.
        facts: facts about the training, for the provenance.
    """

    source: str
    config: ModelConfig
    encoder_normalize: bool
    state: dict[str, Tensor]
    hubert: dict[str, Tensor]
    clip: dict[str, Tensor]
    table: Tensor
    full: Tensor | None
    dropped: tuple[str, ...]
    facts: dict[str, Any]


def read_published(path: str | Path) -> PublishedCheckpoint:
    """Read a Lightning ``.ckpt`` of SpeechCLIP. No code of the file is executed.

    Raises:
        UserError: the file is missing, damaged or not such a checkpoint.
        UserError: a tensor is missing or unknown.
        UserError: the two copies of CLIP differ, or the subword tables have different widths.
    """
    source = str(path)
    content = read_torch_file(path)
    tensors = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(name, str) for name in tensors):
        raise UserError(f"{source}: not a Lightning checkpoint: state_dict is missing. Use a published file.")
    tensors = dict(tensors)
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise UserError(
                f"{source}: {name} is a {type(value).__name__}, not a tensor. Copy or download the file again."
            )
    layout = layout_of(tensors, source)
    try:
        config, state = layout(tensors)
    except UserError as error:
        raise UserError(f"{source}: {error}. Check the path.") from error
    hubert, clip = _take_prefix(tensors, _HUBERT), _take_prefix(tensors, _CLIP)
    full = tensors.pop(f"clip.{_FULL}", None)
    dropped = [] if full is None else [f"clip.{_FULL}"]
    originals = {f"model.{name}": value for name, value in clip.items()} | ({} if full is None else {_FULL: full})
    dropped += [*_drop_copy(tensors, originals, source), *_drop_buffers(tensors)]
    if tensors:
        raise UserError(
            f"{source}: unknown tensor {sorted(tensors)[0]}, and {len(tensors) - 1} more. Use a published file."
        )
    if not hubert or _TABLE not in clip:
        raise UserError(
            f"{source}: tensors under {_HUBERT if not hubert else _CLIP + _TABLE} are missing."
            " Copy or download the file again."
        )
    table = clip.pop(_TABLE)
    if full is not None and (full.ndim != 2 or full.shape[1:] != table.shape[1:]):
        raise UserError(
            f"{source}: clip.{_FULL} is {list(full.shape)}, {_CLIP}{_TABLE} is {list(table.shape)}."
            " Copy or download the file again."
        )
    encoder_normalize, facts = bool(config.speech_encoder.normalize), _facts(content)
    config = _follow_settings(config, content.get("hyper_parameters"))
    if config.speech_encoder.normalize and not encoder_normalize:
        facts["normalize_waveform"] = True
    return PublishedCheckpoint(
        source, config, encoder_normalize, state, hubert, clip, table, full, tuple(dropped), facts
    )  # fmt: skip


def _take_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Take out the tensors below a prefix and return them without it."""
    names = [name for name in tensors if name.startswith(prefix)]
    return {name.removeprefix(prefix): tensors.pop(name) for name in names}


def _drop_copy(tensors: dict[str, Tensor], originals: Mapping[str, Tensor], source: str) -> Iterator[str]:
    """Take out the second copy of CLIP, which must equal the first. Yield the dropped names.

    Args:
        tensors: the state dict.
        originals: the first copy, by the names below ``clip.``.
        source: the file, for errors.
    """
    for name, value in _take_prefix(tensors, _CLIP_COPY).items():
        original = originals.get(name)
        if original is None or original.shape != value.shape:
            raise UserError(
                f"{source}: {_CLIP_COPY}{name} is not below clip. with the same shape. Copy or download the file again."
            )
        shared = original.data_ptr() == value.data_ptr() and original.stride() == value.stride()
        if not shared and not torch.equal(original, value):
            raise UserError(f"{source}: {_CLIP_COPY}{name} differs from clip.{name}. Copy or download the file again.")
        yield _CLIP_COPY + name


def _drop_buffers(tensors: dict[str, Tensor]) -> Iterator[str]:
    """Take out the identity matrices of the loss. Yield the dropped names."""
    for name in [name for name in tensors if name.startswith("criterion.") and "eye_mat" in name]:
        del tensors[name]
        yield name


def _follow_settings(config: ModelConfig, settings: Any) -> ModelConfig:
    """Return the configuration with the values that no tensor holds: attention heads, normalised waveforms.

    Args:
        config: the configuration that follows from the tensors and the publication.
        settings: ``hyper_parameters`` of the file. Its values win.
    """
    branch = "parallel_branch" if config.head.name == "parallel" else "cascaded_branch"  # SpeechCLIP+ too
    heads = set(_find(settings, "nhead", below=branch))
    count = heads.pop() if len(heads) == 1 else None
    if isinstance(count, int) and not isinstance(count, bool) and count >= 1:
        config = dataclasses.replace(config, head=dataclasses.replace(config.head, attention_heads=count))
    if True in set(_find(settings, "normalize_waveform")):
        encoder = dataclasses.replace(config.speech_encoder, normalize=True)
        config = dataclasses.replace(config, speech_encoder=encoder)
    return config


def _find(node: Any, key: str, below: str = "", depth: int = 0) -> Iterator[Any]:
    """Yield the values of ``key`` anywhere below the key ``below``; "" for anywhere at all."""
    if depth > _MAX_DEPTH:
        return
    items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, (list, tuple)) else ()
    for name, value in items:
        if not below and name == key and isinstance(value, (int, float, str)):
            yield value
        else:
            yield from _find(value, key, "" if name == below else below, depth + 1)


def _facts(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return facts about the training, for the provenance."""
    names = {"epoch": "epoch", "global_step": "step", "pytorch-lightning_version": "lightning"}
    return {new: content[old] for old, new in names.items() if isinstance(content.get(old), (int, str))}
