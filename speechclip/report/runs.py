"""What stages 3 to 5 left in the folder of one run: scores, and what made them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechclip.common.errors import UserError

_NAME = re.compile(r"(?P<model>[^_]+)_(?P<head>[^_]+(?:_plus)?)(?:_(?P<tag>.+?))??(?:_seed(?P<seed>\d+))?")
UNKNOWN_SEED = "unknown"
_REQUIRED = ("command", "seed", "commit")


@dataclass(frozen=True)
class Scores:
    """The content of one JSON file, with errors that name the file and the key."""

    path: Path
    content: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path, stage: int) -> Scores:
        """Read a JSON object. Raises UserError: missing (naming the stage that makes it), or no JSON object."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{path}: missing, stage {stage} makes it") from None
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from error
        except ValueError as error:
            raise UserError(f"{path}: not valid JSON ({error})") from error
        if not isinstance(content, dict):
            raise UserError(f"{path}: a JSON object is needed, this is a {type(content).__name__}")
        return cls(path, content)

    def get(self, *keys: str) -> Any:
        """The value under a chain of keys. Raises UserError naming the first one that is missing."""
        value: Any = self.content
        for depth, key in enumerate(keys):
            if not isinstance(value, Mapping) or key not in value:
                where = f" in {' / '.join(repr(k) for k in keys[:depth])}" if depth else ""
                raise UserError(f"{self.path}: no {key!r}{where}")
            value = value[key]
        return value

    def number(self, *keys: str) -> float:
        """A finite number under a chain of keys. Raises UserError."""
        value = self.get(*keys)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"{self.path}: {' / '.join(repr(k) for k in keys)} is {value!r}, not a number")
        return float(value)

    def seed(self, *keys: str) -> int | None:
        """The seed under a chain of keys; None where it is not known. Raises UserError where it is no whole number."""
        if self.get(*keys) is None:
            return None
        number = self.number(*keys)
        if number != int(number):
            raise UserError(f"{self.path}: the seed is {number}, not a whole number")
        return int(number)


@dataclass(frozen=True)
class Run:
    """One trained head: what names its rows, its scores, and the provenance of its training.

    ``keywords`` is None for a head without keywords, ``training`` for weights that come without a provenance, ``seed``
    for published weights, whose files do not tell it.
    """

    directory: Path
    model: str
    head: str
    tag: str
    seed: int | None
    retrieval: Scores
    keywords: Scores | None
    training: Scores | None

    @property
    def seed_text(self) -> str:
        """The seed as it stands in tables."""
        return UNKNOWN_SEED if self.seed is None else str(self.seed)


def load_run(directory: str | Path) -> Run:
    """Read an experiment folder, ``<model>_<head>[_<tag>][_seedN]``.

    Model, head and tag are what ``provenance`` in scores/retrieval.json says, and else what the folder is called; the
    seed is the provenance's. Raises UserError: a missing file or key, scores of one seed beside weights of another.
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    retrieval = Scores.read(folder / "scores" / "retrieval.json", stage=4)
    keywords_path, training_path = folder / "scores" / "keywords.json", folder / "best" / "provenance.json"
    keywords = Scores.read(keywords_path, stage=5) if keywords_path.exists() else None
    training = Scores.read(training_path, stage=3) if training_path.exists() else _training_of(retrieval)
    for key in _REQUIRED:
        for scores in (retrieval, keywords):
            if scores:
                scores.get("provenance", key)
        if training:
            training.get(key)
    seed = retrieval.seed("provenance", "seed")
    if training and training.seed("seed") != seed:
        raise UserError(f"{retrieval.path}: made with seed {seed}, {training.path} with another; run stage 4 again")
    if keywords and keywords.seed("provenance", "seed") != seed:
        raise UserError(f"{keywords.path}: made with another seed than {retrieval.path}; run stages 4 and 5 again")
    said = retrieval.get("provenance")
    parts = _NAME.fullmatch(folder.resolve().name)
    named = parts.groupdict() if parts else {}
    model, head = (said.get(key) or named.get(key) for key in ("model", "head"))
    if not model or not head:
        raise UserError(f"{folder}: neither the folder's name nor {retrieval.path} tells the model and the head")
    tag = said["tag"] if said.get("tag") is not None else named.get("tag")
    return Run(folder, str(model), str(head), str(tag or ""), seed, retrieval, keywords, training)


def _training_of(retrieval: Scores) -> Scores | None:
    """What the scores themselves tell about the training of weights that lie elsewhere (``--checkpoint``)."""
    said = retrieval.get("provenance")
    training = said.get("training") if isinstance(said, Mapping) else None
    if not isinstance(training, Mapping) or not {"command", "commit"} <= training.keys():
        return None
    return Scores(retrieval.path, {"seed": said.get("seed"), **training})
