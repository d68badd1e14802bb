"""Benchmark: fine scores of pairs against a plain loop over pairs, and the memory of a training step of fast_vgs.

The plain loop calls the cross-modal layers once for each pair, without padding. Ours scores the same pairs in blocks.
Weights and tokens are random: they do not change the time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import live_memory
import measure
import rerank
import torch
from measure import OURS, PLAIN
from torch import Tensor

from speechclip.config import FastVgsConfig, HeadConfig, load
from speechclip.data.regions import BOX, Regions
from speechclip.model.candidate_scores import score_listed_pairs
from speechclip.model.cross_modal import CrossModalScorer, score_all_pairs
from speechclip.model.encoders.front_end import fixed_frames
from speechclip.model.heads.base import HeadInputs
from speechclip.model.heads.factory import make_head
from speechclip.model.heads.fast_vgs import FastVgsHead
from speechclip.model.losses import margin_loss

ROOT = Path(__file__).resolve().parents[2]
CHANNELS = 512  # of the waveform convolutions at the published size
REGIONS = 36  # of a picture, as published
EVAL_SECONDS = 10.0  # of a recording in evaluation, as published
TRAIN_SECONDS = 8.0  # of a recording in training, as published
BATCH = 64  # the published batch on SpokenCOCO
DROPOUT = 0.1  # as published
BLOCKS = (32, 64, 128, 256)
AWAY = 1e-3  # largest difference of a score between the loop and the blocks


def run(repeats: int) -> list[dict[str, Any]]:
    """Measure pairs per second and memory. Returns rows with "kind": "speed" or "memory"."""
    return [*speed(repeats), *memory()]


# -- pairs per second ------------------------------------------------------------------------------------------------


def speed(repeats: int) -> list[dict[str, Any]]:
    """Compare both at the sizes of the mini recipe and of the paper.

    Raises:
        RuntimeError: plain and ours give different scores.
    """
    mini = load([ROOT / "egs" / "mini" / "conf" / "fast_vgs.yaml"]).model
    sizes = [
        ("reranker, mini", *_reranker_works(images=100)),
        ("fast_vgs, mini", *_tower_works(mini.head.fast_vgs, mini.speech_encoder.eval_seconds, 16, 8, 100)),
        ("fast_vgs, published", *_tower_works(FastVgsConfig(), EVAL_SECONDS, REGIONS, 2, 20)),
    ]
    rows = []
    for name, count, works in sizes:
        off = float((works[PLAIN]() - works[OURS]()).abs().max())
        if off > AWAY:
            raise RuntimeError(f"{name}: scores differ by {off}")
        time = measure.compare(measure.interleaved(works, repeats, warm_up=False))
        rates = {kind: count / time[kind] for kind in (PLAIN, OURS)}
        rows.append({"kind": "speed", "model": name, "pairs": count, "rates": rates, "time": time})
        print(f"{name}: {rates[PLAIN]:.0f} and {rates[OURS]:.0f} pairs/s, {time['ratio']:.1f} x", flush=True)
    return rows


def _tower_works(
    settings: FastVgsConfig, seconds: float, regions: int, utterances: int, images: int
) -> tuple[int, dict[str, Any]]:
    """Return the number of pairs of utterances and images, and both functions that score all of them."""
    torch.manual_seed(0)
    scorer = CrossModalScorer(
        settings.dim, settings.heads, layers=settings.cross_layers, hidden=settings.feed_forward
    ).eval()
    positions = _positions(settings, seconds)
    speech = torch.randn(utterances, positions, settings.dim)
    image = torch.randn(images, 1 + regions, settings.dim)
    counts = torch.linspace(positions // 2, positions, utterances).long()
    valid = torch.arange(positions)[None, :] < counts[:, None]
    pairs = torch.cartesian_prod(torch.arange(utterances), torch.arange(images))

    @torch.no_grad()
    def loop() -> Tensor:
        scores = []
        for row, column in pairs.tolist():
            kept = int(counts[row])
            scores.append(scorer.score_pairs(speech[row : row + 1, :kept], valid[row : row + 1, :kept],
                                             image[column : column + 1]))  # fmt: skip
        return torch.cat(scores)

    return len(pairs), {
        PLAIN: loop, OURS: lambda: score_listed_pairs(scorer, speech, valid, image, pairs, settings.block),
    }  # fmt: skip


def _positions(settings: FastVgsConfig, seconds: float) -> int:
    """Return the length of the speech sequence with its [CLS]: ResDAVEnet halves the positions in each stage."""
    frames = -(-fixed_frames(seconds) // settings.joined_frames)
    for _ in settings.widths[1:]:
        frames = -(-frames // 2)
    return 1 + frames


def _reranker_works(images: int) -> tuple[int, dict[str, Any]]:
    """Return the pairs of two utterances and images, and both functions that score them with the mini reranker."""
    model, utterances = rerank.make_model(), 2
    found = rerank.candidates(model, rerank.gallery(images), utterances)
    pairs = torch.cartesian_prod(torch.arange(utterances), torch.arange(images)).numpy()
    block = model.config.head.reranker.block

    head = rerank.reranker_of(model)

    @torch.no_grad()
    def loop() -> Tensor:
        scores = []
        for row, column in pairs.tolist():
            kept = slice(0, int(found.valid[row].sum()))
            tokens = found.speech[row : row + 1, kept], found.valid[row : row + 1, kept]
            crossed = head.scorer.score_pairs(*tokens, found.images[column : column + 1])[0]
            pooled = found.pooled[row] @ found.embeddings[column] * head.pooled_scale.exp()
            coarse = found.coarse[row] @ found.embeddings[column] * model.loss.scale
            scores.append(coarse + head.fine_weight * (crossed + pooled))
        return torch.stack(scores)

    return len(pairs), {
        PLAIN: loop, OURS: lambda: torch.from_numpy(rerank.score_candidates(model, found, pairs, block)),
    }  # fmt: skip


# -- memory ----------------------------------------------------------------------------------------------------------


def memory() -> list[dict[str, Any]]:
    """Count the bytes of live tensors at the peak of a training step, at the published size and batch, by block.

    The tensors are fake (:mod:`live_memory`): their sizes are those of a real step, nothing is computed. The row with
    block 0 scores all pairs at once without recomputation. Dropout is off: with it, attention on a CPU keeps its
    weights, which the kernels of a GPU do not. One more row, at the largest block, has dropout and these weights.

    Returns:
        Rows with bytes: "held" before the step (weights, moments of the optimiser, inputs), "towers" at the peak
        without fine scores, "peak" of the whole step, and "scores" of the fine scores alone.
    """
    settings, rows = FastVgsConfig(), []
    for dropout, blocks in ((0.0, (*BLOCKS, 0)), (DROPOUT, BLOCKS[-1:])):
        towers = live_memory.peak(functools.partial(step, settings, BATCH, REGIONS, None, dropout))["peak"]
        for block in blocks:
            whole = live_memory.peak(functools.partial(step, settings, BATCH, REGIONS, block, dropout))
            alone = live_memory.peak(functools.partial(_scores_step, settings, BATCH, REGIONS, block, dropout))
            row = {"kind": "memory", "batch": BATCH, "block": block, "dropout": dropout, "towers": towers, **whole}
            rows.append({**row, "scores": alone["peak"] - alone["held"]})
            print(f"batch {BATCH}, block {block}, dropout {dropout}: {whole['peak'] / 2**30:.2f} GiB", flush=True)
    return rows


def step(
    settings: FastVgsConfig, batch: int, regions: int, block: int | None, dropout: float = DROPOUT
) -> Callable[[], None]:
    """Build a head with its inputs and the two moments of the optimiser, and return the gradients of a training step.

    Args:
        settings: sizes of the head.
        batch: utterances, with a different image each.
        regions: of an image.
        block: pairs that are scored at a time; 0 for all at once without recomputation; None for no fine scores.
        dropout: probability of dropout.
    """
    frames = fixed_frames(TRAIN_SECONDS)
    config = HeadConfig(name="fast_vgs", fast_vgs=settings, dropout=dropout)
    inputs = HeadInputs(CHANNELS, settings.dim, fixed_seconds=(TRAIN_SECONDS, TRAIN_SECONDS), part="convolutions")
    head = cast(FastVgsHead, make_head(config, inputs)).train()
    trained = [p for p in head.parameters() if p.requires_grad]
    moments = [torch.zeros_like(p) for p in trained for _ in range(2)]
    states, padding = torch.randn(batch, frames, CHANNELS), torch.zeros(batch, frames, dtype=torch.bool)
    found = Regions(torch.randn(batch, regions, settings.region_features), torch.rand(batch, regions, BOX))
    groups = torch.arange(batch)

    def work() -> None:
        output = head(states, padding)
        image, target = head.image(found)
        loss = 0.1 * margin_loss(output.embedding @ target.T, groups, 1.0)
        if block is None:
            loss = loss + output.sequence.sum() + image.sum()
        else:
            loss = loss + margin_loss(_all_pairs(head.scorer, output.sequence, output.valid, image, block), groups, 1.0)
        loss.backward()
        assert len(moments) == 2 * len(trained)  # they exist to the end

    return work


def _scores_step(settings: FastVgsConfig, batch: int, regions: int, block: int, dropout: float) -> Callable[[], None]:
    """Return the gradients of the fine scores alone."""
    scorer = CrossModalScorer(
        settings.dim, settings.heads, layers=settings.cross_layers, hidden=settings.feed_forward, dropout=dropout
    ).train()
    positions = _positions(settings, TRAIN_SECONDS)
    speech = torch.randn(batch, positions, settings.dim, requires_grad=True)
    image = torch.randn(batch, 1 + regions, settings.dim, requires_grad=True)
    valid = torch.ones(batch, positions, dtype=torch.bool)
    return lambda: _all_pairs(scorer, speech, valid, image, block).sum().backward()


def _all_pairs(scorer: CrossModalScorer, speech: Tensor, valid: Tensor, image: Tensor, block: int) -> Tensor:
    if block:
        return score_all_pairs(scorer, speech, valid, image, block)
    return scorer.score_grid(speech, valid, image)
