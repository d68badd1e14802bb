"""Auxiliary losses for the image tower of the tiny CLIP: objects and their places, known from the drawn scenes.

The contrastive loss alone needs many more pictures than a laptop processes in half an hour. In the first part of the
training, linear readers of the tower's maps classify shape, colour, texture, size and number at the places of the
objects. Readers of the image embedding classify the background and the content words of the captions. The readers are
not saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from captions import CONTENT_WORDS
from scenes import BACKGROUNDS, CENTRES, COLOURS, SHAPES, SIZE, SIZES, TEXTURES, Scene
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, grid_sample

_KINDS: tuple[tuple[str, ...], ...] = (SHAPES, tuple(COLOURS), ("", *TEXTURES), ("", *SIZES), ("1", "2", "3", "4"))
_WORDS = {word: index for index, word in enumerate(sorted(CONTENT_WORDS))}
_MOST_THINGS = 3


def scene_labels(scene: Scene) -> np.ndarray:
    """Return int64 [3, 7]: index of shape, colour, texture, size and number, column and row; -1 for a missing thing."""
    labels = np.full((_MOST_THINGS, len(_KINDS) + 2), -1, dtype=np.int64)
    for row, thing in zip(labels, scene.things, strict=False):
        names = (thing.shape, thing.colour, thing.texture, thing.size, str(thing.count))
        row[:] = [*(kind.index(name) for kind, name in zip(_KINDS, names, strict=True)), thing.column, thing.row]
    return labels


def word_labels(captions: Sequence[str]) -> np.ndarray:
    """Return float32 [number of content words]: 1 if one of the captions has the word."""
    labels = np.zeros(len(_WORDS), np.float32)
    labels[[_WORDS[word] for word in set(" ".join(captions).split()) & CONTENT_WORDS]] = 1
    return labels


class Hints(nn.Module):
    """Readers of a ModifiedResNet image tower, and their losses for its last batch."""

    def __init__(
        self, visual: Any, width: int, dim: int, scenes: Sequence[Scene], captions: Sequence[Sequence[str]]
    ) -> None:
        super().__init__()
        self.things = torch.from_numpy(np.stack([scene_labels(scene) for scene in scenes]))
        self.grounds = torch.tensor([BACKGROUNDS.index(scene.background) for scene in scenes])
        self.words = torch.from_numpy(np.stack([word_labels(texts) for texts in captions]))
        self.maps: dict[str, Tensor] = {}
        outputs = sum(len(kind) for kind in _KINDS)
        self.fine = nn.Linear(9 * 8 * width, outputs)  # layer 2, 8 x 8 cells of 8 pixels
        self.coarse = nn.Linear(4 * 16 * width, outputs)  # layer 3, 4 x 4 cells of 16 pixels
        self.ground = nn.Linear(dim, len(BACKGROUNDS))
        self.word = nn.Linear(dim, len(_WORDS))
        nn.init.constant_(self.word.bias, -2.5)
        visual.layer2.register_forward_hook(lambda module, inputs, output: self.maps.update(fine=output))
        visual.layer3.register_forward_hook(lambda module, inputs, output: self.maps.update(coarse=output))

    def _read(self, name: str, rows: Tensor, centres: Tensor, offsets: Sequence[float]) -> Tensor:
        """Read the map at a square of points around each centre in pixels: [things, points * channels]."""
        steps = torch.tensor(offsets)
        square = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1)
        points = (centres[:, None, None, :] + square) / (SIZE / 2) - 1
        read = grid_sample(self.maps[name][rows], points, align_corners=False)
        return read.flatten(1)

    def forward(self, chosen: np.ndarray, embeddings: Tensor) -> tuple[Tensor, float]:
        """Return the loss of the scenes ``chosen`` with image embeddings [B, D], and the accuracy of their shapes."""
        index = torch.from_numpy(chosen)
        rows, number = torch.nonzero(self.things[index][:, :, 0] >= 0, as_tuple=True)
        labels = self.things[index][rows, number]
        centres = torch.tensor(CENTRES, dtype=torch.float32)[labels[:, len(_KINDS) :]]
        loss, right = torch.zeros(()), 0.0
        for name, reader, offsets in (("fine", self.fine, (-8.0, 0.0, 8.0)), ("coarse", self.coarse, (-6.0, 6.0))):
            guesses = reader(self._read(name, rows, centres, offsets)).split([len(kind) for kind in _KINDS], dim=1)
            loss = loss + sum(cross_entropy(guess, labels[:, k]) for k, guess in enumerate(guesses)) / 3
            right = float((guesses[0].argmax(1) == labels[:, 0]).float().mean())
        words = binary_cross_entropy_with_logits(self.word(embeddings), self.words[index], reduction="none")
        ground = cross_entropy(self.ground(embeddings), self.grounds[index])
        return loss + words.sum(1).mean() / 10 + 0.3 * ground, right
