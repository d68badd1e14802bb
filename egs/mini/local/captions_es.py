"""Spanish phrases for the captions of scenes. The adjectives agree with their nouns in gender and number."""

from __future__ import annotations

import numpy as np
from scenes import Thing
from templates import Templates, offset, pick, side_of

LONGEST = 15  # words; Spanish prepositions have more words than English ones

#: Singular, plural, and "f" for feminine nouns.
_NOUNS = {
    "circle": ("círculo", "círculos", "m"),
    "square": ("cuadrado", "cuadrados", "m"),
    "triangle": ("triángulo", "triángulos", "m"),
    "star": ("estrella", "estrellas", "f"),
    "cross": ("cruz", "cruces", "f"),
    "heart": ("corazón", "corazones", "m"),
    "diamond": ("rombo", "rombos", "m"),
    "ring": ("anillo", "anillos", "m"),
    "hexagon": ("hexágono", "hexágonos", "m"),
    "moon": ("luna", "lunas", "f"),
    "arrow": ("flecha", "flechas", "f"),
    "flower": ("flor", "flores", "f"),
    "tree": ("árbol", "árboles", "m"),
    "house": ("casa", "casas", "f"),
    "fish": ("pez", "peces", "m"),
    "boat": ("barco", "barcos", "m"),
    "cup": ("taza", "tazas", "f"),
    "key": ("llave", "llaves", "f"),
    "cloud": ("nube", "nubes", "f"),
    "mushroom": ("seta", "setas", "f"),
    "crown": ("corona", "coronas", "f"),
    "leaf": ("hoja", "hojas", "f"),
    "ladder": ("escalera", "escaleras", "f"),
    "bottle": ("botella", "botellas", "f"),
}
#: Masculine singular. Words in -o change their ending, other words get a plural, and the words of `_FIXED` nothing.
_COLOURS = {
    "red": "rojo",
    "crimson": "carmesí",
    "pink": "rosa",
    "coral": "coral",
    "orange": "naranja",
    "peach": "melocotón",
    "yellow": "amarillo",
    "gold": "dorado",
    "lime": "lima",
    "green": "verde",
    "olive": "oliva",
    "teal": "petróleo",
    "turquoise": "turquesa",
    "blue": "azul",
    "navy": "marino",
    "purple": "morado",
    "violet": "violeta",
    "magenta": "magenta",
    "brown": "marrón",
    "tan": "beige",
    "black": "negro",
    "gray": "gris",
    "silver": "plateado",
    "white": "blanco",
}
_SIZES = {"big": ("grande", "enorme"), "small": ("pequeño", "diminuto")}
_TEXTURES = {
    "striped": ("rayado", "a rayas"),
    "spotted": ("moteado", "con lunares"),
    "checkered": ("cuadriculado", "a cuadros"),
    "hollow": ("hueco", "vacío"),
    "shaded": ("sombreado",),
}
_FIXED = {"coral", "melocotón", "lima", "oliva", "petróleo", "a rayas", "con lunares", "a cuadros"}
_PLURALS = {"azul": "azules", "marrón": "marrones", "gris": "grises", "carmesí": "carmesíes"}
_NUMBERS = {2: ("dos", "dos", "un par de"), 3: ("tres",), 4: ("cuatro",)}
_BACKGROUNDS = {
    "sky": ("en el cielo", "en el aire"),
    "grass": ("sobre la hierba", "en el césped"),
    "sand": ("sobre la arena", "en la playa"),
    "sea": ("en el mar", "sobre el agua"),
    "night": ("de noche", "en la oscuridad"),
    "snow": ("en la nieve", "sobre el hielo"),
    "bricks": ("sobre los ladrillos", "en una pared de ladrillo"),
    "wood": ("sobre una mesa de madera", "en el suelo de madera"),
    "fog": ("en la niebla", "en la bruma"),
    "sunset": ("al atardecer", "por la tarde"),
    "paper": ("sobre papel", "en una página"),
    "forest": ("en el bosque", "en la selva"),
    "curtain": ("sobre una cortina", "en el escenario"),
    "carpet": ("sobre la alfombra", "en la moqueta"),
    "tiles": ("sobre las baldosas", "en un baño de azulejos"),
    "rocks": ("sobre las rocas", "en la piedra"),
}
_OPENINGS = (
    "hay",
    "puedo ver",
    "aquí tenemos",
    "mira",
    "esto es",
    "en esta imagen hay",
    "alguien dibujó",
    "se puede notar",
    "muestra",
    "vemos",
    "la imagen tiene",
    "parece",
    "creo que es",
    "qué tal",
    "busca",
    "mi amigo pintó",
)
_ADVERBS = (
    "tranquilamente",
    "hoy",
    "quizás",
    "otra vez",
    "a la vez",
    "por supuesto",
    "como siempre",
    "supongo",
    "ya sabes",
    "una vez más",
    "en efecto",
    "tal vez",
    "por alguna razón",
    "ahora mismo",
)
_JOINS = ("y", "y", "con", "y también", "más")


def _agree(adjective: str, feminine: bool, plural: bool) -> str:
    """Return the form of an adjective for a noun's gender and number."""
    if adjective in _FIXED:
        return adjective
    if feminine and adjective.endswith("o"):
        adjective = adjective[:-1] + "a"
    return _PLURALS.get(adjective, f"{adjective}s") if plural else adjective


def _noun_phrase(rng: np.random.Generator, thing: Thing, detail: float) -> str:
    """Return the thing with its article or number and some attributes. ``detail`` scales their probabilities."""
    singular, plural, gender = _NOUNS[thing.shape]
    attributes = []
    if thing.size and rng.random() < 0.55 * detail:
        attributes.append(pick(rng, _SIZES[thing.size]))
    if rng.random() < 0.85 * detail:
        attributes.append(_COLOURS[thing.colour])
    if thing.texture and rng.random() < 0.65 * detail:
        attributes.append(pick(rng, _TEXTURES[thing.texture]))
    words = [_agree(word, gender == "f", thing.count > 1) for word in attributes]
    if thing.count > 1:
        return " ".join([pick(rng, _NUMBERS[thing.count]), plural, *words])
    definite = rng.random() < 0.15
    article = ("la" if definite else "una") if gender == "f" else ("el" if definite else "un")
    return " ".join([article, singular, *words])


def _place(rng: np.random.Generator, thing: Thing) -> str:
    """Return the place of the thing in the picture."""
    side, height = side_of(thing, ("izquierda", "", "derecha"), ("arriba", "", "abajo"))
    if side and height:
        corner = "superior" if height == "arriba" else "inferior"
        return pick(rng, (f"en la esquina {corner} {side}", f"{height} a la {side}", height, f"a la {side}"))
    if side or height:
        return pick(rng, (f"a la {side}", f"en el lado {side[:-1]}o") if side else (height,))
    return pick(rng, ("en el medio", "en el centro"))


def _relation(rng: np.random.Generator, first: Thing, second: Thing) -> str:
    """Return the position of ``first`` relative to ``second``."""
    across, down, sideways, stacked = offset(first, second)
    options = ["al lado de", "cerca de", "junto a"]
    if sideways:
        options += ["a la izquierda de"] if across < 0 else ["a la derecha de"]
    if stacked:
        options += ["encima de", "sobre"] if down < 0 else ["debajo de", "bajo"]
    return pick(rng, options)


def _contract(caption: str) -> str:
    """Join "de" and "a" with the article "el"."""
    return f" {caption} ".replace(" de el ", " del ").replace(" a el ", " al ").strip()


SPANISH = Templates(
    _noun_phrase, _place, _relation, _JOINS, _BACKGROUNDS, openings=_OPENINGS, adverbs=_ADVERBS, longest=LONGEST,
    contract=_contract,
)  # fmt: skip
