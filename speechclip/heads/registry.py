"""The heads by name."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from speechclip.config import HeadConfig
from speechclip.heads.cascaded import CascadedHead
from speechclip.heads.cascaded_plus import CascadedPlusHead
from speechclip.heads.cif import IntegrateAndFire
from speechclip.heads.hybrid import HybridHead
from speechclip.heads.hybrid_plus import HybridPlusHead
from speechclip.heads.keywords import KeywordHead
from speechclip.heads.parallel import ParallelHead


def make_head(
    settings: HeadConfig, dim: int, joint_dim: int, subwords: tuple[Tensor, Tensor] | None = None, room: int = 75
) -> ParallelHead | KeywordHead:
    """A freshly initialised head.

    Args:
        settings: of the head. dim: d, width of the speech features. joint_dim: width of the CLIP embedding.
        subwords: table [V, D] and the rows that are no special token [V] bool, for a head with keywords.
        room: keywords that the text transformer can take.
    """
    common: dict[str, Any] = {
        "heads": settings.attention_heads, "dropout": settings.dropout, "input_dropout": settings.input_dropout
    }  # fmt: skip
    if settings.name == "parallel":
        return ParallelHead(dim, joint_dim, **common)
    assert subwords is not None
    common |= {"projection_layers": settings.projection_layers, "temperature": settings.quantizer_temperature}
    if settings.name == "cascaded":
        return CascadedHead(dim, *subwords, keywords=settings.keywords, **common)
    if settings.name == "hybrid":
        return HybridHead(
            dim, joint_dim, *subwords, keywords=settings.keywords, parallel_layers=settings.parallel_layers, **common
        )
    cif = settings.cif
    fire = IntegrateAndFire(
        dim, frames_per_keyword=cif.frames_per_keyword, layers=cif.layers, width=cif.width,
        dropout=cif.dropout, scaling_steps=cif.scaling_steps, tail=cif.tail_threshold, most=min(cif.max_keywords, room),
    )  # fmt: skip
    if settings.name == "cascaded_plus":
        return CascadedPlusHead(dim, *subwords, fire=fire, **common)
    return HybridPlusHead(dim, joint_dim, *subwords, fire=fire, parallel_layers=settings.parallel_layers, **common)
