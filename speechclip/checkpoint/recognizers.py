"""Recognisers by name: pocketsphinx, a folder of a CTC recogniser that was trained here, or a model of transformers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from speechclip.common.devices import pick_device
from speechclip.common.errors import UserError, first_line
from speechclip.common.files import lines_fingerprint, read_json, replace_folder, write_json
from speechclip.config import SpeechEncoderConfig
from speechclip.model.encoders.base import SpeechEncoder
from speechclip.model.encoders.factory import load_speech_encoder
from speechclip.model.recognizers.base import Recognizer
from speechclip.model.recognizers.ctc import CtcNetwork, CtcRecognizer, CtcSettings
from speechclip.model.recognizers.pocketsphinx import PocketSphinx
from speechclip.model.recognizers.transformers import TransformersRecognizer

RECOGNIZER, WEIGHTS, PROVENANCE = "recognizer.json", "model.safetensors", "provenance.json"
CTC = "ctc"  # the name of a recogniser that was trained on the captions of the corpus
POCKETSPHINX = "pocketsphinx"


def save_ctc(
    target: Path, weights: dict[str, Tensor], units: Sequence[str], settings: CtcSettings,
    encoder: SpeechEncoderConfig, shape: tuple[int, int], origin: dict[str, Any],
) -> None:  # fmt: skip
    """Write a CTC recogniser.

    Args:
        target: the folder. It is replaced as a whole.
        weights: the state dict of the network.
        units: the text of each unit.
        settings: the size of the network.
        encoder: the frozen encoder that it was trained on.
        shape: number and width of the hidden states.
        origin: the provenance.
    """
    from safetensors.torch import save_file

    def write(folder: Path) -> None:
        tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
        save_file(tensors, folder / WEIGHTS, metadata={"format": "speechclip"})
        content = {
            "settings": dataclasses.asdict(settings), "speech_encoder": dataclasses.asdict(encoder),
            "states": shape[0], "dim": shape[1], "units": list(units),
        }  # fmt: skip
        write_json(folder / RECOGNIZER, content)
        write_json(folder / PROVENANCE, origin)

    replace_folder(target, write)


def load_recognizer(path: str, *, encoder: SpeechEncoder | None = None, stored: bool = False) -> Recognizer:
    """Load a recogniser.

    Args:
        path: "pocketsphinx", a folder of :func:`save_ctc`, or a folder or hub id of transformers.
        encoder: the speech encoder of a CTC recogniser if it is loaded.
        stored: a CTC recogniser reads stored states only, so its encoder is not loaded.
    Raises:
        UserError: the recogniser cannot be loaded.
    """
    if path == POCKETSPHINX:
        return PocketSphinx()
    if (Path(path) / RECOGNIZER).is_file():
        return _load_ctc(Path(path), encoder, stored)
    return TransformersRecognizer(path)


def _load_ctc(folder: Path, encoder: SpeechEncoder | None, stored: bool) -> CtcRecognizer:
    from safetensors.torch import load_file

    content = read_json(folder / RECOGNIZER)
    try:
        settings, config = CtcSettings(**content["settings"]), SpeechEncoderConfig(**content["speech_encoder"])
        units = [str(unit) for unit in content["units"]]
        network = CtcNetwork(int(content["states"]), int(content["dim"]), len(units), settings)
        network.load_state_dict(load_file(folder / WEIGHTS))
    except Exception as error:  # the errors of safetensors and torch have no common class
        raise UserError(f"{folder}: damaged recogniser: {first_line(error)}. Train it again.") from error
    if encoder is None and not stored:
        encoder = load_speech_encoder(config)
    device = pick_device()
    weights = lines_fingerprint(str(value.tolist()) for value in network.state_dict().values())
    description = {"path": str(folder), "kind": CTC, "weights": weights}
    if encoder is not None:
        encoder.to(device)
    return CtcRecognizer(CTC, network.to(device), units, settings.units, description, encoder, config.layers)
