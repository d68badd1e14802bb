"""Benchmark: one spoken query over 1,000 images with a reranker, at the size of the mini recipe.

The parts are those of a search: the speech encoder, the coarse scores of all images, and the fine scores of the best K.
The images are encoded before. Weights are random: they do not change the time.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from speechclip.common.constants import SAMPLE_RATE
from speechclip.config import load
from speechclip.data.regions import Regions, grid_boxes
from speechclip.model.encoders.factory import load_speech_encoder
from speechclip.model.network import Dimensions, build_network
from speechclip.model.reranking import Candidates, reranker_of, score_candidates

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 3.0  # length of the query, about the mean of the mini corpus
GRID = 4  # cells per side of an image
JOINT = 128  # width of the mini CLIP


def run(images: int, top_k: int, repeats: int, threads: int = 2) -> list[dict[str, Any]]:
    """Measure the CPU time of one query, over all threads: the wall time on idle cores is less.

    Args:
        images: images that are searched.
        top_k: K.
        repeats: number of queries; the median is returned.
        threads: threads of torch, as for a user with two cores.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model, held = make_model(), gallery(images)
        parts = [_query(model, held, top_k) for _ in range(repeats + 1)][1:]  # the first one warms up
    finally:
        torch.set_num_threads(before)
    row = {name: statistics.median(part[name] for part in parts) for name in parts[0]}
    return [{"images": images, "top_k": top_k, "threads": threads, "seconds": SECONDS, **row}]


def make_model() -> Any:
    """Return a reranker over a parallel head with the settings of the mini recipe and its speech encoder."""
    conf = ROOT / "egs" / "mini" / "conf"
    layers = [ROOT / "egs" / "conf" / "parallel.yaml", conf / "tiny.yaml", conf / "parallel.yaml"]
    layers += [ROOT / "egs" / "conf" / "reranker.yaml", conf / "reranker.yaml"]
    encoder_path = ["--model.speech_encoder.path", str(ROOT / "egs" / "mini" / "models" / "hubert")]
    config = load(layers, encoder_path).model
    encoder = load_speech_encoder(config.speech_encoder)
    torch.manual_seed(0)
    return build_network(config, Dimensions(encoder.dim, encoder.num_states, JOINT), speech_encoder=encoder).eval()


def gallery(images: int) -> tuple[Regions, torch.Tensor]:
    """Return random regions and embeddings of images, with the sizes of the mini recipe."""
    generator = torch.Generator().manual_seed(0)
    config = load([ROOT / "egs" / "mini" / "conf" / "reranker.yaml"]).model.head.reranker
    features = torch.randn(images, GRID * GRID, config.region_features, generator=generator)
    embeddings = torch.nn.functional.normalize(torch.randn(images, JOINT, generator=generator), dim=1)
    return Regions(features, grid_boxes(GRID, GRID).expand(images, -1, -1)), embeddings


@torch.no_grad()
def candidates(model: Any, images: tuple[Regions, torch.Tensor], utterances: int) -> Candidates:
    """Return random recordings of 1.5 to 3 s and the images of :func:`gallery` as the cross-modal layers read them."""
    head, generator = reranker_of(model), torch.Generator().manual_seed(1)
    lengths = torch.linspace(SECONDS / 2, SECONDS, utterances) * SAMPLE_RATE
    states, frames = model.encode_waves([0.1 * torch.randn(int(n), generator=generator) for n in lengths])
    padding = torch.arange(states.shape[2])[None, :] >= frames[:, None]
    speech = head.speech_tokens(head.frozen_speech(model.weighted_sum(states), padding))
    return Candidates(speech.tokens, speech.valid, speech.coarse, speech.pooled, head.image_tokens(*images), images[1])


@torch.no_grad()
def _query(model: Any, gallery: tuple[Regions, torch.Tensor], top_k: int) -> dict[str, float]:
    """Return the CPU seconds of the parts of one query."""
    head = reranker_of(model)
    regions, embeddings = gallery
    images = head.image_tokens(regions, embeddings)
    wave = 0.1 * torch.randn(int(SECONDS * SAMPLE_RATE), generator=torch.Generator().manual_seed(1))
    started = time.process_time()
    states, frames = model.encode_waves([wave])
    padding = torch.zeros(1, states.shape[2], dtype=torch.bool)
    speech = head.speech_tokens(head.frozen_speech(model.weighted_sum(states), padding))
    encoded = time.process_time()
    best = (embeddings @ speech.coarse[0]).topk(top_k).indices
    ranked = time.process_time()
    candidates = Candidates(speech.tokens, speech.valid, speech.coarse, speech.pooled, images, embeddings)
    pairs = np.stack([np.zeros(top_k, dtype=np.int64), best.numpy()], axis=1)
    score_candidates(model, candidates, pairs, head.settings.block)
    done = time.process_time()
    return {"encode": encoded - started, "coarse": ranked - encoded, "fine": done - ranked, "total": done - started}
