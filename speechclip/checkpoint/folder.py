"""Checkpoints: a folder with safetensors, the configuration and where everything came from. No pickle."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from speechclip.common.errors import MissingFileError, UserError
from speechclip.common.files import damaged_file, previous, replace_folder
from speechclip.config import Config, load, save
from speechclip.data.vocabulary import Vocabulary
from speechclip.model.encoders.clip import load_clip
from speechclip.model.encoders.factory import load_speech_encoder
from speechclip.model.heads.factory import has_keywords
from speechclip.model.network import Dimensions, SpeechNetwork, build_network

WEIGHTS, SETTINGS, PROVENANCE, VOCABULARY = "model.safetensors", "config.yaml", "provenance.json", "vocabulary.tsv"
logger = logging.getLogger(__name__)


def find_checkpoint(target: Path) -> Path | None:
    """``target``, or what a kill while it was being replaced left of it, or None."""
    return next((folder for folder in (target, previous(target)) if (folder / WEIGHTS).is_file()), None)


def intact_folder(target: Path, *, all_files: bool, strict: bool = False) -> Path | None:
    """:func:`find_checkpoint`; the one before it, said aloud, where a file differs from its checksum.

    Args:
        all_files: see :func:`damaged_file`. strict: a damaged file is an error also where there is one before it.
    Raises:
        UserError: damaged, and none before it.
    """
    folder, before = find_checkpoint(target), previous(target)
    wrong = damaged_file(folder, all_files=all_files) if folder is not None else ""
    if folder is None or not wrong:
        return folder
    told = "damaged or truncated: its checksum differs" if (folder / wrong).exists() else "no such file"
    reason = f"{folder / wrong}: {told}"
    usable = folder != before and (before / WEIGHTS).is_file() and not damaged_file(before, all_files=all_files)
    if not usable:
        raise UserError(f"{reason}; there is none before it to fall back on")
    if strict:
        raise UserError(f"{reason}; {before} is the one before it")
    logger.warning("%s. %s, the checkpoint before it, is used.", reason, before)
    return before


def save_checkpoint(
    target: Path, model: SpeechNetwork, weights: dict[str, Tensor], config: Config, origin: dict[str, Any],
    extra: Callable[[Path], None] | None = None, keep: bool = False,
) -> None:  # fmt: skip
    """Write ``weights`` (as of :meth:`SpeechNetwork.trained_state`) and what is needed to rebuild the model around them.

    Args:
        target: the folder, replaced as a whole. origin: see :func:`provenance`; "encoders" in it describes frozen parts
            that are not loaded, because what they gave was stored.
        extra: writes further files into the folder (the trainer's state).
        keep: leave the checkpoint that stood there as ``<target>.old``, to fall back on.
    """
    from safetensors.torch import save_file

    def write(folder: Path) -> None:
        tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
        save_file(tensors, folder / WEIGHTS, metadata={"format": "speechclip"})
        save(config, folder / SETTINGS)
        if model.vocabulary is not None:
            model.vocabulary.save(folder / VOCABULARY)
        loaded = {
            name: part.description
            for name, part in (("speech_encoder", model.speech_encoder), ("clip", model.clip))
            if part is not None
        }
        encoders = {**origin.get("encoders", {}), **loaded}
        facts = {**origin, "encoders": encoders, "dimensions": dataclasses.asdict(model.dimensions)}
        if model.vocabulary is not None:
            facts["subwords"] = len(model.vocabulary)
        # so that relative encoder paths are found from anywhere the recipe folder is moved to
        facts["recipe"] = os.path.relpath(Path.cwd(), target.resolve())
        (folder / PROVENANCE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        if extra is not None:
            extra(folder)

    replace_folder(target, write, keep=keep)


def read_checkpoint(path: str | Path, *, strict: bool = False) -> tuple[Path, Config, dict[str, Any]]:
    """Folder, configuration and provenance of a checkpoint, without its weights.

    Where a file differs from its checksum, those of the checkpoint before it, if there is one and not ``strict``.

    Raises:
        UserError: nothing there, or files that are damaged.
    """
    if Path(path).is_file():
        raise UserError(f"{path}: a file; a published checkpoint is converted first (tools/convert_checkpoint.sh)")
    folder = intact_folder(Path(path), all_files=False, strict=strict)
    if folder is None:
        raise MissingFileError(Path(path) / WEIGHTS)
    try:
        origin = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
        Dimensions(**origin["dimensions"])
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise UserError(f"{folder / PROVENANCE}: missing or damaged") from error
    return folder, load([folder / SETTINGS]), origin


def read_weights(file: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file. Raises UserError where it is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: damaged or truncated: {error}") from error


def load_weights(model: SpeechNetwork, weights: dict[str, Tensor], source: str | Path) -> None:
    """Put ``weights`` into the trained parts of ``model``; every tensor has to fit.

    Raises:
        UserError: a tensor that is missing, unknown or of another shape, naming it.
    """
    wanted = model.trained_state()
    for name, value in wanted.items():
        if name not in weights:
            raise UserError(f"{source}: no tensor {name}")
        if weights[name].shape != value.shape:
            raise UserError(
                f"{source}: {name} is {list(weights[name].shape)}, this model has {list(value.shape)}: "
                "a checkpoint for other dimensions"
            )
    unknown = sorted(set(weights) - set(wanted))
    if unknown:
        raise UserError(f"{source}: unknown tensor {unknown[0]}: a checkpoint of another head")
    for part, module in model.trained_modules().items():
        prefix = f"{part}."
        module.load_state_dict({n[len(prefix) :]: v for n, v in weights.items() if n.startswith(prefix)})


def load_model(
    path: str | Path, *, with_speech_encoder: bool = True, with_clip: bool = True, config: Config | None = None
) -> SpeechNetwork:
    """Rebuild the model of a checkpoint folder.

    Args:
        path: the folder.
        with_speech_encoder, with_clip: load the frozen encoders. One with keywords always has its CLIP; a configuration
            without one (precomputed embeddings) loads none.
        config: overrides the saved configuration (encoder paths of another machine).
    Raises:
        UserError: see :func:`read_checkpoint` and :func:`load_weights`; an encoder that is missing or
            has other weights.
    """
    folder, saved, origin = read_checkpoint(path)
    settings = (config or saved).model
    speech_encoder, clip = None, None
    if with_speech_encoder:
        located = dataclasses.replace(
            settings.speech_encoder, path=locate(settings.speech_encoder.path, folder, origin)
        )
        speech_encoder = load_speech_encoder(located)
        _check_same(speech_encoder.description, origin, "speech_encoder", folder)
    if (with_clip and settings.clip.path) or has_keywords(settings.head.name):
        clip = load_clip(dataclasses.replace(settings.clip, path=locate(settings.clip.path, folder, origin)))
        _check_same(clip.description, origin, "clip", folder)
    vocabulary = _vocabulary(folder, origin) if has_keywords(settings.head.name) else None
    dimensions = Dimensions(**origin["dimensions"])
    if speech_encoder is not None and speech_encoder.dim != dimensions.speech:
        raise UserError(
            f"{folder}: for speech features of {dimensions.speech} dimensions, {settings.speech_encoder.path} has "
            f"{speech_encoder.dim}: a checkpoint for other dimensions"
        )
    model = build_network(settings, dimensions, speech_encoder=speech_encoder, clip=clip, vocabulary=vocabulary)
    load_weights(model, read_weights(folder / WEIGHTS), folder / WEIGHTS)
    return model.eval()


def locate(path: str, folder: Path, origin: dict[str, Any]) -> str:
    """A configured encoder path: inside the checkpoint, as it is, or relative to the recipe it was trained in."""
    if path and not Path(path).is_absolute() and (folder / path).exists():
        return str(folder / path)
    prefix, path = re.fullmatch(r"(s3prl:[^:]*:)?(.*)", path, re.DOTALL).groups(default="")  # type: ignore[union-attr]
    moved = folder.resolve() / str(origin.get("recipe", ".")) / path
    return prefix + (str(moved) if path and not Path(path).exists() and moved.exists() else path)


def _vocabulary(folder: Path, origin: dict[str, Any]) -> Vocabulary:
    """The reduced vocabulary of a checkpoint. A file cut at the end of a line would else be taken for a smaller one."""
    if not (folder / VOCABULARY).is_file():
        raise UserError(f"{folder / VOCABULARY}: no such file; a checkpoint of a head with keywords holds one")
    vocabulary = Vocabulary.load(folder / VOCABULARY)
    if origin.get("subwords", len(vocabulary)) != len(vocabulary):
        raise UserError(
            f"{folder / VOCABULARY}: {len(vocabulary)} of {origin['subwords']} subwords: damaged or truncated"
        )
    return vocabulary


def _check_same(description: dict[str, str], origin: dict[str, Any], part: str, folder: Path) -> None:
    trained_with = origin.get("encoders", {}).get(part, {}).get("weights")
    if trained_with and trained_with != description["weights"]:
        raise UserError(f"{folder}: trained with another {part} than {description['path']}: the weights differ")
