"""Figures as SVG inside a page, with its fonts, its light and dark colours, and a text for screen readers."""

from __future__ import annotations

import io
import re
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The colours of the figures, and the variables of the page that replace them.
_COLOURS = {
    "#000000": "currentColor", "#333333": "currentColor", "#262626": "currentColor", "#ffffff": "var(--surface)",
    "#dddddd": "var(--grid)", "#777777": "var(--muted)", "#0072b2": "var(--blue)", "#e69f00": "var(--orange)",
    "#009e73": "var(--green)", "#d55e00": "var(--red)", "#56b4e9": "var(--sky)",
}  # fmt: skip
_NAMED = re.compile(r'\b(id="|url\(#|href="#)')


def inline_svg(figure: Figure, name: str, description: str) -> str:
    """Return a figure as an ``<svg>`` element without a background. Its text stays text.

    Args:
        figure: a figure in the style of `style.STYLE`.
        name: prefix of the ids, unique in the page.
        description: text for screen readers.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = _NAMED.sub(lambda found: f"{found.group(1)}{name}-", svg)
    for colour, variable in _COLOURS.items():
        svg = svg.replace(colour, variable)
    svg = re.sub(r" font-family: [^;\"]*;", "", svg)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # inside a page it would apply to everything
    # Text and paths without a colour get the text colour of the page. The default of SVG is black.
    width = _points(svg, "width")
    label = f'role="img" aria-label="{escape(description, quote=True)}" fill="currentColor"'
    opening = re.match(r"<svg[^>]*>", svg)
    assert opening is not None
    box = re.search(r'viewBox="[^"]*"', opening.group())
    assert box is not None
    head = f'<svg class="plot" style="--natural: {width:.0f}px" {box.group()} {label}>'
    return head + svg[opening.end() :]


def _points(svg: str, name: str) -> float:
    found = re.search(rf'{name}="([\d.]+)pt"', svg)
    return float(found.group(1)) if found else 400.0
