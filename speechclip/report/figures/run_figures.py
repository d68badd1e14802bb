"""Figures of one run, each as SVG and PNG: training curves, layer weights, recall and keyword hit rates."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechclip.common.constants import KEYWORDS, RETRIEVAL, SCORES
from speechclip.common.errors import UserError
from speechclip.report.figures.plots import sweep_curves
from speechclip.report.figures.style import BLUE, GREEN, GREY, ORANGE, RED, SKY, fit_percent, write_figure
from speechclip.report.runs import Scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RECALLS = {"R@1": BLUE, "R@5": SKY, "R@10": GREEN}
KEYWORD_SCORES = {"clean": BLUE, "reference": SKY, "content_top1": ORANGE}
#: The panels of the training figure: title, unit and curves (label, keys in a metrics line, colour, line style).
Curve = tuple[str, tuple[str, ...], str, str]
PANELS: dict[tuple[str, str], tuple[Curve, ...]] = {
    ("Training loss", "loss"): (("loss", ("loss",), BLUE, "-"),),
    ("Retrieval on dev", "percent"): (
        ("mean R@10", ("dev", "mean_R@10"), "black", "-"),
        ("speech→image R@10", ("dev", "speech->image", "R@10"), BLUE, "-"),
        ("image→speech R@10", ("dev", "image->speech", "R@10"), ORANGE, "-"),
        ("speech→image R@1", ("dev", "speech->image", "R@1"), BLUE, ":"),
        ("image→speech R@1", ("dev", "image->speech", "R@1"), ORANGE, ":"),
    ),
    ("Learning rate", "learning rate"): (("learning rate", ("lr",), GREEN, "-"),),
    ("Temperature", "temperature"): (("temperature", ("temperature",), RED, "-"),),
}
Metrics = Sequence[Mapping[str, Any]]


def write_figures(directory: str | Path) -> list[Path]:
    """Draw the figures of a run into its ``figures/`` and return the files.

    It reads metrics.jsonl, scores/retrieval.json and scores/keywords.json. A missing file gives no figure.

    Raises:
        UserError: a file is damaged or lacks a value.
    """
    folder = Path(directory)
    written: list[Path] = []
    log = folder / "metrics.jsonl"
    if log.exists():
        metrics = read_metrics(log)
        written += write_figure(log, folder / "figures" / "training", training_curves, metrics)
        if best_layer_weights(metrics):
            written += write_figure(log, folder / "figures" / "layer_weights", layer_weight_bars, metrics)
    for name, draw in ((RETRIEVAL, retrieval_bars), (KEYWORDS, keyword_bars)):
        path = folder / SCORES / name
        if path.exists():
            content = Scores.read(path).content
            written += write_figure(path, folder / "figures" / path.stem, draw, content)
            if any(content.get("sweep", {}).values()):
                written += write_figure(path, folder / "figures" / "neighbours", sweep_curves, content)
    return written


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Read a training log: one record per step and kind, in the order of the steps.

    A training that was killed and resumed may have logged a step twice; then the last line counts. A line that was cut
    is ignored.

    Raises:
        UserError: the file has no usable line.
    """
    source = Path(path)
    latest: dict[tuple[float, bool], dict[str, Any]] = {}
    for line in source.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
            latest[float(record["step"]), "dev" in record] = record
        except (ValueError, TypeError, KeyError):
            continue
    if not latest:
        raise UserError(f"{source}: no line with a step. Train the model again.")
    return [latest[key] for key in sorted(latest)]


def training_curves(metrics: Metrics) -> Figure:
    """Draw the loss, recall on dev, learning rate and temperature against the steps, if they were logged."""
    from matplotlib.figure import Figure

    panels = _logged_panels(metrics)
    columns, rows = min(2, len(panels)), math.ceil(len(panels) / 2)
    figure = Figure(figsize=(5.6 * columns, 3.6 * rows), layout="constrained")
    for place, panel in enumerate(panels, start=1):
        _draw_panel(figure.add_subplot(rows, columns, place), panel, metrics)
    return figure


def training_panels(metrics: Metrics) -> dict[str, Figure]:
    """Draw the panels of `training_curves` as separate figures, by title."""
    from matplotlib.figure import Figure

    figures = {}
    for panel in _logged_panels(metrics):
        figures[panel[0]] = Figure(figsize=(4.8, 3.2), layout="constrained")
        _draw_panel(figures[panel[0]].add_subplot(), panel, metrics)
    return figures


def last_values(metrics: Metrics, title: str) -> str:
    """Describe the last value of every curve of a panel in words."""
    values = []
    for (name, _), curves in PANELS.items():
        for label, keys, _, _ in curves if name == title else ():
            steps, numbers = series(metrics, keys)
            if numbers:
                values.append(f"{label} {numbers[-1]:.3g} at step {steps[-1]:,.0f}")
    return f"At the end: {', '.join(values)}."


def _logged_panels(metrics: Metrics) -> list[tuple[str, str]]:
    """Return the keys of PANELS that have logged values. Raise KeyError if all lack them."""
    panels = [name for name, curves in PANELS.items() if any(series(metrics, c[1])[0] for c in curves)]
    if not panels:
        raise KeyError("loss")
    return panels


def _draw_panel(axes: Axes, panel: tuple[str, str], metrics: Metrics) -> None:
    title, unit = panel
    for label, keys, colour, line in PANELS[panel]:
        _draw_curve(axes, *series(metrics, keys), label=label, colour=colour, line=line)
    axes.set(title=title, xlabel="step", ylabel=unit)
    axes.margins(y=0.1)
    if unit == "percent":
        axes.set_ylim(bottom=0)
    best = best_step(metrics)
    if best is not None:
        axes.axvline(best, color=GREY, linestyle="--", linewidth=1, label=f"best step: {best:,.0f}")
    if unit in ("loss", "percent"):
        axes.legend(fontsize=8, frameon=True, framealpha=0.8, edgecolor="none")


def best_step(metrics: Metrics) -> float | None:
    """Return the first step with the highest mean R@10 on dev, or None if dev was never scored."""
    steps, recalls = series(metrics, ("dev", "mean_R@10"))
    return steps[recalls.index(max(recalls))] if recalls else None


def best_layer_weights(metrics: Metrics) -> tuple[float, list[float]] | None:
    """Return step and layer weights of the last line with weights up to the best step, or None without weights."""
    logged = [
        (float(record["step"]), list(record["layer_weights"])) for record in metrics if record.get("layer_weights")
    ]
    best = best_step(metrics)
    until = [entry for entry in logged if best is None or entry[0] <= best] or logged[:1]
    return until[-1] if until else None


def layer_weight_bars(metrics: Metrics) -> Figure:
    """Draw the learned weight of every hidden state of the speech encoder, and the uniform weight of the start."""
    from matplotlib.figure import Figure

    found = best_layer_weights(metrics)
    if found is None:
        raise KeyError("layer_weights")
    step, weights = found
    figure = Figure(figsize=(max(4.5, 0.42 * len(weights) + 1.5), 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.bar(range(len(weights)), weights, color=BLUE)
    axes.axhline(1 / len(weights), color=GREY, linestyle="--", linewidth=1, label="uniform")
    axes.set(title=f"Layer weights at step {step:,.0f}", xlabel="hidden state (0: input of the first layer)")
    axes.set(ylabel="weight", xticks=range(len(weights)))
    axes.set_ylim(0, 1.2 * max(*weights, 1 / len(weights)))
    axes.grid(axis="x", visible=False)
    axes.legend(loc="upper left")
    return figure


def retrieval_bars(scores: Mapping[str, Any]) -> Figure:
    """Draw R@1, R@5 and R@10 of every direction with 95% intervals, and chance as a line in each bar.

    Args:
        scores: the content of retrieval.json.
    """
    from matplotlib.figure import Figure

    directions = [name for name, value in scores.items() if "->" in name and isinstance(value, Mapping)]
    figure = Figure(figsize=(max(5.0, 1.5 * len(directions) + 1.8), 4.2), layout="constrained")
    axes = figure.add_subplot()
    highest = 0.0
    for place, (cutoff, colour) in enumerate(RECALLS.items()):
        x = [i + 0.27 * (place - 1) for i in range(len(directions))]
        y = [scores[name][cutoff] for name in directions]
        ends = [scores[name].get("ci95", {}).get(cutoff, [v, v]) for name, v in zip(directions, y, strict=True)]
        errors = [[max(0.0, v - low) for v, (low, _) in zip(y, ends, strict=True)]]
        errors.append([max(0.0, high - v) for v, (_, high) in zip(y, ends, strict=True)])
        style = {"elinewidth": 1, "capsize": 2, "ecolor": "#333333"}
        axes.bar(x, y, 0.25, label=cutoff, color=colour, yerr=errors, error_kw=style)
        for at, value, (_, high) in zip(x, y, ends, strict=True):
            top = (at, max(value, high))
            axes.annotate(f"{value:.0f}", top, (0, 2), textcoords="offset points", ha="center", fontsize=8)
        chance = [scores["random"][name][cutoff] for name in directions]
        _mark(axes, x, chance, 0.25, RED, "chance", place == 0)
        highest = max([highest, *y, *chance, *(high for _, high in ends)])
    labels = [
        name.replace("->", "→").replace(" (", "\n(") + "\n(topline)" * (name == "text->image") for name in directions
    ]
    _finish(axes, "Retrieval (95% intervals over images)", "recall in percent", labels, 1.05 * highest)
    return figure


def keyword_bars(scores: Mapping[str, Any]) -> Figure:
    """Draw the three hit rates of every keyword and of their average, with the controls as lines in each bar.

    Args:
        scores: the content of keywords.json.
    """
    from matplotlib.figure import Figure

    names = list(scores["clean"])
    figure = Figure(figsize=(min(30.0, max(5.0, 0.95 * len(names) + 1.8)), 4.2), layout="constrained")
    axes = figure.add_subplot()
    highest = 0.0
    for place, (score, colour) in enumerate(KEYWORD_SCORES.items()):
        rates, prior = scores[score], scores["frequency_prior"][score]
        here = [(i + 0.27 * (place - 1), name) for i, name in enumerate(names) if name in rates]
        x = [at for at, _ in here]
        axes.bar(x, [rates[name] for _, name in here], 0.25, label=score, color=colour)
        highest = max([highest, *(rates[name] for _, name in here)])
        intervals = scores.get("ci95", {}).get(score)
        if intervals:
            known = [(at, *intervals[name]) for at, name in here if name in intervals]
            highest = max([highest, *(high for _, _, high in known)])
            axes.vlines(*zip(*known, strict=True), color="#333333", linewidth=1)
        marks = {"frequency prior": (prior, "black")}
        if "shuffled_speech" in scores:
            marks["shuffled speech"] = (scores["shuffled_speech"][score], RED)
        for label, (row, shade) in marks.items():  # the controls may lack a rare keyword
            drawn = [(at, row[name]) for at, name in here if name in row]
            _mark(axes, [at for at, _ in drawn], [rate for _, rate in drawn], 0.27, shade, label, place == 0)
            highest = max([highest, *(rate for _, rate in drawn)])
    if "avg" in names:
        axes.axvline(len(names) - 1.5, color=GREY, linewidth=0.8)
    _finish(axes, "Keywords found in the caption", "hit rate in percent", names, highest)
    return figure


def _mark(
    axes: Axes, x: Sequence[float], y: Sequence[float], width: float, colour: str, label: str, first: bool
) -> None:
    """Draw a short horizontal line across each bar. Only the first call gets an entry in the legend."""
    left, right = [at - width / 2 for at in x], [at + width / 2 for at in x]
    axes.hlines(y, left, right, color=colour, linewidth=1.8, label=label if first else "_")


def _finish(axes: Axes, title: str, unit: str, groups: Sequence[str], highest: float) -> None:
    """Set the title, the percent axis, the names of the groups, and the legend above the bars."""
    entries = len(axes.get_legend_handles_labels()[1])
    axes.set_title(title, pad=20 + 16 * math.ceil(entries / 4))
    axes.set(ylabel=unit, xticks=range(len(groups)), xticklabels=groups)
    fit_percent(axes, highest)
    axes.grid(axis="x", visible=False)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.03), ncols=4, fontsize=9)


def _draw_curve(
    axes: Axes, steps: Sequence[float], values: Sequence[float], label: str, colour: str, line: str
) -> None:
    """Draw a curve. A long loss curve is drawn pale, with its running mean on top."""
    window = len(values) // 50
    if window < 2 or label != "loss":
        marker = "." if len(values) < 30 else ""
        axes.plot(steps, values, color=colour, linestyle=line, marker=marker, label=label)
        return
    axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    smooth = [(sums[i] - sums[max(0, i - window)]) / min(i, window) for i in range(1, len(sums))]
    axes.plot(steps, smooth, color=colour, linestyle=line, label=f"{label}, mean of {window}")


def series(metrics: Metrics, keys: tuple[str, ...]) -> tuple[list[float], list[float]]:
    """Return steps and values of the lines that have a finite number under a chain of keys."""
    steps, values = [], []
    for record in metrics:
        value: Any = record
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, int | float) and math.isfinite(value):
            steps.append(float(record["step"]))
            values.append(float(value))
    return steps, values
