"""Tests of the public methods on tiny models."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
import torch
from fixtures import JOINT, STATES, SUBWORD, WIDTH, captions, vocabulary_of, wave, whole_model
from PIL import Image

from speechclip.api import Keyword, SpeechCLIP
from speechclip.common.errors import UserError
from speechclip.config import HeadConfig, ModelConfig, SpeechEncoderConfig
from speechclip.data.vocabulary import Vocabulary
from speechclip.model.feature_augment import TimeMask, random_spans
from speechclip.model.network import Dimensions, build_network, reduced_subword_embeddings

WAVES = [wave(samples, seed) for seed, samples in enumerate((9000, 16000, 5000, 12345))]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipe")


@pytest.fixture(scope="module")
def parallel(recipe: Path) -> SpeechCLIP:
    """Build a model with an encoder of Large type: padding does not change its layer norms."""
    return SpeechCLIP(whole_model(recipe, "parallel", large=True)[0])


@pytest.fixture(scope="module")
def cascaded(recipe: Path) -> SpeechCLIP:
    return SpeechCLIP(whole_model(recipe, "cascaded", large=True)[0])


@pytest.mark.parametrize("head", ["parallel", "cascaded"])
def test_encode_speech_accepts_every_form(request: pytest.FixtureRequest, tmp_path: Path, head: str) -> None:
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
def test_encode_speech_of_a_batch_equals_its_utterances(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    model = request.getfixturevalue(head)
    # Lengths of whole frames: the mask of the encoder, which rounds as fairseq does, then ends with the utterance.
    waves = [wave(samples, seed) for seed, samples in enumerate((9600, 16000, 6400))]
    together = model.encode_speech(waves)
    assert together.shape == (3, JOINT)
    with monkeypatch.context() as patch:
        patch.setattr("speechclip.api.BATCH", 2)
        torch.testing.assert_close(model.encode_speech(waves)[1], together[1], rtol=0, atol=1e-5)
    alone = torch.cat([model.encode_speech(item) for item in waves])
    # The convolutions let the last frames of a padded utterance see its padding.
    torch.testing.assert_close(alone, together, rtol=0, atol=0.1)
    assert torch.allclose(alone[1], together[1], atol=1e-5)  # the longest is not padded
    if head == "cascaded":
        return
    different = (alone[:, None] - alone[None]).norm(dim=-1)[~torch.eye(3, dtype=torch.bool)].min()
    assert (alone - together).norm(dim=-1).max() < different


def test_encode_image_and_encode_text(parallel: SpeechCLIP, tmp_path: Path) -> None:
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


def test_keywords_have_subwords_cosines_and_spans(cascaded: SpeechCLIP) -> None:
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


def test_keywords_are_the_nearest_subword_embeddings(cascaded: SpeechCLIP) -> None:
    features = cascaded.network.encode_waves([torch.from_numpy(WAVES[0])])
    with torch.no_grad():
        vectors = cascaded.network.apply_head(*features).keywords.vectors[0]
    assert cascaded.network.clip is not None
    assert cascaded.network.vocabulary is not None
    rows = cascaded.network.clip.subword_embeddings[torch.tensor(cascaded.network.vocabulary.ids)]
    cosines = torch.nn.functional.cosine_similarity(vectors[:, None], rows[None], dim=-1)
    for at, keyword in enumerate(cascaded.keywords(WAVES[0], top_k=3)[0]):
        for name, value in zip(keyword.subwords, keyword.cosines, strict=True):
            assert cosines[at, cascaded.network.vocabulary.subwords.index(name)].item() == pytest.approx(
                value, abs=1e-5
            )


@pytest.mark.parametrize("head", ["parallel", "cascaded"])
def test_hidden_states_are_of_the_encoder_and_the_head(request: pytest.FixtureRequest, head: str) -> None:
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


def test_hidden_states_include_layers_outside_the_sum(recipe: Path) -> None:
    whole, _ = whole_model(recipe, "parallel", large=True)
    config = ModelConfig(SpeechEncoderConfig(layers=[0, 2]), head=HeadConfig(attention_heads=4))
    model = SpeechCLIP(build_network(config, Dimensions(WIDTH, 2, JOINT), speech_encoder=whole.speech_encoder))
    states, _ = model.hidden_states(WAVES)
    assert len(states) == STATES + 1
    features = model.network.encode_waves([torch.from_numpy(item) for item in WAVES])
    assert torch.equal(features.states, torch.stack([states[0], states[2]], dim=1))
    assert model.encode_speech(WAVES).shape == (4, JOINT)


def audio_file(kind: str, wave: np.ndarray = WAVES[0], rate: int = 16000) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate, format=kind)
    return buffer.getvalue()


class Decoder:
    """The part of torchcodec's audio decoder that ``datasets`` returns."""

    def get_all_samples(self) -> SimpleNamespace:
        stereo = np.stack([WAVES[0] + 0.01, WAVES[0] - 0.01])
        return SimpleNamespace(data=torch.from_numpy(stereo), sample_rate=16000)


FORMS: dict[str, Callable[[], Any]] = {
    "list": lambda: [WAVES[0]],
    "generator": lambda: (item for item in WAVES[:1]),
    "row": lambda: WAVES[0][None],
    "channels_first": lambda: [torch.from_numpy(WAVES[0])[None]],
    "big_endian": lambda: WAVES[0].astype(">f4"),
    "object_array": lambda: np.array([WAVES[0], None], dtype=object)[:1],
    "bytes": lambda: audio_file("FLAC"),
    "bytes_in_a_list": lambda: [bytearray(audio_file("WAV"))],
    "file": lambda: io.BytesIO(audio_file("WAV")),
    "datasets_array": lambda: {"array": WAVES[0], "sampling_rate": 16000, "path": "gone.wav"},
    "datasets_list": lambda: [{"array": WAVES[0].tolist(), "sampling_rate": 16000}],
    "datasets_bytes": lambda: {"bytes": audio_file("WAV"), "path": "gone.wav"},
    "datasets_decoder": Decoder,
}


@pytest.mark.parametrize("name", FORMS)
def test_encode_speech_accepts_forms_of_datasets(parallel: SpeechCLIP, name: str) -> None:
    expected = parallel.encode_speech(WAVES[0])
    torch.testing.assert_close(parallel.encode_speech(FORMS[name]()), expected, rtol=0, atol=1e-4)


def test_datasets_path_is_read(parallel: SpeechCLIP, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(audio_file("WAV"))
    expected = parallel.encode_speech(tmp_path / "a.wav")
    for item in ({"path": str(tmp_path / "a.wav")}, {"bytes": None, "path": tmp_path / "a.wav"}):
        assert torch.equal(parallel.encode_speech(item), expected)
    with (tmp_path / "a.wav").open("rb") as opened:
        assert torch.equal(parallel.encode_speech(opened), expected)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_other_rates_are_resampled(parallel: SpeechCLIP, tmp_path: Path, rate: int) -> None:
    """Arrays, dictionaries and files of one rate give one embedding; without the rate it is another one."""
    samples = np.sin(np.arange(rate) * (2000 / rate)).astype(np.float32) * 0.3
    soundfile.write(tmp_path / "a.wav", samples, rate, subtype="FLOAT")
    expected = parallel.encode_speech(soxr.resample(samples, rate, 16000, quality="HQ"))
    for found in (
        parallel.encode_speech(samples, sampling_rate=rate),
        parallel.encode_speech([torch.from_numpy(samples)], sampling_rate=np.int64(rate)),
        parallel.encode_speech({"array": samples, "sampling_rate": rate}, sampling_rate=11025),
        parallel.encode_speech(tmp_path / "a.wav", sampling_rate=11025),
        parallel.encode_with_keywords(samples, sampling_rate=rate)[0][None],
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    states, frames = parallel.hidden_states(samples, sampling_rate=rate)
    assert frames.tolist() == [49]
    assert parallel.hidden_states(samples)[1].tolist() != [49]


def test_array_of_two_dimensions_holds_utterances(parallel: SpeechCLIP) -> None:
    two = np.stack([WAVES[0][:5000], WAVES[1][:5000]])
    expected = parallel.encode_speech(list(two))
    assert expected.shape == (2, JOINT)
    for item in (two, torch.from_numpy(two)):
        assert torch.equal(parallel.encode_speech(item), expected)


def test_image_forms_have_one_embedding(parallel: SpeechCLIP, tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 255, (40, 30, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    expected = parallel.encode_image(tmp_path / "a.png")
    for item in (
        pixels, torch.from_numpy(pixels), pixels[None], content, [content], io.BytesIO(content),
        Image.fromarray(pixels), {"bytes": content, "path": None}, [{"path": str(tmp_path / "a.png")}], iter([pixels]),
    ):  # fmt: skip
        assert torch.equal(parallel.encode_image(item), expected)


def test_pil_images_follow_the_policy_of_files(parallel: SpeechCLIP, tmp_path: Path) -> None:
    """Orientation, transparency and 16 bits."""
    pixels = np.random.default_rng(1).integers(0, 255, (40, 30, 4), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257).save(tmp_path / "b.png")
    for path in (tmp_path / "a.png", tmp_path / "b.png"):
        with Image.open(path) as opened:
            assert torch.equal(parallel.encode_image(opened), parallel.encode_image(path))
    grey = np.repeat(pixels[:, :, :1], 3, axis=2)
    torch.testing.assert_close(
        parallel.encode_image(tmp_path / "b.png"), parallel.encode_image(grey), rtol=0, atol=1e-6
    )


def test_large_inputs_are_encoded_in_batches(parallel: SpeechCLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(1).integers(0, 255, (5, 40, 30, 3), np.uint8)
    texts = ["red dog", "two boats", "a", "the tree by the lake", "b"]
    expected = parallel.encode_image(images), parallel.encode_text(texts)
    monkeypatch.setattr("speechclip.api.CLIP_BATCH", 2)
    torch.testing.assert_close(parallel.encode_image(images), expected[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(parallel.encode_text(iter(texts)), expected[1], rtol=0, atol=1e-6)


BAD_WAVES: list[tuple[str, Callable[[], Any], str]] = [
    ("none", lambda: None, "waves: NoneType is not a recording"),
    ("number", lambda: 3, "waves: int is not a recording"),
    ("nothing", lambda: [], "waves: empty. Give at least one recording."),
    ("no_rows", lambda: np.zeros((0, 900), np.float32), "waves: empty"),
    ("empty", lambda: [np.zeros(0, np.float32)], r"waves\[0\]: shape \(0,\). Give a non-empty 1-D array"),
    ("stereo", lambda: np.zeros((3200, 2), np.float32), r"waves: shape \(3200, 2\) is samples x channels."),
    ("column", lambda: torch.zeros(3200, 1), r"waves: shape \(3200, 1\) is samples x channels."),
    ("stereo_in_a_list", lambda: [WAVES[0], np.zeros((2, 900), np.float32)], r"waves\[1\]: shape \(2, 900\)."),
    ("three_dimensions", lambda: np.zeros((2, 1, 900)), r"waves: shape \(2, 1, 900\)."),
    ("scalar", lambda: [torch.tensor(1.0)], r"waves\[0\]: shape \(\)."),
    ("zero_dimensions", lambda: torch.tensor(1.0), r"waves: shape \(\)."),
    ("nan", lambda: [WAVES[0], np.array([0.1, np.nan] * 900, np.float32)], r"waves\[1\]: NaN or infinite"),
    ("infinite", lambda: torch.full((900,), float("inf")), r"waves\[0\]: NaN or infinite"),
    ("int32", lambda: [np.arange(900, dtype=np.int32)], r"waves\[0\]: samples of torch.int32 have no known scale"),
    ("words", lambda: [np.array(["a"] * 900)], r"waves\[0\]: an array of <U1"),
    ("unscaled", lambda: WAVES[0] * 32768, r"waves\[0\]: a floating-point waveform reaches \d+; full scale is 1"),
    ("numbers", lambda: [0.1, 0.2], "waves: a list of numbers"),
    ("nested", lambda: [[0.1, 0.2]], r"waves\[0\]: list is not a recording"),
    ("missing", lambda: "nowhere.wav", "nowhere.wav: missing audio file"),
    ("second_missing", lambda: [WAVES[0], "nowhere.wav"], "nowhere.wav: missing audio file"),
    ("not_audio", lambda: [WAVES[0], b"hello"], r"waves\[1\]: not readable as audio"),
    ("no_bytes", lambda: b"", r"waves\[0\]: empty audio file"),
    ("text_file", lambda: io.StringIO("x"), r"waves\[0\]: a file in text mode"),
    ("dictionary", lambda: {"audio": WAVES[0]}, r"waves\[0\]: a dictionary without array, bytes and path"),
    ("no_rate", lambda: {"array": WAVES[0]}, r"waves\[0\]: a dictionary with array but without sampling_rate"),
    ("bad_rate", lambda: {"array": WAVES[0], "sampling_rate": "16k"}, "sampling_rate: '16k' is not a rate in Hz"),
    ("bad_list", lambda: {"array": ["a"], "sampling_rate": 16000}, r"waves\[0\]: not a list of samples"),
    ("bad_bytes", lambda: {"bytes": 3, "path": "a.wav"}, "a.wav: int is not a file"),
]


@pytest.mark.parametrize(("name", "make", "message"), BAD_WAVES, ids=[row[0] for row in BAD_WAVES])
def test_bad_waves_are_one_line(cascaded: SpeechCLIP, name: str, make: Callable[[], Any], message: str) -> None:
    for method in (cascaded.encode_speech, cascaded.keywords, cascaded.hidden_states):
        with pytest.raises(UserError, match=f"^{message}") as caught:
            method(make())
        assert "\n" not in str(caught.value)


Call = Callable[[SpeechCLIP], Any]
BAD_ARGUMENTS: list[tuple[str, Call, str]] = [
    (
        "branch",
        lambda m: m.encode_speech(WAVES[0], "parallel"),
        "branch: a cascaded head has the branch cascaded, not ",
    ),
    (
        "branch_type",
        lambda m: m.encode_with_keywords(WAVES[0], 3),
        "branch: a cascaded head has the branch cascaded, not 3",
    ),
    ("rate", lambda m: m.encode_speech(WAVES[0], sampling_rate=0), "sampling_rate: 0 is not a rate in Hz"),
    ("rate_file", lambda m: m.encode_speech("a.wav", sampling_rate=4.4), "sampling_rate: 4.4 is not a rate in Hz"),
    ("rate_bool", lambda m: m.keywords(WAVES[0], sampling_rate=True), "sampling_rate: True is not a rate in Hz"),
    ("rate_states", lambda m: m.hidden_states(WAVES[0], sampling_rate="a"), "sampling_rate: 'a' is not a rate in Hz"),
    ("rate_one", lambda m: m.encode_with_keywords(WAVES[0], sampling_rate=-1), "sampling_rate: -1 is not a rate in Hz"),
    ("wave", lambda m: m.encode_with_keywords(WAVES[:1]), "wave: list is not a recording"),
    ("wave_rows", lambda m: m.encode_with_keywords(np.zeros((2, 900))), r"wave: shape \(2, 900\)"),
    ("top_k", lambda m: m.keywords(WAVES[0], top_k=0), "top_k: 0 is not a number of subwords"),
    ("top_k_type", lambda m: m.keywords(WAVES[0], top_k="5"), "top_k: '5' is not a number of subwords"),
    ("top_k_one", lambda m: m.encode_with_keywords(WAVES[0], top_k=1.5), "top_k: 1.5 is not a number of subwords"),
    ("images", lambda m: m.encode_image([]), "images: empty. Give at least one image."),
    ("images_none", lambda m: m.encode_image(None), "images: NoneType is not an image"),
    ("images_item", lambda m: m.encode_image([np.zeros((4, 4, 3), np.uint8), 3]), r"images\[1\]: int is not an image"),
    ("images_missing", lambda m: m.encode_image(["a.png"]), "a.png: missing image file"),
    ("texts", lambda m: m.encode_text([]), "texts: empty. Give at least one text."),
    ("texts_none", lambda m: m.encode_text(None), "texts: NoneType is not a text"),
    ("texts_bytes", lambda m: m.encode_text(b"a dog"), "texts: bytes is not a text"),
    ("texts_surrogate", lambda m: m.encode_text(["a dog", "\ud800"]), r"texts\[1\]: '\\ud800' is not valid Unicode"),
    ("texts_item", lambda m: m.encode_text(["a dog", 3]), r"texts\[1\]: int is not a text"),
    ("device", lambda m: m.to("gpu"), "device: 'gpu' is not a device"),
    ("device_type", lambda m: m.to(None), "device: None is not a device"),
    ("load_device", lambda m: SpeechCLIP.from_pretrained("x", device="tpu"), "device: 'tpu' is not a device"),
    ("path", lambda m: SpeechCLIP.from_pretrained(None), "path: None is not a checkpoint"),
    ("path_empty", lambda m: SpeechCLIP.from_pretrained(""), "path: '' is not a checkpoint"),
    ("path_missing", lambda m: SpeechCLIP.from_pretrained("no/where/"), "no/where"),
    ("clip", lambda m: SpeechCLIP.from_pretrained("x", clip=3), "clip: int is not a path"),
]


@pytest.mark.parametrize(("name", "call", "message"), BAD_ARGUMENTS, ids=[row[0] for row in BAD_ARGUMENTS])
def test_bad_arguments_are_one_line(cascaded: SpeechCLIP, name: str, call: Call, message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}") as caught:
        call(cascaded)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("head", ["parallel", "hybrid_plus"])
def test_pickles_and_copies_encode_equally(tmp_path: Path, head: str, large: bool) -> None:
    network = whole_model(tmp_path, head, large=large)[0]
    states = copy.deepcopy(network).eval().hidden_states([torch.as_tensor(WAVES[0])])[0]
    earlier = copy.deepcopy(network).eval()
    model = SpeechCLIP(network)
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert torch.equal(other.encode_speech(WAVES[:2]), model.encode_speech(WAVES[:2]))
        assert torch.equal(other.encode_text(["a red cup"]), model.encode_text(["a red cup"]))
        if model.has_keywords:
            assert other.keywords(WAVES[:2]) == model.keywords(WAVES[:2])
    # Neither the wrapped network nor a copy that was made before it changed.
    for left in (model.network, earlier):
        assert all(
            torch.equal(a, b) for a, b in zip(left.hidden_states([torch.as_tensor(WAVES[0])])[0], states, strict=True)
        )


def test_keywords_refuse_a_parallel_head(parallel: SpeechCLIP) -> None:
    with pytest.raises(UserError, match="model.head.name: a parallel head has no keywords"):
        parallel.keywords(WAVES)


def test_trained_parameters_are_those_of_the_head(parallel: SpeechCLIP, cascaded: SpeechCLIP) -> None:
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


def test_build_network_refuses_parts_that_do_not_fit(cascaded: SpeechCLIP) -> None:
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
    with pytest.raises(UserError, match="vocabulary: has id 5000.*belongs to another CLIP"):
        build_network(config, dimensions, clip=clip, vocabulary=foreign)
    absent = ModelConfig(SpeechEncoderConfig(layers=[0, STATES]), head=HeadConfig(attention_heads=4))
    with pytest.raises(UserError, match=f"model.speech_encoder.layers: {STATES}"):
        build_network(absent, Dimensions(WIDTH, 2, JOINT), speech_encoder=cascaded.network.speech_encoder)


def test_reduced_subword_embeddings_are_the_rows_of_clip(cascaded: SpeechCLIP) -> None:
    clip = cascaded.network.clip
    assert clip is not None
    words = vocabulary_of(captions(3), clip)
    subword_embeddings, valid_mask = reduced_subword_embeddings(clip, words)
    assert subword_embeddings.shape == (len(words), SUBWORD)
    for row, token in enumerate(words.ids):
        assert torch.equal(subword_embeddings[row], clip.subword_embeddings[token])
        assert bool(valid_mask[row]) == (token not in (clip.tokenizer.pad, clip.tokenizer.sot, clip.tokenizer.eot))
