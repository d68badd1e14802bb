"""Benchmark 4: random reads of hidden states with the crop of training, against one file per utterance.

The plain store uses ``torch.save`` for all states of an utterance in single precision. It reads a whole file and crops
it afterwards. Both stores are in the page cache.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import measure
import numpy as np
import parts
import torch
from measure import OURS, PLAIN

from speechclip.common.constants import FRAME_RATE, SAMPLE_RATE
from speechclip.data.features import FeatureStore, FeatureWriter

CROP = round(6.4 * FRAME_RATE)  # frames


def write(folder: Path, shape: str, utterances: int) -> list[int]:
    """Write both stores with the same random states and return the frames of each utterance."""
    size = parts.SHAPES[shape]
    frames = np.maximum(1, parts.lengths(utterances, seed=4) * FRAME_RATE // SAMPLE_RATE).tolist()
    generator = torch.Generator().manual_seed(4)
    with FeatureWriter(folder / OURS, encoder={}, layers=range(size.states)) as writer:
        (folder / PLAIN).mkdir()
        for at, count in enumerate(frames):
            states = torch.randn(size.states, count, size.width, generator=generator)
            writer.add(f"u{at:05d}", states)
            torch.save(states, folder / PLAIN / f"u{at:05d}.pt")
    return [int(count) for count in frames]


def run(shape: str, utterances: int, repeats: int) -> list[dict[str, Any]]:
    """Measure the time to read every utterance once in a random order, and the size on disk."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frames = write(folder, shape, utterances)
        order = np.random.default_rng(5).permutation(utterances).tolist()
        starts = {at: (frames[at] - CROP) // 2 if frames[at] > CROP else 0 for at in order}
        store = FeatureStore(folder / OURS)

        def plain_pass() -> None:
            for at in order:
                states = torch.load(folder / PLAIN / f"u{at:05d}.pt")
                states[:, starts[at] : starts[at] + CROP].clone()

        def our_pass() -> None:
            for at in order:
                store.read(f"u{at:05d}", starts[at], starts[at] + CROP)

        time = measure.compare(measure.interleaved({PLAIN: plain_pass, OURS: our_pass}, repeats))
        disk = {kind: sum(f.stat().st_size for f in (folder / kind).iterdir()) / 1e6 for kind in (PLAIN, OURS)}
    print(f"store of {utterances} utterances: {time['ratio']:.1f} x", flush=True)
    return [{"shape": shape, "utterances": utterances, "time": time, "megabytes": disk}]
