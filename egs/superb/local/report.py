"""The SUPERB tables of all results in exp/, and a picture of the layer weights that the tasks have learned.

Stage 2 of run.sh writes them to exp/. This script adds them to the committed results of the recipe.

Usage: local/report.py [--exp exp] [--commit_to .]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scores import score
from sweep import SCORED
from tasks import TASKS

from speechclip.common.arguments import exit_on_user_error
from speechclip.common.errors import MissingFileError, UserError
from speechclip.common.files import read_json, replace_file
from speechclip.report.tables import Cell, Row, Table
from speechclip.report.tables import inline_code as code

DATA, DOCUMENT, TEMPLATE = "results.jsonl", "RESULTS.md", "RESULTS.template.md"
RUN_COLUMNS = ("task", "metric", "corpus", "upstream", "checkpoint")  # of a table of scores
KEY = ("task", "tag", "corpus", "upstream", "checkpoint", "seed")
INTRODUCTION = """Test scores in percent, with the learning rate that is best on validation. The baseline
`speechclip_encoder_local` is the checkpoint's own speech encoder without the head, on the same data."""
WEIGHTS_INTRODUCTION = """Softmax weights of the hidden states, learned by each task. State 0 is the input of the first
layer; `head` is SpeechCLIP's own layer. Equal shares would be 1 / states.

![Learned weights of the hidden states](layer_weights.png)"""
_DEFAULT_TEMPLATE = "# SUPERB\n\n<!-- tables: scores -->\n\n<!-- tables: weights -->\n"

Measured = dict[str, Any]  # a line of results.jsonl


def write_report(experiments: Path) -> None:
    """Write RESULTS.md, results.jsonl and the picture of all sweeps into the folder of the experiments.

    Raises:
        UserError: no sweep is finished.
    """
    rows = read_sweeps(experiments)
    if not rows:
        raise UserError(f"{experiments}: holds no finished task. Run stage 1.")
    _write(experiments, sorted(rows, key=_key), _DEFAULT_TEMPLATE)


def commit_report(experiments: Path, folder: Path) -> None:
    """Add all sweeps to the committed results of the recipe, and render its RESULTS.md and picture again.

    Args:
        experiments: exp/. It may be missing; then the committed rows are rendered again.
        folder: the recipe, with RESULTS.template.md.

    Raises:
        UserError: the template is missing, a row is damaged, or a sweep was made with uncommitted code.
    """
    template = folder / TEMPLATE
    if not template.is_file():
        raise MissingFileError(template)
    rows = {_key(row): row for row in read_rows(folder / DATA)}
    for row in read_sweeps(experiments):
        if row["commit"].endswith("-dirty"):
            raise UserError(
                f"{experiments}: {row['task']} was made by uncommitted code. Commit the code and run again."
            )
        rows[_key(row)] = row
    if not rows:
        raise UserError(f"{experiments}: holds no finished task. Run stage 1.")
    note = f"<!-- Rendered from {TEMPLATE} and {DATA} by `local/report.py --commit_to .`. Edit these files. -->\n\n"
    _write(folder, [rows[key] for key in sorted(rows)], note + template.read_text(encoding="utf-8"))


def read_sweeps(experiments: Path) -> list[Measured]:
    """Return the rows of all finished sweeps."""
    return [_row(read_json(path), experiments) for path in sorted(experiments.glob("*/*/best.json"))]


def read_rows(path: Path) -> list[Measured]:
    """Read results.jsonl. A missing file has no rows.

    Raises:
        UserError: a line is not a row. The error names the line.
    """
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.is_file() else (), start=1):
        try:
            rows.append(json.loads(line))
            _key(rows[-1])
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path}: line {number} is not a row of results ({error}). Remove it.") from error
    return rows


def _row(best: Measured, experiments: Path) -> Measured:
    """Return the row of a sweep. "test" is the number that the tables show."""
    copied = (
        "tag", "corpus", "upstream", "checkpoint", "lr", "rates", "step", "seed", "commit", "command", "head",
    )  # fmt: skip
    metric, test = _test_score(best)
    baseline = None
    if best["against"]:
        name = "_".join([best["task"], *([best["tag"]] if best["tag"] else [])])
        folder = f"{name}_seed{best['seed']}" if best["seed"] else name
        other = read_json(experiments / folder / best["against"] / "best.json")
        baseline = {"upstream": other["upstream"], "test": _test_score(other)[1]}
    weights = [round(value, 4) for value in best["layer_weights"]]
    percent = TASKS[best["task"]].percent
    folds = {fold: round(value * percent, 4) for fold, value in best["folds"].items()}
    return {
        "task": TASKS[best["task"]].name, **{key: best[key] for key in copied}, "metric": metric, "test": test,
        "folds": folds, "baseline": baseline, "layer_weights": weights,
    }  # fmt: skip


def _test_score(best: Measured) -> tuple[str, float]:
    """Return the metric and its value on the test set. The DER of SD's own scorer is preferred."""
    task, scored = TASKS[best["task"]], best["test"].get(SCORED)
    if scored is not None:
        return "DER", round(scored, 4)
    return task.label, round(score(task, best["test"]) * task.percent, 4)


def _key(row: Measured) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in KEY)


def _write(folder: Path, rows: Sequence[Measured], template: str) -> None:
    from speechclip.report.results.document import fill_template

    weights = weights_table(rows)
    sections = {
        "scores": (
            INTRODUCTION,
            lambda: [table for table in (comparison_table(rows), scores_table(rows)) if table.rows],
        ),
        "weights": (WEIGHTS_INTRODUCTION, lambda: [weights]),
    }
    text = fill_template(template, sections, TEMPLATE)
    replace_file(folder / DATA, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode())
    replace_file(folder / DOCUMENT, text.encode())
    print(f"wrote {folder / DATA}: {len(rows)} sweeps")
    print(f"wrote {folder / DOCUMENT}")
    for path in draw_weights(rows, folder):
        print(f"wrote {path}")


def _task(row: Measured) -> str:
    return row["task"] + (f" ({row['tag']})" if row["tag"] else "")


def _names(row: Measured) -> tuple[str, ...]:
    return (_task(row), *(row[name] for name in RUN_COLUMNS[1:]))


def scores_table(rows: Sequence[Measured]) -> Table:
    """Return the table of all sweeps, with their learning rates and commands, and the scores of folds."""
    folds = ("folds",) if any(row["folds"] for row in rows) else ()
    columns = ("test", *folds, "lr (of)", "step", "seed", "commit", "command")
    table = Table("Scores", "", columns, name_columns=RUN_COLUMNS)
    for row in rows:
        rates = f"{row['lr']:g} ({' '.join(f'{rate:g}' for rate in row['rates'])})"
        steps = row["step"] if isinstance(row["step"], list) else [row["step"]]
        texts = [rates, " ".join(map(str, steps)), str(row["seed"]), row["commit"], code(row["command"])]
        if folds:
            texts.insert(0, ", ".join(f"{fold}: {value:.2f}" for fold, value in row["folds"].items()) or "–")
        table.rows.append(Row(_names(row), [Cell(row["test"], 2), *map(Cell, texts)]))
    return table


def comparison_table(rows: Sequence[Measured]) -> Table:
    """Return the table of the sweeps that have a baseline, with the baseline's score."""
    table = Table("SUPERB", "", ("test", "baseline", "baseline's test", "seed"), name_columns=RUN_COLUMNS)
    for row in rows:
        if other := row["baseline"]:
            cells = [Cell(row["test"], 2), Cell(other["upstream"]), Cell(other["test"], 2), Cell(str(row["seed"]))]
            table.rows.append(Row(_names(row), cells))
    return table


def weights_table(rows: Sequence[Measured]) -> Table:
    """Return the table of the learned weights: one column per hidden state, and one for the layer of the head."""
    states = max(len(row["layer_weights"]) - row["head"] for row in rows)
    names = ("task", "corpus", "upstream", "checkpoint", "seed")
    table = Table("Layer weights", "", (*map(str, range(states)), "head"), name_columns=names)
    for row in rows:
        label = (_task(row), row["corpus"], row["upstream"], row["checkpoint"], str(row["seed"]))
        table.rows.append(Row(label, [Cell(value, 3) for value in _weights(row, states)]))
    return table


def _weights(row: Measured, states: int) -> list[float | None]:
    """Return the weights of the encoder's states, padded with None, and then that of the head, None without one."""
    own = row["layer_weights"][: len(row["layer_weights"]) - row["head"]]
    return [*own, *[None] * (states - len(own)), row["layer_weights"][-1] if row["head"] else None]


def draw_weights(rows: Sequence[Measured], folder: Path) -> list[Path]:
    """Draw the weights of each row: one column per hidden state, with the numbers in the cells.

    If some rows have a weight for the head, only these are drawn.

    Returns:
        The written files.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    shown = [row for row in rows if row["head"]] or list(rows)
    states = max(len(row["layer_weights"]) - row["head"] for row in shown)
    names = [*map(str, range(states)), "head"]
    grid = np.array([_weights(row, states) for row in shown], dtype=float)
    with plt.rc_context({"svg.hashsalt": "speechclip", "font.size": 9}):
        figure, axes = plt.subplots(figsize=(3.2 + 0.55 * len(names), 1.3 + 0.45 * len(shown)), layout="constrained")
        image = axes.imshow(grid, cmap="cividis", vmin=0, aspect="auto")
        for (line, column), value in np.ndenumerate(grid):
            if len(names) <= 16 and not np.isnan(value):
                dark = value < np.nanmax(grid) * 0.6
                axes.text(column, line, f"{value:.2f}", ha="center", va="center", color="white" if dark else "black")
        axes.set_yticks(range(len(shown)), [label(row) for row in shown])
        axes.set_xticks(range(len(names)), names)
        axes.set_xlabel("hidden state")
        figure.colorbar(image, label="learned weight")
        paths = [folder / f"layer_weights.{kind}" for kind in ("png", "svg")]
        for path in paths:
            figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
        plt.close(figure)
    return paths


def label(row: Measured) -> str:
    """Return a label of two lines that identifies a row."""
    checkpoint = row["checkpoint"].removesuffix("/best")
    where = ", ".join(part for part in (checkpoint, row["corpus"]) if part)
    return f"{_task(row)}, {row['upstream']}, seed {row['seed']}\n{where}"


@exit_on_user_error
def main() -> None:
    """Write the report into exp/, or add it to the committed results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--exp", type=Path, default=Path("exp"), help="folder of the experiments")
    parser.add_argument("--commit_to", type=Path, help="recipe whose RESULTS.md and results.jsonl are updated")
    args = parser.parse_args()
    if args.commit_to:
        commit_report(args.exp, args.commit_to)
    else:
        write_report(args.exp)


if __name__ == "__main__":
    main()
