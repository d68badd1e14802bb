"""CLIP models that differ from the default: equal to the library that they come from, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from speechclip.bin.convert_encoder import main as convert
from speechclip.common.compat import prepare
from speechclip.common.errors import UserError
from speechclip.config import ClipConfig
from speechclip.model.encoders.clip import OpenClip, load_clip

SIZES = [(200, 60), (60, 201), (33, 34), (32, 32), (20, 9), (640, 479), (3, 500)]  # width, height
TEXTS = ["a dog", "two children play near the sea-shore!", "dog " * 90, "!", ""]
PAD, SOT, EOT = 0, 49406, 49407
SUBWORDS = 49408
VISION = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 2, "head_width": 16}
TEXT = {"context_length": 12, "vocab_size": SUBWORDS, "width": 16, "heads": 2, "layers": 2}


prepare()


def picture(size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(sum(size)).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def shake(model: Any) -> Any:
    """Give every parameter a random value, so that no setting is without effect."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def assert_same_direction(ours: Tensor, theirs: Tensor) -> None:
    cosines = torch.nn.functional.cosine_similarity(ours.double(), theirs.double(), dim=-1)
    assert cosines.min() > 1 - 1e-6, cosines


def save_open_clip(folder: Path, settings: Mapping[str, Any], preprocess: Mapping[str, Any]) -> Path:
    import open_clip
    from safetensors.torch import save_file

    shape = {"embed_dim": 20, **settings}
    shape["vision_cfg"] = {**VISION, **settings.get("vision_cfg", {})}
    shape["text_cfg"] = {**TEXT, **settings.get("text_cfg", {})}
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": shape, "preprocess_cfg": dict(preprocess)}))
    model = shake(open_clip.create_model(f"local-dir:{folder}"))
    save_file({name: value.contiguous() for name, value in model.state_dict().items()},
              folder / "open_clip_model.safetensors")  # fmt: skip
    return folder


def custom(**text: Any) -> dict[str, Any]:
    return {"custom_text": True, "text_cfg": text}


COCA = {
    "multimodal_cfg": {"context_length": 12, "width": 16, "heads": 2, "layers": 1, "vocab_size": SUBWORDS},
    "vision_cfg": {"output_tokens": True, "attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 3},
    "text_cfg": {"embed_cls": True, "output_tokens": True},
    "custom_text": True,
}

IMAGES: dict[str, dict[str, Any]] = {
    "default": {},
    "squash": {"resize_mode": "squash"},
    "longest": {"resize_mode": "longest"},
    "longest_grey": {"resize_mode": "longest", "fill_color": 127},
    "fill_color_alone": {"fill_color": 127},
    "bilinear": {"interpolation": "bilinear"},
    "bilinear_squash": {"interpolation": "bilinear", "resize_mode": "squash"},
    "random_filter": {"interpolation": "random"},
    "mean_std": {"mean": [0.1, 0.5, 0.9], "std": [0.9, 0.5, 0.1]},
    "one_mean_std": {"mean": 0.3, "std": 0.6},
    "zero_mean": {"mean": 0, "std": 0},
    "ignored_size": {"size": 48},
}


@pytest.mark.parametrize("size", [32, [48, 32], [32, 64]], ids=["32", "48x32", "32x64"])
@pytest.mark.parametrize("name", IMAGES)
def test_images_equal_open_clip(tmp_path: Path, name: str, size: Any) -> None:
    import open_clip

    folder = save_open_clip(tmp_path / "clip", {"vision_cfg": {"image_size": size}}, IMAGES[name])
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    clip = load_clip(ClipConfig(str(folder)))
    # open_clip itself fails if one side of the fitted image has no pixel
    sizes = SIZES[:-1] if name.startswith("longest") else SIZES
    for shape in sizes:
        torch.testing.assert_close(clip.preprocess(picture(shape)), transform(picture(shape)), rtol=0, atol=1e-5)
    pictures = [picture(shape) for shape in sizes]
    with torch.no_grad():
        expected = model.eval().encode_image(torch.stack([transform(item) for item in pictures]))
    assert_same_direction(clip.encode_images(pictures), expected)


TANH = {"act_kwargs": {"approximate": "tanh"}}
TOWERS: dict[str, dict[str, Any]] = {
    "default": {},
    "quick_gelu": {"quick_gelu": True},
    "tanh_gelu": {"text_cfg": TANH, "vision_cfg": TANH},
    "epsilon": {"text_cfg": {"norm_kwargs": {"eps": 1e-2}}, "vision_cfg": {"norm_kwargs": {"eps": 1e-2}}},
    "custom": custom(),
    "first": {"text_cfg": {"pool_type": "first"}},
    "last": {"text_cfg": {"pool_type": "last"}},
    "eos": {"text_cfg": {"pool_type": "eos", "eos_id": EOT}},
    "eos_of_another_id": {"text_cfg": {"pool_type": "eos", "eos_id": 2}},
    "no_causal_mask": {"text_cfg": {"no_causal_mask": True}},
    "no_causal_mask_first": custom(no_causal_mask=True, pool_type="first"),
    "no_causal_mask_last": custom(no_causal_mask=True, pool_type="last"),
    "proj_bias": {"text_cfg": {"proj_bias": True}},
    "proj_none": {"embed_dim": 16, "text_cfg": {"proj_type": "none"}},
    "final_ln_after_pool": {"text_cfg": {"final_ln_after_pool": True}, "vision_cfg": {"final_ln_after_pool": True}},
    "average_pool": {"vision_cfg": {"pool_type": "avg", "no_ln_pre": True, "pos_embed_type": "sin_cos_2d"}},
    "layer_scale": {"text_cfg": {"ls_init_value": 0.5}, "vision_cfg": {"ls_init_value": 0.5}},
    "mlp_ratio": {"text_cfg": {"mlp_ratio": 2.0}, "vision_cfg": {"mlp_ratio": 3.0}},
    "custom_blocks": custom(qk_norm=True, scale_attn=True, scale_fc=True, scale_heads=True),
    "canonical_texts": {"text_cfg": {"tokenizer_kwargs": {"clean": "canonicalize"}}},
    "more_special_tokens": {
        "text_cfg": {"tokenizer_kwargs": {"additional_special_tokens": ["children"]}, "vocab_size": SUBWORDS + 1}
    },
    "embed_cls": custom(embed_cls=True),
    "embed_cls_other_padding": custom(embed_cls=True, pad_id=5),
    "embed_cls_no_causal_mask": custom(embed_cls=True, no_causal_mask=True),
    "coca": COCA,
}  # fmt: skip
WITHOUT_KEYWORDS = {
    "first": "does not depend on the text",
    "eos_of_another_id": "text_cfg.eos_id is 2, but texts end with 49407",
}


@pytest.mark.parametrize("name", TOWERS)
def test_texts_and_images_equal_open_clip(tmp_path: Path, name: str) -> None:
    import open_clip

    folder = save_open_clip(tmp_path / "clip", TOWERS[name], {})
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()
    clip = load_clip(ClipConfig(str(folder)))
    ids = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
    with torch.no_grad():
        assert_same_direction(clip.encode_texts(TEXTS), model.encode_text(ids))
        pictures = [picture(size) for size in SIZES[:2]]
        expected = model.encode_image(torch.stack([transform(item) for item in pictures]))
    assert_same_direction(clip.encode_images(pictures), expected)
    if name in WITHOUT_KEYWORDS:
        with pytest.raises(UserError, match=WITHOUT_KEYWORDS[name]):
            clip.check_keywords()
        return
    clip.check_keywords()
    assert_keywords_are_texts(clip, model)


def assert_keywords_are_texts(clip: OpenClip, model: Any) -> None:
    """Subword embeddings as keywords have the embedding of the text, for every number of keywords in a batch."""
    words = [clip.tokenizer.encode("two dogs run on the grass"), clip.tokenizer.encode("a boat")]
    rows = torch.zeros(2, clip.context_length, dtype=torch.long)
    keywords = torch.randn(2, max(map(len, words)), clip.subword_dim)
    for at, word in enumerate(words):
        rows[at, : len(word) + 2] = torch.tensor([SOT, *word, EOT])
        keywords[at, : len(word)] = clip.subword_embeddings[word]
    keywords.requires_grad_()
    found = clip.encode_keywords(keywords, torch.tensor([len(word) for word in words]))
    with torch.no_grad():
        assert_same_direction(found, model.encode_text(rows))
    (gradient,) = torch.autograd.grad(found.square().sum(), keywords)
    assert (gradient[0].abs().amax(dim=-1) > 0).all() and (gradient[1, len(words[1]) :] == 0).all()


REFUSED: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("pool_none", {"text_cfg": {"pool_type": "none"}}, {}, "text_cfg.pool_type none gives one vector per subword"),
    ("embed_cls", {"text_cfg": {"embed_cls": True}}, {}, "text_cfg.embed_cls needs custom_text"),
    ("tokens", {"vision_cfg": {"output_tokens": True}}, {}, "vision_cfg.output_tokens must be true for CoCa"),
    ("widths", {"text_cfg": {"proj_type": "none"}}, {}, "image embeddings have 20 dimensions, text embeddings 16"),
    ("subwords", {"text_cfg": {"vocab_size": 100}}, {}, "its text tower has 100 subwords, but its tokenizer 49408"),
    ("reduction", {"text_cfg": {"tokenizer_kwargs": {"reduction_mask": "simple"}}}, {}, "reduction_mask is for"),
    ("mode", {}, {"mode": "L"}, "preprocess_cfg.mode is 'L'. Supported are RGB"),
    ("resize_mode", {}, {"resize_mode": "tile"}, "preprocess_cfg.resize_mode is 'tile'. Supported are shortest"),
    ("interpolation", {}, {"interpolation": "nearest"}, "preprocess_cfg.interpolation is 'nearest'"),
    ("mean", {}, {"mean": [0.5, 0.5]}, "preprocess_cfg.mean has 2 values"),
    ("fill_color", {}, {"resize_mode": "longest", "fill_color": [1, 2, 3]}, r"fill_color is \[1, 2, 3\]"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "settings", "preprocess", "message"), REFUSED, ids=[row[0] for row in REFUSED])
def test_load_clip_refuses_other_open_clip_settings(
    tmp_path: Path, name: str, settings: dict[str, Any], preprocess: dict[str, Any], message: str
) -> None:
    folder = save_open_clip(tmp_path / "clip", settings, preprocess)
    with pytest.raises(UserError, match=message) as caught:
        load_clip(ClipConfig(str(folder)))
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("size", [(3000, 1), (1, 3000)])
def test_preprocess_crops_a_long_strip_while_resizing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    from speechclip.model.encoders import preprocess

    clip = load_clip(ClipConfig(str(save_open_clip(tmp_path / "clip", {}, {}))))
    whole = clip.preprocess(picture(size))
    made: list[tuple[int, int]] = []
    resize = Image.Image.resize
    monkeypatch.setattr(preprocess, "MAX_PIXELS", 3000 * 31)

    def record(self: Image.Image, target: tuple[int, int], **options: Any) -> Image.Image:
        made.append(target)
        return resize(self, target, **options)

    monkeypatch.setattr(Image.Image, "resize", record)
    found = clip.preprocess(picture(size))
    assert made == [(32, 32)]
    assert ((found - whole) * torch.tensor(clip.preprocess.std)[:, None, None]).abs().max() < 8.5 / 255


# -- transformers ------------------------------------------------------------------------------------------------------


def save_transformers(folder: Path, text: Mapping[str, Any], vision: Mapping[str, Any], processor: Any) -> Path:
    import transformers

    shape = {"hidden_size": 32, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 2}
    config = transformers.CLIPConfig(
        text_config={**shape, "vocab_size": SUBWORDS, "eos_token_id": EOT, "bos_token_id": SOT,
                     "max_position_embeddings": 12, **text},
        vision_config={**shape, "image_size": 32, "patch_size": 16, **vision}, projection_dim=20,
    )  # fmt: skip
    shake(transformers.CLIPModel(config)).save_pretrained(folder)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


CROP = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
PROCESSORS: dict[str, dict[str, Any]] = {
    "default": CROP,
    "numbers": {"size": 32, "crop_size": 32},
    "old_name": {**CROP, "feature_extractor_type": "CLIPFeatureExtractor"},
    "fast_name": {**CROP, "image_processor_type": "CLIPImageProcessorFast"},
    "mean_std": {**CROP, "image_mean": [0.1, 0.5, 0.9], "image_std": [0.9, 0.5, 0.1]},
    "one_mean_std": {**CROP, "image_mean": 0.4, "image_std": 0.7},
    "larger_size": {**CROP, "size": {"shortest_edge": 41}},
    "smaller_size": {**CROP, "size": {"shortest_edge": 21}},
    "squash": {**CROP, "size": {"height": 32, "width": 32}},
    "squash_without_crop": {"size": {"height": 32, "width": 32}, "do_center_crop": False},
    "bilinear": {**CROP, "resample": 2},
    "nearest": {**CROP, "resample": 0},
    "lanczos": {**CROP, "resample": 1},
    "no_resize": {**CROP, "do_resize": False},
    "no_rescale": {**CROP, "do_rescale": False, "image_mean": [90.0] * 3, "image_std": [70.0] * 3},
    "other_rescale": {**CROP, "rescale_factor": 0.01},
    "no_normalize": {**CROP, "do_normalize": False},
    "no_convert": {**CROP, "do_convert_rgb": False},
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_images_equal_transformers(tmp_path: Path, name: str) -> None:
    folder = save_transformers(tmp_path / "clip", {}, {}, PROCESSORS[name])
    import transformers

    model = transformers.CLIPModel.from_pretrained(folder).eval()
    processor = transformers.CLIPImageProcessor.from_pretrained(folder)
    clip = load_clip(ClipConfig(str(folder)))
    pictures = [picture(size) for size in SIZES]
    pixels = torch.cat([processor(images=item, return_tensors="pt").pixel_values for item in pictures])
    torch.testing.assert_close(torch.stack([clip.preprocess(item) for item in pictures]), pixels, rtol=0, atol=2e-5)
    with torch.no_grad():
        assert_same_direction(clip.encode_images(pictures), model.get_image_features(pixels))


CONFIGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default": ({}, {}),
    "gelu": ({"hidden_act": "gelu"}, {"hidden_act": "gelu"}),
    "gelu_new": ({"hidden_act": "gelu_new"}, {"hidden_act": "gelu_new"}),
    "gelu_and_tanh": ({"hidden_act": "gelu"}, {"hidden_act": "gelu_pytorch_tanh"}),
    "epsilon": ({"layer_norm_eps": 1e-2}, {"layer_norm_eps": 1e-3}),
    "mlp": ({"intermediate_size": 48}, {"intermediate_size": 64}),
    "legacy_end": ({"eos_token_id": 2}, {}),
    "other_end": ({"eos_token_id": 320}, {}),
    "heads": ({"num_attention_heads": 2}, {"num_attention_heads": 8}),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_texts_and_images_equal_transformers(tmp_path: Path, name: str) -> None:
    folder = save_transformers(tmp_path / "clip", *CONFIGS[name], CROP)
    import open_clip
    import transformers

    model = transformers.CLIPModel.from_pretrained(folder).eval()
    clip = load_clip(ClipConfig(str(folder)))
    ids = open_clip.tokenize(TEXTS, context_length=12)
    pictures = [picture(size) for size in SIZES]
    with torch.no_grad():
        assert_same_direction(clip.encode_texts(TEXTS), model.get_text_features(ids))
        pixels = torch.stack([clip.preprocess(item) for item in pictures])
        assert_same_direction(clip.encode_images(pictures), model.get_image_features(pixels))
    if name == "other_end":
        with pytest.raises(UserError, match="eos_id is 320"):
            clip.check_keywords()


REFUSED_FOLDERS: list[tuple[str, dict[str, Any], dict[str, Any], Any, str]] = [
    ("relu", {"hidden_act": "relu"}, {}, CROP, "config.json: hidden_act is 'relu'. Supported are quick_gelu"),
    ("two_acts", {"hidden_act": "gelu"}, {}, CROP, "config.json: hidden_act is quick_gelu in one tower only"),
    ("siglip", {}, {}, {**CROP, "image_processor_type": "SiglipImageProcessor"}, "image_processor_type is Siglip"),
    ("pad", {}, {}, {**CROP, "do_pad": True}, "preprocessor_config.json: do_pad is not supported"),
    ("crop", {}, {}, {**CROP, "crop_size": 48}, "makes images of 48 x 48 pixels, but the vision tower needs 32 x 32"),
    ("no_crop", {}, {}, {**CROP, "do_center_crop": False}, "it makes images of different sizes"),
    (
        "edges",
        {},
        {},
        {**CROP, "size": {"longest_edge": 32}},
        "size has the keys longest_edge. shortest_edge",
    ),
    ("means", {}, {}, {**CROP, "image_mean": [0.5]}, "image_mean has 1 values"),
    ("list", {}, {}, [], "preprocessor_config.json: a JSON object is needed"),
]


@pytest.mark.parametrize(
    ("name", "text", "vision", "processor", "message"), REFUSED_FOLDERS, ids=[row[0] for row in REFUSED_FOLDERS]
)
def test_load_clip_refuses_other_transformers_settings(
    tmp_path: Path, name: str, text: dict[str, Any], vision: dict[str, Any], processor: Any, message: str
) -> None:
    folder = save_transformers(tmp_path / "clip", text, vision, processor)
    with pytest.raises(UserError, match=message) as caught:
        load_clip(ClipConfig(str(folder)))
    assert str(folder) in str(caught.value)


def test_load_clip_refuses_another_vocabulary(tmp_path: Path) -> None:
    import open_clip

    folder = save_transformers(tmp_path / "clip", {}, {}, CROP)
    vocabulary = dict(open_clip.tokenizer.SimpleTokenizer().encoder)
    for ours, theirs in (("<start_of_text>", "<|startoftext|>"), ("<end_of_text>", "<|endoftext|>")):
        vocabulary[theirs] = vocabulary.pop(ours)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    load_clip(ClipConfig(str(folder)))
    vocabulary["dog</w>"], vocabulary["cat</w>"] = vocabulary["cat</w>"], vocabulary["dog</w>"]
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    with pytest.raises(UserError, match="tokenizer.json: not the vocabulary of OpenAI's CLIP"):
        load_clip(ClipConfig(str(folder)))


def test_converted_folder_keeps_the_preprocessing(tmp_path: Path) -> None:
    processor = {**CROP, "image_mean": [0.1, 0.5, 0.9], "image_std": [0.9, 0.5, 0.1], "resample": 2}
    folder = save_transformers(tmp_path / "clip", {}, {"layer_norm_eps": 1e-2}, processor)
    convert(["--kind", "clip", "--file", str(folder), "--out", str(tmp_path / "open")])
    pictures = [picture(size) for size in ((200, 60), (32, 34), (640, 480))]  # the margins are even
    ours, theirs = (load_clip(ClipConfig(str(at))).encode_images(pictures) for at in (tmp_path / "open", folder))
    assert_same_direction(ours, theirs)


@pytest.mark.parametrize("name", ["squash", "larger_size", "lanczos", "no_rescale"])
def test_convert_refuses_other_preprocessing(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_transformers(tmp_path / "clip", {}, {}, PROCESSORS[name])
    with pytest.raises(SystemExit):
        convert(["--kind", "clip", "--file", str(folder), "--out", str(tmp_path / "open")])
    assert "preprocessor_config.json: open_clip has no such preprocessing" in capsys.readouterr().err
    assert not (tmp_path / "open").exists()
