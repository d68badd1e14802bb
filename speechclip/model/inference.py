"""Run a network over every utterance of a source."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from speechclip.common.constants import FRAME_SECONDS
from speechclip.data.dataset import Batch, SpeechSource, evaluation_batches, read_batches
from speechclip.data.windows import WindowSource
from speechclip.model.heads.base import SpeechOutput
from speechclip.model.heads.spans import attention_span
from speechclip.model.network import SpeechNetwork


class KeywordTable(NamedTuple):
    """Keywords of N utterances as arrays, at most K per utterance.

    Attributes:
        vectors: [N, K, D], z_k before quantisation; zero outside ``mask``.
        mask: [N, K] bool, True for the first k_n keywords of utterance n.
        attention: N arrays [k_n, T_n], weights over the frames.
        segments: N arrays [k_n, 2] of seconds; None if the head does not cut utterances into segments.
    """

    vectors: np.ndarray
    mask: np.ndarray
    attention: list[np.ndarray]
    segments: list[np.ndarray] | None

    @property
    def seconds(self) -> np.ndarray:
        """The lengths of the utterances in seconds, [N]."""
        return np.array([weights.shape[-1] for weights in self.attention]) * FRAME_SECONDS

    def spans(self, mass: float) -> list[np.ndarray]:
        """Return start and end of each keyword, N arrays [k_n, 2] of seconds.

        Args:
            mass: share of the attention that a span holds, in (0, 1]. Segments do not depend on it.
        """
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
    """Yield the batches of a source with the network's outputs, longest utterances first.

    The network is switched to eval mode.

    Args:
        model: the network.
        source: the utterances.
        batch_size: utterances per batch.
        workers: number of loader processes.
        share: (r, n) selects the batches r, r + n, r + 2n, ... The batches are the same for every n.
    """
    model.eval()
    batches = evaluation_batches(source.lengths, batch_size)[share[0] :: share[1]]
    for batch in read_batches(source, batches, workers=workers):
        yield batch, model(batch)


def embed_branches(
    model: SpeechNetwork, source: SpeechSource, batch_size: int, workers: int = 0
) -> dict[str, np.ndarray]:
    """Embed all utterances with every branch.

    Returns:
        By branch: [N, J] float32, L2-normalised, in the order of the source.
    """
    rows: dict[str, np.ndarray] = {}
    for batch, output in iterate_batches(model, source, batch_size, workers):
        for name, embedding in output.branches.items():
            unit = nn.functional.normalize(embedding.float(), dim=-1).cpu().numpy()
            rows.setdefault(name, np.empty((len(source.lengths), unit.shape[1]), dtype=np.float32))
            rows[name][batch.indices.numpy()] = unit
    return rows


def embed_windows(model: SpeechNetwork, windows: WindowSource, batch_size: int) -> dict[str, np.ndarray]:
    """Embed utterances as the mean of their windows' embeddings, weighted by length.

    Returns:
        By branch: [N, J] float32, L2-normalised, in the order of the utterances.
    """
    rows = {}
    for name, parts in embed_branches(model, windows, batch_size).items():
        sums = np.zeros((len(windows.source.lengths), parts.shape[1]))
        np.add.at(sums, windows.owner, parts * windows.lengths[:, None])
        norm = np.linalg.norm(sums, axis=1, keepdims=True)
        rows[name] = (sums / np.where(norm > 0, norm, 1)).astype(np.float32)
    return rows


def embed_speech(
    model: SpeechNetwork, source: SpeechSource, batch_size: int, workers: int = 0, share: tuple[int, int] = (0, 1)
) -> np.ndarray:
    """Embed all utterances with the head's first branch.

    Returns:
        [N, J] float32, L2-normalised, in the order of the source. Rows outside ``share`` (see :func:`iterate_batches`)
        are zero.
    """
    rows = np.zeros((len(source.lengths), model.dimensions.joint), dtype=np.float32)
    for batch, output in iterate_batches(model, source, batch_size, workers, share):
        unit = nn.functional.normalize(output.embedding.float(), dim=-1)
        rows[batch.indices.numpy()] = unit.cpu().numpy()
    return rows


def find_keywords(model: SpeechNetwork, source: SpeechSource, batch_size: int, workers: int = 0) -> KeywordTable:
    """Return the keywords of all utterances, in the order of the source. The head must have keywords."""
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
