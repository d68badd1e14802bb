"""Audio, attention and vectors of dev utterances in TensorBoard, read back from the event files."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from fixtures import JOINT, settings, stored_split, trainer, training_data
from google.protobuf import text_format
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import AUDIO, IMAGES, TENSORS, EventAccumulator
from tensorboard.plugins.projector import ProjectorConfig

from speechclip.checkpoint.folder import WEIGHTS, read_weights
from speechclip.model.encoders.clip import OpenClip
from speechclip.train.logger import TrainLogger
from speechclip.train.tensorboard import TensorBoardSamples, attention_picture


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={IMAGES: 0, AUDIO: 0, TENSORS: 0})
    return events.Reload()


@pytest.mark.parametrize("head", ["parallel", "cascaded", "cascaded_plus"])
def test_audio_attention_and_vectors_of_the_same_utterances(
    head: str, corpus: Path, clip: OpenClip, tmp_path: Path
) -> None:
    config = settings(model__head__name=head, train__tensorboard_utterances=3)
    run = trainer(config, training_data(corpus), tmp_path, clip=None if head == "parallel" else clip)
    run.run()
    events, dev = read(tmp_path), run.data.dev
    chosen = [dev.data.utterances[row] for row in (0, 4, 7)]  # evenly spaced over eight
    tags = [f"dev/{utterance.id}" for utterance in chosen]
    assert sorted(events.Tags()["audio"]) == sorted(tags)
    for utterance, tag in zip(chosen, tags, strict=True):
        (heard,) = events.Audio(tag)
        wave, rate = soundfile.read(io.BytesIO(heard.encoded_audio_string))
        original, _ = soundfile.read(utterance.wav)
        assert (rate, heard.step) == (16000, 0)
        assert wave == pytest.approx(original, abs=2e-4)
        (text,) = events.Tensors(f"{tag}/text_summary")
        assert text.tensor_proto.string_val[0].decode() == utterance.text
        pictures = events.Images(tag)
        assert [picture.step for picture in pictures] == [4, 8, 12]  # every evaluation
        shades = np.asarray(Image.open(io.BytesIO(pictures[-1].encoded_image_string)).convert("RGB"))
        assert len(np.unique(shades.reshape(-1, 3), axis=0)) > 50
    assert sorted(events.Tags()["images"]) == sorted(tags)

    config_file = text_format.Parse((tmp_path / "tensorboard/projector_config.pbtxt").read_text(), ProjectorConfig())
    (entry,) = config_file.embeddings
    vectors = np.loadtxt(tmp_path / "tensorboard" / entry.tensor_path, delimiter="\t")
    header, *names = (tmp_path / "tensorboard" / entry.metadata_path).read_text().splitlines()
    assert header.split("\t") == ["kind", "id", "caption"]
    images = sorted({utterance.image_id for utterance in chosen})
    assert [name.split("\t") for name in names] == [
        *(["speech", utterance.id, utterance.text] for utterance in chosen), *(["image", image, ""] for image in images)
    ]  # fmt: skip
    assert vectors.shape == (len(names), JOINT)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(len(names)), abs=1e-3)


def test_vectors_of_a_head_with_its_own_image_tower(corpus: Path, tmp_path: Path) -> None:
    run = trainer(settings(), training_data(corpus), tmp_path)
    dev, random = run.data.dev, np.random.default_rng(0)
    speech, images = random.standard_normal((len(dev.ids), 5)), random.standard_normal((len(dev.image_ids), 5))
    samples = TensorBoardSamples(dev, run.data.dev_speech, 3, tmp_path)
    samples.show(SimpleNamespace(add_figure=lambda *_: None), run.model.eval(), speech, 1, images)
    vectors = np.loadtxt(tmp_path / "projector" / "vectors.tsv", delimiter="\t")
    shown = sorted({int(dev.utterance_image[row]) for row in samples.rows})
    expected = np.concatenate([speech[samples.rows], images[shown]])
    np.testing.assert_allclose(vectors, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)


def test_samples_are_optional_and_do_not_change_weights(corpus: Path, tmp_path: Path) -> None:
    weights = []
    for count in (0, 3):
        folder = tmp_path / str(count)
        trainer(settings(train__tensorboard_utterances=count), training_data(corpus), folder).run()
        weights.append(read_weights(folder / "last" / WEIGHTS))
    events = read(tmp_path / "0")
    assert not events.Tags()["audio"] and not events.Tags()["images"]
    assert "dev/mean_R@10" in events.Tags()["scalars"]
    assert not list((tmp_path / "0/tensorboard").glob("projector*"))
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])


def test_audio_is_optional(tmp_path: Path) -> None:
    split = stored_split(tmp_path, "dev", images=2, each=1, seed=1)
    split.data.utterances[1].wav.unlink()
    written: list[tuple[str, str]] = []

    class Writer:
        def add_audio(self, tag: str, *_: object) -> None:
            written.append(("audio", tag))

        def add_text(self, tag: str, text: str, _: int) -> None:
            written.append((text, tag))

    TensorBoardSamples(split, None, 9, tmp_path).introduce(Writer())
    one, other = split.data.utterances
    assert written == [("audio", f"dev/{one.id}"), (one.text, f"dev/{one.id}"), (other.text, f"dev/{other.id}")]


def test_attention_picture_scales_every_row() -> None:
    figure = attention_picture(np.array([[0.1, 0.2, 0.1], [0.0, 0.0, 0.0]]), ["dog</w>", "red</w>"], "a dog")
    (axes,) = figure.axes
    (image,) = axes.get_images()
    assert np.asarray(image.get_array()) == pytest.approx(np.array([[0.5, 1.0, 0.5], [0.0, 0.0, 0.0]]))
    assert axes.get_xlim() == pytest.approx((0.0, 0.06))
    assert [label.get_text() for label in axes.get_yticklabels()] == ["1 dog</w>", "2 red</w>"]
    assert axes.get_title(loc="left") == "a dog"


def test_a_resumed_run_writes_the_audio_only_once(corpus: Path, tmp_path: Path) -> None:
    trainer(settings(optim__max_steps=8, train__tensorboard_utterances=2), training_data(corpus), tmp_path).run()
    before = len(read(tmp_path).Tags()["audio"])
    data = training_data(corpus)
    samples = TensorBoardSamples(data.dev, data.dev_speech, 2, tmp_path / "tensorboard")
    TrainLogger(tmp_path, step=8, total=12, samples=samples).close()
    events = read(tmp_path)
    assert before == 2
    assert [len(events.Audio(tag)) for tag in events.Tags()["audio"]] == [1, 1]
