"""Scripts, one per step of a recipe: parse the options, call the library, write the result."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from speechclip.common.arguments import exit_on_user_error
from speechclip.common.errors import MissingFileError, UserError

P = ParamSpec("P")
R = TypeVar("R")

#: The stage of a recipe that writes a file, by the file's name.
STAGE_OF_FILE = {
    "wav.scp": 1,
    "image_embeddings.npz": 2,
    "text_embeddings.npz": 2,
    "feats.scp": 2,
    "clip_vocabulary.tsv": 2,
    "clip_vocabulary_train.tsv": 2,
    "model.safetensors": 3,
    "retrieval.json": 4,
    "speech_embeddings.npz": 4,
    "ranks.npz": 4,
    "keywords.json": 5,
    "keywords.jsonl": 5,
    "keywords.npz": 5,
    "attention.npz": 5,
    "conditions.json": 4,
    "conditions.npz": 4,
    "recognizer.json": 3,
    "text_head.json": 4,
}


def stage_hint(error: UserError) -> str:
    """Return the sentence that names the stage which writes a missing file; "" if no stage writes it."""
    if isinstance(error, MissingFileError) and error.path.name in STAGE_OF_FILE:
        return f". Run stage {STAGE_OF_FILE[error.path.name]}."
    return ""


def stage_script(main: Callable[P, R]) -> Callable[P, R]:
    """Wrap the ``main`` of a stage. See :func:`~speechclip.common.arguments.exit_on_user_error`, :func:`stage_hint`."""
    return functools.wraps(main)(exit_on_user_error(main, hint=stage_hint))
