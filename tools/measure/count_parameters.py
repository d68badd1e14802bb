#!/usr/bin/env python3
"""Print the trained and total parameters of the published settings and the paper's numbers. No download is needed.

"trained" counts the head, the weighted sum and a learned temperature. "total" adds both encoders as this project loads
them. "as published" adds the parts that only the published code of SpeechCLIP holds: HuBERT's pretraining parts, and
the reduced subword table next to the full one (8,112 rows of Flickr8k for Base, 19,787 of COCO for Large). Rounded down
to millions, these are the paper's numbers. If the models of two corpora differ, each has a line.

Usage: tools/measure/count_parameters.py
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from speechclip.common.arguments import ArgumentParser, exit_on_user_error
from speechclip.config import PUBLISHED_HEADS, PUBLISHED_MODELS, ModelConfig, published_config

#: The numbers of Shih et al. 2022 (poster) in millions: trained, total. Large cascaded has a two-layer projection.
PAPER = {
    ("base", "cascaded"): "2.8 of 252", ("base", "parallel"): "7.5 of 257",
    ("large", "cascaded, two-layer projection"): "6.1 of 765", ("large", "parallel"): "13.4 of 772",
}  # fmt: skip
CORPORA = {"base": ("flickr8k",), "large": ("flickr8k", "spokencoco")}  # published corpora of each size
UNITS = 504  # targets of HuBERT's pretraining: 500 clusters and fairseq's 4 special symbols
#: targets: width of the pretraining's projection. subwords: rows of the reduced table.
SHAPES: dict[str, dict[str, Any]] = {
    "base": {"targets": 256, "subwords": 8112, "hubert": {}},
    "large": {
        "targets": 768, "subwords": 19787,
        "hubert": {
            "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
            "feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True,
        },
    },
}  # fmt: skip


def frozen_parameters(hubert: dict[str, Any], clip: str) -> tuple[int, int, int, int]:
    """Count the parameters of both frozen encoders without memory for them.

    Returns:
        Parameters, number of hidden states, their width, and the joint width.
    """
    from speechclip.common.compat import prepare

    prepare()
    import open_clip
    import torch
    import transformers

    with torch.device("meta"):
        speech = transformers.HubertModel(transformers.HubertConfig(**hubert))
        pictures = open_clip.model.CLIP(**open_clip.get_model_config(clip))
    count = sum(p.numel() for model in (speech, pictures) for p in model.parameters())
    shape = speech.config
    return count, int(shape.num_hidden_layers) + 1, int(shape.hidden_size), int(pictures.text_projection.shape[1])


def trained_parameters(settings: ModelConfig, states: int, width: int, joint: int) -> int:
    """Count the trained parameters of head, weighted sum and temperature. CLIP's subword and joint widths are equal."""
    import torch

    from speechclip.model.heads.base import HeadInputs
    from speechclip.model.heads.factory import make_head
    from speechclip.model.heads.weighted_sum import WeightedSum
    from speechclip.model.losses import ContrastiveLoss

    # The subword table is frozen, so a few rows are enough. The mask needs values, so it is not a meta tensor.
    subwords = torch.zeros(3, joint), torch.ones(3, dtype=torch.bool)
    with torch.device("meta"):
        parts: list[torch.nn.Module] = [
            WeightedSum(states), make_head(settings.head, HeadInputs(width, joint, *subwords)),
            ContrastiveLoss(settings.loss.temperature, learn=settings.loss.learn_temperature),
        ]  # fmt: skip
    return sum(p.numel() for part in parts for p in part.parameters() if p.requires_grad)


def trained_rows(model: str, states: int, width: int, joint: int) -> Iterator[tuple[str, int]]:
    """Yield name and trained parameters of each published setting, and of the poster's Large cascaded model."""
    for head in PUBLISHED_HEADS:
        settings = {corpus: published_config(model, head, corpus).model for corpus in CORPORA[model]}
        counts = {corpus: trained_parameters(its, states, width, joint) for corpus, its in settings.items()}
        if len(set(counts.values())) == 1:
            yield head, min(counts.values())
        else:
            yield from ((f"{head}, {corpus}", count) for corpus, count in counts.items())
        if (model, head) == ("large", "cascaded"):
            one = settings["flickr8k"]
            two = replace(one, head=replace(one.head, projection_layers=2))
            yield f"{head}, two-layer projection", trained_parameters(two, states, width, joint)


def published_besides(shape: dict[str, Any], width: int, joint: int) -> int:
    """Count the additional parameters of SpeechCLIP's published code: pretraining parts and the reduced table."""
    projection = (width + 1) * shape["targets"]
    return int(projection + UNITS * shape["targets"] + shape["subwords"] * joint)


@exit_on_user_error
def main() -> None:
    """Print one line per published setting."""
    ArgumentParser(prog="count_parameters.py", description=__doc__).parse_args()
    print(f"{'model':7}{'head':32}{'trained':>12}{'total':>13}{'as published':>14}   paper, in millions")
    for model in PUBLISHED_MODELS:
        shape = SHAPES[model]
        clip = published_config(model, "parallel").model.clip.path.partition(":")[0]
        frozen, states, width, joint = frozen_parameters(shape["hubert"], clip)
        besides = published_besides(shape, width, joint)
        for name, trained in trained_rows(model, states, width, joint):
            total = trained + frozen
            # The authors of SpeechCLIP+ publish no sizes.
            whole = f"{total + besides:,}" if name.partition(",")[0] in ("parallel", "cascaded") else "-"
            print(f"{model:7}{name:32}{trained:12,}{total:13,}{whole:>14}   {PAPER.get((model, name), '-')}")


if __name__ == "__main__":
    main()
