"""The public methods, on tiny models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from fixtures import JOINT, STATES, SUBWORD, WIDTH, captions, vocabulary_of, wave, whole_model
from PIL import Image

from speechclip.api import Keyword, SpeechCLIP
from speechclip.common.errors import UserError
from speechclip.config import HeadConfig, ModelConfig, SpeechEncoderConfig
from speechclip.data.vocabulary import Vocabulary
from speechclip.model.network import Dimensions, TimeMask, build_network, random_spans, reduced_subword_embeddings

WAVES = [wave(samples, seed) for seed, samples in enumerate((9000, 16000, 5000, 12345))]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipe")


@pytest.fixture(scope="module")
def parallel(recipe: Path) -> SpeechCLIP:
    """With an encoder of Large type, whose layer norms let padding change nothing."""
    return SpeechCLIP(whole_model(recipe, "parallel", large=True)[0])


@pytest.fixture(scope="module")
def cascaded(recipe: Path) -> SpeechCLIP:
    return SpeechCLIP(whole_model(recipe, "cascaded", large=True)[0])


@pytest.mark.parametrize("head", ["parallel", "cascaded"])
def test_speech_of_every_kind_of_input_is_the_same(request: pytest.FixtureRequest, tmp_path: Path, head: str) -> None:
    model = request.getfixturevalue(head)
    whole = (WAVES[0] * 2**15).astype(np.int16)
    exact = whole.astype(np.float32) / 2**15
    expected = model.encode_speech([exact])
    assert expected.shape == (1, JOINT)
    assert expected.norm().item() == pytest.approx(1, abs=1e-6)
    assert not expected.requires_grad
    soundfile.write(tmp_path / "a.wav", whole, 16000)
    inputs: list[Any] = [
        exact, [exact], torch.from_numpy(exact), whole, [torch.from_numpy(whole)], exact.astype(np.float64),
        tmp_path / "a.wav", str(tmp_path / "a.wav"), [tmp_path / "a.wav"], exact[None],
    ]  # fmt: skip
    for item in inputs:
        torch.testing.assert_close(model.encode_speech(item), expected, rtol=0, atol=1e-6)
    if head == "parallel":  # random keywords of any utterance may be quantised to the same subwords
        assert (expected - model.encode_speech(WAVES[1])).abs().max() > 1e-3


@pytest.mark.parametrize("head", ["parallel", "cascaded"])
def test_a_batch_is_its_utterances(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, head: str) -> None:
    model = request.getfixturevalue(head)
    # whole shares of frames, so that the encoder's mask (which rounds as fairseq's does) cuts where the utterance ends
    waves = [wave(samples, seed) for seed, samples in enumerate((9600, 16000, 6400))]
    together = model.encode_speech(waves)
    assert together.shape == (3, JOINT)
    with monkeypatch.context() as patch:
        patch.setattr("speechclip.api.BATCH", 2)
        torch.testing.assert_close(model.encode_speech(waves)[1], together[1], rtol=0, atol=1e-5)
    alone = torch.cat([model.encode_speech(item) for item in waves])
    # the last frames of a padded utterance see its padding through the convolutions
    torch.testing.assert_close(alone, together, rtol=0, atol=0.1)
    assert torch.allclose(alone[1], together[1], atol=1e-5)  # the longest has none
    if head == "cascaded":
        return
    different = (alone[:, None] - alone[None]).norm(dim=-1)[~torch.eye(3, dtype=torch.bool)].min()
    assert (alone - together).norm(dim=-1).max() < different


def test_images_and_texts(parallel: SpeechCLIP, tmp_path: Path) -> None:
    images = [Image.fromarray(np.random.default_rng(at).integers(0, 255, (40, 30, 3), np.uint8)) for at in range(3)]
    embeddings = parallel.encode_image(images)
    assert embeddings.shape == (3, JOINT)
    assert embeddings.norm(dim=-1).tolist() == pytest.approx([1] * 3, abs=1e-6)
    images[1].save(tmp_path / "b.png")
    for item in ([str(tmp_path / "b.png")], [tmp_path / "b.png"], tmp_path / "b.png", images[1]):
        torch.testing.assert_close(parallel.encode_image(item), embeddings[1:2], rtol=0, atol=1e-6)
    grey = images[0].convert("L")
    expected = parallel.encode_image([grey.convert("RGB")])
    torch.testing.assert_close(parallel.encode_image([grey]), expected, rtol=0, atol=1e-6)
    texts = parallel.encode_text(["red dog", "two boats"])
    assert texts.shape == (2, JOINT)
    assert texts.norm(dim=-1).tolist() == pytest.approx([1] * 2, abs=1e-6)
    torch.testing.assert_close(parallel.encode_text("red dog"), texts[:1], rtol=0, atol=1e-6)


def test_keywords(cascaded: SpeechCLIP) -> None:
    found = cascaded.keywords(WAVES, top_k=4)
    assert len(found) == len(WAVES)
    assert cascaded.network.vocabulary is not None
    assert cascaded.network.clip is not None
    tokenizer = cascaded.network.clip.tokenizer
    special = {tokenizer.subword(token) for token in (tokenizer.pad, tokenizer.sot, tokenizer.eot)}
    for item, utterance in zip(found, WAVES, strict=True):
        assert len(item) == 3
        for keyword in item:
            assert isinstance(keyword, Keyword)
            assert len(keyword.subwords) == len(keyword.cosines) == len(set(keyword.subwords)) == 4
            assert not special & set(keyword.subwords)
            assert set(keyword.subwords) <= set(cascaded.network.vocabulary.subwords)
            assert list(keyword.cosines) == sorted(keyword.cosines, reverse=True)
            assert all(-1 <= value <= 1 for value in keyword.cosines)
            start, end = keyword.span
            assert 0 <= start < end <= len(utterance) / 16000 + 0.01
    assert found[0] != found[1]
    assert len(cascaded.keywords(WAVES[0])[0][0].subwords) == 5
    everything = cascaded.keywords(WAVES[0], top_k=10_000)[0][0]
    assert len(everything.subwords) == len(cascaded.network.vocabulary) - 3


def test_keywords_are_the_nearest_rows_of_the_table(cascaded: SpeechCLIP) -> None:
    features = cascaded.network.encode_waves([torch.from_numpy(WAVES[0])])
    with torch.no_grad():
        vectors = cascaded.network.apply_head(*features).keywords.vectors[0]
    assert cascaded.network.clip is not None
    assert cascaded.network.vocabulary is not None
    table = cascaded.network.clip.subword_embeddings[torch.tensor(cascaded.network.vocabulary.ids)]
    cosines = torch.nn.functional.cosine_similarity(vectors[:, None], table[None], dim=-1)
    for at, keyword in enumerate(cascaded.keywords(WAVES[0], top_k=3)[0]):
        for name, value in zip(keyword.subwords, keyword.cosines, strict=True):
            assert cosines[at, cascaded.network.vocabulary.subwords.index(name)].item() == pytest.approx(
                value, abs=1e-5
            )


@pytest.mark.parametrize("head", ["parallel", "cascaded"])
def test_hidden_states_are_the_encoders_and_the_heads(request: pytest.FixtureRequest, head: str) -> None:
    model = request.getfixturevalue(head)
    states, frames = model.hidden_states(WAVES)
    assert len(states) == STATES + 1
    assert {tuple(state.shape) for state in states} == {(4, 49, WIDTH)}
    assert frames.tolist() == [28, 49, 16, 39]
    raw = model.network.speech_encoder([torch.from_numpy(item) for item in WAVES]).states
    assert torch.equal(torch.stack(states[:-1], dim=1), raw)
    padding = torch.arange(49)[None, :] >= frames[:, None]
    with torch.no_grad():
        assert torch.equal(states[-1], model.network.head.frame_states(model.network.weighted_sum(raw), padding))
    assert all(torch.isfinite(state).all() for state in states)


def test_hidden_states_are_all_of_the_encoder_where_few_are_mixed(recipe: Path) -> None:
    whole, _ = whole_model(recipe, "parallel", large=True)
    config = ModelConfig(SpeechEncoderConfig(layers=[0, 2]), head=HeadConfig(attention_heads=4))
    model = SpeechCLIP(build_network(config, Dimensions(WIDTH, 2, JOINT), speech_encoder=whole.speech_encoder))
    states, _ = model.hidden_states(WAVES)
    assert len(states) == STATES + 1
    features = model.network.encode_waves([torch.from_numpy(item) for item in WAVES])
    assert torch.equal(features.states, torch.stack([states[0], states[2]], dim=1))
    assert model.encode_speech(WAVES).shape == (4, JOINT)


BAD: list[tuple[str, Callable[[], Any], str]] = [
    ("empty", lambda: [np.zeros(0, np.float32)], r"non-empty 1-D array.* not of shape \(0,\)"),
    ("stereo", lambda: [np.zeros((100, 2), np.float32)], r"not of shape \(100, 2\)"),
    ("number", lambda: [torch.tensor(1.0)], r"not of shape \(\)"),
    ("nan", lambda: [WAVES[0], np.array([0.1, np.nan] * 900, np.float32)], "NaN or infinite"),
    ("infinite", lambda: torch.full((900,), float("inf")), "NaN or infinite"),
    ("int32", lambda: [np.arange(900, dtype=np.int32)], "int16 or floating point"),
    ("nothing", lambda: [], "waves: empty"),
    ("missing", lambda: "nowhere.wav", "nowhere.wav"),
]


@pytest.mark.parametrize(("name", "make", "message"), BAD, ids=[row[0] for row in BAD])
def test_bad_waveforms_are_one_line(parallel: SpeechCLIP, name: str, make: Callable[[], Any], message: str) -> None:
    for method in (parallel.encode_speech, parallel.hidden_states):
        with pytest.raises(UserError, match=message) as caught:
            method(make())
        assert "\n" not in str(caught.value)


def test_a_parallel_head_has_no_keywords(parallel: SpeechCLIP) -> None:
    with pytest.raises(UserError, match="model.head.name: a parallel head has no keywords"):
        parallel.keywords(WAVES)


def test_only_the_head_is_trained(parallel: SpeechCLIP, cascaded: SpeechCLIP) -> None:
    for model in (parallel.network, cascaded.network):
        model.train()
        try:
            assert not model.speech_encoder.model.training
            assert not model.clip.model.training
        finally:
            model.eval()
        trained = {id(p) for p in model.trained_parameters()}
        assert trained == {id(p) for p in model.parameters() if p.requires_grad}
        counts = model.count_parameters()
        assert counts["trained"] == sum(p.numel() for p in model.trained_parameters())
        assert counts["total"] > counts["trained"] + 1000
        assert all(name.startswith(("weighted_sum.", "head.", "loss.")) for name in model.trained_state())


def test_time_mask_zeroes_frames_in_train_mode_only() -> None:
    mask = TimeMask(count=2, longest=4)
    states, frames = torch.ones(3, 20, WIDTH), torch.tensor([20, 12, 6])
    torch.manual_seed(0)
    spans = random_spans(frames, 20, 2, 4)
    torch.manual_seed(0)
    masked = mask.train()(states, frames)
    assert spans.any()
    assert torch.equal(masked == 0, spans[:, :, None].expand_as(states))
    assert torch.equal(mask.eval()(states, frames), states)
    assert torch.equal(TimeMask().train()(states, frames), states)


def test_build_refuses_what_does_not_fit(cascaded: SpeechCLIP) -> None:
    clip, words = cascaded.network.clip, cascaded.network.vocabulary
    assert clip is not None
    assert words is not None
    dimensions = Dimensions(WIDTH, STATES, JOINT)
    config = ModelConfig(head=HeadConfig(name="cascaded", attention_heads=4))
    with pytest.raises(UserError, match="model.clip.path: a cascaded head needs CLIP's text transformer"):
        build_network(config, dimensions, vocabulary=words)
    with pytest.raises(UserError, match="a cascaded head needs the reduced vocabulary"):
        build_network(config, dimensions, clip=clip)
    with pytest.raises(UserError, match="model.head.attention_heads: 5 do not divide the width 32"):
        build_network(ModelConfig(head=HeadConfig(attention_heads=5)), dimensions)
    foreign = Vocabulary((1, 5000), (1, 1), ("a", "b"))
    with pytest.raises(UserError, match="the vocabulary has id 5000.*belongs to another CLIP"):
        build_network(config, dimensions, clip=clip, vocabulary=foreign)
    absent = ModelConfig(SpeechEncoderConfig(layers=[0, STATES]), head=HeadConfig(attention_heads=4))
    with pytest.raises(UserError, match=f"model.speech_encoder.layers: {STATES}"):
        build_network(absent, Dimensions(WIDTH, 2, JOINT), speech_encoder=cascaded.network.speech_encoder)


def test_reduced_subword_embeddings_holds_the_rows_of_the_vocabulary(cascaded: SpeechCLIP) -> None:
    clip = cascaded.network.clip
    assert clip is not None
    words = vocabulary_of(captions(3), clip)
    table, valid_mask = reduced_subword_embeddings(clip, words)
    assert table.shape == (len(words), SUBWORD)
    for row, token in enumerate(words.ids):
        assert torch.equal(table[row], clip.subword_embeddings[token])
        assert bool(valid_mask[row]) == (token not in (clip.tokenizer.pad, clip.tokenizer.sot, clip.tokenizer.eot))
