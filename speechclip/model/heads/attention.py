"""Self-attention over [CLS] vectors and frames, computed at the [CLS] positions alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speechclip.model.dropout import dropout


class ClsAttention(nn.Module):
    """Multi-head self-attention over [CLS] vectors and frames, computed at the [CLS] positions alone.

    Training does not need the outputs at the frames, and the queries do not depend on the input. So the query and key
    projections fold into one vector per head and [CLS], and the value projection moves behind the weighted sum. This
    takes 2 * heads * cls * d multiplications per frame instead of 4 * d * d. If there are more than d such vectors,
    computing keys and values of every frame is cheaper and is done instead. Both ways equal ``nn.MultiheadAttention``
    on the concatenated sequence and use its parameters.

    Args:
        dim: d, width of the tokens.
        heads: number of attention heads.
        dropout: probability of dropping an attention weight.
    """

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, heads, dropout=dropout, batch_first=True)

    def forward(self, cls: Tensor, frames: Tensor, padding: Tensor) -> tuple[Tensor, Tensor | None]:
        """Attend from the [CLS] vectors.

        Args:
            cls: [Q, d].
            frames: [B, T, d].
            padding: [B, T] bool, True at frames that are padding.

        Returns:
            The outputs [B, Q, d], and the weights over the frames, averaged over heads, [B, Q, T]. The weights are None
            in training, which does not use them.
        """
        if self.attention.num_heads * len(cls) > cls.shape[1]:
            return self._of_every_frame(cls, frames, padding)
        module = self.attention
        heads, size = module.num_heads, module.head_dim
        weight_q, weight_k, weight_v = module.in_proj_weight.view(3, heads, size, -1)  # each [H, s, d]
        # The bias of the keys adds the same number to all scores, so it changes no weight.
        bias_q, _, bias_v = module.in_proj_bias.view(3, heads, size)
        queries = torch.einsum("hsd,qd->hqs", weight_q, cls) + bias_q[:, None]  # [H, Q, s]
        folded = torch.einsum("hqs,hsd->hqd", queries, weight_k).flatten(0, 1) * size**-0.5  # [H*Q, d]
        among_cls = (folded @ cls.T).expand(len(frames), -1, -1)  # [B, H*Q, Q]
        to_frames = (folded @ frames.transpose(1, 2)).masked_fill(padding[:, None], float("-inf"))  # [B, H*Q, T]
        weights = torch.cat([among_cls, to_frames], dim=2).softmax(dim=2)
        dropped = dropout(weights, module.dropout, self.training)
        count = cls.shape[0]
        pooled = dropped[..., :count] @ cls + dropped[..., count:] @ frames  # [B, H*Q, d]
        pooled = pooled.view(-1, heads, count, pooled.shape[-1])
        mass = dropped.sum(dim=2).view(-1, heads, count, 1)
        values = torch.einsum("bhqd,hsd->bqhs", pooled, weight_v) + (mass * bias_v[:, None]).transpose(1, 2)
        outputs = module.out_proj(values.flatten(2))
        if self.training:
            return outputs, None
        return outputs, weights[..., count:].view(-1, heads, count, frames.shape[1]).mean(dim=1)

    def _of_every_frame(self, cls: Tensor, frames: Tensor, padding: Tensor) -> tuple[Tensor, Tensor | None]:
        """Compute :meth:`forward` from keys and values of every frame."""
        tokens = torch.cat([cls.expand(len(frames), -1, -1), frames], dim=1)
        attended, query, key = self._attend(cls[None], tokens, padding, len(cls))
        if self.training:
            return attended, None
        scores = (query @ key.transpose(2, 3)) * self.attention.head_dim**-0.5  # [B, H, Q, Q + T]
        mask = nn.functional.pad(padding, (len(cls), 0), value=False)
        weights = scores.masked_fill(mask[:, None, None], float("-inf")).softmax(dim=3)
        return attended, weights[..., len(cls) :].mean(dim=1)

    def everywhere(self, cls: Tensor, frames: Tensor, padding: Tensor) -> Tensor:
        """Return the same attention at every position, [B, Q + T, d]."""
        tokens = torch.cat([cls.expand(len(frames), -1, -1), frames], dim=1)
        return self._attend(tokens, tokens, padding, len(cls))[0]

    def _attend(self, origins: Tensor, tokens: Tensor, padding: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Attend from some positions to all tokens.

        Args:
            origins: [B or 1, N, d], the positions that attend.
            tokens: [B, Q + T, d], the [CLS] vectors and the frames.
            padding: [B, T] bool, True at frames that are padding.
            count: Q, the number of [CLS] vectors.

        Returns:
            The outputs [B, N, d], the queries and the keys, each [B, H, positions, s].
        """
        module = self.attention
        # Three products. torch's module computes one and cuts it, which costs copies in the backward pass.
        bias_q, _, bias_v = module.in_proj_bias.chunk(3)
        parts = zip((origins, tokens, tokens), module.in_proj_weight.chunk(3), (bias_q, None, bias_v), strict=True)
        query, key, value = (
            nn.functional.linear(x, weight, bias).unflatten(2, (module.num_heads, -1)).transpose(1, 2)
            for x, weight, bias in parts
        )
        mask = nn.functional.pad(padding, (count, 0), value=False)
        # Without dropout, torch does not store the weights of all heads. This is the fastest way for many heads.
        values = nn.functional.scaled_dot_product_attention(
            query.expand(len(tokens), -1, -1, -1), key, value, ~mask[:, None, None],
            module.dropout if self.training else 0.0,
        )  # fmt: skip
        return module.out_proj(values.transpose(1, 2).flatten(2)), query, key
