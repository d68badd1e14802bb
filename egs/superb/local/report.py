"""Write the SUPERB table of all results in exp/, and a picture of the layer weights that the tasks have learned."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markdown_tables import Table, read_block, write_block
from sweep import SCORED, score
from tasks import TASKS

from speechclip.common.errors import UserError
from speechclip.report.tables import inline_code as code

COLUMNS = ("task", "metric", "corpus", "upstream", "checkpoint", "test", "lr (of)", "step", "seed", "commit", "command")
COMPARISON = ("task", "metric", "corpus", "upstream", "checkpoint", "test", "baseline", "baseline's test", "seed")
KEY = ("task", "corpus", "upstream", "checkpoint", "seed")
INTRODUCTION = """Test scores in percent, with the learning rate that is best on validation. The baseline
`speechclip_encoder_local` is the checkpoint's own speech encoder without the head, on the same data."""
WEIGHTS_INTRODUCTION = """Softmax weights of the hidden states, learned by each task. State 0 is the input of the first
layer; `head` is SpeechCLIP's own layer. Equal shares would be 1 / states.

![Learned weights of the hidden states](layer_weights.png)"""


def write_report(experiments: Path, results: Path) -> None:
    """Merge the rows of all sweeps into RESULTS.md, and draw layer_weights.png and layer_weights.svg next to it.

    Raises:
        UserError: no sweep is finished.
    """
    found = [json.loads(path.read_text()) for path in sorted(experiments.glob("*/*/best.json"))]
    if not found:
        raise UserError(f"{experiments}: holds no finished task. Run stage 1.")
    text = results.read_text(encoding="utf-8") if results.is_file() else "# Results\n"
    old = read_block(text, "superb", str(results))
    tables = [
        _table("SUPERB", COMPARISON, _comparisons(experiments, found), old),
        _table("Scores", COLUMNS, [_row(best) for best in found], old),
    ]
    text = write_block(text, "superb", str(results), INTRODUCTION, tables, before="weights")
    old = read_block(text, "weights", str(results))
    before = [name for table in old.values() for name in table.columns if name.isdigit()]
    states = max(len(before), *(len(best["layer_weights"]) - best["head"] for best in found))
    columns = ("task", "corpus", "upstream", "checkpoint", "seed", *map(str, range(states)), "head")
    weights = _table("Layer weights", columns, [_weights_row(best) for best in found], old)
    text = write_block(text, "weights", str(results), WEIGHTS_INTRODUCTION, [weights], before="")
    results.write_text(text, encoding="utf-8")
    print(f"wrote {results}: rows of {len(found)} sweeps")
    for path in draw_weights(weights, results.parent):
        print(f"wrote {path}")


def _row(best: dict[str, Any]) -> dict[str, str]:
    task, scored = TASKS[best["task"]], best["test"].get(SCORED)
    name = task.name + (f" ({best['tag']})" if best["tag"] else "")
    return {
        "task": name, "metric": "DER" if scored is not None else task.label, "corpus": best["corpus"],
        "upstream": best["upstream"], "checkpoint": best["checkpoint"],
        "test": f"{score(task, best['test']) * task.percent if scored is None else scored:.2f}",
        "lr (of)": f"{best['lr']:g} ({' '.join(f'{rate:g}' for rate in best['rates'])})", "step": str(best["step"]),
        "seed": str(best["seed"]), "commit": best["commit"], "command": code(best["command"]),
    }  # fmt: skip


def _comparisons(experiments: Path, found: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Return a row for each sweep with a baseline, with the baseline's score."""
    rows = []
    for best in (best for best in found if best["against"]):
        name = "_".join([best["task"], *([best["tag"]] if best["tag"] else [])])
        folder = f"{name}_seed{best['seed']}" if best["seed"] else name
        other = json.loads((experiments / folder / best["against"] / "best.json").read_text())
        baseline = {"baseline": other["upstream"], "baseline's test": _row(other)["test"]}
        rows.append({key: value for key, value in _row(best).items() if key in COMPARISON} | baseline)
    return rows


def _weights_row(best: dict[str, Any]) -> dict[str, str]:
    named = {str(state): f"{value:.3f}" for state, value in enumerate(best["layer_weights"])}
    if best["head"]:
        named["head"] = named.pop(str(len(named) - 1))
    return {key: value for key, value in _row(best).items() if key in KEY} | named


def _table(title: str, columns: tuple[str, ...], rows: list[dict[str, str]], old: dict[str, Table]) -> Table:
    """Return a table of the new rows and of the old rows with other keys, sorted."""
    kept = {tuple(row.get(key, "") for key in KEY): dict(row) for row in (old[title].rows if title in old else ())}
    kept |= {tuple(row.get(key, "") for key in KEY): row for row in rows}
    return Table(title, columns, tuple(kept[key] for key in sorted(kept)))


def draw_weights(table: Table, folder: Path) -> list[Path]:
    """Draw the weights of each row: one column per hidden state, with the numbers in the cells.

    If some rows have a weight for the head, only these are drawn.

    Returns:
        The written files.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    rows = [row for row in table.rows if "head" in row] or list(table.rows)
    names = [name for name in table.columns if name.isdigit() or name == "head"]
    states = len(names)
    grid = np.array([[float(row.get(name, "nan")) for name in names] for row in rows])
    with plt.rc_context({"svg.hashsalt": "speechclip", "font.size": 9}):
        figure, axes = plt.subplots(figsize=(3.2 + 0.55 * states, 1.3 + 0.45 * len(rows)), layout="constrained")
        image = axes.imshow(grid, cmap="cividis", vmin=0, aspect="auto")
        for (row, column), value in np.ndenumerate(grid):
            if states <= 16 and not np.isnan(value):
                dark = value < np.nanmax(grid) * 0.6
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", color="white" if dark else "black")
        axes.set_yticks(range(len(rows)), [label(row) for row in rows])
        axes.set_xticks(range(states), names)
        axes.set_xlabel("hidden state")
        figure.colorbar(image, label="learned weight")
        paths = [folder / f"layer_weights.{kind}" for kind in ("png", "svg")]
        for path in paths:
            figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
        plt.close(figure)
    return paths


def label(row: Mapping[str, str]) -> str:
    """Return a label of two lines that identifies a row."""
    checkpoint = row.get("checkpoint", "").removesuffix("/best")
    where = ", ".join(part for part in (checkpoint, row["corpus"]) if part)
    return f"{row['task']}, {row['upstream']}, seed {row['seed']}\n{where}"
