"""Figures: hit rate by the number of neighbours, attention over time, the joint space, and two runs together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from speechclip.common.constants import FRAME_SECONDS, SAMPLE_RATE
from speechclip.report.figures.style import BLUE, GREEN, GREY, ORANGE, RED, SKY

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from speechclip.data.alignments import AlignedWord
    from speechclip.report.page.projection import Plane

CYCLE = (BLUE, ORANGE, GREEN, RED, SKY, "#CC79A7", "#F0E442", GREY)
_CONTROL_LINES = {"frequency_prior": ("frequency prior", ":"), "shuffled_speech": ("shuffled speech", "--")}


def sweep_curves(scores: Mapping[str, Any]) -> Figure:
    """Draw the hit rate of all keywords against the number of neighbours, with intervals and controls.

    Args:
        scores: the content of keywords.json. Its "sweep" must have at least one number of neighbours.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    ticks = sorted({int(k) for rows in scores["sweep"].values() for k in rows})
    for (words, name), colour in zip((("all", "all subwords"), ("content", "no stop words")), (BLUE, ORANGE)):
        rows = scores["sweep"][words]
        ks = sorted(rows, key=int)
        if not ks:
            continue
        x = [int(k) for k in ks]
        axes.plot(x, [rows[k]["avg"] for k in ks], color=colour, marker="o", markersize=4, label=name)
        if all("ci95" in rows[k] for k in ks):
            low, high = zip(*(rows[k]["ci95"]["avg"] for k in ks))
            axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        for control, (label, line) in _CONTROL_LINES.items():
            values = [rows[k][control]["avg"] for k in ks if control in rows[k]]
            if len(values) == len(x):
                axes.plot(x, values, color=colour, linestyle=line, linewidth=1, label=f"{label}, {name}")
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks(ticks, [str(k) for k in ticks])
    axes.set(title="Hit rate by neighbours", xlabel="number of nearest subwords", ylabel="average hit rate in percent")
    axes.margins(y=0.1)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8, frameon=True, framealpha=0.8, edgecolor="none")
    return figure


def attention_plot(
    wave: NDArray[np.float32],
    decibel: NDArray[np.float64],
    attention: NDArray[np.float32],
    names: Sequence[str],
    words: Sequence[AlignedWord],
) -> Figure:
    """Draw the attention of every keyword under the waveform and the spectrogram, on one time axis.

    Args:
        wave: waveform [N], 16 kHz.
        decibel: mel spectrogram [bands, frames] in dB.
        attention: attention over the frames [K, T].
        names: the nearest subword of every keyword, K.
        words: the spoken words; may be empty.
    """
    from matplotlib.figure import Figure

    seconds = len(wave) / SAMPLE_RATE
    count = len(attention)
    figure = Figure(figsize=(7.2, 2.9 + 0.22 * count), layout="constrained")
    grid = figure.add_gridspec(3, 1, height_ratios=[0.7, 1.3, 0.22 * count])
    top, middle, bottom = (figure.add_subplot(grid[at]) for at in range(3))
    top.plot(np.arange(len(wave)) / SAMPLE_RATE, wave, color=GREY, linewidth=0.4)
    top.set(yticks=[], xlim=(0, seconds))
    for word in words:
        top.axvline(word.start, color="#333333", linewidth=0.4)
        at = (word.start, 1.03)
        top.annotate(word.text, at, xycoords=("data", "axes fraction"), fontsize=7, rotation=35, va="bottom")
    middle.imshow(decibel, aspect="auto", origin="lower", cmap="gray", extent=(0, seconds, 0, 1))
    middle.set(ylabel="mel band", yticks=[], xlim=(0, seconds))
    times = (np.arange(attention.shape[1]) + 0.5) * FRAME_SECONDS
    for number, row in enumerate(attention):
        middle.plot(times, row / max(float(row.max()), 1e-9), color=CYCLE[number % len(CYCLE)], linewidth=1)
    scaled = attention / np.maximum(attention.max(axis=1, keepdims=True), 1e-9)
    extent = (0, attention.shape[1] * FRAME_SECONDS, count, 0)
    bottom.imshow(scaled, aspect="auto", cmap="Blues", extent=extent, interpolation="nearest")
    bottom.set(xlabel="seconds", yticks=np.arange(count) + 0.5, yticklabels=names, xlim=(0, seconds))
    for axes in (top, middle, bottom):
        axes.grid(visible=False)
    for axes in (top, middle):
        axes.tick_params(labelbottom=False)
    return figure


def joint_map(plane: Plane) -> Figure:
    """Draw utterances and images in the plane of `projection.project`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 5.0), layout="constrained")
    axes = figure.add_subplot()
    for points, label, colour, marker in (
        (plane.images, "images", ORANGE, "s"),
        (plane.speech, "utterances", BLUE, "o"),
    ):
        axes.scatter(points[:, 0], points[:, 1], s=9, color=colour, marker=marker, alpha=0.5, linewidths=0, label=label)
    share = [f"{100 * part:.0f} % of the variance" for part in plane.explained]
    axes.set(title="Joint space", xlabel=f"first component, {share[0]}", ylabel=f"second component, {share[1]}")
    axes.legend(fontsize=8, frameon=True, framealpha=0.8, edgecolor="none")
    return figure


def paired_curves(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], title: str, unit: str) -> Figure:
    """Draw one curve per run.

    Args:
        curves: steps and values by the name of the run.
        title: title of the figure.
        unit: label of the vertical axis. With "percent", it starts at 0.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for (name, (steps, values)), colour in zip(curves.items(), (BLUE, ORANGE)):
        axes.plot(steps, values, color=colour, marker="." if len(values) < 30 else "", label=name)
    axes.set(title=title, xlabel="step", ylabel=unit)
    axes.margins(y=0.1)
    if unit == "percent":
        axes.set_ylim(bottom=0)
    axes.legend(fontsize=8, frameon=True, framealpha=0.8, edgecolor="none")
    return figure


def paired_bars(rows: Mapping[str, Mapping[str, float]], title: str, unit: str) -> Figure:
    """Draw the values of two runs as bars side by side.

    Args:
        rows: values by name, by the name of the run. A run may lack a name.
        title: title of the figure.
        unit: label of the vertical axis.
    """
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    figure = Figure(figsize=(max(4.8, 0.5 * len(names) + 1.5), 3.2), layout="constrained")
    axes = figure.add_subplot()
    for place, ((run, row), colour) in enumerate(zip(rows.items(), (BLUE, ORANGE))):
        x = [at + 0.4 * (place - 0.5) for at, name in enumerate(names) if name in row]
        axes.bar(x, [row[name] for name in names if name in row], 0.38, color=colour, label=run)
    axes.set(title=title, ylabel=unit, xticks=range(len(names)), xticklabels=names)
    axes.margins(y=0.1)
    axes.set_ylim(bottom=0)
    axes.grid(axis="x", visible=False)
    axes.legend(fontsize=8, frameon=True, framealpha=0.8, edgecolor="none")
    return figure
