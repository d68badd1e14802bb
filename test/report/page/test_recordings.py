"""Recordings of pages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechclip.common.errors import UserError
from speechclip.report.page import media, recordings
from speechclip.report.page.recordings import Recordings


def test_a_recording_is_read_once_for_all_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wav = tmp_path / "tone.wav"
    soundfile.write(wav, 0.3 * np.sin(np.arange(8000) / 5), 16000)
    read: list[Path] = []
    load = recordings.load_audio
    monkeypatch.setattr(recordings, "load_audio", lambda path: (read.append(path), load(path))[1])
    kept = Recordings()
    silent = kept.get(wav, audible=False)
    assert (silent.seconds, silent.audio) == (0.5, "") and silent.spectrogram.startswith("data:image/webp")
    assert kept.get(wav, audible=False) is silent and len(read) == 1
    heard = kept.get(wav, audible=True)
    assert heard.audio == media.audio_uri(load(wav)) and len(read) == 2
    assert (heard.envelope, heard.spectrogram) == (silent.envelope, silent.spectrogram)
    assert kept.get(wav, audible=False) is heard and len(read) == 2  # what one page hears, the next may have


def test_a_missing_recording_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no\.wav"):
        Recordings().get(tmp_path / "no.wav", audible=True)
