"""The parts that all heads with keywords share: attention block, projection, BatchNorm and quantiser."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from speechclip.config import HeadConfig
from speechclip.model.dropout import Dropout
from speechclip.model.heads.attention import ClsAttention
from speechclip.model.heads.base import Head, Keywords
from speechclip.model.heads.batch_norm import GlobalBatchNorm
from speechclip.model.heads.quantizer import Annealing, SubwordQuantizer
from speechclip.model.heads.transformer_layer import TransformerLayer


class KeywordBatchNorm(GlobalBatchNorm):
    """BatchNorm of keyword vectors that starts with the statistics of the subword embeddings.

    It moves keyword vectors into the region of the subword embeddings, so that the quantiser's cosines have a meaning
    from the first step. With K keywords, every keyword and dimension has its own scale and shift. The layout is
    keyword-major, (k, d) -> k * D + d. (The published code flattens dimension-major but initialises keyword-major.)
    With one keyword, all positions share scale and shift.

    Args:
        keywords: K, or 1 if all positions share scale and shift.
        subword_embeddings: [V, D], all rows of the vocabulary. Their mean and standard deviation are the first shift
            and scale. The published code includes special tokens, too.
    """

    def __init__(self, keywords: int, subword_embeddings: Tensor) -> None:
        super().__init__(keywords * subword_embeddings.shape[1])
        with torch.no_grad():
            self.weight.copy_(subword_embeddings.float().std(dim=0).repeat(keywords))
            self.bias.copy_(subword_embeddings.float().mean(dim=0).repeat(keywords))

    def forward(self, vectors: Tensor) -> Tensor:
        """Normalise [B, K, D], or [N, D] if all positions share scale and shift, to the same shape."""
        flat = vectors.reshape(-1, self.num_features)
        return super().forward(flat).view_as(vectors)


def projection(dim: int, width: int, layers: int, dropout: float) -> nn.Module:
    """Build a projection d -> width: one linear layer, or two with ReLU and dropout between them."""
    if layers == 1:
        return nn.Linear(dim, width)
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), Dropout(dropout), nn.Linear(dim, width))


class KeywordHead(TransformerLayer, Head):
    """Base of the heads with keywords: attention block (without feed-forward), projection, BatchNorm, quantiser.

    The heads differ in the number of [CLS] vectors and in the outputs of the block that become keywords. The [CLS]
    vectors start from N(0, 1), as in the published code, unless ``cls_std`` changes the standard deviation.

    Args:
        dim: d, width of the speech features.
        subword_embeddings: [V, D], of the reduced vocabulary, frozen.
        valid_mask: [V] bool, False for special tokens.
        cls: number of [CLS] vectors before the frames.
        norms: K if every keyword has its own BatchNorm, 1 if they share one.
        heads: number of attention heads.
        dropout: probability of dropout in the attention and in a two-layer projection.
        projection_layers: number of linear layers from a state to a keyword, 1 or 2.
        temperature: temperature of the quantiser.
        input_dropout: probability of dropout of the frames.
        block: "attention", or "transformer" for a whole transformer layer and one more LayerNorm.
        cls_std: standard deviation of the first [CLS] vectors.
        annealing: changes the quantiser in the first training steps; None for a quantiser that does not change.
    """

    def __init__(
        self, dim: int, subword_embeddings: Tensor, valid_mask: Tensor, *, cls: int, norms: int, heads: int,
        dropout: float, projection_layers: int = 1, temperature: float = 0.1, input_dropout: float = 0.0,
        block: str = "attention", cls_std: float = 1.0, annealing: Annealing | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.cls = nn.Parameter(torch.randn(cls, dim) * cls_std) if cls else None
        self.attention = ClsAttention(dim, heads, dropout)
        self.block = block
        if block == "transformer":
            self.add_layer(dim, dropout)
        self.norm = nn.LayerNorm(dim)
        self.projection = projection(dim, subword_embeddings.shape[1], projection_layers, dropout)
        self.batch_norm = KeywordBatchNorm(norms, subword_embeddings)
        self.quantizer = SubwordQuantizer(subword_embeddings, valid_mask, temperature=temperature)
        self.annealing = annealing
        self.input_dropout = Dropout(input_dropout)

    def set_step(self, step: int) -> None:
        """Set the quantiser's temperature and mode if they change in training."""
        if self.annealing is not None:
            self.quantizer.temperature = self.annealing.temperature(step)
            self.quantizer.soft = step < self.annealing.soft_steps

    def frame_states(self, frames: Tensor, padding: Tensor) -> Tensor:
        """Return the block's output at the frames: [B, T, d].

        An attention block's is the output of its LayerNorm. A transformer layer's is the input of the additional one.
        """
        states = self._layer(frames, padding) if self.block == "transformer" else self._block(frames, padding)
        return states[:, 0 if self.cls is None else len(self.cls) :]

    def _block_at_cls(self, frames: Tensor, padding: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the block's output at the [CLS] positions [B, Q, d] and, in evaluation, their weights [B, Q, T]."""
        assert self.cls is not None
        attended, weights = self.attention(self.cls, self.input_dropout(frames), padding)
        if self.block == "transformer":
            return self.norm(self.rest_of_layer(self.cls, attended)), weights
        return self.norm(self.cls + attended), weights

    def _block(self, frames: Tensor, padding: Tensor) -> Tensor:
        """Return the block's output at every position: [B, Q + T, d]."""
        states: Tensor = self.norm(self._layer(frames, padding))
        return states

    def _layer(self, frames: Tensor, padding: Tensor) -> Tensor:
        """Return the input of the block's last LayerNorm at every position: [B, Q + T, d]."""
        frames = self.input_dropout(frames)
        cls = frames[0, :0] if self.cls is None else self.cls
        tokens = torch.cat([cls.expand(len(frames), -1, -1), frames], dim=1)
        attended = self.attention.everywhere(cls, frames, padding)
        return self.rest_of_layer(tokens, attended) if self.block == "transformer" else tokens + attended

    def _keywords(
        self, states: Tensor, attention: Tensor | None, mask: Tensor | None = None, segments: Tensor | None = None
    ) -> Keywords:
        """Compute keywords from states [B, K, d]. Entries outside ``mask`` stay zero and enter no statistics."""
        if mask is None:
            vectors = self.batch_norm(self.projection(states))
            mask = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        else:
            existing = self.batch_norm(self.projection(states[mask]))  # [N, D]
            vectors = existing.new_zeros(*mask.shape, existing.shape[-1]).masked_scatter(mask[:, :, None], existing)
        quantized, rows, probabilities = self.quantizer.quantize(vectors)
        kept = probabilities if self.training else None
        return Keywords(vectors, quantized, rows, attention, mask, segments, kept)


def keyword_settings(settings: HeadConfig) -> dict[str, Any]:
    """Return the arguments of :class:`KeywordHead` that all heads with keywords take from the configuration."""
    first = settings.quantizer_temperature
    last = settings.quantizer_final_temperature or first
    changes = last != first or settings.quantizer_soft_steps
    annealing = Annealing(first, last, settings.quantizer_steps, settings.quantizer_soft_steps) if changes else None
    return {
        "heads": settings.attention_heads,
        "block": settings.block,
        "dropout": settings.dropout,
        "input_dropout": settings.input_dropout,
        "projection_layers": settings.projection_layers,
        "temperature": settings.quantizer_temperature,
        "cls_std": settings.cls_std,
        "annealing": annealing,
    }
