"""Benchmark 1: time and peak memory of a training step of every head, and time of an epoch.

Our step takes hidden states in half precision as the store holds them and cached image embeddings, and runs this
project's LossStep. The plain step takes the same states in single precision, runs the image tower, and the head of
plain.py. Both compute loss, gradients, gradient clipping and Adam. Neither reads the disk or runs the speech encoder;
the epoch does.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import numpy as np
import parts
import plain
import torch
from lightning_fabric import Fabric
from measure import OURS, PLAIN
from torch import Tensor, nn

from speechclip.common.constants import FRAME_RATE, SAMPLE_RATE
from speechclip.config import Config, OptimConfig
from speechclip.data.dataset import Batch, StoreSource
from speechclip.data.features import FeatureWriter
from speechclip.model.network import SpeechNetwork
from speechclip.train.optim import make_optimizer
from speechclip.train.step import LossStep, TrainBatch

BIG = 256  # the published batch
LONGEST = 6.4  # seconds of an utterance in training (Shih et al. 2022)
EPOCH_UTTERANCES = 16  # at most: the plain epoch takes minutes for these
Step = Callable[[], float]


def make_step(
    kind: str, shape: str, head: str, batch: int, subwords: int = parts.SUBWORDS, length: float = parts.MEAN_SECONDS
) -> Step:
    """Return a training step that can be repeated and returns its loss. kind: "plain" or "ours"."""
    model = parts.model(shape, head, subwords).train()
    states, frames = parts.features(shape, batch, length)
    groups = torch.arange(batch)
    if kind == OURS:
        cached = nn.functional.normalize(torch.randn(batch, model.dimensions.joint), dim=-1)
        loss = our_loss(model, parts.settings(shape, head), Batch(groups, states, frames, None), cached)
    else:
        clip, states, images = parts.plain_clip(shape), states.float(), parts.pixels(shape, batch)

        def loss() -> Tensor:
            return plain_loss(model, clip, states, frames, images, groups)

    update = updater(model, kind)
    return lambda: update(loss())


def our_loss(model: SpeechNetwork, config: Config, batch: Batch, targets: Tensor) -> Callable[[], Tensor]:
    """Return a function that computes the loss of this project's step."""
    step = LossStep(model, config, Fabric(accelerator="cpu", devices=1))
    return lambda: step(TrainBatch(batch, targets, batch.indices))


def plain_loss(
    model: SpeechNetwork, clip: Any, states: Tensor, frames: Tensor, images: Tensor, groups: Tensor
) -> Tensor:
    """Return the loss of the plain step with the image tower, which runs first, as in the published code.

    Args:
        model: the network.
        clip: open_clip's own model.
        states: [B, L, T, D].
        frames: [B].
        images: preprocessed, [B, 3, side, side].
        groups: [B], the image of each utterance.
    """
    embedded = plain.image_tower(clip, images)  # before the head: its buffers are not in memory with the graph
    return plain_head_loss(model, clip, states, frames, embedded, groups)


def plain_head_loss(
    model: SpeechNetwork, clip: Any, states: Tensor, frames: Tensor, embedded: Tensor, groups: Tensor
) -> Tensor:
    """Return the loss of the plain step without the image tower.

    Args:
        model, clip, states, frames, groups: see :func:`plain_loss`.
        embedded: [B, J], of the image tower.
    """
    embeddings, quantity = plain.apply_head(model, clip, states, frames)
    return plain.loss(model, embeddings, quantity, embedded, groups)


def updater(model: SpeechNetwork, kind: str) -> Callable[[Tensor], float]:
    """Return a function that updates the parameters from a loss: torch's default Adam, or this project's optimiser."""
    parameters = model.trained_parameters()
    config = OptimConfig()
    optimizer = (
        make_optimizer(parameters, config) if kind == OURS
        else torch.optim.Adam(parameters, lr=config.lr, weight_decay=config.weight_decay)
    )  # fmt: skip

    def update(value: Tensor) -> float:
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(parameters, config.clip_norm)
        optimizer.step()
        return float(value.detach())

    return update


def needed_by_plain(shape: str, head: str, batch: int) -> float:
    """Estimate an upper bound of the memory of a plain step: two copies of [B, V, D] for each of up to ten keywords."""
    if head == "parallel":
        return 4e9
    width = {"base": 512, "large": 768}.get(shape, 512)
    return 4e9 + 25 * 4 * batch * parts.SUBWORDS * width


def needed_by_ours(shape: str, batch: int) -> float:
    """Estimate an upper bound of the memory of our step: hidden states in single and half precision, and gradients."""
    size = parts.SHAPES[shape]
    return 4e9 + 10 * batch * size.states * size.width * parts.MEAN_SECONDS * FRAME_RATE


def run(shape: str, head: str, batches: tuple[int, ...], repeats: int, big: int = BIG) -> list[dict[str, Any]]:
    """Measure steps at several batch sizes; at the batch size ``big``, ours is measured and plain is fitted.

    If the machine has too little memory for a plain step, its row holds the reason in "left_out".
    """
    rows, done = [], []
    for batch in batches:
        needed, free = needed_by_plain(shape, head, batch), measure.free_memory()
        if needed > free:
            reason = f"the plain step needs about {needed / 1e9:.0f} GB, {free / 1e9:.0f} GB were free"
            rows.append({"shape": shape, "head": head, "batch": batch, "left_out": reason})
            print(f"{shape} {head} batch {batch}: left out, {reason}", flush=True)
            continue
        works = {kind: make_step(kind, shape, head, batch) for kind in (PLAIN, OURS)}
        times = measure.compare(measure.interleaved(works, repeats, warm_up=repeats > 1))
        works.clear()
        peaks = {
            kind: measure.memory_in_child("step", {"kind": kind, "shape": shape, "head": head, "batch": batch})
            for kind in (PLAIN, OURS)
        }
        done.append({"shape": shape, "head": head, "batch": batch, "time": times, "peak": peaks})
        print(f"{shape} {head} batch {batch}: {times['ratio']:.1f} x, {peaks}", flush=True)
    rows += done
    if len(done) > 1:
        rows.append(fitted(done, big, _ours_alone(shape, head, big, repeats)))
        print(f"{shape} {head} batch {big}: {rows[-1]}", flush=True)
    return sorted(rows, key=lambda row: row["batch"])


def _ours_alone(shape: str, head: str, batch: int, repeats: int) -> dict[str, float] | None:
    """Return time and peak memory of our step, or None if the machine has too little memory."""
    if needed_by_ours(shape, batch) > measure.free_memory():
        return None
    works = {OURS: make_step(OURS, shape, head, batch)}
    time = statistics.median(measure.interleaved(works, repeats, warm_up=repeats > 1)[OURS])
    works.clear()
    peak = measure.memory_in_child("step", {"kind": OURS, "shape": shape, "head": head, "batch": batch})
    return {"time": time, "peak": peak}


def fitted(rows: list[dict[str, Any]], batch: int, ours: dict[str, float] | None = None) -> dict[str, Any]:
    """Return a row for a batch size at which plain was not run. "fit" holds the lines start + slope * batch.

    A line is used instead of a power law, because a part of a step does not grow.

    Args:
        rows: the measured rows.
        batch: the batch size.
        ours: measured time and peak of our step; None to fit them as well.
    """
    sizes = [row["batch"] for row in rows]
    kinds = (PLAIN,) if ours else (PLAIN, OURS)
    values: dict[tuple[str, str], float] = {(what, OURS): value for what, value in (ours or {}).items()}
    fits = {}
    for what in ("time", "peak"):
        for kind in kinds:
            fits[f"{what} {kind}"] = line = measure.fit_line(sizes, [row[what][kind] for row in rows])
            values[what, kind] = line["start"] + line["slope"] * batch
    ratio = values["time", PLAIN] / values["time", OURS]
    return {
        "shape": rows[0]["shape"],
        "head": rows[0]["head"],
        "batch": batch,
        "time": {PLAIN: values["time", PLAIN], OURS: values["time", OURS], "ratio": ratio, "low": ratio, "high": ratio},
        "peak": {kind: values["peak", kind] for kind in (PLAIN, OURS)},
        "fit": fits,
    }


def epoch(shape: str, heads: tuple[str, ...], utterances: int, batch: int, repeats: int) -> list[dict[str, Any]]:
    """Measure an epoch over a small corpus, with stored features and embeddings, and with both towers in the loop.

    Utterances are cropped to 6.4 s in both, as in training.
    """
    from extraction import plain_encoder

    samples = np.minimum(parts.lengths(utterances, seed=3), round(LONGEST * SAMPLE_RATE))
    speech = parts.waves(samples, seed=3)
    batches = [list(range(at, min(at + batch, utterances))) for at in range(0, utterances, batch)]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        recompute = plain_encoder(shape, Path(folder) / "hubert")
        encoder = parts.speech_encoder(shape, Path(folder) / "hubert")
        ids = [f"u{at:03d}" for at in range(utterances)]
        with FeatureWriter(Path(folder) / "store", encoder={}, layers=range(encoder.num_states)) as writer:
            for at in np.argsort(-samples).tolist():
                states, frames = encoder([speech[at]])
                writer.add(ids[at], states[0, :, : int(frames[0])])
        source = StoreSource(Path(folder) / "store", ids)
        by_length = np.argsort(samples, kind="stable").tolist()
        for head in heads:
            works = {
                PLAIN: _plain_epoch(shape, head, speech, batches, recompute),
                OURS: _our_epoch(shape, head, source, [by_length[b[0] : b[-1] + 1] for b in batches]),
            }
            times = measure.compare(measure.interleaved(works, repeats, warm_up=False))
            rows.append({"shape": shape, "head": head, "utterances": utterances, "batch": batch, "time": times})
            print(f"{shape} {head} epoch of {utterances}: {times['ratio']:.1f} x", flush=True)
    return rows


def _plain_epoch(
    shape: str, head: str, speech: list[Tensor], batches: list[list[int]], recompute: Callable[[list[Tensor]], Any]
) -> Callable[[], None]:
    model, clip = parts.model(shape, head).train(), parts.plain_clip(shape)
    images, update = parts.pixels(shape, len(batches[0])), updater(model, PLAIN)

    def once() -> None:
        for rows in batches:
            waves = [speech[at] for at in rows]
            states, frames = recompute(waves)
            update(plain_loss(model, clip, states, frames, images[: len(rows)], torch.tensor(rows)))

    return once


def _our_epoch(shape: str, head: str, source: StoreSource, batches: list[list[int]]) -> Callable[[], None]:
    model, config = parts.model(shape, head).train(), parts.settings(shape, head)
    cached = nn.functional.normalize(torch.randn(len(source.ids), model.dimensions.joint), dim=-1)
    update = updater(model, OURS)

    def once() -> None:
        for rows in batches:
            update(our_loss(model, config, source.batch(rows), cached[rows])())

    return once
