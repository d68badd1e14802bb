"""Windows of long utterances, from stored states and from waveforms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from speechclip.common.errors import UserError
from speechclip.data.dataset import Batch, Crop
from speechclip.data.windows import WindowSource


class Source:
    """Utterances whose frames or samples hold their own positions, at 50 per second."""

    def __init__(self, lengths: list[float], *, stored: bool) -> None:
        self.lengths, self.stored = np.array(lengths), stored

    def batch(self, indices: Sequence[int], crop: Crop | None = None) -> Batch:
        assert crop is not None
        (index,) = indices
        length, limit = round(self.lengths[index] * 50), round(crop.seconds * 50)
        start = crop.start(index, length, limit)
        kept = torch.arange(length, dtype=torch.float32)[start : start + limit]
        if not self.stored:
            return Batch(torch.tensor([index]), None, None, (kept,))
        return Batch(torch.tensor([index]), kept[None, None, :, None], torch.tensor([len(kept)]), None)


@pytest.mark.parametrize("stored", [True, False])
def test_window_source_cuts_long_utterances(stored: bool) -> None:
    windows = WindowSource(Source([2.0, 0.5, 1.0, 2.1], stored=stored), 1.0, 0.5)
    assert windows.owner.tolist() == [0, 0, 0, 1, 2, 3, 3, 3, 3]
    assert windows.lengths.tolist() == [1, 1, 1, 0.5, 1, 1, 1, 1, 1]
    batch = windows.batch([2, 3, 8])
    assert batch.indices.tolist() == [2, 3, 8]
    if stored:
        assert batch.states is not None and batch.frames is not None
        parts = [row[0, :count, 0] for row, count in zip(batch.states, batch.frames)]
        assert batch.states[1, 0, 25:].abs().sum() == 0
    else:
        assert batch.waves is not None
        parts = list(batch.waves)
    assert [(int(part[0]), int(part[-1]), len(part)) for part in parts] == [(50, 99, 50), (0, 24, 25), (55, 104, 50)]


@pytest.mark.parametrize("hop", [0.0, 1.5])
def test_window_source_refuses_gaps(hop: float) -> None:
    with pytest.raises(UserError, match="eval.window_hop"):
        WindowSource(Source([2.0], stored=True), 1.0, hop)
