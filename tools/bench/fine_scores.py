"""Benchmark: fine scores of pairs against a plain loop over pairs, and the memory of a training step of fast_vgs.

The plain loop calls the cross-modal layers once for each pair, without padding. Ours scores the same pairs in blocks.
Weights and tokens are random: they do not change the time.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import live_memory
import measure
import rerank
import torch
from measure import OURS, PLAIN
from torch import Tensor

from speechclip.config import FastVgsConfig, load
from speechclip.data.regions import BOX, Regions
from speechclip.model.cross_modal import CrossModalScorer, score_all_pairs, score_listed_pairs
from speechclip.model.encoders.front_end import fixed_frames
from speechclip.model.heads.fast_vgs import FastVgsHead
from speechclip.model.losses import margin_loss

ROOT = Path(__file__).resolve().parents[2]
CHANNELS = 512  # of the waveform convolutions at the published size
REGIONS = 36  # of a picture, as published
BATCH = 64  # the published batch on SpokenCOCO
BLOCKS = (16, 32, 64, 128, 256)
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
        ("fast_vgs, mini", *_tower_works(mini.head.fast_vgs, 16, 8, 100)),
        ("fast_vgs, published", *_tower_works(FastVgsConfig(), REGIONS, 2, 20)),
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


def _tower_works(settings: FastVgsConfig, regions: int, utterances: int, images: int) -> tuple[int, dict[str, Any]]:
    """Return the pairs of utterances and images, and both functions that score all of them."""
    torch.manual_seed(0)
    scorer = CrossModalScorer(
        settings.dim, settings.heads, layers=settings.cross_layers, hidden=settings.feed_forward
    ).eval()
    positions = _positions(settings)
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


def _positions(settings: FastVgsConfig, seconds: float = 10.0) -> int:
    """Return the length of the speech sequence with its [CLS]: ResDAVEnet halves the frames in each stage."""
    frames = fixed_frames(seconds)
    for _ in settings.widths[1:]:
        frames = -(-frames // 2)
    return 1 + frames


def _reranker_works(images: int) -> tuple[int, dict[str, Any]]:
    """Return the pairs of two utterances and images, and both functions that score them with the mini reranker."""
    model, utterances = rerank.make_model(), 2
    found = rerank.candidates(model, rerank.gallery(images), utterances)
    pairs = torch.cartesian_prod(torch.arange(utterances), torch.arange(images)).numpy()
    block = model.config.head.reranker.block

    def loop() -> Tensor:
        each = [rerank.score_candidates(model, found, pairs[at : at + 1], 1) for at in range(len(pairs))]
        return torch.cat([torch.from_numpy(one) for one in each])

    return len(pairs), {
        PLAIN: loop, OURS: lambda: torch.from_numpy(rerank.score_candidates(model, found, pairs, block)),
    }  # fmt: skip


# -- memory ----------------------------------------------------------------------------------------------------------


def memory() -> list[dict[str, Any]]:
    """Count the bytes of live tensors at the peak of a training step, at the published size and batch, by block.

    The tensors are fake (:mod:`live_memory`): their sizes are those of a real step, nothing is computed. The row with
    block 0 scores all pairs at once without recomputation. A real step of a small batch checks the count.
    """
    rows = []
    for block in (*BLOCKS, 0):
        parts = live_memory.peak(functools.partial(step, FastVgsConfig(), BATCH, REGIONS, block))
        rows.append({"kind": "memory", "batch": BATCH, "block": block, **parts})
        print(f"batch {BATCH}, block {block}: {parts['peak'] / 2**30:.2f} GiB", flush=True)
    return rows


def step(settings: FastVgsConfig, batch: int, regions: int, block: int) -> Any:
    """Build a head, and return one training step with BertAdam's two moments: loss, gradients, update.

    Args:
        settings: sizes of the head.
        batch: utterances, with a different image each.
        regions: of an image.
        block: pairs that are scored at a time; 0 for all at once without recomputation.
    """
    frames = fixed_frames(8.0)
    head = FastVgsHead(
        dataclasses.replace(settings, block=max(1, block)), CHANNELS, dropout=0.1, frames=(frames, frames)
    ).train()
    trained = [p for p in head.parameters() if p.requires_grad]
    moments = [torch.zeros_like(p) for p in trained for _ in range(2)]
    states, padding = torch.randn(batch, frames, CHANNELS), torch.zeros(batch, frames, dtype=torch.bool)
    found = Regions(torch.randn(batch, regions, settings.region_features), torch.rand(batch, regions, BOX))
    groups = torch.arange(batch)

    def work() -> None:
        output = head(states, padding)
        image, target = head.image(found)
        if block:
            fine = score_all_pairs(head.scorer, output.sequence, output.valid, image, block)
        else:
            fine = head.scorer.score_grid(output.sequence, output.valid, image)
        loss = margin_loss(fine, groups, 1.0) + 0.1 * margin_loss(output.embedding @ target.T, groups, 1.0)
        loss.backward()
        assert len(moments) == 2 * len(trained)

    return work
