"""Encoding a batch in parts, which saves memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fixtures import wave, whole_model

from speechclip.data.dataset import Batch

LENGTHS = (5000, 9000, 7000, 6000, 8000)


def test_features_encode_parts_by_length_and_restore_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = whole_model(tmp_path, "parallel")
    parts: list[list[int]] = []
    plain = model.encode_waves

    def encode(waves: list[torch.Tensor]) -> object:
        parts.append([len(item) for item in waves])
        return plain(waves)

    monkeypatch.setattr(model, "encode_waves", encode)
    waves = tuple(torch.from_numpy(wave(samples, seed)) for seed, samples in enumerate(LENGTHS))
    model.encode_batch_size = 2
    states, frames = model.features(Batch(torch.arange(len(waves)), None, None, waves))
    assert parts == [[9000, 8000], [7000, 6000], [5000]]
    for at, pair in (((1, 4), (9000, 8000)), ((2, 3), (7000, 6000)), ((0,), (5000,))):
        expected = plain([waves[i] for i in at])
        assert tuple(len(waves[i]) for i in at) == pair
        assert torch.equal(frames[list(at)], expected.frames)
        width = expected.states.shape[2]
        assert torch.equal(states[list(at), :, :width], expected.states) and not states[list(at), :, width:].any()
    for whole in (0, 5, 9):
        parts.clear()
        model.encode_batch_size = whole
        assert model.features(Batch(torch.arange(5), None, None, waves)).states.shape[0] == 5
        assert parts == [list(LENGTHS)]
