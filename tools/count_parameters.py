#!/usr/bin/env python3
"""Prints the trained and total parameters of the published settings beside the paper's; nothing is downloaded.

trained: the head, the layer mix and a learned temperature. total: those and both encoders, as this project loads them.
With what the published code holds besides, HuBERT's pretraining parts and the reduced subword table next to the full
one (8,112 rows of Flickr8k for Base, 19,787 of COCO for Large), the totals are the paper's, cut to whole millions.

Usage: tools/count_parameters.py
"""

from __future__ import annotations

from typing import Any

from speechclip.bin import ArgumentParser
from speechclip.errors import exit_on_user_error

#: What Shih et al. 2022 (the poster) give for the two sizes, in millions: trained (both heads), total (both heads).
PAPER = {"base": ((2.8, 7.5), (252, 257)), "large": ((6.1, 13.4), (765, 772))}
UNQUOTED = ("large", "cascaded", 1)
UNITS = 504  # targets of HuBERT's pretraining: 500 clusters and fairseq's 4 special symbols
#: targets: width of the pretraining's projection. subwords: rows of the reduced table.
SHAPES: dict[str, dict[str, Any]] = {
    "base": {
        "states": 13, "clip": "ViT-B-32-quickgelu", "learned": False, "targets": 256, "subwords": 8112, "hubert": {},
    },
    "large": {
        "states": 25, "clip": "ViT-L-14-quickgelu", "learned": True, "targets": 768, "subwords": 19787,
        "hubert": {
            "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
            "feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True,
        },
    },
}  # fmt: skip


def frozen_parameters(shape: dict[str, Any]) -> tuple[int, int, int]:
    """Parameters of both frozen encoders, width of the speech features, joint width, on no device."""
    from speechclip.compat import prepare

    prepare()
    import open_clip
    import torch
    import transformers

    with torch.device("meta"):
        hubert = transformers.HubertModel(transformers.HubertConfig(**shape["hubert"]))
        clip = open_clip.model.CLIP(**open_clip.get_model_config(shape["clip"]))
    count = sum(p.numel() for model in (hubert, clip) for p in model.parameters())
    return count, int(hubert.config.hidden_size), int(clip.text_projection.shape[1])


def trained_parameters(shape: dict[str, Any], head: str, width: int, joint: int, layers: int) -> int:
    """Trained parameters of a head with its layer mix and temperature. CLIP's subword and joint widths are equal."""
    import torch

    from speechclip.heads.cascaded import CascadedHead
    from speechclip.heads.parallel import ParallelHead
    from speechclip.heads.pooling import LayerMix
    from speechclip.losses import ContrastiveLoss

    parts: list[torch.nn.Module] = [LayerMix(shape["states"]), ContrastiveLoss(0.07, learn=shape["learned"])]
    if head == "parallel":
        parts.append(ParallelHead(width, joint, heads=8, dropout=0.1))
    else:
        table, allowed = torch.zeros(shape["subwords"], joint), torch.ones(shape["subwords"], dtype=torch.bool)
        parts.append(CascadedHead(width, table, allowed, keywords=8, heads=1, dropout=0.1, projection_layers=layers))
    return sum(p.numel() for part in parts for p in part.parameters() if p.requires_grad)


def published_besides(shape: dict[str, Any], width: int, joint: int) -> int:
    """Parameters that the published code holds and this project does not: pretraining parts, the reduced table."""
    projection = (width + 1) * shape["targets"]
    return int(projection + UNITS * shape["targets"] + shape["subwords"] * joint)


@exit_on_user_error
def main() -> None:
    """One line for each published setting; two-layer projections are the poster's 6.1 M."""
    ArgumentParser(prog="count_parameters", description=__doc__).parse_args()
    print(f"{'model':7}{'head':32}{'trained':>12}{'total':>13}{'as published':>14}   paper, in millions")
    for model, shape in SHAPES.items():
        frozen, width, joint = frozen_parameters(shape)
        besides = published_besides(shape, width, joint)
        rows = [("parallel", 1), ("cascaded", 1)] + ([("cascaded", 2)] if model == "large" else [])
        for head, layers in rows:
            trained = trained_parameters(shape, head, width, joint, layers)
            at = 1 if head == "parallel" else 0
            name = head + (", two-layer projection" if layers == 2 else "")
            # the poster's Large cascaded model is that of two layers
            quoted = f"{PAPER[model][0][at]} of {PAPER[model][1][at]}" if (model, head, layers) != UNQUOTED else "-"
            total = trained + frozen
            print(f"{model:7}{name:32}{trained:12,}{total:13,}{total + besides:14,}   {quoted}")


if __name__ == "__main__":
    main()
