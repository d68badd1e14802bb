"""Run a model over every utterance of a source."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import nn

from speechclip.data.dataset import Batch, SpeechSource, evaluation_batches, read_batches
from speechclip.encoders.speech import SpeechFeatures
from speechclip.heads.base import HeadOutput
from speechclip.model import SpeechCLIP


class KeywordTable(NamedTuple):
    """Keywords of N utterances, as arrays.

    vectors: [N, K, D] z_k before quantisation. mask: [N, K] bool, which exist. attention: N arrays [K, T_n].
    """

    vectors: np.ndarray
    mask: np.ndarray
    attention: list[np.ndarray]


def features_of(model: SpeechCLIP, batch: Batch) -> SpeechFeatures:
    """Hidden states [B, L, T, D] and frame counts [B] of a batch, on the model's device: read, or encoded now."""
    if batch.states is not None and batch.frames is not None:
        return SpeechFeatures(batch.states.to(model.device), batch.frames.to(model.device))
    assert batch.waves is not None
    return model.encode_waves([wave.to(model.device) for wave in batch.waves])


@torch.no_grad()
def run(
    model: SpeechCLIP, source: SpeechSource, batch_size: int, workers: int = 0
) -> Iterator[tuple[Batch, SpeechFeatures, HeadOutput]]:
    """Batches with their features and head outputs, longest utterances first. The model is put into eval mode."""
    model.eval()
    batches = evaluation_batches(source.lengths, batch_size)
    for batch in read_batches(source, batches, workers=workers):
        features = features_of(model, batch)
        yield batch, features, model.apply_head(*features)


def embed_speech(model: SpeechCLIP, source: SpeechSource, batch_size: int, workers: int = 0) -> np.ndarray:
    """Embeddings of all utterances, [N, J] float32, L2-normalised, in the source's order."""
    rows: np.ndarray | None = None
    for batch, _, output in run(model, source, batch_size, workers):
        embedding = nn.functional.normalize(cast(torch.Tensor, output.embedding).float(), dim=-1).cpu().numpy()
        if rows is None:
            rows = np.empty((len(source.lengths), embedding.shape[1]), dtype=np.float32)
        rows[batch.indices.numpy()] = embedding
    assert rows is not None
    return rows


def find_keywords(model: SpeechCLIP, source: SpeechSource, batch_size: int, workers: int = 0) -> KeywordTable:
    """Keywords of all utterances, in the source's order. The head has to have keywords."""
    vectors: np.ndarray | None = None
    attention: list[np.ndarray] = [np.empty(0)] * len(source.lengths)
    for batch, features, output in run(model, source, batch_size, workers):
        keywords = output.keywords
        assert keywords is not None
        if vectors is None:
            vectors = np.empty((len(source.lengths), *keywords.vectors.shape[1:]), dtype=np.float32)
        vectors[batch.indices.numpy()] = keywords.vectors.float().cpu().numpy()
        for index, weights, count in zip(batch.indices.tolist(), keywords.attention, features.frames.tolist()):
            attention[index] = weights[:, :count].float().cpu().numpy()
    assert vectors is not None
    return KeywordTable(vectors, np.ones(vectors.shape[:2], dtype=bool), attention)
