"""Patch tokens of the image towers of CLIP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from speechclip.common.errors import UserError

#: A residual network's map with fewer cells per side is too coarse. An earlier stage then gives the grid.
FEWEST_CELLS = 4


class Patches(NamedTuple):
    """Tokens of the cells of a grid over each image.

    Attributes:
        tokens: [N, rows * columns, F], row by row.
        rows, columns: of the grid.
    """

    tokens: Tensor
    rows: int
    columns: int


def patch_tokens(visual: Any, pixels: Tensor, path: str) -> Patches:
    """Return the patch tokens of an image tower for preprocessed images [N, 3, height, width].

    Vision transformer: the output of the last layer without the class token, after ``ln_post``. Residual network: the
    feature map of the last stage with at least :data:`FEWEST_CELLS` cells per side, joined with the maps of the later
    stages, which are enlarged to the same grid.

    Args:
        visual: open_clip's image tower.
        pixels: the images.
        path: of the CLIP, for errors.

    Raises:
        UserError: the tower is of another kind.
    """
    if getattr(visual, "transformer", None) is not None and getattr(visual, "grid_size", None) is not None:
        rows, columns = visual.grid_size
        (states,) = _outputs([visual.transformer], lambda: visual(pixels))  # [N, 1 + rows * columns, F]
        return Patches(visual.ln_post(states)[:, -rows * columns :], rows, columns)
    stages = [getattr(visual, f"layer{number}", None) for number in range(1, 5)]
    if any(stage is None for stage in stages):
        raise UserError(f"{path}: its image tower ({type(visual).__name__}) has no patch tokens. Use another model.")
    maps = _outputs(stages, lambda: visual(pixels))  # each [N, C, h, w], from fine to coarse
    enough = [at for at, each in enumerate(maps) if min(each.shape[2:]) >= FEWEST_CELLS]
    first = enough[-1] if enough else 0
    size = maps[first].shape[2:]
    joined = torch.cat([nn.functional.interpolate(each, size=size) for each in maps[first:]], dim=1)
    return Patches(joined.flatten(2).transpose(1, 2), size[0], size[1])


def _outputs(modules: Sequence[Any], run: Callable[[], Any]) -> list[Tensor]:
    """Call ``run``, and return the outputs of the modules during this call."""
    found: dict[int, Tensor] = {}

    def keep(at: int) -> Callable[..., None]:
        return lambda module, args, output: found.__setitem__(at, output)

    hooks = [module.register_forward_hook(keep(at)) for at, module in enumerate(modules)]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return [found[at] for at in range(len(modules))]
