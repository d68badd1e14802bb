"""The fine scores of a reranker over a split: both sequences are computed once, then pairs are scored in blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from speechclip.common.errors import UserError
from speechclip.data.batches import evaluation_batches
from speechclip.data.dataset import Batch, SpeechSource, read_batches
from speechclip.data.regions import Regions, RegionStore, grid_boxes
from speechclip.model.candidate_scores import score_listed_pairs
from speechclip.model.encoders.patches import Patches
from speechclip.model.heads.reranker import FrozenSpeech, RerankerHead
from speechclip.model.network import SpeechNetwork


def is_reranker(model: SpeechNetwork) -> bool:
    """Return whether the network has a reranker."""
    return isinstance(model.head, RerankerHead)


def reranker_of(model: SpeechNetwork, source: str = "") -> RerankerHead:
    """Return the head of a network that has a reranker.

    Raises:
        UserError: the network has another head.
    """
    if not isinstance(model.head, RerankerHead):
        raise UserError(f"{source}: has a {model.config.head.name} head. Give the checkpoint of a reranker.")
    return model.head


class Candidates(NamedTuple):
    """Utterances and images of a split as the cross-modal layers read them, on the CPU.

    Attributes:
        speech: [U, 1 + S, dim], padded with zeros.
        valid: [U, 1 + S] bool.
        coarse: [U, J], embeddings of the coarse head, L2-normalised.
        pooled: [U, J], see :class:`SpeechTokens`.
        images: [I, 1 + R, dim].
        embeddings: [I, J], of the images, L2-normalised.
    """

    speech: Tensor
    valid: Tensor
    coarse: Tensor
    pooled: Tensor
    images: Tensor
    embeddings: Tensor


class SpeechCache:
    """The frozen inputs of a reranker for all utterances of a source, in memory in half precision.

    Args:
        model: a network with a reranker.
        source: the utterances.
        batch_size: utterances that are encoded at a time.

    Attributes:
        coarse: [U, J], embeddings of the coarse head, L2-normalised.
    """

    def __init__(self, model: SpeechNetwork, source: SpeechSource, batch_size: int) -> None:
        head, count = reranker_of(model.eval()), len(source.lengths)
        self._states: list[Tensor] = [torch.empty(0)] * count
        self.coarse = torch.zeros(count, model.dimensions.joint)
        with torch.no_grad():
            for batch in read_batches(source, evaluation_batches(source.lengths, batch_size)):
                speech = head.frozen_speech(*model.mixed_frames(batch))
                self.coarse[batch.indices] = speech.coarse.cpu()
                counts = speech.valid.sum(dim=1).tolist()
                for at, states, kept in zip(batch.indices.tolist(), speech.states.half().cpu(), counts):
                    self._states[at] = states[:kept].clone()

    def read(self, indices: Tensor, device: torch.device) -> FrozenSpeech:
        """Return utterances by position [B]."""
        rows = [self._states[at] for at in indices.tolist()]
        states = nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device).float()
        lengths = torch.tensor([len(row) for row in rows], device=device)
        valid = torch.arange(states.shape[1], device=device)[None, :] < lengths[:, None]
        return FrozenSpeech(states, valid, self.coarse[indices].to(device))


@torch.no_grad()
def encode_images(
    model: SpeechNetwork, store: RegionStore, image_ids: Sequence[str], embeddings: Tensor, batch_size: int
) -> Tensor:
    """Return the images of a split for the cross-modal layers, [I, 1 + R, dim], on the CPU.

    Args:
        model: a network with a reranker.
        store: regions of the images.
        image_ids: I ids.
        embeddings: [I, J].
        batch_size: images at a time.
    """
    head = reranker_of(model.eval())
    parts = []
    for at in range(0, len(image_ids), batch_size):
        regions = store.batch(image_ids[at : at + batch_size])
        moved = Regions(*(part.to(model.device) for part in regions))
        parts.append(head.image_tokens(moved, embeddings[at : at + batch_size].to(model.device)).float().cpu())
    return torch.cat(parts)


@torch.no_grad()
def encode_candidates(
    model: SpeechNetwork, source: SpeechSource, store: RegionStore, image_ids: Sequence[str], embeddings: np.ndarray,
    batch_size: int,
) -> Candidates:  # fmt: skip
    """Return all utterances and images of a split for :func:`score_candidates`.

    Args:
        model: a network with a reranker.
        source: the utterances.
        store: regions of the images.
        image_ids: I ids.
        embeddings: [I, J], of the images, L2-normalised.
        batch_size: utterances or images at a time.
    """
    head, dim = reranker_of(model.eval()), model.config.head.reranker.dim
    count, joint = len(source.lengths), embeddings.shape[1]
    rows: list[tuple[Tensor, Tensor]] = [(torch.empty(0), torch.empty(0))] * count
    coarse, pooled = torch.zeros(count, joint), torch.zeros(count, joint)
    for batch in read_batches(source, evaluation_batches(source.lengths, batch_size)):
        speech = head.speech_tokens(head.frozen_speech(*model.mixed_frames(batch)))
        coarse[batch.indices], pooled[batch.indices] = speech.coarse.cpu(), speech.pooled.cpu()
        for at, tokens, valid in zip(batch.indices.tolist(), speech.tokens.float().cpu(), speech.valid.cpu()):
            rows[at] = tokens, valid
    longest = max(int(valid.sum()) for _, valid in rows)
    tokens_of, valid_of = torch.zeros(count, longest, dim), torch.zeros(count, longest, dtype=torch.bool)
    for at, (tokens, valid) in enumerate(rows):
        kept = int(valid.sum())  # valid positions come first
        tokens_of[at, :kept], valid_of[at, :kept] = tokens[:kept], True
    pictures = torch.from_numpy(embeddings)
    images = encode_images(model, store, image_ids, pictures, batch_size)
    return Candidates(tokens_of, valid_of, coarse, pooled, images, pictures)


def score_candidates(model: SpeechNetwork, candidates: Candidates, pairs: np.ndarray, block: int) -> np.ndarray:
    """Return the scores that order the candidates: coarse score plus weighted fine score.

    Args:
        model, candidates, pairs, block: see :func:`fine_scores`.

    Returns:
        [P] float32.
    """
    weight = reranker_of(model).fine_weight.item()
    return coarse_scores(model, candidates, pairs) + np.float32(weight) * fine_scores(model, candidates, pairs, block)


@torch.no_grad()
def coarse_scores(model: SpeechNetwork, candidates: Candidates, pairs: np.ndarray) -> np.ndarray:
    """Return the coarse scores of pairs [P, 2], cosine / tau: [P] float32."""
    utterances, images = torch.from_numpy(np.ascontiguousarray(pairs)).unbind(dim=1)
    cosines = (candidates.coarse[utterances] * candidates.embeddings[images]).sum(dim=1)
    return (cosines * model.loss.scale.cpu()).numpy()


@torch.no_grad()
def fine_scores(model: SpeechNetwork, candidates: Candidates, pairs: np.ndarray, block: int) -> np.ndarray:
    """Return the fine scores of pairs of an utterance and an image.

    Args:
        model: a network with a reranker.
        candidates: see :func:`encode_candidates`.
        pairs: [P, 2], positions of the utterance and the image.
        block: candidates of an utterance that are scored at a time.

    Returns:
        [P] float32.
    """
    head = reranker_of(model.eval())
    listed = torch.from_numpy(np.ascontiguousarray(pairs))
    speech, valid, _, pooled, images, embeddings = candidates
    crossed = score_listed_pairs(head.scorer, speech, valid, images, listed, block)
    return (crossed + head.pooled_scores(pooled, embeddings, listed)).numpy()


@torch.no_grad()
def image_tokens(model: SpeechNetwork, patches: Patches, embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Return images for :func:`score_batch`, and their embeddings.

    Args:
        model: a network with a reranker.
        patches: tokens [N, R, F] and their grid.
        embeddings: [N, J], L2-normalised.
    """
    boxes = grid_boxes(patches.rows, patches.columns).to(model.device).expand(len(patches.tokens), -1, -1)
    return reranker_of(model.eval()).image_tokens(Regions(patches.tokens, boxes), embeddings), embeddings


@torch.no_grad()
def score_batch(model: SpeechNetwork, waves: Sequence[Tensor], images: Tensor, embeddings: Tensor) -> Tensor:
    """Return the scores of all pairs of 16 kHz waveforms and images, [B, N].

    Args:
        model: a network with a reranker and a speech encoder.
        waves: B waveforms [n_i].
        images: [N, 1 + R, dim], of :func:`image_tokens`.
        embeddings: [N, J], L2-normalised.
    """
    head = reranker_of(model.eval())
    batch = Batch(torch.arange(len(waves)), None, None, tuple(waves))
    speech = head.speech_tokens(head.frozen_speech(*model.mixed_frames(batch)))
    pairs = torch.cartesian_prod(torch.arange(len(waves)), torch.arange(len(images)))
    crossed = score_listed_pairs(head.scorer, speech.tokens, speech.valid, images, pairs, head.settings.block)
    fine = crossed + head.pooled_scores(speech.pooled, embeddings, pairs)
    coarse = speech.coarse @ embeddings.T * model.loss.scale
    return coarse + head.fine_weight * fine.view_as(coarse).to(coarse.device)
