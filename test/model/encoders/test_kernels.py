"""The switch of the CPU kernels: on and off give the same numbers up to rounding."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fixtures import save_clip, save_hubert, wave

from speechclip.config import ClipConfig, SpeechEncoderConfig
from speechclip.model.encoders import kernels
from speechclip.model.encoders.clip import load_clip
from speechclip.model.encoders.factory import load_speech_encoder
from speechclip.model.encoders.kernels import convolutions, linear


@pytest.fixture
def restore() -> Iterator[None]:
    """Switch the kernels on again after the test."""
    yield
    kernels.set_enabled(True)


@pytest.mark.parametrize("large", [False, True], ids=["base", "large"])
def test_switch_disables_kernels_of_loaded_encoders(tmp_path: Path, restore: None, large: bool) -> None:
    encoder = load_speech_encoder(SpeechEncoderConfig(str(save_hubert(tmp_path / "hubert", large=large))))
    clip = load_clip(ClipConfig(str(save_clip(tmp_path / "clip"))))
    waves = [torch.from_numpy(wave(samples, samples)) for samples in (9000, 5000)]
    on = encoder(waves), clip.encode_texts(["red dog"])
    kernels.set_enabled(False)
    assert not linear.by_onednn(torch.ones(2, 2))
    assert not convolutions.can_run(encoder.model.feature_extractor, torch.ones(1, 9000))  # type: ignore[union-attr]
    off = encoder(waves), clip.encode_texts(["red dog"])
    assert torch.equal(on[0].frames, off[0].frames)
    for row, count in enumerate(on[0].frames.tolist()):
        difference = (on[0].states[row, :, :count] - off[0].states[row, :, :count]).abs().max()
        assert difference < 1e-4
    torch.testing.assert_close(on[1], off[1], rtol=0, atol=1e-5)
