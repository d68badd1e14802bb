"""Growth of each cost with utterances, length and vocabulary: seconds at a few sizes, and a fitted power law.

The models have the published Base size. If a part of a cost does not grow, the exponent is below the true one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import extraction
import measure
import numpy as np
import parts
import scoring
import steps
import store
from measure import OURS, PLAIN

from speechclip.common.constants import SAMPLE_RATE


def run(shape: str, repeats: int) -> list[dict[str, Any]]:
    """Measure every cost: sizes, seconds and exponents of plain and ours."""
    step, subwords = "training step, cascaded", (1000, 2000, 4000, 8000, 16000)
    rows = [
        series(step, "utterances in the batch", (2, 4, 8), _steps(shape, "batch"), repeats),
        series(step, "seconds of speech", (2, 4, 8, 15), _steps(shape, "length"), repeats),
        series(step, "subwords", subwords, _steps(shape, "subwords"), repeats),
        series("scoring", "images, five utterances each", (250, 500, 1000, 2000), _scoring, repeats),
    ]
    with tempfile.TemporaryDirectory() as name:
        plain, ours = extraction.plain_encoder(shape, Path(name)), parts.speech_encoder(shape, Path(name))

        def speech(lengths: Iterable[float]) -> dict[str, Callable[[], Any]]:
            waves = parts.waves(np.array([round(seconds * SAMPLE_RATE) for seconds in lengths]))
            return {PLAIN: lambda: plain(waves), OURS: lambda: ours(waves)}

        rows.append(series("extraction", "seconds of an utterance", (1, 2, 4, 8, 15), lambda n: speech([n]), repeats))
        rows.append(series("extraction", "utterances of 3 s", (1, 2, 4, 8), lambda n: speech([3.0] * n), repeats))
    rows.append(_reading(shape, (32, 64, 128), repeats))
    return rows


def series(
    cost: str, of: str, sizes: tuple[int, ...], works: Callable[[int], dict[str, Callable[[], Any]]], repeats: int
) -> dict[str, Any]:
    """Measure the lowest time of ``repeats`` at each size.

    Args:
        cost: what is measured.
        of: what the size counts.
        sizes: the sizes.
        works: returns the plain and our function for a size.
        repeats: rounds.
    """
    seconds: dict[str, list[float]] = {PLAIN: [], OURS: []}
    for size in sizes:
        for kind, times in measure.interleaved(works(size), repeats).items():
            seconds[kind].append(min(times))
    return _fitted(cost, of, sizes, seconds)


def _fitted(cost: str, of: str, sizes: tuple[int, ...], seconds: dict[str, list[float]]) -> dict[str, Any]:
    fits = {kind: measure.fit_power(sizes, times) for kind, times in seconds.items()}
    print(f"{cost} by {of}: " + ", ".join(f"{kind} {fit['exponent']:.2f}" for kind, fit in fits.items()), flush=True)
    return {"cost": cost, "of": of, "sizes": list(sizes), "seconds": seconds, "fit": fits}


def _steps(shape: str, what: str) -> Callable[[int], dict[str, Callable[[], Any]]]:
    def works(size: int) -> dict[str, Callable[[], Any]]:
        varied: dict[str, Any] = {"batch": 2, "length": 4, what: size}
        return {kind: steps.make_step(kind, shape, "cascaded", **varied) for kind in (PLAIN, OURS)}

    return works


def _scoring(images: int) -> dict[str, Callable[[], Any]]:
    import plain
    import torch

    spoken, pictured, owner = scoring.embeddings(images, 5)
    tensors = tuple(torch.from_numpy(array) for array in (spoken, pictured, owner))
    return {PLAIN: lambda: plain.recall(*tensors), OURS: lambda: scoring.ours(spoken, pictured, owner)}


def _reading(shape: str, sizes: tuple[int, ...], repeats: int) -> dict[str, Any]:
    found = [store.run(shape, size, repeats)[0]["time"] for size in sizes]
    return _fitted(
        "reading at random", "utterances", sizes, {kind: [row[kind] for row in found] for kind in (PLAIN, OURS)}
    )


def draw(rows: list[dict[str, Any]], target: Path) -> None:
    """Draw one small plot per row with logarithmic axes, as SVG."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "speechclip"  # equal numbers give an equal file
    from matplotlib import pyplot
    from matplotlib.ticker import NullFormatter, NullLocator

    columns = 4
    lines = -(-len(rows) // columns)
    figure, axes = pyplot.subplots(lines, columns, figsize=(3.2 * columns, 2.9 * lines), squeeze=False)
    for axis in axes.flat[len(rows) :]:
        axis.set_axis_off()
    for axis, row in zip(axes.flat, rows):
        sizes = np.array(row["sizes"], dtype=float)
        for kind, marker in ((PLAIN, "s"), (OURS, "o")):
            fit = row["fit"][kind]
            (line,) = axis.loglog(sizes, row["seconds"][kind], marker, markersize=4)
            label = f"{kind}, exponent {fit['exponent']:.2f}"
            axis.loglog(sizes, [measure.predict(fit, x) for x in sizes], color=line.get_color(), label=label)
        axis.set_title(row["cost"], fontsize=9)
        axis.set_xlabel(row["of"], fontsize=8)
        axis.set_ylabel("seconds", fontsize=8)
        axis.set_xticks(sizes, [f"{size:g}" for size in sizes], minor=False)
        axis.xaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.tick_params(labelsize=7)
        axis.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(target, format="svg", metadata={"Date": None})
    pyplot.close(figure)
