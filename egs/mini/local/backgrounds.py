"""Backgrounds of scenes: a colour and a soft pattern each, so that objects stay visible."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

# name -> two RGB colours: the ground and its pattern
_INKS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "sky": ((150, 205, 250), (225, 240, 255)),
    "grass": ((110, 190, 90), (70, 150, 60)),
    "sand": ((235, 215, 160), (200, 170, 110)),
    "sea": ((50, 130, 190), (140, 200, 235)),
    "night": ((25, 25, 60), (230, 230, 190)),
    "snow": ((232, 240, 250), (190, 205, 235)),
    "bricks": ((175, 85, 65), (225, 200, 185)),
    "wood": ((170, 115, 65), (125, 78, 40)),
    "fog": ((215, 215, 215), (150, 152, 158)),
    "sunset": ((255, 180, 90), (190, 70, 120)),
    "paper": ((250, 247, 232), (150, 175, 225)),
    "forest": ((45, 95, 50), (25, 60, 35)),
    "curtain": ((150, 30, 45), (95, 12, 28)),
    "carpet": ((130, 95, 160), (185, 155, 205)),
    "tiles": ((205, 232, 232), (110, 160, 170)),
    "rocks": ((130, 122, 115), (85, 80, 78)),
}

_Grid = np.ndarray
_PATTERNS: dict[str, Callable[[_Grid, _Grid, _Grid], np.ndarray]] = {
    # x, y in [0, 1), n: blurred noise in [0, 1]; returns the weight of the second colour
    "sky": lambda x, y, n: np.clip(2.2 * (n - 0.5), 0, 1) + 0.6 * y,
    "grass": lambda x, y, n: (np.sin(50 * x + 12 * n) > 0.55) * (0.4 + 0.6 * y),
    "sand": lambda x, y, n: np.clip(3.0 * (n - 0.55), 0, 0.8),
    "sea": lambda x, y, n: (np.sin(38 * y + 2.5 * np.sin(14 * x)) > 0.6) * 0.9,
    "night": lambda x, y, n: (n > 0.93) * 1.0,
    "snow": lambda x, y, n: np.clip(2.0 * (n - 0.5), 0, 1),
    "bricks": lambda x, y, n: ((y * 8 % 1 < 0.16) | ((x * 4 + 0.5 * (np.floor(y * 8) % 2)) % 1 < 0.08)) * 0.8,
    "wood": lambda x, y, n: 0.5 + 0.5 * np.sin(26 * y + 5 * n),
    "fog": lambda x, y, n: np.clip(0.25 + 1.4 * (n - 0.4), 0, 1),
    "sunset": lambda x, y, n: y,
    "paper": lambda x, y, n: (y * 9 % 1 < 0.14) * 1.0,
    "forest": lambda x, y, n: (np.sin(22 * x + 5 * n) > 0) * 1.0,
    "curtain": lambda x, y, n: 0.5 + 0.5 * np.sin(44 * x),
    "carpet": lambda x, y, n: (np.abs(x * 5 % 1 - 0.5) + np.abs(y * 5 % 1 - 0.5) < 0.24) * 1.0,
    "tiles": lambda x, y, n: ((y * 5 % 1 < 0.1) | (x * 5 % 1 < 0.1)) * 1.0,
    "rocks": lambda x, y, n: (n > 0.52) * 0.9,
}


def _noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Return noise in [0, 1], smooth over about size / cells pixels: bilinear between random values."""
    values = rng.random((cells + 2, cells + 2))
    at = np.arange(size) * cells / size
    low, part = at.astype(int), at % 1
    rows = values[low] * (1 - part[:, None]) + values[low + 1] * part[:, None]
    return np.asarray(rows[:, low] * (1 - part) + rows[:, low + 1] * part)


def paint_background(name: str, rng: np.random.Generator, size: int) -> np.ndarray:
    """Paint a background, uint8 RGB [size, size, 3]. ``rng`` shifts the pattern and changes the brightness a little."""
    ground, ink = (np.array(colour, dtype=float) for colour in _INKS[name])
    shift = rng.random(2)
    light = 1 + 0.06 * (2 * rng.random() - 1)
    y, x = np.mgrid[0:size, 0:size] / size
    noise = _noise(rng, size, 26 if name in ("night", "sand") else 9)
    if name not in ("sky", "sunset", "grass"):
        x, y = (x + shift[0]) % 1, (y + shift[1]) % 1
    weight = np.clip(_PATTERNS[name](x, y, noise), 0, 1)[..., None]
    painted: np.ndarray = np.clip((ground + weight * (ink - ground)) * light, 0, 255).round().astype(np.uint8)
    return painted
