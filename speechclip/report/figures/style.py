"""The style of all figures, and a function that writes them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechclip.common.errors import UserError
from speechclip.common.files import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The colours of Okabe and Ito, which colour-blind readers can distinguish.
BLUE, ORANGE, GREEN, RED, SKY, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#777777"
STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "font.size": 10,
    "legend.frameon": False,
    "svg.hashsalt": "speechclip",  # equal data give equal files
}


def write_figure(source: Path, stem: Path, draw: Callable[[Any], Figure], content: Any) -> list[Path]:
    """Draw a figure and write it as SVG and PNG, each atomically.

    Args:
        source: the file that has the data, for the error.
        stem: path of the figure without a suffix.
        draw: draws ``content``.
        content: the data.

    Returns:
        The files.

    Raises:
        UserError: the data lack a value that the figure needs.
    """
    import matplotlib

    files = {}
    with matplotlib.rc_context(STYLE):
        try:
            figure = draw(content)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{source}: cannot be drawn: {type(error).__name__}: {error}") from error
        for suffix in (".svg", ".png"):
            buffer = io.BytesIO()
            metadata = {"Date": None} if suffix == ".svg" else None
            figure.savefig(buffer, format=suffix[1:], dpi=150, metadata=metadata)
            files[stem.with_suffix(suffix)] = buffer.getvalue()
    for path, data in files.items():
        replace_file(path, data)
    return list(files)


def fit_percent(axes: Axes, highest: float) -> None:
    """Set a percent axis from 0 to a little above the highest value that is drawn, at most 105."""
    axes.set_ylim(0, min(105.0, 1.12 * highest) if highest > 0 else 1.0)
