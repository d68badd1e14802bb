"""Listening conditions: achieved SNRs, bit-equal clean speech, seeds, bands, rooms, and the folders behind them."""

from __future__ import annotations

import math
from pathlib import Path

import fixtures
import numpy as np
import pytest
import soundfile

from speechclip.common.errors import UserError
from speechclip.config import AugmentConfig
from speechclip.data import conditions as c
from speechclip.data.augmented import Augmentation, AugmentedStore, AugmentedWaves, copy_folder
from speechclip.data.conditioned import ConditionedSource, Interference
from speechclip.data.conditions import Condition
from speechclip.data.dataset import Crop, StoreSource, WaveSource
from speechclip.data.kaldi import DataDir

TALK = slice(4800, 11200)  # samples with speech: 0.3 to 0.7 s


def _recording(seed: int = 0) -> np.ndarray:
    """Return a second of near silence with a tone in the middle."""
    wave = 1e-5 * np.random.default_rng(seed).standard_normal(16000)
    wave[TALK] += 0.3 * np.sin(2 * np.pi * 440 * np.arange(6400) / 16000)
    return wave.astype(np.float32)


def _data(folder: Path) -> DataDir:
    return fixtures.make_data(folder / "data" / "test", images=4, each=3)


def _musan(folder: Path) -> Path:
    for part in ("noise", "music"):
        (folder / part / "source").mkdir(parents=True)
        for number in range(2):
            soundfile.write(folder / part / "source" / f"{number}.wav", fixtures.wave(20000, number), 16000)
    return folder


def _gain(before: np.ndarray, after: np.ndarray, hertz: float) -> float:
    """Return the gain of a frequency in dB."""
    place = round(hertz * len(before) / 16000)
    spectra = [abs(np.fft.rfft(wave * np.hanning(len(wave)))[place]) for wave in (before, after)]
    return 20 * math.log10(max(spectra[1], 1e-12) / spectra[0])


@pytest.mark.parametrize("snr", [20.0, 10.0, 5.0, 0.0, -5.0])
@pytest.mark.parametrize("kind", ["white", "babble", "musan_noise"])
def test_achieved_snr_over_the_speech_part(tmp_path: Path, kind: str, snr: float) -> None:
    data = _data(tmp_path)
    interference = Interference(data, str(_musan(tmp_path / "musan")))
    wave = _recording()
    noisy = interference.apply(Condition(kind, snr), 0, wave)
    noise = noisy.astype(np.float64) - wave
    achieved = 10 * math.log10((wave[TALK].astype(float) ** 2).mean() / (noise[TALK] ** 2).mean())
    assert achieved == pytest.approx(snr, abs=0.1)
    assert noisy.dtype == np.float32 and (noise[:4000] ** 2).mean() > 0  # the noise covers the pauses too


def test_infinite_snr_is_bit_equal_to_clean(tmp_path: Path) -> None:
    interference = Interference(_data(tmp_path))
    clean = ConditionedSource(interference, Condition("clean")).batch([0, 3])
    for kind in ("white", "babble"):
        endless = ConditionedSource(interference, Condition(kind, math.inf)).batch([0, 3])
        for one, other in zip(clean.waves or (), endless.waves or (), strict=True):
            assert one.numpy().tobytes() == other.numpy().tobytes()
    plain = WaveSource(interference.data).batch([0, 3])
    assert all(bool((a == b).all()) for a, b in zip(clean.waves or (), plain.waves or (), strict=True))


@pytest.mark.parametrize("kind", ["white", "babble", "reverb"])
def test_noise_depends_on_seed_and_utterance_only(tmp_path: Path, kind: str) -> None:
    data, wave = _data(tmp_path), _recording()
    value = None if kind == "reverb" else 5.0
    first, again, other = (Interference(data, seed=seed) for seed in (0, 0, 1))
    heard = first.apply(Condition(kind, value), 2, wave)
    first.apply(Condition(kind, value), 1, wave)  # the order of the calls has no effect
    assert np.array_equal(heard, again.apply(Condition(kind, value), 2, wave))
    assert not np.array_equal(heard, other.apply(Condition(kind, value), 2, wave))
    assert not np.array_equal(heard, first.apply(Condition(kind, value), 1, wave)) or kind == "reverb"


def test_all_snrs_have_the_same_noise(tmp_path: Path) -> None:
    interference, wave = Interference(_data(tmp_path)), _recording()
    loud, quiet = (interference.apply(Condition("white", snr), 0, wave) - wave for snr in (0.0, 20.0))
    assert np.allclose(loud, 10 * quiet, atol=1e-5)


def test_babble_has_other_images_and_speakers(tmp_path: Path) -> None:
    data = _data(tmp_path)
    voices = Interference(data)._voices(0, np.random.default_rng(0))
    own = data.utterances[0]
    of = {u.wav: u for u in data.utterances}
    assert len(voices) == c.BABBLE_VOICES
    assert all(of[path].image_id != own.image_id and of[path].speaker != own.speaker for path in voices)


@pytest.mark.parametrize(("hertz", "low", "high"), [(1000, -0.5, 0.5), (60, -200, -30), (7000, -200, -30)])
def test_telephone_band(hertz: int, low: float, high: float) -> None:
    wave = np.sin(2 * np.pi * hertz * np.arange(16000) / 16000).astype(np.float32)
    assert low <= _gain(wave, c.telephone(wave), hertz) <= high


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_speed_changes_length_and_pitch(factor: float) -> None:
    wave = np.sin(2 * np.pi * 440 * np.arange(16000) / 16000).astype(np.float32)
    changed = c.change_speed(wave, factor)
    assert len(changed) == pytest.approx(16000 / factor, abs=2)
    peak = np.abs(np.fft.rfft(changed * np.hanning(len(changed)))).argmax() * 16000 / len(changed)
    assert peak == pytest.approx(440 * factor, abs=2)


def test_clipping_cuts_its_share_of_the_speech() -> None:
    wave = _recording()
    clipped = c.clip(wave, 0.25)
    assert np.isclose((np.abs(clipped[TALK]) >= np.abs(clipped).max() - 1e-7).mean(), 0.25, atol=0.02)
    assert np.array_equal(clipped[:4000], wave[:4000])


def test_room_keeps_time_and_level() -> None:
    wave, response = _recording(), np.zeros(900)
    response[400] = 0.5
    assert np.allclose(c.reverberate(wave, response), wave, atol=1e-6)  # a delay and a gain are removed
    response[800] = 0.4
    wet = c.reverberate(wave, response)
    assert wet.shape == wave.shape and np.abs(wet[11200:11500]).max() > 0.05  # the echo
    assert (wet[TALK] ** 2).mean() == pytest.approx(float((wave[TALK] ** 2).mean()), rel=1e-3)


def test_simulated_room_has_an_echo() -> None:
    pytest.importorskip("pyroomacoustics", reason="the extra asr is not installed")
    response = c.simulate_room(np.random.default_rng(0))
    direct = int(np.abs(response).argmax())
    assert len(response) > 1600 and (response[direct + 200 :] ** 2).sum() > 0.01 * (response**2).sum()


def test_impulse_responses_of_a_folder_are_used(tmp_path: Path) -> None:
    (tmp_path / "rirs").mkdir()
    response = np.zeros(100, np.float32)
    response[10] = 0.9
    soundfile.write(tmp_path / "rirs" / "a.wav", response, 16000)
    interference, wave = Interference(_data(tmp_path), rir_dir=str(tmp_path / "rirs")), _recording()
    assert np.allclose(interference.apply(Condition("reverb"), 0, wave), wave, atol=1e-5)


def test_conditions_of_a_musan_folder(tmp_path: Path) -> None:
    interference = Interference(_data(tmp_path), str(_musan(tmp_path / "musan")))
    names = [condition.name for condition in interference.conditions([5.0])]
    assert names == [
        "clean", "white_5", "babble_5", "musan_noise_5", "musan_music_5", "reverb", "telephone", "clipping",
        "speed_0.9", "speed_1.1", "held_out_speakers",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("noise", "rir", "words"), [("empty", "", "no folder noise"), ("", "empty", "no .wav"), ("hollow", "", "no .wav")]
)
def test_wrong_folders_are_one_line(tmp_path: Path, noise: str, rir: str, words: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "hollow" / "noise").mkdir(parents=True)
    noise, rir = (str(tmp_path / name) if name else "" for name in (noise, rir))
    with pytest.raises(UserError, match=words):
        Interference(_data(tmp_path), noise, rir)


def test_silent_recording_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="silent"):
        Interference(_data(tmp_path)).apply(Condition("white", 5.0), 0, np.zeros(800, np.float32))


# -- augmentation of the training speech


def test_augmentation_changes_its_share_of_utterances(tmp_path: Path) -> None:
    augmentation = Augmentation(_data(tmp_path), AugmentConfig(probability=0.3, copies=2))
    chosen = np.array([augmentation.chosen(0, epoch, index) for epoch in range(20) for index in range(100)])
    assert (chosen > 0).mean() == pytest.approx(0.3, abs=0.03)
    assert set(chosen.tolist()) == {0, 1, 2}
    assert augmentation.chosen(0, 3, 7) == augmentation.chosen(0, 3, 7)


def test_augmented_waves_differ_by_epoch(tmp_path: Path) -> None:
    data = _data(tmp_path)
    config = AugmentConfig(probability=1.0, kinds=["white"], snr=(5.0, 5.0))
    plain, noisy = WaveSource(data), AugmentedWaves(data, config)
    assert np.array_equal(noisy.read(0), plain.read(0))  # evaluation has no crop
    first, again, later = (noisy.read(0, Crop(0.0, 0, epoch)) for epoch in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, later)
    assert not np.array_equal(first, plain.read(0))


def test_augmented_store_reads_the_copies(tmp_path: Path) -> None:
    data, dump = _data(tmp_path), tmp_path / "dump" / "test"
    fixtures.store_features(data, dump, seed=0)
    ids = [utterance.id for utterance in data.utterances]
    with pytest.raises(UserError, match="augment1"):
        AugmentedStore(dump, data, AugmentConfig(probability=0.5))
    with fixtures.FeatureWriter(
        copy_folder(dump, 1), encoder={"weights": "r"}, layers=range(3), dtype="float32"
    ) as new:
        plain = StoreSource(dump, ids)
        for index, name in enumerate(ids):
            new.add(name, plain.read(index).numpy() + 1)
    source = AugmentedStore(dump, data, AugmentConfig(probability=0.5))
    shifts = {float((source.read(i, Crop(0.0, 0, 0)) - plain.read(i)).mean().round()) for i in range(len(ids))}
    assert shifts == {0.0, 1.0}
    assert bool((source.read(0) == plain.read(0)).all())


def test_augmentation_refuses_unknown_kinds(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="data.augment.kinds"):
        Augmentation(_data(tmp_path), AugmentConfig(probability=1.0, kinds=["rain"])).change(0, _recording(), "x")
