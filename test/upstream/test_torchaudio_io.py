"""The replacements of removed torchaudio functions, against signals computed by hand."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from speechclip.common.errors import UserError
from speechclip.upstream.torchaudio_io import apply_effects_file, apply_effects_tensor, info, load, save


def test_info_and_load_read_a_file(tmp_path: Path) -> None:
    path = tmp_path / "stereo.wav"
    samples = (np.arange(800).reshape(400, 2) * 16).astype(np.int16)
    soundfile.write(path, samples, 8000)
    found = info(path)
    assert (found.sample_rate, found.num_frames, found.num_channels, found.bits_per_sample) == (8000, 400, 2, 16)
    wave, rate = load(path, frame_offset=10, num_frames=5)
    assert rate == 8000 and wave.dtype == torch.float32
    assert torch.equal(wave, torch.from_numpy(samples[10:15].T.astype(np.float32) / 32768))
    assert torch.equal(load(path, normalize=False, channels_first=False)[0], torch.from_numpy(samples))


def test_save_can_be_read(tmp_path: Path) -> None:
    wave = torch.linspace(-0.5, 0.5, 64)[None]
    save(tmp_path / "a.wav", wave, 16000)
    assert (load(tmp_path / "a.wav")[0] - wave).abs().max() <= 1 / 32768


@pytest.mark.parametrize("content", [None, b"no audio at all"])
def test_load_names_a_bad_file(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.wav"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match="x.wav"):
        load(path)


def test_effects_channels_gain_and_rate(tmp_path: Path) -> None:
    wave = torch.stack([torch.full((8000,), 0.2), torch.full((8000,), 0.4)])
    effects = [["channels", "1"], ["gain", "-3.0"]]
    mono, rate = apply_effects_tensor(wave, 8000, effects)
    assert rate == 8000 and mono.shape == (1, 8000)
    assert mono[0, 0].item() == pytest.approx(0.3 * 10 ** (-3 / 20), abs=1e-6)
    soundfile.write(tmp_path / "a.wav", wave.T.numpy(), 8000)
    resampled, rate = apply_effects_file(tmp_path / "a.wav", [*effects, ["rate", "16000"]])
    assert rate == 16000 and resampled.shape == (1, 16000)
    assert (resampled[0, 4000:-4000] - mono[0, 0]).abs().max() < 1e-3


def test_effect_silence_cuts_every_long_pause() -> None:
    rate = 1000  # a window of 20 samples
    pieces = [(0.0, 300), (0.5, 200), (0.0, 50), (0.5, 200), (0.0, 400), (0.5, 30), (0.0, 300), (0.5, 150), (0.0, 40)]
    wave = torch.cat([torch.full((n,), level) for level, n in pieces])[None]
    cut, _ = apply_effects_tensor(wave, rate, [["silence", "1", "0.1", "0.1%", "-1", "0.1", "0.1%"]])
    # The mean covers the 20 samples that end at each sample, so sound ends 19 samples late. 200 + 50 + 200 + 19 stay,
    # because the pause of 50 is short, and 150 + 40 at the end. The burst of 30 is shorter than 0.1 s and is cut.
    assert cut.shape == (1, 200 + 50 + 200 + 19 + 150 + 40)
    assert (cut == 0).sum() == 50 + 19 + 40


def test_effects_refuses_other_effects() -> None:
    for effect in (["pitch", "100"], ["channels", "2"], ["silence", "1", "0.1", "0.1%", "-1", "0.2", "0.1%"]):
        with pytest.raises(UserError, match=effect[0]):
            apply_effects_tensor(torch.zeros(1, 10), 16000, [effect])


def test_provide_adds_only_missing_functions() -> None:
    if importlib.util.find_spec("torchaudio") is None:
        pytest.skip("extra 's3prl' is not installed")
    code = (
        "from speechclip.common.compat import prepare; prepare(); import torchaudio\n"
        "had = {n: getattr(torchaudio, n) for n in ('info', 'sox_effects') if hasattr(torchaudio, n)}\n"
        "from speechclip.upstream.torchaudio_io import provide; provide(); first = torchaudio.info, torchaudio.load\n"
        "provide(); assert first == (torchaudio.info, torchaudio.load)\n"
        "from torchaudio.sox_effects import apply_effects_file, apply_effects_tensor\n"
        "assert all(getattr(torchaudio, n) is v for n, v in had.items())"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
