"""The wrappers for mteb without mteb: batches of every modality, cosines, pairs, their caches and their errors."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fixtures import wave, whole_model
from PIL import Image
from torch import Tensor

from speechclip.api import SpeechCLIP
from speechclip.benchmarks import mteb as wrappers
from speechclip.benchmarks.mteb import FineScorer, MtebEncoder, MtebReranker
from speechclip.benchmarks.mteb_meta import model_name, revision, training_corpus
from speechclip.common.errors import UserError

WAVES = [wave(4000 + 320 * (5 * n % 7), n) for n in range(9)]
PICTURES = [
    Image.fromarray(np.random.default_rng(n).integers(0, 255, (24, 40 + n, 3), dtype=np.uint8)) for n in range(9)
]
TASK: dict[str, Any] = {"task_metadata": SimpleNamespace(name="T"), "hf_split": "test", "hf_subset": "default"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SpeechCLIP:
    return SpeechCLIP(whole_model(tmp_path_factory.mktemp("model"), "hybrid")[0])


def _audio(items: list[np.ndarray]) -> list[dict[str, Any]]:
    return [{"array": item, "sampling_rate": 16000} for item in items]


def test_encode_keeps_the_order(model: SpeechCLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wrappers, "WINDOW", 4)
    batches = [{"id": ["a"], "audio": _audio(WAVES[at : at + 3])} for at in range(0, 9, 3)]
    for branch in ("parallel", "cascaded"):
        expected = torch.empty(9, model.network.dimensions.joint)
        for window in (np.arange(6), np.arange(6, 9)):  # the first one is full after two batches
            order = window[np.argsort([-len(WAVES[at]) for at in window], kind="stable")]
            expected[order] = model.encode_speech([WAVES[at] for at in order], branch)
        found = MtebEncoder(model, None, branch).encode(batches, **TASK)
        np.testing.assert_allclose(found, expected.numpy(), atol=2e-6)


def test_encode_images_texts_and_both(model: SpeechCLIP) -> None:
    encoder, texts = MtebEncoder(model, None), ["a red boat", "two dogs"]
    images, words = model.encode_image(PICTURES[:2]).numpy(), model.encode_text(texts).numpy()
    found = encoder.encode([{"image": PICTURES[:1]}, {"image": PICTURES[1:2]}], **TASK)
    np.testing.assert_allclose(found, images, atol=2e-6)
    np.testing.assert_allclose(encoder.encode([{"text": texts}], **TASK), words, atol=2e-6)
    both = encoder.encode([{"image": PICTURES[:2], "text": texts}], **TASK)
    mean = images + words
    np.testing.assert_allclose(both, mean / np.linalg.norm(mean, axis=1, keepdims=True), atol=2e-6)


def test_similarities_are_cosines(model: SpeechCLIP) -> None:
    encoder = MtebEncoder(model, None)
    left, right = np.array([[3.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 1.0], [0.0, -5.0]])
    half = 0.5**0.5
    torch.testing.assert_close(encoder.similarity(left, right), torch.tensor([[half, 0.0], [half, -1.0]]))
    torch.testing.assert_close(encoder.similarity_pairwise(left, right), torch.tensor([half, -1.0]))


@pytest.mark.parametrize(
    ("batches", "problem"),
    [
        pytest.param([{"video": [1]}], "video in a batch; the model encodes audio, image, text", id="modality"),
        pytest.param([{"text": ["a"]}, {"image": PICTURES[:1]}], "image in a batch", id="changes"),
        pytest.param([], "no items", id="empty"),
        pytest.param([{"audio": _audio([np.full(400, np.nan)])}], r"T: items 0: NaN", id="NaN"),
    ],
)
def test_encode_refuses_bad_batches(batches: Any, problem: str, model: SpeechCLIP) -> None:
    with pytest.raises(UserError, match=problem):
        MtebEncoder(model, None).encode(batches, **TASK)
    with pytest.raises(UserError, match="branch: 'third' is unknown"):
        MtebEncoder(model, None, "third")


class Counting:
    """A scorer: the length of the recording times the width of the image."""

    def __init__(self) -> None:
        self.encoded: list[int] = []

    def speech_features(self, waves: Any) -> list[int]:
        self.encoded.append(len(waves))
        return [len(item) for item in waves]

    def image_features(self, images: Any) -> list[int]:
        self.encoded.append(len(images))
        return [item.width for item in images]

    def score_pairs(self, speech: Any, images: Any) -> Tensor:
        return torch.tensor([float(left * right) for left, right in zip(speech, images, strict=True)])


@pytest.mark.parametrize("swapped", [False, True], ids=["a2i", "i2a"])
def test_reranker_scores_pairs_and_encodes_once(swapped: bool) -> None:
    scorer = Counting()
    reranker = MtebReranker(scorer, None)
    speech = [{"audio": _audio([WAVES[0], WAVES[0]])}, {"audio": _audio([WAVES[0], WAVES[1]])}]
    images = [{"image": PICTURES[:2]}, {"image": [PICTURES[2], PICTURES[0]]}]
    sides = (images, speech) if swapped else (speech, images)
    found = reranker.predict(*sides, **TASK)
    assert found.tolist() == [len(WAVES[0]) * 40, len(WAVES[0]) * 41, len(WAVES[0]) * 42, len(WAVES[1]) * 40]
    assert sorted(scorer.encoded) == [1, 1, 1, 2]  # 2 recordings and 3 images, each once


def test_reranker_forgets_the_oldest() -> None:
    scorer = Counting()
    reranker = MtebReranker(scorer, None, cached=2)
    pairs = [[{"audio": _audio([item])} for item in WAVES[:3]], [{"image": [item]} for item in PICTURES[:3]]]
    first = reranker.predict(*pairs, **TASK)
    assert reranker.predict(*pairs, **TASK).tolist() == first.tolist()
    assert len(scorer.encoded) == 12


@pytest.mark.parametrize(
    ("queries", "documents"),
    [
        pytest.param([{"audio": _audio(WAVES[:1])}], [{"text": ["a"]}], id="text"),
        pytest.param([{"audio": _audio(WAVES[:2])}], [{"image": PICTURES[:1]}], id="numbers"),
        pytest.param([{"audio": _audio(WAVES[:1])}], [], id="missing"),
    ],
)
def test_reranker_refuses_other_pairs(queries: Any, documents: Any) -> None:
    with pytest.raises(UserError, match="needs pairs of a recording and an image"):
        MtebReranker(Counting(), None).predict(queries, documents, **TASK)


def test_fine_scorer_groups_pairs_by_recording(model: SpeechCLIP) -> None:
    calls = []

    def fine_scores(waves: list[Tensor], images: list[int]) -> Tensor:
        calls.append((len(waves), len(images)))
        return torch.tensor([[len(waves[0]) + image for image in images]])

    config = SimpleNamespace(head=SimpleNamespace(name="reranker"))
    reranking: Any = SimpleNamespace(fine_scores=fine_scores, network=SimpleNamespace(config=config))
    first, second = torch.zeros(10), torch.zeros(20)
    scores = FineScorer(reranking, "x").score_pairs([first, second, first], [1, 2, 3])
    assert scores.tolist() == [11, 22, 13]
    assert calls == [(1, 2), (1, 1)]
    with pytest.raises(UserError, match="exp/x: has a hybrid head. Give the checkpoint of a reranker"):
        FineScorer(model, "exp/x")


@pytest.mark.parametrize(
    ("path", "named", "corpus", "name"),
    [
        ("parallel_large_coco", "", "spokencoco", "speechclip/parallel_large_coco"),
        ("speechclip_hybrid_base", "", "flickr8k", "speechclip/hybrid_base"),
        ("mini", "", "mini", "speechclip/mini"),
        ("owner/model", "flickr8k", "flickr8k", "owner/model"),
        ("exp/my run/best", "none", "none", "local/my_run"),
    ],
)
def test_corpus_and_name_of_a_model(path: str, named: str, corpus: str, name: str) -> None:
    assert training_corpus(path, named) == corpus
    assert model_name(path) == name
    assert model_name(path, "me/mine") == "me/mine"


def test_unknown_corpus_and_name_are_refused() -> None:
    with pytest.raises(UserError, match="owner/model: the training corpus is unknown. Give it with --trained_on"):
        training_corpus("owner/model")
    with pytest.raises(UserError, match="--trained_on: 'imagenet' is unknown"):
        training_corpus("mini", "imagenet")
    with pytest.raises(UserError, match="--name: 'mine' is not owner/name"):
        model_name("mini", "mine")


def test_revision_names_the_trained_tensors(model: SpeechCLIP) -> None:
    before = revision(model.network)
    weight = next(model.network.head.parameters())
    with torch.no_grad():
        weight.add_(1e-3)
        changed = revision(model.network)
        weight.sub_(1e-3)
    assert len(before) == 16 and changed != before


def test_recipe_folder_names_the_corpus(tmp_path: Path) -> None:
    import speechclip.checkpoint.pretrained as pretrained

    assert training_corpus(str(pretrained.mini_folder())) == "mini"
