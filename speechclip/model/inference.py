"""Run a network over every utterance of a source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from speechclip.common.constants import FRAME_SECONDS
from speechclip.data.batches import evaluation_batches
from speechclip.data.dataset import Batch, SpeechSource, read_batches
from speechclip.data.mapped import new_array
from speechclip.data.regions import Regions, RegionStore
from speechclip.data.windows import WindowSource
from speechclip.model.candidate_scores import score_listed_pairs
from speechclip.model.heads.base import SpeechOutput
from speechclip.model.heads.fast_vgs import FastVgsHead
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
            if name not in rows:
                rows[name] = new_array((len(source.lengths), unit.shape[1]), np.float32)
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
    rows = new_array((len(source.lengths), model.dimensions.joint), np.float32)
    for batch, output in iterate_batches(model, source, batch_size, workers, share):
        unit = nn.functional.normalize(output.embedding.float(), dim=-1)
        rows[batch.indices.numpy()] = unit.cpu().numpy()
    return rows


class Towers(NamedTuple):
    """Speech and images of a split as a head with cross-modal layers sees them.

    Attributes:
        speech: [U, d], coarse vectors of the utterances, not normalised.
        sequences: [U, S, d], [CLS] and frames.
        valid: [U, S] bool.
        images: [I, d], coarse vectors of the images.
        regions: [I, 1 + R, d], [CLS] and regions.
    """

    speech: Tensor
    sequences: Tensor
    valid: Tensor
    images: Tensor
    regions: Tensor

    def coarse(self) -> np.ndarray:
        """Return the dot products of all utterances and images, [U, I] float32."""
        return (self.speech @ self.images.T).numpy()


@torch.no_grad()
def embed_towers(
    model: SpeechNetwork, source: SpeechSource, regions: RegionStore, image_ids: Sequence[str], batch_size: int,
    share: tuple[int, int] = (0, 1),
) -> Towers:  # fmt: skip
    """Run both towers of a fast_vgs head over a split, on the CPU in float32.

    Args:
        model: the network.
        source: the utterances.
        regions: of the images.
        image_ids: the images, in the order of the result.
        batch_size: utterances or images per batch.
        share: see :func:`iterate_batches`. Utterances and images outside the share are zero.
    """
    head = model.head
    assert isinstance(head, FastVgsHead)
    speech, sequences, valid = Tensor(), Tensor(), Tensor()
    count = len(source.lengths)
    for batch, output in iterate_batches(model, source, batch_size, share=share):
        assert output.sequence is not None and output.valid is not None
        if not len(speech):
            speech = torch.zeros(count, output.embedding.shape[1])
            sequences = torch.zeros(count, *output.sequence.shape[1:])
            valid = torch.zeros(count, output.valid.shape[1], dtype=torch.bool)
        speech[batch.indices], sequences[batch.indices] = output.embedding.float().cpu(), output.sequence.float().cpu()
        valid[batch.indices] = output.valid.cpu()
    dim = head.settings.dim
    coarse, images = torch.zeros(len(image_ids), dim), torch.zeros(len(image_ids), 1 + regions.count, dim)
    for number, start in enumerate(range(0, len(image_ids), batch_size)):
        if number % share[1] != share[0]:
            continue
        found = regions.batch(image_ids[start : start + batch_size])
        sequence, vectors = head.image(Regions(*(part.to(model.device) for part in found)))
        coarse[start : start + batch_size], images[start : start + batch_size] = vectors.cpu(), sequence.cpu()
    if not len(speech):  # fewer batches than processes
        frames = head.speech.eval_frames
        for _ in head.settings.widths[1:]:
            frames = -(-frames // 2)
        speech, sequences = torch.zeros(count, dim), torch.zeros(count, 1 + frames, dim)
        valid = torch.zeros(count, 1 + frames, dtype=torch.bool)
    return Towers(speech, sequences, valid, coarse, images)


def pair_scores(model: SpeechNetwork, towers: Towers, pairs: np.ndarray, block: int) -> np.ndarray:
    """Return the fine scores of pairs [P, 2] of an utterance and an image: [P] float32."""
    head = model.head
    assert isinstance(head, FastVgsHead)
    listed = torch.from_numpy(np.ascontiguousarray(pairs))
    return score_listed_pairs(head.scorer, towers.sequences, towers.valid, towers.regions, listed, block).numpy()


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
