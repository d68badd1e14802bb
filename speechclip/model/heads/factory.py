"""Build the head that a configuration names."""

from __future__ import annotations

import importlib
import pkgutil

import speechclip.model.heads
from speechclip.common.errors import UserError
from speechclip.config import HeadConfig
from speechclip.model.heads.base import CASCADED, Head, HeadInputs, RegisteredHead, registered_heads

for _module in pkgutil.iter_modules(speechclip.model.heads.__path__):
    if _module.name != "factory":  # every other module may register a head
        importlib.import_module(f"speechclip.model.heads.{_module.name}")


def has_keywords(name: str) -> bool:
    """Return whether the head of this name needs CLIP's text transformer and a vocabulary.

    Raises:
        UserError: an unknown head.
    """
    return CASCADED in branches_of(name)


def branches_of(name: str) -> tuple[str, ...]:
    """Return the branches of the head of this name, parallel before cascaded.

    Raises:
        UserError: an unknown head.
    """
    return _registered(name).branches


def make_head(settings: HeadConfig, inputs: HeadInputs) -> Head:
    """Build a freshly initialised head.

    Raises:
        UserError: an unknown head, or attention heads that do not divide the width of the speech features.
    """
    if settings.name != "fast_vgs" and inputs.dim % settings.attention_heads:
        raise UserError(
            f"model.head.attention_heads: {settings.attention_heads} do not divide the width {inputs.dim} of the "
            "speech features."
            " Choose a divisor."
        )
    return _registered(settings.name).build(settings, inputs)


def _registered(name: str) -> RegisteredHead:
    known = registered_heads()
    if name not in known:
        raise UserError(
            f"model.head.name: unknown head {name!r} (known: {', '.join(sorted(known))}). Choose a known one."
        )
    return known[name]
