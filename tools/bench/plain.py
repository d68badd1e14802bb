"""Plain baselines that compute the published method directly (Shih et al. 2022; Wang et al. 2024).

They use the parameters of this project's networks, so that tests can show equal results, but none of its code paths.
They compute attention at every position, the cosines of each keyword over a broadcast vocabulary, a hard one-hot times
all subword embeddings, the text transformer over its whole context, the image tower in every step, integrate-and-fire
frame by frame, and scores by sorting.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from speechclip.model.network import SpeechNetwork


def mix(model: SpeechNetwork, states: Tensor) -> Tensor:
    """Return the weighted sum of hidden states [B, L, T, D], computed in single precision."""
    states = states.float()
    if model.weighted_sum.state_norm:
        states = nn.functional.layer_norm(states, states.shape[-1:])
    weights = model.weighted_sum.weights.softmax(dim=0)
    return (states * weights[None, :, None, None]).sum(dim=1)


def apply_head(model: SpeechNetwork, clip: Any, states: Tensor, frames: Tensor) -> tuple[list[Tensor], Tensor | None]:
    """Apply a head to hidden states.

    Args:
        model: the network.
        clip: open_clip's own model, for its text transformer.
        states: [B, L, T, D].
        frames: [B].

    Returns:
        The embeddings [B, J] of its branches, parallel before cascaded, and the quantity loss or None.
    """
    head: Any = model.head
    mixed = mix(model, states)
    name, embeddings, quantity_loss = model.config.head.name, [], None
    cls = head.cls[None].expand(len(mixed), -1, -1) if head.cls is not None else mixed[:, :0]
    tokens = torch.cat([cls, head.input_dropout(mixed)], dim=1)
    padding = torch.arange(mixed.shape[1], device=frames.device)[None] >= frames[:, None]
    mask = nn.functional.pad(padding, (cls.shape[1], 0), value=False)
    # the published parallel head is torch's encoder layer, which needs no weights; the others call the attention
    weighed = name != "parallel"
    attended, _ = head.attention.attention(tokens, tokens, tokens, key_padding_mask=mask, need_weights=weighed)
    if name == "parallel":
        hidden = head.norm_attention(tokens + head.dropout(attended))
        hidden = head.norm(head.norm_feed_forward(hidden + head.feed_forward(hidden)))
        return [head.projection(hidden[:, 0])], None
    hidden = head.norm(tokens + attended)
    first = 0
    if name.startswith("hybrid"):
        embeddings.append(head.parallel_projection(hidden[:, 0]))
        first = 1
    if name.endswith("plus"):
        segments, quantity_loss = fire(head.cif, hidden[:, first:], padding)
        vectors = nn.utils.rnn.pad_sequence([head.projection(row) for row in segments], batch_first=True)
        counts = torch.tensor([len(row) for row in segments], device=vectors.device)
        exists = torch.arange(vectors.shape[1], device=vectors.device)[None] < counts[:, None]
        normed = head.batch_norm(vectors[exists])
        vectors = torch.zeros_like(vectors).masked_scatter(exists[:, :, None], normed)
    else:
        vectors = head.batch_norm(head.projection(hidden[:, first : cls.shape[1]]))
        counts = torch.full((len(vectors),), vectors.shape[1], device=vectors.device)
    embeddings.append(encode_keywords(model, clip, quantize(head.quantizer, vectors), counts))
    return embeddings, quantity_loss


def quantize(quantizer: Any, vectors: Tensor) -> Tensor:
    """Quantise keywords [B, K, D], straight-through, one keyword after the other over a broadcast vocabulary."""
    cosines = []
    for keyword in vectors.unbind(dim=1):
        every = quantizer.subword_embeddings.T[None]  # [1, D, V], broadcast to [B, D, V] as in the published code
        cosines.append(nn.functional.cosine_similarity(keyword[:, :, None], every, dim=1))
    scores = torch.stack(cosines, dim=1).masked_fill(~quantizer.valid_mask, float("-inf"))
    soft = (scores / quantizer.temperature).softmax(dim=-1)
    hard = nn.functional.one_hot(soft.argmax(dim=-1), soft.shape[-1]).to(soft.dtype)
    return (hard + soft - soft.detach()) @ quantizer.subword_embeddings


def encode_keywords(model: SpeechNetwork, clip: Any, keywords: Tensor, counts: Tensor) -> Tensor:
    """Encode keywords with CLIP's text transformer over all of its positions: [B, J]."""
    assert model.clip is not None
    tokens, table = model.clip.tokenizer, clip.token_embedding.weight
    empty = torch.full((len(keywords), len(clip.positional_embedding)), tokens.pad, device=table.device)
    rows = table[empty].clone()
    rows[:, 0] = table[tokens.sot]
    rows[:, 1 : 1 + keywords.shape[1]] = keywords
    every = torch.arange(len(rows), device=rows.device)
    for at in range(keywords.shape[1]):  # after the last keyword of an utterance come EOT and padding
        rows[counts <= at, 1 + at] = table[tokens.pad]
    rows[every, counts + 1] = table[tokens.eot]
    hidden = clip.transformer(rows + clip.positional_embedding, attn_mask=clip.attn_mask)
    embedded: Tensor = clip.ln_final(hidden)[every, counts + 1] @ clip.text_projection
    return embedded


def fire(cif: Any, frames: Tensor, padding: Tensor) -> tuple[list[Tensor], Tensor]:
    """Integrate and fire frame by frame, with alpha scaled to its target as in training.

    Returns:
        The segments of each utterance [k_n, d] and the quantity loss.
    """
    alpha = cif.alpha(frames, padding)
    lengths = (~padding).sum(dim=1)
    targets = (lengths / cif.frames_per_keyword).round().clamp(min=1)
    quantity_loss = (alpha.sum(dim=1) - targets).abs().mean().float()
    scaled = alpha * (targets / alpha.sum(dim=1))[:, None]
    segments = []
    for row, weights, length, target in zip(frames, scaled, lengths.tolist(), targets.long().tolist()):
        fired, state, filled = [], torch.zeros_like(row[0]), weights.new_zeros(())
        for at in range(length):
            rest = weights[at]
            while len(fired) < target - 1 and filled + rest >= 1:
                part = 1 - filled
                fired.append(state + part.to(row.dtype) * row[at])
                state, filled, rest = torch.zeros_like(row[0]), weights.new_zeros(()), rest - part
            state, filled = state + rest.to(row.dtype) * row[at], filled + rest
        segments.append(torch.stack([*fired, state]))  # the last segment ends with the utterance
    return segments, quantity_loss


def loss(
    model: SpeechNetwork, embeddings: list[Tensor], quantity_loss: Tensor | None, images: Tensor, groups: Tensor
) -> Tensor:
    """Return the sum of the contrastive losses of all branches and the quantity loss."""
    weights = model.config.loss
    total = images.new_zeros(()) if quantity_loss is None else weights.quantity_weight * quantity_loss
    images = nn.functional.normalize(images.float(), dim=-1)
    same = (groups[:, None] == groups[None]) & ~torch.eye(len(groups), dtype=torch.bool, device=groups.device)
    for embedding in embeddings:
        logits = nn.functional.normalize(embedding, dim=-1) @ images.T * model.loss.log_scale.exp()
        logits = logits.masked_fill(same, float("-inf"))
        rows, columns = logits.log_softmax(dim=1).diagonal(), logits.log_softmax(dim=0).diagonal()
        total = total - (rows.mean() + columns.mean()) / 2
    return total


def image_tower(clip: Any, images: Tensor) -> Tensor:
    """Encode preprocessed images [B, 3, side, side], as a step without cached embeddings does."""
    with torch.no_grad():
        embedded: Tensor = clip.encode_image(images)
    return embedded


def recall(speech: Tensor, images: Tensor, owner: Tensor, cutoffs: tuple[int, ...] = (1, 5, 10)) -> dict[str, float]:
    """Return recall in percent in both directions, by sorting all scores.

    Args:
        speech: [U, D].
        images: [I, D].
        owner: [U], the image of each utterance.
        cutoffs: the values of k.
    """
    scores = speech @ images.T
    return recall_of_scores(scores, owner, cutoffs)


def recall_of_scores(scores: Tensor, owner: Tensor, cutoffs: tuple[int, ...] = (1, 5, 10)) -> dict[str, float]:
    """Return the result of :func:`recall` from the scores [U, I]."""
    found = scores.argsort(dim=1, descending=True)
    hits = found == owner[:, None]
    table = {f"speech->image R@{k}": 100 * hits[:, :k].any(dim=1).float().mean().item() for k in cutoffs}
    asked = owner.unique()
    found = owner[scores.T[asked].argsort(dim=1, descending=True)]
    hits = found == asked[:, None]
    return table | {f"image->speech R@{k}": 100 * hits[:, :k].any(dim=1).float().mean().item() for k in cutoffs}
