"""The shape of a caption, the same for every language: an opening, objects, background and adverb, some left out.

A language is a :class:`Templates` object with its phrases, see `captions.py` and `captions_es.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scenes import Scene, Thing

SHORTEST, LONGEST = 5, 13  # words in a caption


@dataclass(frozen=True)
class Templates:
    """The phrases of a language. Callables draw from the generator that they get.

    Attributes:
        noun_phrase: the object with article or number, and attributes. The number scales the probability of attributes.
        place: the place of an object in the picture.
        relation: the position of the first object relative to the second.
        joins: words between two objects; the first three may join three objects.
        backgrounds: phrases of each background.
        openings: phrases at the start that do not describe the picture.
        adverbs: words that do not describe the picture.
        longest: the largest number of words in a caption.
        contract: joins words of a finished caption, as "de el" in Spanish; the identity for English.
    """

    noun_phrase: Callable[[np.random.Generator, Thing, float], str]
    place: Callable[[np.random.Generator, Thing], str]
    relation: Callable[[np.random.Generator, Thing, Thing], str]
    joins: Sequence[str]
    backgrounds: Mapping[str, Sequence[str]]
    openings: Sequence[str]
    adverbs: Sequence[str]
    longest: int = LONGEST
    contract: Callable[[str], str] = str


def pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    """Draw one of the options."""
    return options[int(rng.integers(len(options)))]


def side_of(thing: Thing, columns: Sequence[str], rows: Sequence[str]) -> tuple[str, str]:
    """Return the words of the column and of the row of an object: left, centre, right and top, centre, bottom."""
    return columns[thing.column], rows[thing.row]


def offset(first: Thing, second: Thing) -> tuple[int, int, bool, bool]:
    """Return the columns and rows from ``second`` to ``first``, and whether each of them counts as its direction."""
    across, down = first.column - second.column, first.row - second.row
    return across, down, abs(across) >= abs(down), abs(down) >= abs(across)


def _body(rng: np.random.Generator, scene: Scene, words: Templates) -> str:
    """Return the part of the caption about the objects."""
    things = [scene.things[int(i)] for i in rng.permutation(len(scene.things))]
    first, second = things[0], things[1]
    kind = int(rng.integers(10))
    if len(things) == 3 and kind < 7:
        a, b, c = (words.noun_phrase(rng, thing, 0.75) for thing in things)
        if kind < 5:
            return f"{a} {b} {pick(rng, words.joins[:3])} {c}"
        return f"{a} {words.relation(rng, first, second)} {b} {pick(rng, words.joins)} {c}"
    a, b = words.noun_phrase(rng, first, 1.0), words.noun_phrase(rng, second, 1.0)
    if kind < 4:
        return f"{a} {words.relation(rng, first, second)} {b}"
    if kind < 7:
        return f"{a} {pick(rng, words.joins)} {b}"
    if kind < 8:
        return f"{a} {words.place(rng, first)} {words.joins[0]} {b} {words.place(rng, second)}"
    return f"{a} {pick(rng, words.joins)} {b} {words.place(rng, second)}"


def random_caption(rng: np.random.Generator, scene: Scene, words: Templates) -> str:
    """Return a caption of ``SHORTEST`` lower-case words or more: at least two objects, often the background."""
    while True:
        parts = [_body(rng, scene, words)]
        if rng.random() < 0.35:
            parts.insert(0, pick(rng, words.openings))
        if rng.random() < 0.5:
            parts.insert(0 if rng.random() < 0.2 else len(parts), pick(rng, words.backgrounds[scene.background]))
        if rng.random() < 0.15:
            parts.insert(0 if rng.random() < 0.4 else len(parts), pick(rng, words.adverbs))
        caption = words.contract(" ".join(parts))
        if SHORTEST <= len(caption.split()) <= words.longest:
            return caption
