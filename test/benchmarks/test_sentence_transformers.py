"""A pack in sentence-transformers: equal embeddings of speech, images and texts, save and load, plain errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures import wave, whole_model
from PIL import Image

import speechclip.benchmarks  # noqa: F401 # before sentence_transformers
from speechclip.api import SpeechCLIP
from speechclip.checkpoint.folder import save_checkpoint
from speechclip.checkpoint.hub import pack
from speechclip.common.errors import UserError

pytest.importorskip("sentence_transformers", reason="extra 'mteb' is not installed")
from sentence_transformers import SentenceTransformer  # noqa: E402

WAVES = [wave(9000, 1), wave(5000, 2), wave(12000, 3)]
PICTURES = [
    Image.fromarray(np.random.default_rng(n).integers(0, 255, (24, 40 + n, 3), dtype=np.uint8)) for n in range(4)
]
TEXTS = ["a red boat", "two stars", "a boat on the lake near a tree"]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pack of a hybrid model. It has its own encoders."""
    folder = tmp_path_factory.mktemp("pack")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        model, config = whole_model(folder, "hybrid")
        save_checkpoint(Path("best"), model, model.trained_state(), config, {"seed": 0})
        Path("scores").mkdir()
        Path("scores/retrieval.json").write_text(json.dumps({"provenance": {}}))
        pack("best", Path("scores"), Path("pack"), "mini")
    shutil.rmtree(folder / "models")
    return folder / "pack"


@pytest.fixture(scope="module")
def theirs(packed: Path) -> SentenceTransformer:
    return SentenceTransformer(str(packed), trust_remote_code=True, device="cpu")


def _cases() -> list[Any]:
    return [
        pytest.param(WAVES, lambda model: model.encode_speech(WAVES), id="arrays"),
        pytest.param(
            [{"array": item[::2], "sampling_rate": 8000} for item in WAVES],
            lambda model: model.encode_speech([{"array": item[::2], "sampling_rate": 8000} for item in WAVES]),
            id="another rate",
        ),
        pytest.param([{"audio": item} for item in WAVES], lambda model: model.encode_speech(WAVES), id="named audio"),
        pytest.param(PICTURES, lambda model: model.encode_image(PICTURES), id="images"),
        pytest.param([{"image": item} for item in PICTURES], lambda m: m.encode_image(PICTURES), id="named images"),
        pytest.param(TEXTS, lambda model: model.encode_text(TEXTS), id="texts"),
    ]


@pytest.mark.parametrize(("inputs", "ours"), _cases())
def test_embeddings_equal_ours(inputs: Any, ours: Any, packed: Path, theirs: SentenceTransformer) -> None:
    expected = ours(SpeechCLIP.from_pretrained(packed)).numpy()
    np.testing.assert_allclose(theirs.encode(inputs), expected, atol=2e-6)
    assert theirs.encode(inputs[0]).shape == expected[0].shape


def test_files_are_recordings_and_images(tmp_path: Path, packed: Path, theirs: SentenceTransformer) -> None:
    import soundfile

    sound, picture = tmp_path / "query.wav", tmp_path / "picture.png"
    soundfile.write(sound, WAVES[0], 16000)
    PICTURES[0].save(picture)
    model = SpeechCLIP.from_pretrained(packed)
    np.testing.assert_allclose(theirs.encode([str(sound)]), model.encode_speech([sound]).numpy(), atol=2e-6)
    np.testing.assert_allclose(theirs.encode([str(picture)]), model.encode_image([picture]).numpy(), atol=2e-6)


def test_similarity_width_and_branch(packed: Path, theirs: SentenceTransformer) -> None:
    assert theirs.similarity_fn_name == "cosine"
    assert theirs.modalities == ["audio", "image", "text"]
    model = SpeechCLIP.from_pretrained(packed)
    assert theirs.get_embedding_dimension() == model.network.dimensions.joint
    found = theirs.similarity(theirs.encode(WAVES), theirs.encode(PICTURES))
    expected = model.encode_speech(WAVES) @ model.encode_image(PICTURES).T
    torch.testing.assert_close(found, expected, atol=3e-6, rtol=0)
    other = SentenceTransformer(
        str(packed), trust_remote_code=True, device="cpu", model_kwargs={"branch": "cascaded"}
    ).encode(WAVES)
    np.testing.assert_allclose(other, model.encode_speech(WAVES, "cascaded").numpy(), atol=2e-6)
    assert np.abs(other - theirs.encode(WAVES)).max() > 0.01


def test_saved_model_loads_in_both(tmp_path: Path, packed: Path, theirs: SentenceTransformer) -> None:
    theirs.save_pretrained(str(tmp_path / "copy"))
    expected = theirs.encode(WAVES)
    ours = SpeechCLIP.from_pretrained(tmp_path / "copy")
    np.testing.assert_allclose(ours.encode_speech(WAVES).numpy(), expected, atol=2e-6)
    again = SentenceTransformer(str(tmp_path / "copy"), trust_remote_code=True, device="cpu")
    np.testing.assert_allclose(again.encode(WAVES), expected, atol=2e-6)


@pytest.mark.parametrize(
    ("inputs", "problem"),
    [
        pytest.param([WAVES[0], "a text"], "mixes multiple modalities", id="two kinds"),
        pytest.param([np.full(500, np.nan, np.float32)], r"inputs\[0\]: NaN", id="NaN"),
    ],
)
def test_bad_inputs_are_one_line(inputs: Any, problem: str, theirs: SentenceTransformer) -> None:
    with pytest.raises((UserError, ValueError), match=problem):
        theirs.encode(inputs)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [({"branch": "third"}, "branch: 'third' is unknown"), ({"dtype": "bf16"}, "model_kwargs: 'dtype' is unknown")],
)
def test_unknown_settings_are_refused(settings: dict[str, str], problem: str, packed: Path) -> None:
    with pytest.raises(UserError, match=problem):
        SentenceTransformer(str(packed), trust_remote_code=True, device="cpu", model_kwargs=settings)
