"""Captions of scenes: many templates, words that do not describe the picture, a few synonyms, bare keywords.

The templates here are English. `captions_es.py` has Spanish ones for the same scenes.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from captions_es import SPANISH
from scenes import COLOURS, SHAPES, Scene, Thing, generator
from templates import Templates, offset, pick, random_caption, side_of

PLURALS = {
    **{shape: shape + "s" for shape in SHAPES},
    "cross": "crosses",
    "fish": "fish",
    "leaf": "leaves",
}
_NUMBERS = {2: ("two", "two", "a pair of"), 3: ("three",), 4: ("four",)}
_SIZE_WORDS = {"big": ("big", "large", "huge"), "small": ("small", "little", "tiny")}
_TEXTURE_WORDS = {
    "striped": ("striped",),
    "spotted": ("spotted", "dotted"),
    "checkered": ("checkered",),
    "hollow": ("hollow", "empty"),
    "shaded": ("shaded",),
}
_BACKGROUND_PHRASES = {
    "sky": ("in the sky", "up in the air"),
    "grass": ("on the grass", "on a lawn"),
    "sand": ("on the sand", "at the beach"),
    "sea": ("in the sea", "on the water"),
    "night": ("at night", "in the dark"),
    "snow": ("in the snow", "on the ice"),
    "bricks": ("on the bricks", "on a brick wall"),
    "wood": ("on a wooden table", "on the wooden floor"),
    "fog": ("in the fog", "in the mist"),
    "sunset": ("at sunset", "in the evening"),
    "paper": ("on paper", "on a page"),
    "forest": ("in the forest", "in the jungle"),
    "curtain": ("on a curtain", "on the theater stage"),
    "carpet": ("on the carpet", "on a rug"),
    "tiles": ("on the tiles", "in a tiled bathroom"),
    "rocks": ("on the rocks", "on stone"),
}
_OPENINGS = (
    "there is",
    "i can see",
    "here we have",
    "look at",
    "this is",
    "in this picture there is",
    "someone drew",
    "you may notice",
    "it shows",
    "we see",
    "the image has",
    "it looks like",
    "i think this is",
    "what about",
    "please find",
    "my friend painted",
)
_ADVERBS = (
    "quietly",
    "today",
    "maybe",
    "again",
    "together",
    "of course",
    "as usual",
    "i guess",
    "you know",
    "once more",
    "indeed",
    "perhaps",
    "for some reason",
    "just now",
)
_JOINS = ("and", "and", "with", "and also", "plus")

_PLACE_WORDS = (
    "left",
    "right",
    "top",
    "bottom",
    "middle",
    "center",
    "corner",
    "above",
    "below",
    "over",
    "under",
    "beside",  # language: ok
    "near",
    "next",
)


def _content_words() -> frozenset[str]:
    spoken = {word for phrases in _BACKGROUND_PHRASES.values() for phrase in phrases for word in phrase.split()}
    described = {word for table in (_SIZE_WORDS, _TEXTURE_WORDS) for words in table.values() for word in words}
    return frozenset(
        {*SHAPES, *PLURALS.values(), *COLOURS, *described, *spoken, *_PLACE_WORDS, "two", "three", "four", "pair"}
        - {"in", "on", "at", "the", "a", "up"}
    )


#: Words that describe the picture. The other words of a caption do not.
CONTENT_WORDS = _content_words()


def _noun_phrase(rng: np.random.Generator, thing: Thing, detail: float) -> str:
    """Return the thing with its article or number and some attributes. ``detail`` scales their probabilities."""
    words = []
    if thing.size and rng.random() < 0.55 * detail:
        words.append(pick(rng, _SIZE_WORDS[thing.size]))
    attributes = []
    if rng.random() < 0.85 * detail:
        attributes.append(thing.colour)
    if thing.texture and rng.random() < 0.65 * detail:
        attributes.append(pick(rng, _TEXTURE_WORDS[thing.texture]))
    if rng.random() < 0.5:
        attributes.reverse()
    words += attributes
    if thing.count > 1:
        return " ".join([pick(rng, _NUMBERS[thing.count]), *words, PLURALS[thing.shape]])
    words.append(thing.shape)
    article = "the" if rng.random() < 0.15 else "an" if words[0][0] in "aeiou" else "a"
    return " ".join([article, *words])


def _place(rng: np.random.Generator, thing: Thing) -> str:
    """Return the place of the thing in the picture."""
    side, height = side_of(thing, ("left", "", "right"), ("top", "", "bottom"))
    if side and height:
        return pick(
            rng, (f"in the {height} {side} corner", f"on the {height} {side}", f"at the {height}", f"on the {side}")
        )
    if side or height:
        return pick(rng, (f"on the {side}", f"on the {side} side") if side else (f"at the {height}",))
    return pick(rng, ("in the middle", "in the center"))


def _relation(rng: np.random.Generator, first: Thing, second: Thing) -> str:
    """Return the position of ``first`` relative to ``second``."""
    across, down, beside, stacked = offset(first, second)  # language: ok
    options = ["beside", "near", "next to"]  # language: ok
    if beside:  # language: ok
        options += ["left of" if across < 0 else "right of", "to the left of" if across < 0 else "to the right of"]
    if stacked:
        options += ["above", "over"] if down < 0 else ["below", "under"]
    return pick(rng, options)


ENGLISH = Templates(_noun_phrase, _place, _relation, _JOINS, _BACKGROUND_PHRASES, openings=_OPENINGS, adverbs=_ADVERBS)
#: By language. The second draws from generators of its own, so English captions do not depend on it.
TEMPLATES = {"en": ENGLISH, "es": SPANISH}
_PURPOSES = {"en": 1, "es": 5}  # of the generators, see scenes.generator


def captions_of(
    seed: int, split: str, index: int, scene: Scene, count: int, avoid: Iterable[str] = (), language: str = "en"
) -> list[str]:
    """Return ``count`` different captions of scene ``index`` of a split, none of them in ``avoid`` (pass a set)."""
    rng, found = generator(seed, split, index, _PURPOSES[language]), list[str]()
    avoid = avoid if isinstance(avoid, set | frozenset) else set(avoid)
    while len(found) < count:
        caption = random_caption(rng, scene, TEMPLATES[language])
        if caption not in found and caption not in avoid:
            found.append(caption)
    return found


def keywords(rng: np.random.Generator, caption: str, most: int = 8) -> str:
    """Return one to ``most`` content words of a caption in random order, or the caption if it has no content word."""
    content = [word for word in caption.split() if word in CONTENT_WORDS]
    if not content:
        return caption
    keep = int(rng.integers(min(2, len(content)), min(most, len(content)) + 1))
    return " ".join(content[int(i)] for i in rng.permutation(len(content))[:keep])
