"""Plain tensor operations on the tensors of a published checkpoint, one utterance at a time."""

from __future__ import annotations

import math

import torch
from published_files import SUBWORDS, clip_tensors
from torch.nn.functional import layer_norm, normalize


def attend(
    tokens: torch.Tensor, state: dict[str, torch.Tensor], name: str, heads: int, mask: torch.Tensor
) -> torch.Tensor:
    """Apply multi-head self-attention to tokens [S, d]. The mask, [S] or [S, S], is True at hidden positions."""
    q, k, v = (tokens @ state[f"{name}.in_proj_weight"].T + state[f"{name}.in_proj_bias"]).chunk(3, dim=-1)
    size = tokens.shape[1] // heads
    outputs = []
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        scores = q[:, part] @ k[:, part].T / math.sqrt(size)
        outputs.append(scores.masked_fill(mask, -torch.inf).softmax(-1) @ v[:, part])
    return torch.cat(outputs, -1) @ state[f"{name}.out_proj.weight"].T + state[f"{name}.out_proj.bias"]


def norm(x: torch.Tensor, state: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def linear(x: torch.Tensor, state: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def mixed(states: torch.Tensor, state: dict[str, torch.Tensor], large: bool) -> torch.Tensor:
    """Return the weighted sum [T, d] of hidden states [L, T, d]."""
    weights = state["audio_encoder.weightedsum_layer.weights"].softmax(0)
    if large:
        states = layer_norm(states, states.shape[-1:])
    return (weights[:, None, None] * states).sum(0)


def read_by_clip(keywords: torch.Tensor, full: dict[str, torch.Tensor]) -> torch.Tensor:
    """Apply CLIP's text transformer to keyword embeddings [K, D] between SOT and EOT."""
    table = full["token_embedding.weight"]
    x = torch.cat([table[SUBWORDS - 2 : SUBWORDS - 1], keywords, table[SUBWORDS - 1 :]])
    x = x + full["positional_embedding"][: len(x)]
    mask, block = torch.ones(len(x), len(x)).triu(1).bool(), "transformer.resblocks.0"
    x = x + attend(norm(x, full, f"{block}.ln_1"), full, f"{block}.attn", 1, mask)
    y = linear(norm(x, full, f"{block}.ln_2"), full, f"{block}.mlp.c_fc")
    x = x + linear(y * (1.702 * y).sigmoid(), full, f"{block}.mlp.c_proj")
    return norm(x, full, "ln_final")[-1] @ full["text_projection"]


def nearest_ids(vectors: torch.Tensor, ids: list[int]) -> list[int]:
    """Return the ids of the subwords nearest to keyword vectors, without special tokens."""
    table = clip_tensors()["token_embedding.weight"][ids]
    cosines = normalize(vectors, dim=-1) @ normalize(table, dim=-1).T
    special = torch.tensor([token in (0, SUBWORDS - 2, SUBWORDS - 1) for token in ids])
    return [ids[row] for row in cosines.masked_fill(special, -torch.inf).argmax(-1).tolist()]
