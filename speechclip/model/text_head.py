"""A small head over CLIP's text embeddings: the fair opponent of a trained speech head behind a recogniser."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speechclip.model.dropout import Dropout


class TextHead(nn.Module):
    """A residual two-layer perceptron over L2-normalised text embeddings. At the start it changes nothing.

    Args:
        width: J, width of the joint space.
        hidden: width of the hidden layer.
        dropout: probability of dropout of the hidden layer.
    """

    def __init__(self, width: int, hidden: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.inner = nn.Linear(width, hidden)
        self.dropout = Dropout(dropout)
        self.outer = nn.Linear(hidden, width)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, texts: Tensor) -> Tensor:
        """Map text embeddings [N, J] to embeddings [N, J], L2-normalised."""
        scaled = texts * texts.shape[1] ** 0.5  # entries of about 1, as the layers expect
        changed = texts + self.outer(self.dropout(nn.functional.gelu(self.inner(scaled))))
        return nn.functional.normalize(changed, dim=-1)

    @torch.no_grad()
    def embed(self, texts: Tensor) -> Tensor:
        """Map text embeddings [N, J] without dropout and gradients."""
        training = self.training
        self.eval()
        rows: Tensor = self(texts)
        self.train(training)
        return rows
