"""Pictures of scenes, 64 x 64 pixels: PIL draws them four times as large, then they are averaged down."""

from __future__ import annotations

from functools import cache
from math import cos, pi, sin

import numpy as np
from backgrounds import paint_background
from PIL import Image, ImageChops, ImageDraw, ImageFilter
from scenes import CENTRES, COLOURS, SIZE, Scene, Thing

SCALE = 4
_WIDTHS = {"big": 28, "": 22, "small": 14}  # pixels
_GROUP_OFFSETS = {2: ((-7, 0), (7, 0)), 3: ((-7, 6), (7, 6), (0, -7)), 4: ((-7, -7), (7, -7), (-7, 7), (7, 7))}
_GROUP_WIDTH = 12

Point = tuple[float, float]


def _regular(corners: int, radius: float = 0.5, turn: float = -0.25, inner: float | None = None) -> list[Point]:
    """Return a regular polygon around (0.5, 0.5), or a star if ``inner`` is given. turn: rotation in turns."""
    steps = corners if inner is None else 2 * corners
    radii = [radius if inner is None or i % 2 == 0 else inner for i in range(steps)]
    angles = [2 * pi * (i / steps + turn) for i in range(steps)]
    return [(0.5 + r * cos(a), 0.5 + r * sin(a)) for r, a in zip(radii, angles, strict=True)]


def _heart() -> list[Point]:
    steps = [2 * pi * i / 40 for i in range(40)]
    return [
        (0.5 + 0.5 * sin(t) ** 3, 0.46 - (13 * cos(t) - 5 * cos(2 * t) - 2 * cos(3 * t) - cos(4 * t)) / 32)
        for t in steps
    ]


# (kind, coordinates in the unit square, 1 draws and 0 erases); "oval" and "box" take two corners
_Part = tuple[str, list[Point], int]
_FORMS: dict[str, list[_Part]] = {
    "circle": [("oval", [(0, 0), (1, 1)], 1)],
    "square": [("box", [(0.06, 0.06), (0.94, 0.94)], 1)],
    "triangle": [("poly", [(0.5, 0), (1, 0.95), (0, 0.95)], 1)],
    "star": [("poly", _regular(5, 0.54, -0.25, 0.21), 1)],
    "cross": [("box", [(0.34, 0), (0.66, 1)], 1), ("box", [(0, 0.34), (1, 0.66)], 1)],
    "heart": [("poly", _heart(), 1)],
    "diamond": [("poly", [(0.5, 0), (0.9, 0.5), (0.5, 1), (0.1, 0.5)], 1)],
    "ring": [("oval", [(0, 0), (1, 1)], 1), ("oval", [(0.28, 0.28), (0.72, 0.72)], 0)],
    "hexagon": [("poly", _regular(6, 0.52, 0.0), 1)],
    "moon": [("oval", [(0, 0), (1, 1)], 1), ("oval", [(0.34, -0.08), (1.2, 0.78)], 0)],
    "arrow": [("poly", [(0, 0.34), (0.5, 0.34), (0.5, 0.06), (1, 0.5), (0.5, 0.94), (0.5, 0.66), (0, 0.66)], 1)],
    "flower": [
        *[("oval", [(x - 0.2, y - 0.2), (x + 0.2, y + 0.2)], 1) for x, y in _regular(6, 0.31)],
        ("oval", [(0.38, 0.38), (0.62, 0.62)], 0),
    ],
    "tree": [
        ("poly", [(0.5, 0), (0.92, 0.42), (0.08, 0.42)], 1),
        ("poly", [(0.5, 0.2), (1, 0.76), (0, 0.76)], 1),
        ("box", [(0.4, 0.7), (0.6, 1)], 1),
    ],
    "house": [
        ("poly", [(0.5, 0), (1, 0.45), (0, 0.45)], 1),
        ("box", [(0.12, 0.42), (0.88, 1)], 1),
        ("box", [(0.4, 0.62), (0.62, 1)], 0),
    ],
    "fish": [
        ("oval", [(0, 0.22), (0.74, 0.8)], 1),
        ("poly", [(0.62, 0.5), (1, 0.18), (1, 0.84)], 1),
        ("oval", [(0.14, 0.38), (0.26, 0.5)], 0),
    ],
    "boat": [
        ("poly", [(0, 0.66), (1, 0.66), (0.8, 1), (0.2, 1)], 1),
        ("poly", [(0.46, 0), (0.46, 0.58), (0.06, 0.58)], 1),
        ("poly", [(0.54, 0.1), (0.54, 0.58), (0.9, 0.58)], 1),
    ],
    "cup": [
        ("box", [(0.04, 0.12), (0.7, 0.95)], 1),
        ("oval", [(0.5, 0.24), (1, 0.78)], 1),
        ("oval", [(0.66, 0.38), (0.88, 0.64)], 0),
    ],
    "key": [
        ("oval", [(0, 0.26), (0.48, 0.74)], 1),
        ("box", [(0.42, 0.42), (1, 0.58)], 1),
        ("box", [(0.66, 0.5), (0.76, 0.82)], 1),
        ("box", [(0.88, 0.5), (0.98, 0.82)], 1),
        ("oval", [(0.14, 0.4), (0.34, 0.6)], 0),
    ],
    "cloud": [
        ("oval", [(0, 0.4), (0.45, 0.85)], 1),
        ("oval", [(0.18, 0.14), (0.68, 0.7)], 1),
        ("oval", [(0.5, 0.32), (1, 0.85)], 1),
        ("box", [(0.22, 0.55), (0.76, 0.85)], 1),
    ],
    "mushroom": [("pie", [(0, 0), (1, 1.1)], 1), ("box", [(0.36, 0.5), (0.64, 1)], 1)],
    "crown": [("poly", [(0, 0.1), (0.25, 0.5), (0.5, 0), (0.75, 0.5), (1, 0.1), (0.92, 0.92), (0.08, 0.92)], 1)],
    "leaf": [
        ("poly", [(0.0, 1.0), (0.06, 0.42), (0.42, 0.08), (1.0, 0.0), (0.92, 0.58), (0.56, 0.92)], 1),
        ("poly", [(0.12, 0.84), (0.78, 0.18), (0.82, 0.22), (0.16, 0.88)], 0),
    ],
    "ladder": [
        ("box", [(0.12, 0), (0.3, 1)], 1),
        ("box", [(0.7, 0), (0.88, 1)], 1),
        *[("box", [(0.2, y), (0.8, y + 0.13)], 1) for y in (0.1, 0.44, 0.78)],
    ],
    "bottle": [
        ("box", [(0.38, 0), (0.62, 0.4)], 1),
        ("oval", [(0.22, 0.24), (0.78, 0.66)], 1),
        ("box", [(0.22, 0.44), (0.78, 1)], 1),
    ],
}


def _draw(draw: ImageDraw.ImageDraw, part: _Part, width: float) -> None:
    kind, points, ink = part
    scaled = [(x * width, y * width) for x, y in points]
    if kind == "poly":
        draw.polygon(scaled, fill=255 * ink)
    elif kind == "pie":
        draw.pieslice(scaled, 180, 360, fill=255 * ink)
    elif kind == "oval":
        draw.ellipse(scaled, fill=255 * ink)
    else:
        draw.rectangle(scaled, fill=255 * ink)


@cache
def _mask(shape: str, width: int) -> Image.Image:
    """Return the shape in white on black, ``width`` pixels wide, with a margin of a tenth on every side."""
    margin = max(2, width // 10)
    plain = Image.new("L", (width, width))
    draw = ImageDraw.Draw(plain)
    for part in _FORMS[shape]:
        _draw(draw, part, width - 1)
    framed = Image.new("L", (width + 2 * margin, width + 2 * margin))
    framed.paste(plain, (margin, margin))
    return framed


def _fill(thing: Thing, colour: np.ndarray, width: int) -> Image.Image:
    """Return a square of the thing's colour and texture. The second colour is white, or black on bright colours."""
    if thing.texture in ("", "hollow"):
        red, green, blue = (int(value) for value in colour)
        return Image.new("RGB", (width, width), (red, green, blue))
    y, x = np.mgrid[0:width, 0:width]
    other = np.full(3, 255.0 if colour.mean() < 170 else 20.0)
    period = 5.0 * SCALE
    if thing.texture == "striped":
        weight = (y % period < 0.45 * period).astype(float)
    elif thing.texture == "spotted":
        weight = (np.hypot(x % period - period / 2, y % period - period / 2) < 0.3 * period).astype(float)
    elif thing.texture == "checkered":
        weight = ((x // (0.8 * period) + y // (0.8 * period)) % 2 == 0).astype(float)
    else:
        weight = np.clip(1.15 * y / width - 0.1, 0, 1)
    return Image.fromarray((colour + weight[..., None] * (other - colour)).round().astype(np.uint8))


@cache
def _masks(shape: str, width: int, hollow: bool) -> tuple[Image.Image, Image.Image]:
    """Return the masks of the outline and of the fill of a shape."""
    mask = _mask(shape, width)
    inner = mask.filter(ImageFilter.MinFilter(5))
    if not hollow:
        return mask, inner
    inside = mask.filter(ImageFilter.MinFilter(2 * max(2, round(0.065 * width)) + 1))
    return ImageChops.subtract(mask, inside), ImageChops.subtract(inner, inside)


def _paint(picture: Image.Image, thing: Thing, colour: np.ndarray, centre: Point, width: int) -> None:
    """Paint one object of ``width`` pixels. Its outline is darker, or brighter for dark colours."""
    mask, inner = _masks(thing.shape, width, thing.texture == "hollow")
    corner = (round(centre[0] - mask.width / 2), round(centre[1] - mask.width / 2))
    edge = np.clip(colour * 0.45, 0, 255) if colour.mean() > 45 else np.clip(colour + 110, 0, 255)
    red, green, blue = (int(value) for value in edge)
    picture.paste((red, green, blue), (*corner, corner[0] + mask.width, corner[1] + mask.height), mask)
    picture.paste(_fill(thing, colour, mask.width), corner, inner)


def render(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """Return the scene as an RGB picture of 64 x 64. ``rng`` varies places, sizes, colours and the background."""
    base = paint_background(scene.background, rng, SIZE)
    picture = Image.fromarray(base).resize((SIZE * SCALE, SIZE * SCALE), Image.Resampling.BICUBIC)
    for thing in scene.things:
        jitter = rng.uniform(-1, 1, size=6)
        colour = np.clip(np.array(COLOURS[thing.colour]) + 8 * jitter[:3], 0, 255)
        x, y = (CENTRES[cell] + 1.5 * move for cell, move in zip((thing.column, thing.row), jitter[3:5], strict=True))
        if thing.count == 1:
            width = _WIDTHS[thing.size] + round(float(jitter[5]))
            _paint(picture, thing, colour, (x * SCALE, y * SCALE), width * SCALE)
            continue
        for across, down in _GROUP_OFFSETS[thing.count]:
            _paint(picture, thing, colour, ((x + across) * SCALE, (y + down) * SCALE), _GROUP_WIDTH * SCALE)
    return picture.reduce(SCALE)
