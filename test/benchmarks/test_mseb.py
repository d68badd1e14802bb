"""The encoders of MSEB: equal embeddings, their contexts, integer samples, segments, wrong inputs. Needs mseb 0.1.0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures import wave
from PIL import Image

from speechclip.api import SpeechCLIP
from speechclip.checkpoint.pretrained import mini_folder

pytest.importorskip("mseb", reason="mseb is not installed; it has an environment of its own")
from mseb import types  # noqa: E402
from mseb.encoders import encoder_registry  # noqa: E402

from speechclip.benchmarks.mseb import register, speechclip_encoder  # noqa: E402

WAVES = [wave(9600, 1), wave(6400, 2)]
MODEL: Any = mini_folder()


@pytest.fixture(scope="module")
def theirs() -> Any:
    encoder = speechclip_encoder(str(MODEL))
    encoder.setup()
    return encoder


@pytest.fixture(scope="module")
def ours() -> SpeechCLIP:
    return SpeechCLIP.from_pretrained(MODEL)


def _sound(samples: np.ndarray, rate: int = 16000, **settings: Any) -> types.Sound:
    context = types.SoundContextParams(id="a", sample_rate=rate, length=len(samples), **settings)
    return types.Sound(waveform=samples, context=context)


def _rows(found: Any) -> np.ndarray:
    return np.concatenate([item.embedding for item in found])


def test_sounds_equal_ours(theirs: Any, ours: SpeechCLIP) -> None:
    found = theirs.encode([_sound(item) for item in WAVES])
    np.testing.assert_allclose(_rows(found), ours.encode_speech(WAVES).numpy(), atol=2e-6)
    assert found[0].timestamps.tolist() == [[0.0, 0.6]]
    assert found[0].context.id == "a" and found[0].encoding_stats.embedding_size_bytes == 4 * 128


def test_integers_rates_and_segments(theirs: Any, ours: SpeechCLIP) -> None:
    coarse = np.round(WAVES[0] * 2**15).astype(np.int16)
    expected = ours.encode_speech([coarse]).numpy()
    np.testing.assert_allclose(_rows(theirs.encode([_sound(coarse)])), expected, atol=2e-6)
    slow = ours.encode_speech([WAVES[0]], sampling_rate=8000).numpy()
    np.testing.assert_allclose(_rows(theirs.encode([_sound(WAVES[0], 8000)])), slow, atol=2e-6)
    part = _sound(WAVES[0], waveform_start_second=0.1, waveform_end_second=0.5)
    (found,) = theirs.encode([part])
    np.testing.assert_allclose(found.embedding, ours.encode_speech([WAVES[0][1600:8000]]).numpy(), atol=2e-6)
    np.testing.assert_allclose(found.timestamps, [[0.0, 0.4]])


def test_images_and_texts_equal_ours(theirs: Any, ours: SpeechCLIP) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    context = types.ImageContextParams(id="i", height=30, width=40, channels=3)
    expected = ours.encode_image([Image.fromarray(pixels)]).numpy()
    for image in (pixels, pixels.astype(np.float32) / 255):
        (found,) = theirs.encode([types.Image(image=image, context=context)])
        np.testing.assert_allclose(found.embedding, expected, atol=2e-6)
        assert found.patch_indices.tolist() == [[0, 30, 0, 40]]
    text = types.Text(text="a red boat", context=types.TextContextParams(id="t"))
    (written,) = theirs.encode([text])
    np.testing.assert_allclose(written.embedding, ours.encode_text(["a red boat"]).numpy(), atol=2e-6)
    assert written.spans.tolist() == [[0, 10]]


def test_mixed_batches_are_refused(theirs: Any) -> None:
    text = types.Text(text="a", context=types.TextContextParams(id="t"))
    with pytest.raises(ValueError, match="same type"):
        theirs.encode([_sound(WAVES[0]), text])


def test_registered_name_loads_the_model(tmp_path: Path, ours: SpeechCLIP) -> None:
    register(str(MODEL), "speechclip_test", branch="cascaded")
    encoder = encoder_registry.get_encoder_metadata("speechclip_test").load()
    encoder.setup()
    found = _rows(encoder.encode([_sound(WAVES[0])]))
    np.testing.assert_allclose(found, ours.encode_speech([WAVES[0]], "cascaded").numpy(), atol=2e-6)
    with pytest.raises(ValueError, match="Duplicate encoder name"):
        register(str(MODEL), "speechclip_test")
