"""The cascaded head: K [CLS] vectors become keywords for CLIP's text transformer (Shih et al. 2022)."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from speechclip.heads.base import HeadOutput, Keywords
from speechclip.heads.pooling import ClsAttention
from speechclip.heads.quantizer import SubwordQuantizer


class KeywordBatchNorm(nn.BatchNorm1d):
    """BatchNorm of every keyword and dimension, started at the statistics of the subword embeddings.

    Brings keyword vectors into the region of the table, so that the quantiser's cosines mean something from the first
    step. Parameters are laid out keyword-major, (k, d) -> k * D + d, for scale and shift alike (the published
    code flattens dimension-major but initialises keyword-major). In a process group the batch statistics are global;
    torch's SyncBatchNorm does not take CPU tensors.

    Args:
        keywords: K. table: [V, D] the subword embeddings whose mean and standard deviation it starts at.
    """

    def __init__(self, keywords: int, table: Tensor) -> None:
        super().__init__(keywords * table.shape[1])
        with torch.no_grad():
            self.weight.copy_(table.float().std(dim=0).repeat(keywords))
            self.bias.copy_(table.float().mean(dim=0).repeat(keywords))

    def forward(self, vectors: Tensor) -> Tensor:
        """[B, K, D] -> [B, K, D]."""
        flat = vectors.flatten(1)
        if self.training and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            return self._forward_global(flat).view_as(vectors)
        return super().forward(flat).view_as(vectors)

    def _forward_global(self, flat: Tensor) -> Tensor:
        from torch.distributed.nn.functional import all_reduce

        flat = flat.float()  # sums over the batch, also where training is in half precision
        size = torch.full_like(flat[:1, :1], len(flat))
        sums = all_reduce(torch.cat([flat.sum(dim=0), size[0]]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        variance = all_reduce((flat - mean).square().sum(dim=0)) / count
        with torch.no_grad():
            momentum = 0.1 if self.momentum is None else self.momentum
            assert (
                self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
            )
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
            self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var.dtype), momentum)
        return (flat - mean) * (variance + self.eps).rsqrt() * self.weight + self.bias


class CascadedHead(nn.Module):
    """K [CLS] + frames through one attention block, projected and normalised into keywords, then quantised.

    Args:
        dim: d, width of the speech features.
        table: [V, D] embeddings of the reduced vocabulary, frozen. allowed: [V] bool, False for special tokens.
        keywords: K. heads: attention heads. dropout: of the attention. projection_layers: 1 or 2.
        temperature: of the quantiser. input_dropout: of the frames.
    """

    def __init__(
        self, dim: int, table: Tensor, allowed: Tensor, *, keywords: int, heads: int, dropout: float,
        projection_layers: int = 1, temperature: float = 0.1, input_dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.cls = nn.Parameter(torch.empty(keywords, dim))
        nn.init.xavier_uniform_(self.cls)
        self.attention = ClsAttention(dim, heads, dropout)
        self.norm = nn.LayerNorm(dim)
        width = table.shape[1]
        self.projection: nn.Module = (
            nn.Linear(dim, width)
            if projection_layers == 1
            else nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Dropout(dropout), nn.Linear(dim, width))
        )
        self.batch_norm = KeywordBatchNorm(keywords, table[allowed])
        self.quantizer = SubwordQuantizer(table, allowed, temperature=temperature)
        self.input_dropout = nn.Dropout(input_dropout)

    def forward(self, frames: Tensor, padding: Tensor) -> HeadOutput:
        """frames [B, T, d], padding [B, T] bool -> keywords for CLIP's text transformer."""
        attended, attention = self.attention(self.cls, self.input_dropout(frames), padding)
        states = self.norm(self.cls + attended)  # [B, K, d]
        vectors = self.batch_norm(self.projection(states))
        quantized, rows = self.quantizer(vectors)
        return HeadOutput(None, Keywords(vectors, quantized, rows, attention))

    def frame_states(self, frames: Tensor, padding: Tensor) -> Tensor:
        """The attention block's output at the frames, after its LayerNorm: [B, T, d]."""
        tokens = torch.cat([self.cls.expand(len(frames), -1, -1), frames], dim=1)
        states: Tensor = self.norm(tokens + self.attention.everywhere(self.cls, frames, padding))
        return states[:, self.cls.shape[0] :]
