"""SigLIP and multilingual CLIP with random weights in their true formats: equal to open_clip and transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from speechclip.common.compat import prepare
from speechclip.common.errors import UserError
from speechclip.config import ClipConfig
from speechclip.model.encoders.clip import OpenClip, load_clip
from speechclip.model.encoders.tokenizers import join_subwords

prepare()

TEXTS = ["two dogs run on the grass", "Ein Hund läuft!", "una casa junto al mar", "dog " * 90, ""]
CORPUS = """two dogs run on the green grass near a boat
a red house stands by the sea under a cloud
ein hund läuft über das gras und ein kind spielt
das rote haus steht am meer unter einer wolke
una casa roja junto al mar y un perro en la hierba
dos perros corren por el campo cerca de un barco"""
SIZE = 160  # of timm's test_vit
VISION = {"timm_model_name": "test_vit", "timm_model_pretrained": False, "timm_pool": "map", "timm_proj": "none",
          "image_size": SIZE}  # fmt: skip
WIDTH = 64
SQUASH = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that trains a sentencepiece model with the given special ids."""
    folder = tmp_path_factory.mktemp("pieces")
    (folder / "corpus.txt").write_text(CORPUS + "\n")

    def train(name: str, **ids: Any) -> Path:
        import sentencepiece

        sentencepiece.SentencePieceTrainer.train(
            input=str(folder / "corpus.txt"), model_prefix=str(folder / name), vocab_size=120, model_type="unigram",
            hard_vocab_limit=False, minloglevel=2, **ids,
        )  # fmt: skip
        return folder / f"{name}.model"

    return train


def t5(pieces: Callable[..., Path], folder: Path) -> None:
    """SigLIP's tokenizer: T5 without extra ids, padded with its end."""
    import transformers

    spm = pieces("t5", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    transformers.T5TokenizerFast(str(spm), extra_ids=0, pad_token="</s>", legacy=False).save_pretrained(folder)


def gemma(pieces: Callable[..., Path], folder: Path) -> None:
    """SigLIP 2's tokenizer."""
    import transformers

    spm = pieces("gemma", pad_id=0, eos_id=1, bos_id=2, unk_id=3)
    transformers.GemmaTokenizerFast(
        str(spm), padding_side="right", add_bos_token=False, add_eos_token=True
    ).save_pretrained(folder)


def mt5(pieces: Callable[..., Path], folder: Path) -> None:
    import transformers

    spm = pieces("t5", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    transformers.T5TokenizerFast(str(spm), extra_ids=0, legacy=False).save_pretrained(folder)


def xlmr(pieces: Callable[..., Path], folder: Path) -> None:
    import transformers

    transformers.XLMRobertaTokenizerFast(str(pieces("xlmr"))).save_pretrained(folder)


def nllb(pieces: Callable[..., Path], folder: Path) -> None:
    import transformers

    transformers.NllbTokenizerFast(str(pieces("xlmr"))).save_pretrained(folder)


def wordpiece(pieces: Callable[..., Path], folder: Path) -> None:
    import transformers

    words = sorted(
        {*CORPUS.split(), *"abcdefghijklmnopqrstuvwxyzä", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyzä")}
    )
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]) + "\n")
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)


SHAPE = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 48}
TEXT_MODELS: dict[str, dict[str, Any]] = {
    "xlm-roberta": {**SHAPE, "max_position_embeddings": 40},
    "bert": {**SHAPE, "max_position_embeddings": 40},
    "mt5": {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2},
    "m2m_100": {"d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2,
                "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "scale_embedding": True},
}  # fmt: skip
OWN = {"context_length": 32, "width": 32, "heads": 2, "layers": 2}
SIGLIP = {**OWN, "no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6},
          "tokenizer_kwargs": {"clean": "canonicalize"}}  # fmt: skip

#: By name: the tokenizer, model_cfg's keys of the text tower, and a text model of transformers.
TOWERS: dict[str, tuple[Callable[..., None], dict[str, Any], str]] = {
    "siglip": (t5, SIGLIP, ""),
    "siglip2": (gemma, {**SIGLIP, "act_kwargs": {"approximate": "tanh"}}, ""),
    "clipa": (wordpiece, {**OWN, "no_causal_mask": True, "pool_type": "last",
                          "tokenizer_kwargs": {"strip_sep_token": True}}, ""),
    "metaclip2": (xlmr, {**OWN, "pool_type": "eos", "eos_id": 2}, ""),
    "metaclip2_mt5": (mt5, {**OWN, "pool_type": "eos", "eos_id": 1, "tokenizer_kwargs": {"clean": "canonicalize"}}, ""),
    "xlmr_mean": (xlmr, {"context_length": 32, "hf_pooler_type": "mean_pooler"}, "xlm-roberta"),
    "xlmr_cls": (xlmr, {"context_length": 32, "hf_pooler_type": "cls_pooler", "hf_proj_type": "linear"}, "xlm-roberta"),
    "bert_cls_last": (wordpiece, {"context_length": 32, "hf_pooler_type": "cls_last_hidden_state_pooler"}, "bert"),
    "mt5_mean": (mt5, {"context_length": 32, "hf_pooler_type": "mean_pooler"}, "mt5"),
    "nllb_cls": (nllb, {"context_length": 32, "hf_pooler_type": "cls_pooler", "hf_proj_type": "linear"}, "m2m_100"),
}  # fmt: skip


def save_tower(folder: Path, pieces: Callable[..., Path], name: str, **change: Any) -> Path:
    """Write an open_clip folder with random weights."""
    import open_clip
    import transformers
    from safetensors.torch import save_file

    make_tokenizer, text, kind = TOWERS[name]
    make_tokenizer(pieces, folder)
    size = len(transformers.AutoTokenizer.from_pretrained(folder))
    text = {**text, "hf_tokenizer_name": "published/name", **change}
    if kind:
        settings = {"vocab_size": size, "pad_token_id": transformers.AutoTokenizer.from_pretrained(folder).pad_token_id}
        transformers.AutoConfig.for_model(kind, **TEXT_MODELS[kind], **settings).save_pretrained(
            folder / "published/xy"
        )
        text["hf_model_name"] = "published/xy"
    else:
        text["vocab_size"] = size
    shape = {"embed_dim": WIDTH, "custom_text": True, "init_logit_bias": -10, "vision_cfg": VISION, "text_cfg": text}
    write_config(folder, shape)
    model = shake(reference_model(folder))
    save_file({key: value.contiguous().clone() for key, value in model.state_dict().items()},
              folder / "open_clip_model.safetensors")  # fmt: skip
    assert isinstance(model, open_clip.CustomTextCLIP)
    return folder


def write_config(folder: Path, shape: dict[str, Any]) -> None:
    content = {"model_cfg": shape, "preprocess_cfg": SQUASH}
    (folder / "open_clip_config.json").write_text(json.dumps(content))


def reference_model(folder: Path) -> Any:
    """Load open_clip's own model. The text model's configuration is local, because open_clip would look on the hub."""
    import open_clip

    text = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
    if "hf_model_name" in text:
        text["hf_model_name"] = str(folder / text["hf_model_name"])
        text["hf_model_pretrained"] = False
    return open_clip.create_model(f"local-dir:{folder}", text_cfg=text, pretrained_text=False).eval()


def shake(model: Any) -> Any:
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def pictures() -> list[Image.Image]:
    made = [np.random.default_rng(n).integers(0, 255, (20 + 90 * n, 200, 3), dtype=np.uint8) for n in range(3)]
    return [Image.fromarray(pixels) for pixels in made]


def assert_same_direction(ours: Tensor, theirs: Tensor) -> None:
    cosines = torch.nn.functional.cosine_similarity(ours.double(), theirs.double(), dim=-1)
    assert cosines.min() > 1 - 1e-6, cosines


def assert_keywords_are_texts(clip: OpenClip, encode_text: Callable[[Tensor], Tensor], rows: Tensor) -> None:
    """One-hot keywords over the table have the library's embedding of the same ids, also in a batch of two lengths."""
    tokenizer = clip.tokenizer
    words = [tokenizer.encode(text) for text in TEXTS[:3]]
    assert len({len(row) for row in words}) > 1 and max(map(len, words)) <= clip.room
    table = clip.subword_embeddings
    most = max(map(len, words))
    one_hot = torch.zeros(len(words), most, len(table))
    for at, row in enumerate(words):
        one_hot[at, range(len(row)), row] = 1
    keywords = (one_hot @ table).requires_grad_()
    found = clip.encode_keywords(keywords, torch.tensor([len(row) for row in words]))
    with torch.no_grad():
        assert_same_direction(found, encode_text(rows[: len(words)]))
    assert (found.detach().norm(dim=-1) - 1).abs().max() > 1e-3  # not normalised
    (gradient,) = torch.autograd.grad(found.square().sum(), keywords)
    for at, row in enumerate(words):
        assert (gradient[at, : len(row)].abs().amax(dim=-1) > 0).all()
        assert (gradient[at, len(row) :] == 0).all()


@pytest.mark.parametrize("name", TOWERS)
def test_tower_equals_open_clip(tmp_path: Path, pieces: Callable[..., Path], name: str) -> None:
    import open_clip

    folder = save_tower(tmp_path / "clip", pieces, name)
    clip, model = load_clip(ClipConfig(str(folder))), reference_model(folder)
    transform = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(**{**SQUASH, "size": SIZE}), is_train=False
    )
    rows = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
    with torch.no_grad():
        assert_same_direction(clip.encode_texts(TEXTS), model.encode_text(rows))
        pixels = torch.stack([transform(item) for item in pictures()])
        torch.testing.assert_close(torch.stack([clip.preprocess(p) for p in pictures()]), pixels, rtol=0, atol=1e-5)
        assert_same_direction(clip.encode_images(pictures()), model.encode_image(pixels))
    clip.check_keywords()
    assert_keywords_are_texts(clip, model.encode_text, rows)
    tokenizer = clip.tokenizer
    for text, row in zip(TEXTS, rows.tolist(), strict=True):
        assert not {tokenizer.pad, *tokenizer.suffix} & set(tokenizer.encode(text)) - {0}
        content = tokenizer.encode(text)[: clip.room]
        kept = [*tokenizer.prefix, *content, *tokenizer.suffix]
        assert row == kept + [tokenizer.pad] * (clip.context_length - len(kept))
    spelt = [tokenizer.subword(token) for token in tokenizer.encode("two dogs run")]
    assert [word for word, _ in join_subwords(spelt)] == ["two", "dogs", "run"]


@pytest.mark.slow
def test_siglip_of_published_size_equals_open_clip(tmp_path: Path, pieces: Callable[..., Path]) -> None:
    import open_clip
    from safetensors.torch import save_file

    folder = tmp_path / "clip"
    t5(pieces, folder)
    write_config(folder, dict(open_clip.get_model_config("ViT-B-16-SigLIP")))
    model = reference_model(folder)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    clip = load_clip(ClipConfig(str(folder)))
    assert (clip.context_length, clip.room, clip.subword_dim, clip.joint_dim) == (64, 63, 768, 768)
    assert sum(parameter.numel() for parameter in clip.parameters()) == sum(p.numel() for p in model.parameters())
    rows = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
    pixels = torch.stack([clip.preprocess(item) for item in pictures()])
    with torch.no_grad():
        assert_same_direction(clip.encode_texts(TEXTS), model.encode_text(rows))
        assert_same_direction(clip.encode_pixels(pixels), model.encode_image(pixels))
    assert_keywords_are_texts(clip, model.encode_text, rows)


@pytest.mark.parametrize("make", [t5, gemma], ids=["siglip", "siglip2"])
def test_siglip_equals_transformers(tmp_path: Path, pieces: Callable[..., Path], make: Callable[..., None]) -> None:
    import transformers

    folder = tmp_path / "siglip"
    make(pieces, folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    config = transformers.SiglipConfig(
        text_config={**SHAPE, "vocab_size": len(tokenizer), "max_position_embeddings": 32},
        vision_config={**SHAPE, "image_size": 32, "patch_size": 16},
    )
    model = shake(transformers.SiglipModel(config).eval())
    model.save_pretrained(folder)
    processor = transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
    processor.save_pretrained(folder)
    clip = load_clip(ClipConfig(str(folder)))
    rows = tokenizer(TEXTS, padding="max_length", max_length=32, truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        assert_same_direction(clip.encode_texts(TEXTS), model.get_text_features(rows))
        pixels = processor(images=pictures(), return_tensors="pt").pixel_values
        torch.testing.assert_close(torch.stack([clip.preprocess(p) for p in pictures()]), pixels, rtol=0, atol=2e-5)
        assert_same_direction(clip.encode_images(pictures()), model.get_image_features(pixels))
    assert_keywords_are_texts(clip, model.get_text_features, rows)
    assert (clip.context_length, clip.room, clip.joint_dim) == (32, 31, 32)


@pytest.mark.parametrize("head", ["cascaded", "cascaded_plus"])
@pytest.mark.parametrize("name", ["siglip", "xlmr_mean"])
def test_keyword_head_equals_the_text_of_its_subwords(
    tmp_path: Path, pieces: Callable[..., Path], name: str, head: str
) -> None:
    """The selected subwords, as a text, have open_clip's embedding; no special token is selected."""
    from fixtures import settings

    from speechclip.features.clip import count_vocabulary
    from speechclip.model.network import Dimensions, build_network

    folder = save_tower(tmp_path / "clip", pieces, name)
    clip, model = load_clip(ClipConfig(str(folder))), reference_model(folder)
    config = settings(model__head__name=head, model__head__keywords=5, model__head__cif__frames_per_keyword=4).model
    torch.manual_seed(0)
    network = build_network(
        config, Dimensions(16, 3, WIDTH), clip=clip, vocabulary=count_vocabulary(TEXTS, clip)
    ).eval()  # fmt: skip
    output = network.apply_head(torch.randn(4, 3, 40, 16), torch.tensor([40, 37, 20, 31]))
    keywords, tokenizer = output.keywords, clip.tokenizer
    assert keywords is not None and network.vocabulary is not None
    ids = torch.tensor(network.vocabulary.ids)[keywords.rows]
    texts = [row[kept].tolist() for row, kept in zip(ids, keywords.mask, strict=True)]
    assert not {token for row in texts for token in row} & tokenizer.special
    assert all(1 <= len(row) <= clip.room for row in texts)
    rows = [[*tokenizer.prefix, *row, *tokenizer.suffix] for row in texts]
    padded = torch.tensor([row + [tokenizer.pad] * (clip.context_length - len(row)) for row in rows])
    with torch.no_grad():
        assert_same_direction(output.branches["cascaded"], model.encode_text(padded))
    output.branches["cascaded"].square().sum().backward()
    assert all(p.grad is None for p in clip.parameters())
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in network.head.parameters())


def test_reduced_vocabulary_masks_special_tokens_by_id(tmp_path: Path, pieces: Callable[..., Path]) -> None:
    """Start, end, padding, unknown pieces and language codes cannot be keywords, wherever their rows are."""
    from speechclip.features.clip import count_vocabulary
    from speechclip.model.network import reduced_subword_embeddings

    clip = load_clip(ClipConfig(str(save_tower(tmp_path / "clip", pieces, "nllb_cls"))))
    vocabulary = count_vocabulary([*TEXTS[:3], "\u72ac"], clip)
    embeddings, valid = reduced_subword_embeddings(clip, vocabulary)
    torch.testing.assert_close(embeddings, clip.model.text.transformer.get_input_embeddings()(
        torch.tensor(vocabulary.ids)))  # fmt: skip
    masked = {word for word, kept in zip(vocabulary.subwords, valid.tolist(), strict=True) if not kept}
    assert masked == {"eng_Latn", "</s>", "<pad>", "<unk>"}


REFUSED: list[tuple[str, str, dict[str, Any], str]] = [
    ("max_pooler", "xlmr_mean", {"hf_pooler_type": "max_pooler"}, "hf_pooler_type max_pooler does not run"),
    ("output_tokens", "xlmr_mean", {"output_tokens": True}, "text_cfg.output_tokens must be false"),
    ("clips", "clipa", {"tokenizer_mode": "clips"}, "text_cfg.tokenizer_mode 'clips' is not supported"),
    ("no_tokenizer", "xlmr_mean", {"hf_tokenizer_name": ""}, "needs text_cfg.hf_tokenizer_name"),
]


@pytest.mark.parametrize(("name", "tower", "change", "message"), REFUSED, ids=[row[0] for row in REFUSED])
def test_load_clip_refuses_other_text_towers(
    tmp_path: Path, pieces: Callable[..., Path], name: str, tower: str, change: dict[str, Any], message: str
) -> None:
    folder = save_tower(tmp_path / "clip", pieces, tower, **change)
    with pytest.raises(UserError, match=message) as caught:
        load_clip(ClipConfig(str(folder)))
    assert str(folder) in str(caught.value)


def _edit(path: Path, **change: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


def _byte_level(folder: Path) -> None:
    import transformers
    from tokenizers import ByteLevelBPETokenizer

    for old in folder.glob("*token*"):
        old.unlink()
    made = ByteLevelBPETokenizer()
    made.train_from_iterator(CORPUS.split("\n"), vocab_size=300, special_tokens=["<s>", "<pad>", "</s>", "<unk>"])
    made.save_model(str(folder))
    transformers.RobertaTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)


BROKEN: list[tuple[str, str, Callable[[Path], Any], str]] = [
    ("left", "siglip2", lambda f: _edit(f / "tokenizer_config.json", padding_side="left"), "padding_side 'left'. Only"),
    ("bytes", "siglip", _byte_level, "is neither CLIP's BPE, sentencepiece nor WordPiece"),
    ("no_file", "siglip", lambda f: [p.unlink() for p in f.glob("*token*")], "its tokenizer cannot be loaded"),
    (
        "padding",
        "xlmr_mean",
        lambda f: _edit(f / "published/xy/config.json", pad_token_id=3),
        "masks the id 3, but its",
    ),
    (
        "kind",
        "xlmr_mean",
        lambda f: _edit(f / "published/xy/config.json", model_type="siglip2"),
        "cannot be loaded|not",
    ),
]


@pytest.mark.parametrize(("name", "tower", "damage", "message"), BROKEN, ids=[row[0] for row in BROKEN])
def test_load_clip_names_a_bad_text_tower(
    tmp_path: Path, pieces: Callable[..., Path], name: str, tower: str, damage: Callable[[Path], Any], message: str
) -> None:
    folder = save_tower(tmp_path / "clip", pieces, tower)
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        load_clip(ClipConfig(str(folder)))
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("pooling", "message"),
    [({"pool_type": "eos", "eos_id": 5}, "text_cfg.eos_id is 5, but texts end with 2"),
     ({"pool_type": "argmax"}, "pool_type argmax. is at the largest id")],
    ids=["eos", "argmax"],
)  # fmt: skip
def test_check_keywords_refuses_other_ends(
    tmp_path: Path, pieces: Callable[..., Path], pooling: dict[str, Any], message: str
) -> None:
    clip = load_clip(ClipConfig(str(save_tower(tmp_path / "clip", pieces, "metaclip2", **pooling))))
    with pytest.raises(UserError, match=message):
        clip.check_keywords()


def test_siglip_folder_refuses_variable_images(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip2"}))
    with pytest.raises(UserError, match="images of variable size, is not supported"):
        load_clip(ClipConfig(str(tmp_path)))
    shutil.rmtree(tmp_path)
