"""The figure of the listening conditions: recall against the SNR for all systems, and the conditions without noise."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechclip.data.conditions import Condition
from speechclip.report.figures.plots import CYCLE
from speechclip.report.figures.style import write_figure
from speechclip.report.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

THERE, SCORE = "speech->image", "R@1"
Systems = Mapping[str, Sequence[Mapping[str, Any]]]  # by label, the conditions of every seed


def write_condition_figure(runs: Sequence[Run], stem: Path) -> list[Path]:
    """Draw all runs that were scored under listening conditions, seeds of a system together.

    Args:
        runs: scored runs; those without conditions.json are left out.
        stem: path of the figure without a suffix.
    Returns:
        the files; none if no run has conditions.
    Raises:
        UserError: a file lacks a value.
    """
    systems: dict[str, list[Mapping[str, Any]]] = {}
    source = stem
    for run in runs:
        if run.conditions:
            label = re.sub(r"_", " ", f"{run.head} {run.tag}".strip())
            systems.setdefault(label, []).append(run.conditions.get("conditions"))
            source = run.conditions.path
    return write_figure(source, stem, condition_curves, systems) if systems else []


def condition_curves(systems: Systems) -> Figure:
    """Draw a panel for each noise and one for the other conditions. Bands and bars: mean of the seeds' 95% intervals.

    Args:
        systems: by label, the conditions of every seed.
    """
    from matplotlib.figure import Figure

    first = next(iter(systems.values()))[0]
    noises = list(dict.fromkeys(row["kind"] for row in first.values() if Condition(row["kind"], row["value"]).is_noise))
    others = [name for name, row in first.items() if not Condition(row["kind"], row["value"]).is_noise]
    figure = Figure(figsize=(4.2 * (len(noises) + 1), 4.4), layout="constrained")
    panels = figure.subplots(1, len(noises) + 1, sharey=True, squeeze=False)[0]
    for axes, kind in zip(panels, noises):
        _draw_noise(axes, kind, systems)
    _draw_others(panels[-1], others, systems)
    panels[0].set_ylabel("speech → image R@1 in percent")
    panels[0].set_ylim(0, 100)
    handles, labels = panels[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6), fontsize=8)
    return figure


def _draw_noise(axes: Axes, kind: str, systems: Systems) -> None:
    """Draw recall against the SNR, from clean speech on the left to the strongest noise on the right."""
    places: list[str] = []
    for (label, seeds), colour in zip(systems.items(), CYCLE * 3):
        rows = sorted((row["value"], name) for name, row in seeds[0].items() if row["kind"] == kind)
        names = ["clean", *(name for _, name in reversed(rows))]
        places = ["clean", *(f"{snr:g}" for snr, _ in reversed(rows))]
        values, low, high = zip(*(_mean(seeds, name) for name in names))
        line = "--" if label.startswith("asr") else "-"
        axes.plot(range(len(names)), values, color=colour, linestyle=line, marker="o", markersize=3, label=label)
        axes.fill_between(range(len(names)), low, high, color=colour, alpha=0.12, linewidth=0)
    axes.set_xticks(range(len(places)), places)
    axes.set(title=kind.replace("_", " "), xlabel="SNR in dB")


def _draw_others(axes: Axes, names: Sequence[str], systems: Systems) -> None:
    for place, ((label, seeds), colour) in enumerate(zip(systems.items(), CYCLE * 3)):
        shown = [name for name in names if all(name in seed for seed in seeds)]
        values, low, high = zip(*(_mean(seeds, name) for name in shown))
        x = [names.index(name) + (place - (len(systems) - 1) / 2) * 0.8 / len(systems) for name in shown]
        bars = [[v - end for v, end in zip(values, low)], [end - v for v, end in zip(values, high)]]
        marker = "s" if label.startswith("asr") else "o"
        axes.errorbar(
            x, values, yerr=bars, color=colour, marker=marker, markersize=3, linestyle="", linewidth=1, label=label
        )
    axes.set_xticks(range(len(names)), [name.replace("_", " ") for name in names], rotation=30, ha="right", fontsize=8)
    axes.set(title="other conditions")


def _mean(seeds: Sequence[Mapping[str, Any]], name: str) -> tuple[float, float, float]:
    """Return the means over seeds of a score and of the ends of its interval."""
    rows = [seed[name][THERE] for seed in seeds]
    value = statistics.mean(row[SCORE] for row in rows)
    ends = [row["ci95"][SCORE] if "ci95" in row else (row[SCORE], row[SCORE]) for row in rows]
    return value, statistics.mean(end[0] for end in ends), statistics.mean(end[1] for end in ends)
