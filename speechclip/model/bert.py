"""Transformer layers of BERT (Devlin et al. 2019, arXiv 1810.04805), in parts that cross-modal layers share."""

from __future__ import annotations

from torch import Tensor, nn

from speechclip.model.dropout import Dropout, dropout

BERT_EPSILON = 1e-12  # of every LayerNorm of BERT
_INIT_STD, _WIDTH = 0.02, 768  # of every Linear, and the width of BERT Base


def init_bert(model: nn.Module, dim: int, scale: float = 1.0) -> None:
    """Initialise all layers as BERT does: Linear from N(0, 0.02) with zero bias, LayerNorm with ones and zeros.

    At another width than BERT's 768 the deviation is 0.02 * sqrt(768 / dim), so that outputs have the same scale.

    Args:
        model: the layers.
        dim: width of the model.
        scale: factor of the deviation. BERT's small weights give uniform attention, which few steps do not leave.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=scale * _INIT_STD * (_WIDTH / dim) ** 0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


class BareAttention(nn.Module):
    """Multi-head attention without an output projection.

    Args:
        dim: d, width of both sequences.
        heads: number of attention heads.
        dropout: probability of dropping an attention weight.
    """

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.heads, self.dropout = heads, dropout

    def split(self, projected: Tensor) -> Tensor:
        """Return [N, T, d] as [N, heads, T, d / heads]."""
        return projected.unflatten(-1, (self.heads, -1)).transpose(-3, -2)

    def project(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of a sequence [N, T, d], each [N, heads, T, d / heads]."""
        return self.split(self.query(tokens)), self.split(self.key(tokens)), self.split(self.value(tokens))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, valid: Tensor | None) -> Tensor:
        """Attend with split queries to split keys and values, each [N, heads, T, d / heads].

        Args:
            query: of the positions that attend.
            key, value: of the context.
            valid: [N, T] bool, True at the positions of the context that count; None for all.

        Returns:
            [N, T, d].
        """
        mask = None if valid is None else valid[:, None, None, :]
        dropout = self.dropout if self.training else 0.0
        return nn.functional.scaled_dot_product_attention(query, key, value, mask, dropout).transpose(1, 2).flatten(2)

    def attend_all(self, query: Tensor, key: Tensor, value: Tensor, valid: Tensor | None) -> Tensor:
        """Attend with each of A sequences to each of B contexts, in G groups, as :meth:`attend` does with pairs.

        All sequences meet a context in one product. Products of pairs are small, and they copy every sequence B times.

        Args:
            query: split queries, [G, A, heads, T, d / heads].
            key, value: of the contexts, [G, B, heads, S, d / heads].
            valid: [G, B, S] bool, True at the positions of the contexts that count; None for all.

        Returns:
            [G, A, B, T, d].
        """
        groups, rows, heads, count, size = query.shape
        queries = query.transpose(1, 2).reshape(groups, heads, 1, rows * count, size) * size**-0.5
        scores = queries @ key.permute(0, 2, 1, 4, 3)  # [G, heads, B, A * T, S]
        if valid is not None:
            scores = scores.masked_fill(~valid[:, None, :, None, :], float("-inf"))
        weights = dropout(scores.softmax(dim=-1), self.dropout, self.training)
        found = (weights @ value.transpose(1, 2)).view(groups, heads, -1, rows, count, size)
        return found.permute(0, 3, 2, 4, 1, 5).flatten(4)

    def first(self, tokens: Tensor, valid: Tensor | None = None) -> Tensor:
        """Attend from the first of the tokens [N, T, d] to all of them: [N, 1, d], as :meth:`forward` does.

        One query needs neither keys nor values of the tokens. Its key projection folds into the query, and its value
        projection moves behind the weighted sum: 2 * heads * d multiplications per token instead of 2 * d * d.
        """
        heads, count = self.heads, len(tokens)
        size = tokens.shape[2] // heads
        query = self.query(tokens[:, 0]).view(count, heads, size).transpose(0, 1) * size**-0.5  # [H, N, s]
        folded = (query @ self.key.weight.view(heads, size, -1)).transpose(0, 1)  # [N, H, d]
        shift = (query @ self.key.bias.view(heads, size, 1)).transpose(0, 1)  # changes no weight, but takes a gradient
        scores = folded @ tokens.transpose(1, 2) + shift  # [N, H, T]
        if valid is not None:
            scores = scores.masked_fill(~valid[:, None], float("-inf"))
        weights = dropout(scores.softmax(dim=2), self.dropout, self.training)
        pooled = (weights @ tokens).transpose(0, 1)  # [H, N, d]
        values = (pooled @ self.value.weight.view(heads, size, -1).transpose(1, 2)).transpose(0, 1)  # [N, H, s]
        mass = weights.sum(dim=2, keepdim=True)  # 1, except with dropout
        return (values + mass * self.value.bias.view(heads, size)).flatten(1)[:, None]

    def forward(self, tokens: Tensor, context: Tensor, valid: Tensor | None = None) -> Tensor:
        """Attend from ``tokens`` [N, T, d] to ``context`` [N, S, d] with its mask ``valid`` [N, S]."""
        key, value = self.split(self.key(context)), self.split(self.value(context))
        return self.attend(self.split(self.query(tokens)), key, value, valid)


class Residual(nn.Module):
    """Linear, dropout, addition of the input, LayerNorm.

    Args:
        inner: width of the input of the Linear.
        dim: width of the tokens.
        dropout: probability of dropout.
        epsilon: of the LayerNorm.
    """

    def __init__(self, inner: int, dim: int, dropout: float, epsilon: float = BERT_EPSILON) -> None:
        super().__init__()
        self.dense = nn.Linear(inner, dim)
        self.norm = nn.LayerNorm(dim, eps=epsilon)
        self.dropout = Dropout(dropout)

    def forward(self, inner: Tensor, tokens: Tensor) -> Tensor:
        """Add the projection of ``inner`` [..., inner] to ``tokens`` [..., dim]."""
        out: Tensor = self.norm(self.dropout(self.dense(inner)) + tokens)
        return out


class FeedForward(nn.Module):
    """Linear, GELU, and a :class:`Residual`. ``hidden`` is the width between the two Linear layers."""

    def __init__(self, dim: int, hidden: int, dropout: float, epsilon: float = BERT_EPSILON) -> None:
        super().__init__()
        self.dense = nn.Linear(dim, hidden)
        self.output = Residual(hidden, dim, dropout, epsilon)

    def forward(self, tokens: Tensor) -> Tensor:
        """Apply the block to tokens [..., dim]."""
        out: Tensor = self.output(nn.functional.gelu(self.dense(tokens)), tokens)
        return out


class BertLayer(nn.Module):
    """A transformer layer: post-norm as in BERT and wav2vec 2.0 Base, or pre-norm as in wav2vec 2.0 Large.

    Args:
        dim: d, width of the tokens.
        heads: number of attention heads.
        hidden: width of the feed-forward block.
        dropout: probability of dropout, of attention weights too.
        epsilon: of both LayerNorms.
        pre_norm: apply the LayerNorms to the inputs of attention and feed-forward block, not to the sums.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        dropout: float,
        *,
        epsilon: float = BERT_EPSILON,
        pre_norm: bool = False,
    ) -> None:
        super().__init__()
        self.attention = BareAttention(dim, heads, dropout)
        self.output = Residual(dim, dim, dropout, epsilon)
        self.feed_forward = FeedForward(dim, hidden, dropout, epsilon)
        self.pre_norm = pre_norm

    def forward(self, tokens: Tensor, valid: Tensor | None = None) -> Tensor:
        """Apply the layer to tokens [N, T, d]. ``valid`` [N, T] is True at the positions that are attended to."""
        if not self.pre_norm:
            attended: Tensor = self.output(self.attention(tokens, tokens, valid), tokens)
            out: Tensor = self.feed_forward(attended)
            return out
        normed = self.output.norm(tokens)
        tokens = tokens + self.output.dropout(self.output.dense(self.attention(normed, normed, valid)))
        block = self.feed_forward
        inner = nn.functional.gelu(block.dense(block.output.norm(tokens)))
        return tokens + block.output.dropout(block.output.dense(inner))
