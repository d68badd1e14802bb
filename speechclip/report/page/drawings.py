"""The figures of a page, and figures as files for papers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from speechclip.common.constants import SCORES
from speechclip.common.errors import UserError
from speechclip.data.audio import load_audio
from speechclip.eval.score_files import ATTENTION, KEYWORD_LINES, SPEECH, read_attention, read_keyword_lines
from speechclip.report.figures import plots
from speechclip.report.figures import run_figures as figures
from speechclip.report.figures.style import STYLE, write_figure
from speechclip.report.page.eval_split import EvalSplit
from speechclip.report.page.inline import inline_svg
from speechclip.report.page.media import spectrogram
from speechclip.report.page.projection import Plane
from speechclip.report.results.retrieval_tables import RETRIEVAL
from speechclip.report.runs import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Drawing(NamedTuple):
    """A figure inside a page.

    Attributes:
        title: the title.
        svg: the markup.
        wide: whether the figure needs the whole width of the page.
    """

    title: str
    svg: str
    wide: bool = False


def run_drawings(run: Run) -> dict[str, list[Drawing]]:
    """Draw the figures of a run, as far as it has their files, by section: "retrieval", "training", "keywords"."""
    found: dict[str, list[Drawing]] = {"retrieval": [], "training": [], "keywords": []}
    for at, (title, directions) in enumerate(RETRIEVAL.items()):
        if all(name in run.retrieval.content for name in directions):
            part = {name: run.retrieval.content[name] for name in directions}
            part["random"] = run.retrieval.get("random")
            found["retrieval"].append(
                draw(run.retrieval.path, figures.retrieval_bars, part, f"retrieval-{at}", title, _recalls_text(part))
            )
    log = run.directory / "metrics.jsonl"
    if log.exists():
        metrics = figures.read_metrics(log)
        found["training"] += training_drawings(log, metrics)
    if run.keywords:
        path, content = run.keywords.path, run.keywords.content
        title = "Hit rate of every keyword"
        rates = ", ".join(f"{name} {rate:.1f}" for name, rate in run.keywords.get("clean").items())
        text = f"Bars. Hit rate in percent, clean: {rates}. All numbers are in the tables."
        found["keywords"].append(draw(path, figures.keyword_bars, content, "keyword-rates", title, text))
        if any(content.get("sweep", {}).values()):
            text = "Lines. Average hit rate against the number of neighbours. The numbers are in the table."
            title = "Hit rate by neighbours"
            found["keywords"].append(draw(path, plots.sweep_curves, content, "keyword-sweep", title, text))
    return found


def training_drawings(log: Path, metrics: figures.Metrics) -> list[Drawing]:
    """Draw every panel of the training curves, and the layer weights if they were logged."""
    panels: dict[str, Drawing] = {}
    for at, (title, panel) in enumerate(draw_styled(log, figures.training_panels, metrics).items()):
        last = figures.last_values(metrics, title)
        panels[title] = Drawing(title, inline(panel, f"training-{at}", f"{title} over the training steps. {last}"))
    found = list(panels.values())
    weights = figures.best_layer_weights(metrics)
    if weights:
        numbers = ", ".join(f"{number}: {value:.3f}" for number, value in enumerate(weights[1]))
        text = f"Bars. Weight of every hidden state at step {weights[0]:.0f}: {numbers}."
        found.append(draw(log, figures.layer_weight_bars, metrics, "layer-weights", "Layer weights", text))
    return found


def draw(source: Path, maker: Callable[[Any], Figure], content: Any, name: str, title: str, text: str) -> Drawing:
    """Draw a figure for a page.

    Args:
        source: the file that has the data, for the error.
        maker: draws ``content``.
        content: the data.
        name: prefix of the ids in the markup, unique in the page.
        title: the title.
        text: description of the figure for screen readers.

    Raises:
        UserError: the data lack a value that the figure needs.
    """
    figure = draw_styled(source, maker, content)
    return Drawing(title, inline(figure, name, f"{title}. {text}"), figure.get_figwidth() > 6.5)


def draw_styled(source: Path, maker: Callable[[Any], Any], content: Any) -> Any:
    """Call a maker in the style of all figures.

    Raises:
        UserError: the data lack a value that the figure needs.
    """
    import matplotlib

    with matplotlib.rc_context(STYLE):
        try:
            return maker(content)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{source}: cannot be drawn: {type(error).__name__}: {error}") from error


def inline(figure: Figure, name: str, text: str) -> str:
    """Return `inline_svg` in the style of all figures."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        return inline_svg(figure, name, text)


def write_data_figures(run: Run, eval_split: EvalSplit, plane: Plane) -> list[Path]:
    """Write the map of the joint space, and the attention of the first utterance that has it, for papers.

    Returns:
        The files ``figures/map.*`` and ``figures/attention.*``.
    """
    folder = run.directory / "figures"
    source = run.directory / SCORES / SPEECH
    written = write_figure(source, folder / "map", plots.joint_map, plane)
    kept = run.directory / SCORES / ATTENTION
    attention = read_attention(kept) if run.keywords else {}
    for utterance in eval_split.utterances:
        if utterance.id not in attention:
            continue
        records = read_keyword_lines(run.directory / SCORES / KEYWORD_LINES, [utterance.id])[utterance.id]
        names = [record["neighbours"][0]["subword"].removesuffix("</w>").lstrip("▁") for record in records]
        wave = load_audio(utterance.wav)
        words = eval_split.words.get(utterance.id, [])
        parts = (wave, spectrogram(wave), attention[utterance.id], names, words)
        written += write_figure(kept, folder / "attention", lambda drawn: plots.attention_plot(*drawn), parts)
        break
    return written


def _recalls_text(part: Mapping[str, Any]) -> str:
    rows = [
        f"{name}: " + ", ".join(f"{cutoff} {part[name][cutoff]:.1f}" for cutoff in figures.RECALLS)
        for name in part
        if name != "random"
    ]
    return f"Bars with intervals, percent. {'; '.join(rows)}."
