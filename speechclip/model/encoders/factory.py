"""Load the speech encoder that a configuration names."""

from __future__ import annotations

import importlib
import json
import pkgutil
from pathlib import Path

import speechclip.model.encoders
from speechclip.common.compat import prepare
from speechclip.common.constants import ENCODER_CONFIG
from speechclip.common.errors import UserError, first_line
from speechclip.common.files import looks_local
from speechclip.config import SpeechEncoderConfig
from speechclip.model.encoders.base import SpeechEncoder, registered_encoders

for _module in pkgutil.iter_modules(speechclip.model.encoders.__path__):
    if _module.name != "factory":  # every other module may register encoders
        importlib.import_module(f"speechclip.model.encoders.{_module.name}")


def load_speech_encoder(config: SpeechEncoderConfig) -> SpeechEncoder:
    """Load a frozen speech encoder.

    Args:
        config: ``path`` is a transformers folder, a hub id, fairseq's HuBERT ``.pt``, or an s3prl upstream
            ("s3prl:NAME").

    Raises:
        UserError: the path is empty, the folder is missing, its weights cannot be read, or the model type is not
            supported.
    """
    return registered_encoders()[_kind(config.path)](config)


def _kind(path: str) -> str:
    """Return the kind under which the loader of a path is registered."""
    known = registered_encoders()
    if not path:
        raise UserError("model.speech_encoder.path: not set. Give a transformers folder or a hub id.")
    prefix, colon, _ = path.partition(":")
    if colon and prefix in known:
        return prefix
    if Path(path).is_file():
        return "file"
    if looks_local(path) and not (Path(path) / ENCODER_CONFIG).is_file():
        raise UserError(f"{path}/config.json: is missing. A speech encoder is a transformers folder or a hub id.")
    prepare()
    import transformers

    try:
        kind = str(transformers.AutoConfig.from_pretrained(path).model_type)
    except (OSError, ValueError, json.JSONDecodeError) as error:
        absent = "" if Path(path).exists() else "the folder is missing, and as a hub id it is "
        raise UserError(f"{path}: {absent}not readable as a speech encoder: {first_line(error)}") from error
    if kind not in known:
        supported = ", ".join(sorted(set(known) - {"file", "s3prl"}))
        raise UserError(f"{path}: model type {kind!r} is not supported (supported: {supported}). Use a supported one.")
    return kind
