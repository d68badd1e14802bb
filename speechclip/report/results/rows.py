"""The measurements of scored runs as data: ``results.jsonl``, one JSON object for each step of a run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechclip.common.errors import UserError
from speechclip.common.files import replace_file
from speechclip.report.runs import UNKNOWN_SEED, Run, Scores

TRAIN, RETRIEVAL, KEYWORDS, CONDITIONS, SPOTTING = "train", "retrieval", "keywords", "conditions", "spotting"
STEPS = (TRAIN, RETRIEVAL, KEYWORDS, CONDITIONS, SPOTTING)
_TRAINING = ("trained", "total", "train_seconds", "step", "dev_mean_R@10", "dev_mean_R@1")
_DECIMALS = 4  # of a stored number; tables show one or two
_COMMIT = 7  # digits of a commit in a table


@dataclass(frozen=True)
class ResultRow:
    """One step of one run: what was measured, and where the numbers come from.

    Attributes:
        recipe: name of the recipe's folder.
        model: size of the model, such as "large".
        head: name of the head.
        tag: the user's tag of the run; "" for none.
        seed: None if it is unknown, as for published weights.
        step: one of `STEPS`; "retrieval test_unseen" for a further test set, with the name of its data directory.
        commit: commit of the code that ran this step.
        trained_at: commit of the code that trained the weights; "" if it is unknown.
        settings: fingerprint of the configuration; "" if it is unknown.
        command: the command of this step.
        recipe_command: the ``run.sh`` command that ran it; "" for none.
        scores: the numbers of the step, with intervals.
    """

    recipe: str
    model: str
    head: str
    tag: str
    seed: int | None
    step: str
    commit: str
    trained_at: str
    settings: str
    command: str
    recipe_command: str
    scores: Scores

    @property
    def step_name(self) -> str:
        """The step without a further test set: one of `STEPS`."""
        return self.step.partition(" ")[0]

    @property
    def further_set(self) -> str:
        """The name of the further test set, "" for the test set itself."""
        return self.step.partition(" ")[2]

    @property
    def run_key(self) -> tuple[str, str, str, str, int | None]:
        """The run that the row belongs to, whatever its commit."""
        return (self.recipe, self.model, self.head, self.tag, self.seed)

    @property
    def key(self) -> tuple[Any, ...]:
        """The identity of the measurement: the run, the step, the commits and the settings."""
        return (*self.run_key, self.step, self.trained_at, self.commit, self.settings)

    @property
    def seed_text(self) -> str:
        """The seed as tables print it."""
        return UNKNOWN_SEED if self.seed is None else str(self.seed)

    @property
    def commit_text(self) -> str:
        """The commits as tables print them: of training and of scoring if they differ."""
        names = [_short(name) for name in (self.trained_at, self.commit) if name]
        return "/".join(dict.fromkeys(names))


def rows_of_run(run: Run, recipe: str) -> list[ResultRow]:
    """Return the rows of a scored run.

    Raises:
        UserError: its files lack a key.
    """
    trained_at = str(run.training.get("commit") or "unknown") if run.training else ""
    settings = str(run.retrieval.get("provenance").get("settings", ""))
    steps: list[tuple[str, Scores, Mapping[str, Any], Mapping[str, Any]]] = []
    if run.training:
        content = run.training.content
        steps.append((TRAIN, run.training, content, {key: content[key] for key in _TRAINING if key in content}))
    scored: list[tuple[str, Scores | None]] = [
        (RETRIEVAL, run.retrieval), *((f"{RETRIEVAL} {name}", scores) for name, scores in run.further.items()),
        (KEYWORDS, run.keywords), (SPOTTING, run.spotting), (CONDITIONS, run.conditions),
    ]  # fmt: skip
    for step, scores in scored:
        if scores:
            content = {key: value for key, value in scores.content.items() if key != "provenance"}
            content = _without_each_keyword(content) if step == SPOTTING else content
            steps.append((step, scores, scores.get("provenance"), content))
    return [
        ResultRow(
            recipe, run.model, run.head, run.tag, run.seed, step, str(origin.get("commit") or "unknown"), trained_at,
            str(origin.get("settings", settings)), str(origin.get("command")), str(origin.get("recipe_command") or ""),
            Scores(scores.path, _rounded(content)),
        )
        for step, scores, origin, content in steps
    ]  # fmt: skip


def read_rows(path: Path) -> list[ResultRow]:
    """Read results.jsonl. A missing file has no rows.

    Raises:
        UserError: a line is not a row. The error names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}). Correct the file.") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            fields = json.loads(line)
            row = ResultRow(**{**fields, "scores": Scores(path, fields["scores"])})
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path}: line {number} is not a row of results ({error}). Remove it.") from error
        if row.step_name not in STEPS or not isinstance(row.scores.content, dict):
            raise UserError(f"{path}: line {number} is not a row of results (step {row.step!r}). Remove it.")
        rows.append(row)
    return rows


def write_rows(path: Path, rows: Iterable[ResultRow]) -> None:
    """Write results.jsonl as a whole."""
    names = [field.name for field in dataclasses.fields(ResultRow) if field.name != "scores"]
    lines = [
        json.dumps({**{name: getattr(row, name) for name in names}, "scores": row.scores.content}, ensure_ascii=False)
        for row in rows
    ]
    replace_file(path, "".join(f"{line}\n" for line in lines).encode())


def merge_rows(old: Sequence[ResultRow], new: Sequence[ResultRow], *, replace: bool) -> list[ResultRow]:
    """Return the old rows and the new ones.

    Args:
        old: the rows so far.
        new: the rows of the current runs. A row replaces an old row of the same measurement.
        replace: drop all old rows of these runs, of other commits and settings too.
    Raises:
        UserError: two of the new rows are of the same run and step.
    """
    steps: dict[tuple[Any, ...], ResultRow] = {}
    for row in new:
        other = steps.setdefault((*row.run_key, row.step), row)
        if other is not row:
            raise UserError(f"{row.scores.path}: same model, head, tag and seed as {other.scores.path}. Add a tag.")
    runs, keys = {row.run_key for row in new}, {row.key for row in new}
    return [row for row in old if (row.run_key not in runs if replace else row.key not in keys)] + list(new)


def related(row: ResultRow, step: str, rows: Iterable[ResultRow]) -> ResultRow | None:
    """Return the row of another step of the same weights; of several, one of the same settings and commit."""
    same = [
        other for other in rows
        if other.step == step and other.run_key == row.run_key and other.trained_at == row.trained_at
    ]  # fmt: skip
    return max(same, key=lambda other: (other.settings == row.settings, other.commit == row.commit), default=None)


def _without_each_keyword(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scores of spotting.json without those of each keyword."""
    return {
        query: {kind: {key: value for key, value in row.items() if key != "keywords"} for kind, row in kinds.items()}
        for query, kinds in content.items()
    }


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return round(value, _DECIMALS) if isinstance(value, float) else value


def _short(commit: str) -> str:
    name, dash, suffix = commit.partition("-")
    return (name[:_COMMIT] if len(name) >= 12 else name) + dash + suffix
