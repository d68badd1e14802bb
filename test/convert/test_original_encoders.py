"""Tests of the original files of HuBERT and CLIP: equal outputs after conversion, refusals."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures import captions, wave
from PIL import Image
from published_files import LAYERS, WIDTH, clip_tensors, hubert_tensors, save_script

from speechclip.bin.convert_encoder import main as convert
from speechclip.common.compat import prepare
from speechclip.common.errors import UserError
from speechclip.config import ClipConfig, SpeechEncoderConfig
from speechclip.model.encoders.clip import load_clip
from speechclip.model.encoders.factory import load_speech_encoder

WAVES = [torch.from_numpy(wave(n, n)) for n in (9000, 12345, 5000)]


def encoder(path: Path, **settings: Any) -> Any:
    return load_speech_encoder(SpeechEncoderConfig(path=str(path), **settings))


def fairseq_file(path: Path, *, large: bool) -> Any:
    """Let fairseq write a checkpoint with its dictionary objects. Return the model in it."""
    pytest.importorskip("fairseq", reason="extra 'fairseq' is not installed")
    prepare()
    from fairseq.checkpoint_utils import torch_persistent_save
    from fairseq.data import Dictionary
    from fairseq.models.hubert.hubert import HubertConfig, HubertModel
    from fairseq.tasks.hubert_pretraining import HubertPretrainingConfig

    shape = {
        "encoder_layers": LAYERS, "encoder_embed_dim": WIDTH, "encoder_ffn_embed_dim": 96, "encoder_attention_heads": 4,
        "conv_feature_layers": "[(16,10,5)] + [(16,3,2)]*4 + [(16,2,2)]*2", "conv_pos": 16, "conv_pos_groups": 4,
        "extractor_mode": "layer_norm" if large else "default", "layer_norm_first": large, "conv_bias": large,
        "final_dim": 16, "encoder_layerdrop": 0.0, "label_rate": 50,
    }  # fmt: skip
    torch.manual_seed(3)
    model = HubertModel(HubertConfig(**shape), HubertPretrainingConfig(), [list(range(10))])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    cfg = {"model": {"_name": "hubert", **shape}, "task": {"_name": "hubert_pretraining", "normalize": large}}
    content = {"args": None, "cfg": cfg, "model": model.state_dict(), "task_state": {"dictionaries": [Dictionary()]}}
    torch_persistent_save(content, str(path))
    return model.eval()


@pytest.mark.parametrize("large", [False, True], ids=["base", "large"])
def test_fairseq_file_gives_fairseq_states(tmp_path: Path, large: bool) -> None:
    path = tmp_path / "hubert.pt"
    reference = fairseq_file(path, large=large)
    seen: list[torch.Tensor] = []
    reference.encoder.layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].transpose(0, 1)))
    for layer in reference.encoder.layers:
        layer.register_forward_hook(lambda module, args, output: seen.append(output[0].transpose(0, 1)))
    waves = [torch.nn.functional.layer_norm(w, w.shape) for w in WAVES] if large else WAVES
    padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    mask = torch.arange(padded.shape[1])[None] >= torch.tensor([len(w) for w in waves])[:, None]
    loaded = encoder(path)
    assert loaded.normalize is large and loaded.model.config.num_attention_heads == 4
    with torch.no_grad():
        reference.extract_features(padded, padding_mask=mask, mask=False)
        states, frames = loaded(WAVES)
    for layer, expected in enumerate(seen):
        for row, count in enumerate(frames.tolist()):
            assert (states[row, layer, :count] - expected[row, :count]).abs().max() < 2e-5
    convert(["--kind", "hubert", "--file", str(path), "--out", str(tmp_path / "folder")])
    folder = encoder(tmp_path / "folder")
    assert torch.equal(folder(WAVES).states, states)
    assert folder.description["weights"] == loaded.description["weights"] and folder.normalize is large


@pytest.mark.parametrize("large", [False, True], ids=["base", "large"])
def test_hubert_shape_follows_tensors_without_settings(tmp_path: Path, large: bool) -> None:
    torch.save({"model": hubert_tensors(large=large), "cfg": None}, tmp_path / "h.pt")
    loaded = encoder(tmp_path / "h.pt")
    config = loaded.model.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (WIDTH, LAYERS, 1)
    assert (config.do_stable_layer_norm, config.conv_bias, loaded.normalize) == (large, large, large)
    assert torch.isfinite(loaded(WAVES).states).all()
    assert encoder(tmp_path / "h.pt", normalize=not large).normalize is not large


def omegaconf_settings(values: dict[str, Any]) -> Any:
    return pytest.importorskip("omegaconf", reason="extra 'fairseq' is not installed").OmegaConf.create(values)


@pytest.mark.parametrize("normalize", [False, True], ids=["raw", "normalised"])
@pytest.mark.parametrize(
    "settings",
    [
        lambda model, task: {"cfg": {"model": model, "task": task}},
        lambda model, task: {"cfg": omegaconf_settings({"model": model, "task": task})},
        lambda model, task: {"cfg": {"model": omegaconf_settings(model), "task": omegaconf_settings(task)}},
        lambda model, task: {"args": argparse.Namespace(**model, **task), "cfg": None},
    ],
    ids=["dictionary", "omegaconf", "omegaconf sections", "namespace"],
)
def test_hubert_reader_follows_settings(tmp_path: Path, settings: Any, normalize: bool) -> None:
    content = settings({"encoder_attention_heads": 2}, {"normalize": normalize})
    torch.save({"model": hubert_tensors(), **content}, tmp_path / "h.pt")
    loaded = encoder(tmp_path / "h.pt")
    assert (loaded.model.config.num_attention_heads, loaded.normalize) == (2, normalize)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"model": {"a": torch.ones(1)}},
            "the tensor feature_extractor.conv_layers.0.0.weight is missing: not a fairseq HuBERT",
        ),
        ({"model": {"w2v_encoder.x": torch.ones(1)}}, "a fine-tuned checkpoint"),
        ({"weights": {}}, "not a fairseq checkpoint"),
        ({"model": {**hubert_tensors(), "extra": torch.ones(1)}}, "unknown tensor extra in its HuBERT"),
        ({"model": {**hubert_tensors(), "layer_norm.bias": torch.ones(3)}}, r"layer_norm.bias is \[3\]"),
        (
            {"model": hubert_tensors(), "cfg": {"model": {"encoder_attention_heads": 5}}},
            "5 attention heads do not divide the width 64",
        ),
    ],
)
def test_hubert_reader_refuses_other_files(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    torch.save(content, tmp_path / "h.pt")
    with pytest.raises(UserError, match=message) as caught:
        encoder(tmp_path / "h.pt")
    assert str(tmp_path / "h.pt") in str(caught.value)


def picture(size: tuple[int, int] = (50, 40)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 255, (*size[::-1], 3), dtype=np.uint8))


def test_openai_file_equals_open_clip(tmp_path: Path) -> None:
    prepare()
    from open_clip import tokenize
    from open_clip.model import build_model_from_openai_state_dict

    path = save_script(tmp_path / "ViT-tiny.pt", clip_tensors())
    reference = build_model_from_openai_state_dict(torch.jit.load(str(path)).state_dict(), cast_dtype=torch.float32)
    reference = reference.float().eval()
    clip = load_clip(ClipConfig(str(path)))
    texts = captions(3)
    with torch.no_grad():
        expected = torch.nn.functional.normalize(reference.encode_text(tokenize(texts)), dim=-1)
        pixels = clip.preprocess(picture())[None]
        pictured = torch.nn.functional.normalize(reference.encode_image(pixels), dim=-1)
    torch.testing.assert_close(clip.encode_texts(texts), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(clip.encode_images([picture()]), pictured, rtol=0, atol=1e-5)
    assert (clip.preprocess.size, clip.tokenizer.eot, clip.context_length) == ((32, 32), 49407, 77)
    convert(["--kind", "clip", "--file", str(path), "--out", str(tmp_path / "folder")])
    folder = load_clip(ClipConfig(str(tmp_path / "folder")))
    assert torch.equal(folder.encode_texts(texts), clip.encode_texts(texts))
    assert torch.equal(folder.encode_images([picture()]), clip.encode_images([picture()]))
    assert folder.description["weights"] == clip.description["weights"]


def test_transformers_clip_folder_equals_transformers(tmp_path: Path) -> None:
    prepare()
    import transformers

    shape = {"hidden_size": 32, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 2}
    text = {**shape, "vocab_size": 49408, "eos_token_id": 49407, "bos_token_id": 49406}
    config = transformers.CLIPConfig(
        text_config=text, vision_config={**shape, "image_size": 32, "patch_size": 16}, projection_dim=20
    )  # fmt: skip
    torch.manual_seed(1)
    reference = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    reference.save_pretrained(tmp_path / "clip")
    clip = load_clip(ClipConfig(str(tmp_path / "clip")))
    words = torch.tensor([[49406, 320, 1929, 49407]])  # "a dog"
    with torch.no_grad():
        expected = torch.nn.functional.normalize(reference.get_text_features(words), dim=-1)
        pictured = reference.get_image_features(clip.preprocess(picture())[None])
    torch.testing.assert_close(clip.encode_texts(["a dog"]), expected, rtol=0, atol=1e-5)
    pictured = torch.nn.functional.normalize(pictured, dim=-1)
    torch.testing.assert_close(clip.encode_images([picture()]), pictured, rtol=0, atol=1e-5)


def test_clip_reader_refuses_other_files(tmp_path: Path) -> None:
    tensors = clip_tensors()
    for change, message in (
        ({"extra": torch.ones(1)}, "the tensor extra of its CLIP is unknown"),
        ({"ln_final.bias": torch.ones(3)}, r"ln_final.bias is \[3\]"),
        ({"visual.conv1.weight": None}, "the tensor visual.conv1.weight is missing: not a CLIP with a"),
        ({"visual.ln_pre.bias": None}, "the tensor visual.ln_pre.bias of its CLIP is missing"),
    ):
        changed = {name: value for name, value in {**tensors, **change}.items() if value is not None}
        torch.save(changed, tmp_path / "c.pt")
        with pytest.raises(UserError, match=message):
            load_clip(ClipConfig(str(tmp_path / "c.pt")))
    with pytest.raises(SystemExit):
        convert(["--kind", "clip", "--file", str(tmp_path / "none.pt"), "--out", str(tmp_path / "o")])
