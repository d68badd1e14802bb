"""The parts of a post-norm transformer layer around its attention."""

from __future__ import annotations

from torch import Tensor, nn

from speechclip.model.dropout import Dropout


class TransformerLayer(nn.Module):
    """A mixin for heads: residual, LayerNorm, feed-forward (4d, GELU), residual, LayerNorm.

    The attention and the [CLS] vectors stay with the head, which calls :meth:`add_layer` in its constructor.
    """

    def add_layer(self, dim: int, dropout: float) -> None:
        """Create the parts.

        Args:
            dim: d, width of the speech features.
            dropout: dropout of the attention's output and of the feed-forward.
        """
        self.norm_attention = nn.LayerNorm(dim)
        self.feed_forward = nn.Sequential(
            nn.Linear(dim, 4 * dim), nn.GELU(), Dropout(dropout), nn.Linear(4 * dim, dim), Dropout(dropout)
        )
        self.norm_feed_forward = nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)

    def rest_of_layer(self, tokens: Tensor, attended: Tensor) -> Tensor:
        """Apply the layer after its attention.

        Args:
            tokens: the layer's input, [B, N, d] or [N, d].
            attended: the attention's output, [B, N, d].

        Returns:
            [B, N, d].
        """
        x = self.norm_attention(tokens + self.dropout(attended))
        normed: Tensor = self.norm_feed_forward(x + self.feed_forward(x))
        return normed
