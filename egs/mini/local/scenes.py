"""Random scenes: two or three objects on a background, with their shapes, colours and places.

A scene is data: `render.py` draws it and `captions.py` describes it. Scene `index` of a split depends only on
(seed, split, index).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SIZE = 64  # pixels per side
SPLITS = {"train": 0, "dev": 1, "test": 2, "pretrain_clip": 3, "pretrain_hubert": 4}

SHAPES = (
    "circle",
    "square",
    "triangle",
    "star",
    "cross",
    "heart",
    "diamond",
    "ring",
    "hexagon",
    "moon",
    "arrow",
    "flower",
    "tree",
    "house",
    "fish",
    "boat",
    "cup",
    "key",
    "cloud",
    "mushroom",
    "crown",
    "leaf",
    "ladder",
    "bottle",
)
COLOURS = {
    "red": (225, 25, 30),
    "crimson": (150, 5, 45),
    "pink": (255, 140, 190),
    "coral": (255, 110, 85),
    "orange": (255, 145, 10),
    "peach": (255, 200, 160),
    "yellow": (250, 225, 35),
    "gold": (200, 150, 20),
    "lime": (165, 240, 40),
    "green": (35, 165, 55),
    "olive": (115, 115, 35),
    "teal": (0, 120, 120),
    "turquoise": (70, 225, 215),
    "blue": (30, 75, 225),
    "navy": (15, 20, 95),
    "purple": (125, 30, 165),
    "violet": (175, 125, 245),
    "magenta": (235, 25, 205),
    "brown": (115, 65, 25),
    "tan": (205, 165, 115),
    "black": (12, 12, 14),
    "gray": (125, 125, 128),
    "silver": (190, 196, 206),
    "white": (252, 252, 252),
}
TEXTURES = ("striped", "spotted", "checkered", "hollow", "shaded")
SIZES = ("big", "small")
BACKGROUNDS = (
    "sky",
    "grass",
    "sand",
    "sea",
    "night",
    "snow",
    "bricks",
    "wood",
    "fog",
    "sunset",
    "paper",
    "forest",
    "curtain",
    "carpet",
    "tiles",
    "rocks",
)
CENTRES = (13, 32, 51)  # pixel of the left/middle/right column and of the top/middle/bottom row
APART = 27.0  # pixels between the centres of two objects, at least


@dataclass(frozen=True)
class Thing:
    """An object, or a group of ``count`` equal objects. ``texture`` and ``size`` may be "" (plain, medium)."""

    shape: str
    colour: str
    texture: str
    size: str
    count: int
    column: int
    row: int


@dataclass(frozen=True)
class Scene:
    """Two or three things of different shape and colour, and the background."""

    things: tuple[Thing, ...]
    background: str


def generator(seed: int, split: str, index: int, purpose: int = 0) -> np.random.Generator:
    """Return the random generator of a scene, equal on every machine. purpose: scene, picture or captions."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, SPLITS[split], index, purpose])))


def _places(rng: np.random.Generator, count: int) -> list[tuple[int, int]]:
    """Return ``count`` cells (column, row) with centres at least ``APART`` pixels apart."""
    while True:
        cells = [divmod(int(cell), 3) for cell in rng.permutation(9)[:count]]
        points = [(CENTRES[column], CENTRES[row]) for column, row in cells]
        gaps = [np.hypot(a[0] - b[0], a[1] - b[1]) for i, a in enumerate(points) for b in points[:i]]
        if min(gaps) >= APART - 0.5:
            return cells


def random_scene(seed: int, split: str, index: int) -> Scene:
    """Return scene ``index`` of a split (a key of ``SPLITS``)."""
    rng = generator(seed, split, index)
    count = 2 if rng.random() < 0.55 else 3
    shapes = rng.permutation(len(SHAPES))[:count]
    colours = rng.permutation(len(COLOURS))[:count]
    names = tuple(COLOURS)
    things = []
    for shape, colour, (column, row) in zip(shapes, colours, _places(rng, count), strict=True):
        group = int(rng.integers(2, 5)) if rng.random() < 0.15 else 1
        texture = str(rng.choice(TEXTURES)) if group == 1 and rng.random() < 0.42 else ""
        size = str(rng.choice(SIZES)) if group == 1 and rng.random() < 0.6 else ""
        things.append(Thing(SHAPES[shape], names[colour], texture, size, group, column, row))
    return Scene(tuple(things), str(rng.choice(BACKGROUNDS)))
