"""Run a model over every utterance of a source."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from speechclip.common.constants import FRAME_SECONDS
from speechclip.data.dataset import Batch, SpeechSource, evaluation_batches, read_batches
from speechclip.model.heads.base import SpeechOutput
from speechclip.model.heads.spans import attention_span
from speechclip.model.network import SpeechNetwork


class KeywordTable(NamedTuple):
    """Keywords of N utterances, at most K of one, as arrays.

    vectors: [N, K, D] z_k before quantisation, zero where there is none. mask: [N, K] bool, which exist: the first k_n.
    attention: N arrays [k_n, T_n]. segments: N arrays [k_n, 2] of seconds, or None (see :class:`Keywords`).
    """

    vectors: np.ndarray
    mask: np.ndarray
    attention: list[np.ndarray]
    segments: list[np.ndarray] | None

    @property
    def seconds(self) -> np.ndarray:
        """Lengths of the utterances, [N]."""
        return np.array([weights.shape[-1] for weights in self.attention]) * FRAME_SECONDS

    def spans(self, mass: float) -> list[np.ndarray]:
        """When each keyword is said, N arrays [k_n, 2] of seconds: segments, or what holds ``mass`` of attention."""
        if self.segments is not None:
            return self.segments
        return [
            np.array([attention_span(row, FRAME_SECONDS, mass) for row in weights]).reshape(-1, 2)
            for weights in self.attention
        ]


@torch.no_grad()
def iterate_batches(
    model: SpeechNetwork, source: SpeechSource, batch_size: int, workers: int = 0, share: tuple[int, int] = (0, 1)
) -> Iterator[tuple[Batch, SpeechOutput]]:
    """Batches with their features and head outputs, longest utterances first. The model is put into eval mode.

    share: (r, n) for the r-th of n parts of the batches, counted from 0; they are the same batches for every n.
    """
    model.eval()
    batches = evaluation_batches(source.lengths, batch_size)[share[0] :: share[1]]
    for batch in read_batches(source, batches, workers=workers):
        yield batch, model(batch)


def embed_branches(
    model: SpeechNetwork, source: SpeechSource, batch_size: int, workers: int = 0
) -> dict[str, np.ndarray]:
    """Embeddings of all utterances by each branch, [N, J] float32, L2-normalised, in the source's order."""
    rows: dict[str, np.ndarray] = {}
    for batch, output in iterate_batches(model, source, batch_size, workers):
        for name, embedding in output.branches.items():
            unit = nn.functional.normalize(embedding.float(), dim=-1).cpu().numpy()
            rows.setdefault(name, np.empty((len(source.lengths), unit.shape[1]), dtype=np.float32))
            rows[name][batch.indices.numpy()] = unit
    return rows


def embed_speech(
    model: SpeechNetwork, source: SpeechSource, batch_size: int, workers: int = 0, share: tuple[int, int] = (0, 1)
) -> np.ndarray:
    """Embeddings by the head's first branch, as of :func:`embed_branches`; of a share (see :func:`iterate_batches`) alone, the
    other rows zero."""
    rows = np.zeros((len(source.lengths), model.dimensions.joint), dtype=np.float32)
    for batch, output in iterate_batches(model, source, batch_size, workers, share):
        unit = nn.functional.normalize(output.embedding.float(), dim=-1)
        rows[batch.indices.numpy()] = unit.cpu().numpy()
    return rows


def find_keywords(model: SpeechNetwork, source: SpeechSource, batch_size: int, workers: int = 0) -> KeywordTable:
    """Keywords of all utterances, in the source's order. The head has to have keywords."""
    number = len(source.lengths)
    empty: list[np.ndarray] = [np.empty(0)] * number
    vectors, attention, segments = empty.copy(), empty.copy(), empty.copy()
    cut = False
    for batch, output in iterate_batches(model, source, batch_size, workers):
        keywords = output.keywords
        assert keywords is not None and keywords.attention is not None
        cut = keywords.segments is not None
        rows = zip(batch.indices.tolist(), keywords.mask.sum(dim=1).tolist(), output.frames.tolist())
        for at, (index, count, frames) in enumerate(rows):
            vectors[index] = keywords.vectors[at, :count].float().cpu().numpy()
            attention[index] = keywords.attention[at, :count, :frames].float().cpu().numpy()
            if keywords.segments is not None:
                segments[index] = keywords.segments[at, :count].double().cpu().numpy() * FRAME_SECONDS
    mask = np.arange(max(map(len, vectors)))[None, :] < np.array([len(found) for found in vectors])[:, None]
    table = np.zeros((*mask.shape, vectors[0].shape[1]), dtype=np.float32)
    table[mask] = np.concatenate(vectors)
    return KeywordTable(table, mask, attention, segments if cut else None)
