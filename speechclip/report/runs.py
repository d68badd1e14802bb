"""The folder of one scored run: scores, and the provenance of its training."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speechclip.common.constants import CONDITIONS, KEYWORDS, RETRIEVAL, SCORES, SPOTTING
from speechclip.common.errors import UserError
from speechclip.eval.score_files import read_scores

_NAME = re.compile(r"(?P<model>[^_]+)_(?P<head>fast_vgs|[^_]+(?:_plus)?)(?:_(?P<tag>.+?))??(?:_seed(?P<seed>\d+))?")
UNKNOWN_SEED = "unknown"
_REQUIRED = ("command", "seed", "commit")


@dataclass(frozen=True)
class Scores:
    """The content of one JSON file. Errors name the file and the key."""

    path: Path
    content: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> Scores:
        """Read a JSON object.

        Raises:
            UserError: the file is missing or does not hold a JSON object.
        """
        return cls(path, read_scores(path))

    def get(self, *keys: str) -> Any:
        """Return the value under a chain of keys.

        Raises:
            UserError: a key is missing. The error names the first one.
        """
        value: Any = self.content
        for depth, key in enumerate(keys):
            if not isinstance(value, Mapping) or key not in value:
                where = f" in {' / '.join(repr(k) for k in keys[:depth])}" if depth else ""
                raise UserError(f"{self.path}: the key {key!r} is missing{where}. Score the run again.")
            value = value[key]
        return value

    def number(self, *keys: str) -> float:
        """Return the number under a chain of keys.

        Raises:
            UserError: a key is missing, or the value is not a finite number.
        """
        value = self.get(*keys)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(
                f"{self.path}: {' / '.join(repr(k) for k in keys)} is {value!r}, not a number. Score the run again."
            )
        return float(value)

    def seed(self, *keys: str) -> int | None:
        """Return the seed under a chain of keys, None if it is unknown.

        Raises:
            UserError: the seed is not a whole number.
        """
        if self.get(*keys) is None:
            return None
        number = self.number(*keys)
        if number != int(number):
            raise UserError(f"{self.path}: the seed is {number}, not a whole number. Correct it.")
        return int(number)


@dataclass(frozen=True)
class Run:
    """A scored run.

    Attributes:
        directory: its folder.
        model: size of the model.
        head: name of the head.
        tag: the user's tag; "" for none.
        seed: None if it is unknown, as for published weights.
        retrieval: the content of retrieval.json.
        keywords: the content of keywords.json; None for a head without keywords.
        training: the provenance of the training; None for weights without one.
        conditions: the content of conditions.json; None if it was not scored under listening conditions.
        spotting: the content of spotting.json; None if keyword spotting was not scored.
        further: the content of retrieval.json of further test sets, by the name of their data directory.
    """

    directory: Path
    model: str
    head: str
    tag: str
    seed: int | None
    retrieval: Scores
    keywords: Scores | None
    training: Scores | None
    conditions: Scores | None = None
    spotting: Scores | None = None
    further: Mapping[str, Scores] = field(default_factory=dict)

    @property
    def seed_text(self) -> str:
        """The seed as tables print it."""
        return UNKNOWN_SEED if self.seed is None else str(self.seed)


def load_run(directory: str | Path) -> Run:
    """Read an experiment folder, ``<model>_<head>[_<tag>][_seedN]``.

    Model, head and tag come from the provenance in scores/retrieval.json, or else from the name of the folder. The seed
    comes from the provenance.

    Raises:
        UserError: a file or key is missing, or the scores are of another seed than the weights.
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise UserError(f"{folder}: is not a directory. Give the folder of a run.")
    retrieval = Scores.read(folder / SCORES / RETRIEVAL)
    keywords_path, training_path = folder / SCORES / KEYWORDS, folder / "best" / "provenance.json"
    keywords = Scores.read(keywords_path) if keywords_path.exists() else None
    conditions, spotting = (
        Scores.read(path) if (path := folder / SCORES / name).exists() else None for name in (CONDITIONS, SPOTTING)
    )
    further = {path.parent.name: Scores.read(path) for path in sorted((folder / SCORES).glob(f"*/{RETRIEVAL}"))}
    training = Scores.read(training_path) if training_path.exists() else _training_of(retrieval)
    for key in _REQUIRED:
        for scores in (retrieval, keywords, conditions, spotting, *further.values()):
            if scores:
                scores.get("provenance", key)
        if training:
            training.get(key)
    seed = retrieval.seed("provenance", "seed")
    if training and training.seed("seed") != seed:
        raise UserError(
            f"{retrieval.path}: made with seed {seed}, {training.path} with another one. Score the run again."
        )
    for scores in (keywords, spotting, *further.values()):
        if scores and scores.seed("provenance", "seed") != seed:
            raise UserError(f"{scores.path}: made with another seed than {retrieval.path}. Score the run again.")
    origin = retrieval.get("provenance")
    parts = _NAME.fullmatch(folder.resolve().name)
    named = parts.groupdict() if parts else {}
    model, head = (origin.get(key) or named.get(key) for key in ("model", "head"))
    if not model or not head:
        raise UserError(
            f"{folder}: the name has no model and head, nor has {retrieval.path}. Rename it <model>_<head>."
        )
    tag = origin["tag"] if origin.get("tag") is not None else named.get("tag")
    name = str(model), str(head), str(tag or "")
    return Run(folder, *name, seed, retrieval, keywords, training, conditions, spotting, further)


def _training_of(retrieval: Scores) -> Scores | None:
    """Return the training provenance that the scores repeat, for weights in another folder (``--checkpoint``)."""
    origin = retrieval.get("provenance")
    training = origin.get("training") if isinstance(origin, Mapping) else None
    if not isinstance(training, Mapping) or not {"command", "commit"} <= training.keys():
        return None
    return Scores(retrieval.path, {"seed": origin.get("seed"), **training})
