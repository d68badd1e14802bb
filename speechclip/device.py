"""Where frozen encoders and trained models run."""

from __future__ import annotations

from speechclip.errors import UserError


def pick_device(wanted: str = "auto") -> str:
    """The device by its name in torch, cpu or cuda; auto takes a GPU where there is one.

    Raises UserError for cuda where torch has no GPU.
    """
    import torch

    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise UserError("--device: no GPU that torch can use")
    return ("cuda" if there else "cpu") if wanted == "auto" else wanted
