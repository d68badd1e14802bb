"""Benchmark 1: a training step of every head, its time and its peak memory; and a whole epoch.

The step here: hidden states in half precision as the store gives them, image embeddings from the cache, this project's
LossStep. The plain one: the same states in single precision, the image tower in the step, the head of plain.py. Both:
loss, gradients, their norm clipped, Adam. Neither reads the disk or runs the speech encoder; the epoch does both.
"""

from __future__ import annotations

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

from speechclip.config import Config
from speechclip.data.dataset import Batch, StoreSource
from speechclip.data.features import FeatureWriter
from speechclip.model import SpeechCLIP
from speechclip.train.loop import LossStep, Task

BATCHES, BIG = (4, 8, 16), 256
Step = Callable[[], float]


def make_step(
    kind: str, shape: str, head: str, batch: int, subwords: int = parts.SUBWORDS, length: float = parts.MEAN_SECONDS
) -> Step:
    """A training step that can be repeated; it returns its loss. kind: "plain" or "ours"."""
    model = parts.model(shape, head, subwords).train()
    states, frames = parts.features(shape, batch, length)
    images, groups = parts.pixels(shape, batch), torch.arange(batch)
    if kind == OURS:
        cached = nn.functional.normalize(torch.randn(batch, model.dimensions.joint), dim=-1)
        loss = our_loss(model, parts.settings(shape, head), Batch(groups, states, frames, None), cached)
    else:
        clip, states = parts.plain_clip(shape), states.float()

        def loss() -> Tensor:
            return plain_loss(model, clip, states, frames, images, groups)

    update = updater(model)
    return lambda: update(loss())


def our_loss(model: SpeechCLIP, config: Config, batch: Batch, targets: Tensor) -> Callable[[], Tensor]:
    """This project's step, to its loss."""
    step = LossStep(model, config, Fabric(accelerator="cpu", devices=1))
    return lambda: step(Task(batch, targets, batch.indices))


def plain_loss(model: SpeechCLIP, clip: Any, states: Tensor, frames: Tensor, images: Tensor, groups: Tensor) -> Tensor:
    """The plain step's loss: states [B, L, T, D], frames [B], preprocessed images [B, 3, side, side], groups [B]."""
    embeddings, quantity = plain.read_out(model, clip, states, frames)
    return plain.loss(model, embeddings, quantity, plain.image_tower(clip, images), groups)


def updater(model: SpeechCLIP) -> Callable[[Tensor], float]:
    """One optimiser for a model: from a loss to changed parameters."""
    parameters = model.trained_parameters()
    optimizer = torch.optim.Adam(parameters, lr=1e-4, weight_decay=1e-6)

    def update(value: Tensor) -> float:
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 4.0)
        optimizer.step()
        return float(value.detach())

    return update


def needed_by_plain(shape: str, head: str, batch: int) -> float:
    """About how many bytes a plain step needs, from above: per keyword some copies of [B, V, D]."""
    if head == "parallel":
        return 4e9
    width = {"base": 512, "large": 768}.get(shape, 512)
    return 4e9 + 8.5 * 6 * 4 * batch * parts.SUBWORDS * width


def run(shape: str, heads: tuple[str, ...], batches: tuple[int, ...], repeats: int) -> list[dict[str, Any]]:
    """Rows of step times and peaks, and what both are by fit at a batch of 256."""
    rows = []
    for head in heads:
        done = []
        for batch in batches:
            if needed_by_plain(shape, head, batch) > measure.free_memory():
                print(f"{shape} {head} batch {batch}: left out, not enough free memory for the plain step", flush=True)
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
        rows += done + ([fitted(done, BIG)] if len(done) > 1 else [])
    return rows


def fitted(rows: list[dict[str, Any]], batch: int) -> dict[str, Any]:
    """A row for a batch that was not run, by power laws through those that were; it says so in "fit"."""
    sizes = [row["batch"] for row in rows]
    fits = {
        (what, kind): measure.fit_power(sizes, [row[what][kind] for row in rows])
        for what in ("time", "peak")
        for kind in (PLAIN, OURS)
    }
    said = {key: measure.predict(fit, batch) for key, fit in fits.items()}
    time = {PLAIN: said["time", PLAIN], OURS: said["time", OURS]}
    ratio = time[PLAIN] / time[OURS]
    return {
        "shape": rows[0]["shape"],
        "head": rows[0]["head"],
        "batch": batch,
        "time": {**time, "ratio": ratio, "low": ratio, "high": ratio},
        "peak": {kind: said["peak", kind] for kind in (PLAIN, OURS)},
        "fit": {f"{what} {kind}": fit["exponent"] for (what, kind), fit in fits.items()},
    }


def epoch(shape: str, heads: tuple[str, ...], utterances: int, batch: int, repeats: int) -> list[dict[str, Any]]:
    """A training epoch over a small corpus: from dumped features and cached embeddings, and with both towers in it."""
    from extraction import plain_encoder

    samples = parts.lengths(utterances, seed=3)
    speech = parts.waves(samples, seed=3)
    batches = [list(range(at, at + batch)) for at in range(0, utterances, batch)]
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
    images, update = parts.pixels(shape, len(batches[0])), updater(model)

    def once() -> None:
        for rows in batches:
            waves = [speech[at] for at in rows]
            states, frames = recompute(waves)
            update(plain_loss(model, clip, states, frames, images, torch.tensor(rows)))

    return once


def _our_epoch(shape: str, head: str, source: StoreSource, batches: list[list[int]]) -> Callable[[], None]:
    model, config = parts.model(shape, head).train(), parts.settings(shape, head)
    cached = nn.functional.normalize(torch.randn(len(source.ids), model.dimensions.joint), dim=-1)
    update = updater(model)

    def once() -> None:
        for rows in batches:
            update(our_loss(model, config, source.batch(rows), cached[rows])())

    return once
