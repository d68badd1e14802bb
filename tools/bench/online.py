"""Benchmark: a training step with the frozen speech encoder in it, from waveforms to Adam's update.

Plain: s3prl's HuBERT on the padded batch, the image tower and the head of plain.py. Ours: this project's encoder on
groups of similar length, cached image embeddings and LossStep. "same images" gives the cached embeddings to the plain
step, too, so that it compares encoder and head alone. The losses of the first steps are equal up to rounding if our
encoder takes the whole batch as one group. Smaller groups have less padding, which changes the group norm of Base.
"""

from __future__ import annotations

import copy
import gc
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import measure
import numpy as np
import parts
import plain
import steps
import torch
from extraction import at_precision, plain_encoder
from measure import OURS, PLAIN
from sections import PRECISIONS
from torch import Tensor, nn

from speechclip.common.constants import SAMPLE_RATE
from speechclip.data.dataset import Batch
from speechclip.model.network import SpeechNetwork

SAME_IMAGES = "same images"
CASES = {"step": PLAIN, SAME_IMAGES: SAME_IMAGES}  # what a case compares with our step


def run(
    shape: str,
    heads: Sequence[str],
    batches: Sequence[int],
    repeats: int,
    device: str = "cuda",
    precisions: Iterable[str] = PRECISIONS,
) -> list[dict[str, Any]]:
    """Measure steps of several heads, batch sizes and precisions.

    Args:
        shape: base or large.
        heads: names of heads.
        batches: numbers of utterances.
        repeats: rounds.
        device: cuda, or cpu for tests.
        precisions: fp32, or bf16 for autocast around both steps.

    Returns:
        For each kind of step, rows of the cases "step" and "same images": seconds, and bytes of peak memory less the
        memory before the step. If the memory of the GPU is too small, one row holds the reason in "left_out".

    Raises:
        ModuleNotFoundError: the extra s3prl is not installed.
    """
    with tempfile.TemporaryDirectory() as folder:
        recompute = plain_encoder(shape, Path(folder), device)
        encoder = parts.speech_encoder(shape, Path(folder)).to(device)
    rows: list[dict[str, Any]] = []
    for head, batch in ((head, batch) for head in heads for batch in batches):
        losses = make_losses(shape, head, batch, (recompute, encoder), device)
        for precision in precisions:
            common = {"shape": shape, "head": head, "batch": batch, "device": device, "precision": precision}
            rows += [{**common, **found} for found in _compared(losses, repeats, device, precision)]
            print(f"{rows[-1]}", flush=True)
    return rows


def make_losses(
    shape: str, head: str, batch: int, encoders: tuple[Callable[[list[Tensor]], Any], Any], device: str
) -> dict[str, tuple[SpeechNetwork, Callable[[], Tensor]]]:
    """Return a network and the function that computes its loss for each kind of step, on the same batch.

    Args:
        shape: base or large.
        head: name of the head.
        batch: number of utterances, cropped to 6.4 s as in training.
        encoders: s3prl's, and ours on the device.
        device: of all tensors.
    """
    recompute, encoder = encoders
    samples = np.minimum(parts.lengths(batch, seed=3), round(steps.LONGEST * SAMPLE_RATE))
    waves = [wave.to(device) for wave in parts.waves(samples, seed=3)]
    images, groups = parts.pixels(shape, batch).to(device), torch.arange(batch, device=device)
    clip = copy.deepcopy(parts.plain_clip(shape)).to(device)  # copies: sections on the CPU share those of parts
    networks = {kind: copy.deepcopy(parts.model(shape, head)).to(device) for kind in (PLAIN, SAME_IMAGES, OURS)}
    ours, config = networks[OURS], parts.settings(shape, head)
    ours.speech_encoder, ours.encode_batch_size = encoder, config.data.encode_batch_size
    for network in networks.values():
        network.train()
    embedded = plain.image_tower(clip, images)

    def with_tower() -> Tensor:
        states, frames = recompute(waves)
        return steps.plain_loss(networks[PLAIN], clip, states, frames, images, groups)

    def with_cached() -> Tensor:
        states, frames = recompute(waves)
        return steps.plain_head_loss(networks[SAME_IMAGES], clip, states, frames, embedded, groups)

    found = Batch(groups, None, None, tuple(waves))
    our_loss = steps.our_loss(ours, config, found, nn.functional.normalize(embedded.float(), dim=-1))
    works = {PLAIN: with_tower, SAME_IMAGES: with_cached, OURS: our_loss}
    return {kind: (networks[kind], loss) for kind, loss in works.items()}


def _compared(
    losses: dict[str, tuple[SpeechNetwork, Callable[[], Tensor]]], repeats: int, device: str, precision: str
) -> list[dict[str, Any]]:
    works = {
        kind: _step(at_precision(loss, device, precision), steps.updater(network, OURS if kind == OURS else PLAIN))
        for kind, (network, loss) in losses.items()
    }
    try:
        times = measure.interleaved(works, repeats, device=device)
        peaks = {kind: measure.peak_of(work, device) for kind, work in works.items()}
    except torch.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
    else:
        return [
            {
                "case": case,
                "time": measure.compare({PLAIN: times[kind], OURS: times[OURS]}),
                "peak": {PLAIN: peaks[kind], OURS: peaks[OURS]},
            }
            for case, kind in CASES.items()
        ]
    _release(device)
    return [{"case": "step", "left_out": reason}]


def _step(loss: Callable[[], Tensor], update: Callable[[Tensor], float]) -> steps.Step:
    return lambda: update(loss())


def _release(device: str) -> None:
    """Give the memory of a failed step back to the GPU."""
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()
