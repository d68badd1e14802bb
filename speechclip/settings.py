"""The published settings by name: the recipes' YAML layers, from a checkout or from an installed wheel."""

from __future__ import annotations

from pathlib import Path
from typing import get_args, get_type_hints

from speechclip.config import Config, HeadConfig, load
from speechclip.errors import UserError

MODELS = ("base", "large")
HEADS: tuple[str, ...] = get_args(get_type_hints(HeadConfig)["name"])

_INSTALLED = Path(__file__).resolve().parent / "conf"  # of a wheel: see setup.py
_CHECKOUT = Path(__file__).resolve().parents[1] / "egs"


def layers(model: str, head: str, corpus: str = "") -> list[Path]:
    """The YAML layers of a published setting, later ones win, as ``run.sh --model --head`` of a recipe takes them.

    Args:
        model: base or large. head: parallel, cascaded, hybrid, cascaded_plus or hybrid_plus.
        corpus: flickr8k or spokencoco, where a setting was published for one alone; empty for none.
    Raises:
        UserError: a model, head or corpus that there is not, naming those there are.
    """
    folders = _folders(corpus)
    for kind, name, known in (("model", model, MODELS), ("head", head, HEADS)):
        if name not in known:
            raise UserError(f"no published {kind} {name!r} (there are: {', '.join(known)})")
    files = [folder / f"{name}.yaml" for folder in folders for name in (model, head, f"{model}_{head}")]
    return [file for file in files if file.is_file()]


def published(model: str, head: str, corpus: str = "") -> Config:
    """The published configuration of a model and a head (Shih et al. 2022; Wang et al. 2024). See :func:`layers`."""
    return load(layers(model, head, corpus))


def _folders(corpus: str) -> list[Path]:
    """The folder of the shared layers, and that of the corpus."""
    shared = _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT / "conf"
    if not corpus:
        return [shared]
    own = _INSTALLED / corpus if _INSTALLED.is_dir() else _CHECKOUT / corpus / "conf"
    if not own.is_dir():
        raise UserError(f"no published settings for the corpus {corpus!r}")
    return [shared, own]
