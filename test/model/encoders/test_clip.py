"""The CLIP towers against open_clip's own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures import CONTEXT, JOINT, SUBWORD, captions, save_clip
from PIL import Image

from speechclip.common.errors import UserError
from speechclip.config import ClipConfig
from speechclip.model.encoders.clip import OpenClip, load_clip
from speechclip.model.encoders.kernels.quick_gelu import QuickGelu
from speechclip.model.encoders.tokenizers import BpeTokenizer, SentencePieceTokenizer, add_special_tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip") / "clip")


@pytest.fixture(scope="module")
def clip(folder: Path) -> OpenClip:
    return load_clip(ClipConfig(str(folder)))


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    """open_clip's model and its evaluation transform, loaded by open_clip."""
    import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    return model.eval(), preprocess


def _rows(clip: OpenClip, texts: list[str]) -> torch.Tensor:
    return torch.tensor(
        [add_special_tokens(clip.tokenizer, clip.tokenizer.encode(text), clip.context_length) for text in texts]
    )


def test_clip_dimensions(clip: OpenClip) -> None:
    assert (clip.context_length, clip.subword_dim, clip.joint_dim) == (CONTEXT, SUBWORD, JOINT)
    assert clip.subword_embeddings.shape == (clip.tokenizer.eot + 1, SUBWORD)
    assert clip.tokenizer.sot == clip.tokenizer.eot - 1
    assert not any(parameter.requires_grad for parameter in clip.parameters())
    assert not clip.train().model.training


def test_texts_equal_open_clip(clip: OpenClip, reference: Any) -> None:
    texts = [*captions(12), "dog", "dog " * 40, ""]  # the last but one is cut, the last has no words
    with torch.no_grad():
        expected = torch.nn.functional.normalize(reference[0].encode_text(_rows(clip, texts)), dim=-1)
    ours = clip.encode_texts(texts)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)
    assert (ours[0] - ours[1]).abs().max() > 1e-3
    torch.testing.assert_close(clip.encode_texts(texts[3:4])[0], ours[3], rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(50, 33), (33, 50), (32, 32), (20, 31), (97, 32), (640, 479)])
def test_images_equal_open_clip(clip: OpenClip, reference: Any, size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(sum(size)).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    model, preprocess = reference
    torch.testing.assert_close(clip.preprocess(image), preprocess(image), rtol=0, atol=1e-6)
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model.encode_image(preprocess(image)[None]), dim=-1)
    torch.testing.assert_close(clip.encode_images([image]), expected, rtol=0, atol=1e-6)


def test_subwords_as_keywords_equal_their_text(clip: OpenClip, reference: Any) -> None:
    ids = clip.tokenizer.encode("red dog near the boat")
    keywords = clip.subword_embeddings[torch.tensor([ids, ids[::-1]])]
    ours = clip.encode_keywords(keywords)
    rows = torch.tensor([add_special_tokens(clip.tokenizer, row, CONTEXT) for row in (ids, ids[::-1])])
    with torch.no_grad():
        torch.testing.assert_close(ours, reference[0].encode_text(rows), rtol=0, atol=1e-6)
    assert ours.norm(dim=-1).sub(1).abs().min() > 1e-3  # not normalised
    texts = clip.encode_texts(["red dog near the boat"])
    torch.testing.assert_close(torch.nn.functional.normalize(ours[:1], dim=-1), texts, rtol=0, atol=1e-6)


def test_keywords_pass_gradients_and_must_fit(clip: OpenClip) -> None:
    keywords = torch.randn(2, CONTEXT - 2, SUBWORD, requires_grad=True)
    clip.encode_keywords(keywords).square().sum().backward()
    assert keywords.grad is not None
    assert (keywords.grad.abs().amax(dim=-1) > 0).all()  # from every keyword
    with pytest.raises(UserError, match=f"model.head.keywords: {CONTEXT - 1} do not fit"):
        clip.encode_keywords(torch.randn(1, CONTEXT - 1, SUBWORD))


def test_quick_gelu_equals_open_clip_with_gradients(folder: Path, tmp_path: Path) -> None:
    import open_clip

    quick = shutil.copytree(folder, tmp_path / "clip")
    settings = json.loads((quick / "open_clip_config.json").read_text())
    settings["model_cfg"]["quick_gelu"] = True
    (quick / "open_clip_config.json").write_text(json.dumps(settings))
    plain, clip = open_clip.create_model(f"local-dir:{quick}").eval(), load_clip(ClipConfig(str(quick)))
    kinds = {type(module) for module in clip.modules()}
    assert QuickGelu in kinds and open_clip.transformer.QuickGELU not in kinds
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = torch.nn.functional.normalize(plain.encode_image(pixels), dim=-1)
    torch.testing.assert_close(clip.encode_pixels(pixels), expected, rtol=0, atol=1e-6)
    keywords = torch.randn(2, 3, SUBWORD, requires_grad=True)
    ends = plain.token_embedding.weight[[clip.tokenizer.sot, clip.tokenizer.eot]].expand(2, -1, -1)
    rows = torch.cat([ends[:, :1], keywords, ends[:, 1:]], dim=1) + plain.positional_embedding[:5]
    x = plain.ln_final(plain.transformer(rows, attn_mask=plain.attn_mask[:5, :5]))[:, 4] @ plain.text_projection
    (expected,) = torch.autograd.grad(x.square().sum(), keywords)
    (found,) = torch.autograd.grad(clip.encode_keywords(keywords).square().sum(), keywords)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    inputs = torch.linspace(-9, 9, 50, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(QuickGelu(), inputs)


def test_sentencepiece_subwords_round_trip(clip: OpenClip, folder: Path) -> None:
    tokenizer = SentencePieceTokenizer(folder / "spm.model")
    for text in captions(20):
        ids = tokenizer.encode(text)
        assert not {tokenizer.pad, tokenizer.sot, tokenizer.eot} & set(ids)
        assert "".join(map(tokenizer.subword, ids)).replace("\u2581", " ").strip() == text
        assert tokenizer.encode(text.upper()) == ids
    assert [tokenizer.subword(token) for token in (tokenizer.sot, tokenizer.eot)] == [
        "<start_of_text>",
        "<end_of_text>",
    ]


def test_add_special_tokens_cuts_and_pads(clip: OpenClip) -> None:
    tokenizer = clip.tokenizer
    sot, eot, pad = tokenizer.sot, tokenizer.eot, tokenizer.pad
    assert add_special_tokens(tokenizer, [7, 8], 6) == [sot, 7, 8, eot, pad, pad]
    assert add_special_tokens(tokenizer, [7, 8, 9, 5, 6], 6) == [sot, 7, 8, 9, 5, eot]
    assert add_special_tokens(tokenizer, [], 3) == [sot, eot, pad]


def test_openai_bpe_equals_open_clip() -> None:
    import open_clip

    theirs = open_clip.get_tokenizer("ViT-B-32")
    ours = BpeTokenizer(theirs)
    texts = [
        "A dog runs.", "two  CHILDREN playing, near the sea-shore!", "caf\u00e9 na\u00efve \u2014 3 \u20ac",
        "a&amp;b", "\u72ac and \U0001f436", "",
    ]  # fmt: skip
    for text in texts:
        row = add_special_tokens(ours, ours.encode(text), 77)
        assert row == theirs([text])[0].tolist()
    assert (ours.sot, ours.eot) == (49406, 49407)
    assert [ours.subword(token) for token in ours.encode("a dog unbelievably")][:2] == ["a</w>", "dog</w>"]
    for text in ("unbelievably", "caf\u00e9"):  # a word of several pieces, and one with a character of two bytes
        assert "".join(map(ours.subword, ours.encode(text))) == f"{text}</w>"
    assert [ours.subword(token) for token in (ours.sot, ours.eot)] == ["<start_of_text>", "<end_of_text>"]
    every = {token: ours.subword(token) for token in range(49408)}
    assert all(isinstance(piece, str) for piece in every.values())
    half = next(token for token, piece in every.items() if "\ufffd" in piece)  # bytes that are only part of a character
    assert "\ufffd" not in theirs.decoder[half]


def _copy(folder: Path, target: Path) -> Path:
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def _no_model_cfg(folder: Path) -> None:
    (folder / "open_clip_config.json").write_text(json.dumps({"preprocess_cfg": {}}))


BROKEN: list[tuple[str, Callable[[Path], Any], str]] = [
    ("no_config", lambda f: (f / "open_clip_config.json").unlink(), "open_clip_config.json: is missing"),
    (
        "bad_json",
        lambda f: (f / "open_clip_config.json").write_text("{"),
        "open_clip_config.json: not valid JSON",
    ),
    (
        "json_list",
        lambda f: (f / "open_clip_config.json").write_text("[]"),
        "open_clip_config.json: a JSON object is needed, this is a list",
    ),
    ("json_number", lambda f: (f / "open_clip_config.json").write_text("3"), "open_clip_config.json: a JSON object is"),
    ("no_model_cfg", _no_model_cfg, "open_clip_config.json: the key model_cfg is missing"),
    ("no_weights", lambda f: (f / "open_clip_model.safetensors").unlink(), ": CLIP cannot be loaded: "),
    ("cut_weights", lambda f: (f / "open_clip_model.safetensors").write_bytes(b"x" * 50), ": CLIP cannot be loaded: "),
    ("bad_pieces", lambda f: (f / "spm.model").write_bytes(b"junk"), "spm.model: not a sentencepiece model"),
]


@pytest.mark.parametrize(("name", "damage", "message"), BROKEN, ids=[row[0] for row in BROKEN])
def test_load_clip_names_a_damaged_folder(
    folder: Path, tmp_path: Path, name: str, damage: Callable[[Path], Any], message: str
) -> None:
    copy = _copy(folder, tmp_path / name)
    damage(copy)
    with pytest.raises(UserError) as caught:
        load_clip(ClipConfig(str(copy)))
    assert str(copy) in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_load_clip_refuses_weights_of_another_width(folder: Path, tmp_path: Path) -> None:
    copy = _copy(folder, tmp_path / "other")
    settings = json.loads((copy / "open_clip_config.json").read_text())
    settings["model_cfg"]["text_cfg"]["width"] *= 2
    (copy / "open_clip_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="CLIP cannot be loaded"):
        load_clip(ClipConfig(str(copy)))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "model.clip.path: not set"),
        ("nowhere/clip", "nowhere/clip: no such folder"),
        ("ViT-B-33:openai", "ViT-B-33:openai: CLIP cannot be loaded"),
        ("ViT-B-32:unknown", "ViT-B-32:unknown: CLIP cannot be loaded"),
    ],
)
def test_load_clip_refuses_an_unknown_path(path: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_clip(ClipConfig(path))
