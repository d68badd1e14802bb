"""Checkpoint folders: weights in safetensors, the configuration, the provenance and the vocabulary. No pickle."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from speechclip.common.errors import MissingFileError, UserError
from speechclip.common.files import damaged_file, previous, read_json, replace_folder, write_json
from speechclip.config import Config, load, save
from speechclip.data.vocabulary import Vocabulary
from speechclip.model.encoders.clip import load_clip
from speechclip.model.encoders.factory import load_speech_encoder
from speechclip.model.heads.factory import has_keywords
from speechclip.model.network import ENCODER_PREFIX, Dimensions, SpeechNetwork, build_network

WEIGHTS, SETTINGS, PROVENANCE, VOCABULARY = "model.safetensors", "config.yaml", "provenance.json", "vocabulary.tsv"
logger = logging.getLogger(__name__)


def find_checkpoint(target: Path) -> Path | None:
    """Return ``target``, or the previous folder if a kill interrupted its replacement, or None."""
    return next((folder for folder in (target, previous(target)) if (folder / WEIGHTS).is_file()), None)


def intact_folder(target: Path, *, all_files: bool, strict: bool = False) -> Path | None:
    """Return the folder of :func:`find_checkpoint` if its files have their checksums.

    If one does not, log a warning and return the previous checkpoint.

    Args:
        target: the folder.
        all_files: see :func:`damaged_file`.
        strict: raise an error for a damaged file although a previous checkpoint exists.

    Raises:
        UserError: the checkpoint is damaged and no intact previous one exists.
    """
    folder, before = find_checkpoint(target), previous(target)
    wrong = damaged_file(folder, all_files=all_files) if folder is not None else ""
    if folder is None or not wrong:
        return folder
    problem = "damaged or truncated: its checksum differs" if (folder / wrong).exists() else "is missing"
    reason = f"{folder / wrong}: {problem}"
    usable = folder != before and (before / WEIGHTS).is_file() and not damaged_file(before, all_files=all_files)
    if not usable:
        raise UserError(f"{reason}. No previous checkpoint exists.")
    if strict:
        raise UserError(f"{reason}. The previous checkpoint is {before}.")
    logger.warning("%s. The previous checkpoint, %s, is used.", reason, before)
    return before


def save_checkpoint(
    target: Path, model: SpeechNetwork, weights: dict[str, Tensor], config: Config, origin: dict[str, Any],
    extra: Callable[[Path], None] | None = None, keep: bool = False,
) -> None:  # fmt: skip
    """Write weights and the files that rebuild the model around them.

    Args:
        target: the folder. It is replaced as a whole.
        model: the network.
        weights: tensors as of :meth:`SpeechNetwork.trained_state`.
        config: the configuration.
        origin: see :func:`provenance`. Its key "encoders" describes frozen parts that are not loaded, because their
            outputs were stored.
        extra: writes further files into the folder, such as the trainer's state.
        keep: keep the previous checkpoint as ``<target>.old``.
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
        # Relative encoder paths are then found after the recipe folder was moved.
        facts["recipe"] = os.path.relpath(Path.cwd(), target.resolve())
        write_json(folder / PROVENANCE, facts)
        if extra is not None:
            extra(folder)

    replace_folder(target, write, keep=keep)


def read_checkpoint(path: str | Path, *, strict: bool = False) -> tuple[Path, Config, dict[str, Any]]:
    """Read a checkpoint without its weights.

    Args:
        path: the folder.
        strict: see :func:`intact_folder`.

    Returns:
        The folder, the configuration and the provenance. The folder is the previous one if a file is damaged.

    Raises:
        UserError: the checkpoint is missing or damaged.
    """
    if Path(path).is_file():
        raise UserError(
            f"{path}: a file, not a checkpoint folder. Convert a published checkpoint with tools/convert_checkpoint.sh."
        )
    folder = intact_folder(Path(path), all_files=False, strict=strict)
    if folder is None:
        raise MissingFileError(Path(path) / WEIGHTS)
    try:
        origin = read_json(folder / PROVENANCE)
        Dimensions(**origin["dimensions"])
    except (TypeError, LookupError) as error:
        raise UserError(
            f"{folder / PROVENANCE}: damaged: dimensions are missing or unknown. Copy the checkpoint again."
        ) from error
    return folder, load([folder / SETTINGS]), origin


def read_weights(file: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file.

    Raises:
        UserError: the file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: damaged or truncated: {error}. Copy the checkpoint again.") from error


def load_weights(model: SpeechNetwork, weights: dict[str, Tensor], source: str | Path) -> None:
    """Load weights into the trained parts of a network. Every tensor must fit.

    Args:
        model: the network.
        weights: tensors as of :meth:`SpeechNetwork.trained_state`.
        source: the file, for errors.

    Raises:
        UserError: a tensor is missing, unknown or of another shape. The message names it.
    """
    wanted = model.trained_state()
    for name, value in wanted.items():
        if name not in weights:
            raise UserError(f"{source}: the tensor {name} is missing. Copy the checkpoint again.")
        if weights[name].shape != value.shape:
            raise UserError(
                f"{source}: {name} is {list(weights[name].shape)}, but this model needs {list(value.shape)}: "
                "a checkpoint for other dimensions."
                " Use the settings that it was trained with."
            )
    unknown = sorted(set(weights) - set(wanted))
    if unknown:
        raise UserError(
            f"{source}: the tensor {unknown[0]} is unknown: a checkpoint of another head."
            " Use the settings that it was trained with."
        )
    model.load_trained_state(weights)


def load_model(
    path: str | Path, *, with_speech_encoder: bool = True, with_clip: bool = True, config: Config | None = None
) -> SpeechNetwork:
    """Rebuild the model of a checkpoint folder.

    Args:
        path: the folder.
        with_speech_encoder: load the speech encoder.
        with_clip: load CLIP. A head with keywords always loads it. A configuration without a path of CLIP (precomputed
            embeddings) never does.
        config: replaces the saved configuration, for example with the encoder paths of another machine.

    Raises:
        UserError: see :func:`read_checkpoint` and :func:`load_weights`.
        UserError: an encoder is missing or has other weights.
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
            f"{folder}: needs speech features of {dimensions.speech} dimensions, but {settings.speech_encoder.path} "
            f"has {speech_encoder.dim}: a checkpoint for other dimensions."
            " Use the settings that it was trained with."
        )
    model = build_network(settings, dimensions, speech_encoder=speech_encoder, clip=clip, vocabulary=vocabulary)
    weights = read_weights(folder / WEIGHTS)
    if with_speech_encoder:
        model.train_encoder(saved.train.encoder)
    else:  # the network then reads hidden states, and its encoder is not used
        weights = {name: value for name, value in weights.items() if not name.startswith(ENCODER_PREFIX)}
    load_weights(model, weights, folder / WEIGHTS)
    return model.eval()


def locate(path: str, folder: Path, origin: dict[str, Any]) -> str:
    """Return the present path of an encoder.

    It is inside the checkpoint, or exists as configured, or is relative to the recipe that trained the checkpoint.

    Args:
        path: the configured path; hub ids and names are returned unchanged.
        folder: the checkpoint folder.
        origin: its provenance.
    """
    if path and not Path(path).is_absolute() and (folder / path).exists():
        return str(folder / path)
    prefix, path = re.fullmatch(r"(s3prl:[^:]*:)?(.*)", path, re.DOTALL).groups(default="")  # type: ignore[union-attr]
    moved = folder.resolve() / str(origin.get("recipe", ".")) / path
    return prefix + (str(moved) if path and not Path(path).exists() and moved.exists() else path)


def _vocabulary(folder: Path, origin: dict[str, Any]) -> Vocabulary:
    """Return the reduced vocabulary. Check its length, because a file cut at the end of a line is a valid table."""
    if not (folder / VOCABULARY).is_file():
        raise MissingFileError(folder / VOCABULARY, "is missing. A head with keywords needs it.")
    vocabulary = Vocabulary.load(folder / VOCABULARY)
    if origin.get("subwords", len(vocabulary)) != len(vocabulary):
        raise UserError(
            f"{folder / VOCABULARY}: {len(vocabulary)} of {origin['subwords']} subwords: damaged or truncated."
            " Copy the checkpoint again."
        )
    return vocabulary


def _check_same(description: dict[str, str], origin: dict[str, Any], part: str, folder: Path) -> None:
    trained_with = origin.get("encoders", {}).get(part, {}).get("weights")
    if trained_with and trained_with != description["weights"]:
        raise UserError(
            f"{folder}: trained with another {part} than {description['path']}: the weights differ."
            " Use the encoder that it was trained with."
        )
