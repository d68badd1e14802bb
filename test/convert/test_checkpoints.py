"""Tests of published SpeechCLIP checkpoints: layout of every tensor, outputs by plain tensor operations, refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import wave
from plain_operations import attend, linear, mixed, nearest_ids, norm, read_by_clip
from published_files import (
    KEYWORDS,
    LAYERS,
    TEXT,
    WIDTH,
    clip_tensors,
    reduced_ids,
    save_checkpoint_file,
    save_script,
    state_dict,
)
from torch.nn.functional import gelu, normalize

from speechclip.api import SpeechCLIP
from speechclip.bin.convert_checkpoint import main as convert
from speechclip.common.errors import UserError
from speechclip.convert.reader import read_published

WAVES = [torch.from_numpy(wave(9000, 1)), torch.from_numpy(wave(5000, 2))]
IDS = reduced_ids()
FULL = "original_text_emb_weight"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_script(tmp_path_factory.mktemp("clip") / "ViT-tiny.pt", clip_tensors())


def parallel(frames: torch.Tensor, state: dict[str, torch.Tensor]) -> torch.Tensor:
    """Compute the parallel head of the published file by plain operations: [J]."""
    layer = "parallel_branch.self_att.model.layers.0"
    tokens = torch.cat([state["parallel_branch.cls"][0], frames])
    nothing = torch.zeros(len(tokens), dtype=torch.bool)
    x = norm(tokens + attend(tokens, state, f"{layer}.self_attn", 8, nothing), state, f"{layer}.norm1")
    x = norm(x + linear(gelu(linear(x, state, f"{layer}.linear1")), state, f"{layer}.linear2"), state, f"{layer}.norm2")
    return linear(norm(x, state, "parallel_branch.self_att.model.norm")[0], state, "parallel_branch.linear_proj")


def keyword_vectors(frames: torch.Tensor, state: dict[str, torch.Tensor], layers: int) -> torch.Tensor:
    """Compute z_k of the cascaded head by plain operations: [K, D]. BatchNorm is on (B, D * K), dimension major."""
    branch = "cascaded_branch"
    tokens = torch.cat([state[f"{branch}.cls"][0], frames])
    nothing = torch.zeros(len(tokens), dtype=torch.bool)
    x = norm(
        tokens + attend(tokens, state, f"{branch}.self_att.multihead_attn_layer", 1, nothing),
        state,
        f"{branch}.self_att.attentionBlock_Norm",
    )
    x = x[:KEYWORDS]
    if layers == 2:
        x = linear(
            linear(x, state, f"{branch}.linear_proj.sequential.0").relu(), state, f"{branch}.linear_proj.sequential.3"
        )
    else:
        x = linear(x, state, f"{branch}.linear_proj")
    flat = x.T.reshape(-1)  # (d, k) -> d * K + k
    bn = {
        part: state[f"{branch}.bn_layer.bn_layer.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
    }
    flat = (flat - bn["running_mean"]) / (bn["running_var"] + 1e-5).sqrt() * bn["weight"] + bn["bias"]
    return flat.reshape(TEXT, KEYWORDS).T


@pytest.mark.parametrize("large", [False, True], ids=["base", "large"])
def test_parallel_checkpoint_equals_plain_operations(tmp_path: Path, clip: Path, large: bool) -> None:
    state = state_dict("parallel", IDS, large=large)
    path = save_checkpoint_file(tmp_path / "p.ckpt", state, legacy=large)
    model = SpeechCLIP.from_pretrained(path, clip=str(clip))
    assert not model.network.training and model.network.config.speech_encoder.state_norm is large
    assert model.network.config.loss.learn_temperature is large and model.network.speech_encoder.normalize is large
    assert model.network.loss.scale.item() == pytest.approx(math.exp(2.5) if large else 1 / 0.07, rel=1e-5)
    features = model.network.encode_waves(WAVES)
    assert features.states.shape[1] == LAYERS + 1
    expected = torch.stack(
        [
            parallel(mixed(row[:, :count], state, large), state)
            for row, count in zip(features.states, features.frames.tolist())
        ]
    )
    torch.testing.assert_close(model.encode_speech(WAVES), normalize(expected, dim=-1), rtol=0, atol=2e-5)
    without = SpeechCLIP.from_pretrained(path, clip="")
    assert torch.equal(without.encode_speech(WAVES), model.encode_speech(WAVES))


@pytest.mark.parametrize(("large", "layers"), [(False, 1), (True, 2)], ids=["base", "large"])
def test_cascaded_checkpoint_equals_plain_operations(tmp_path: Path, clip: Path, large: bool, layers: int) -> None:
    state, full = state_dict("cascaded", IDS, large=large, layers=layers), clip_tensors()
    model = SpeechCLIP.from_pretrained(save_checkpoint_file(tmp_path / "c.ckpt", state), clip=str(clip))
    assert model.network.config.head.projection_layers == layers and model.network.vocabulary.ids == tuple(IDS)
    features = model.network.encode_waves(WAVES)
    expected = []
    for row, count, keywords in zip(features.states, features.frames.tolist(), model.keywords(WAVES, top_k=1)):
        vectors = keyword_vectors(mixed(row[:, :count], state, large), state, layers)
        nearest = nearest_ids(vectors, IDS)
        assert [k.subwords[0] for k in keywords] == [model.network.clip.tokenizer.subword(token) for token in nearest]
        expected.append(read_by_clip(full["token_embedding.weight"][nearest], full))
    torch.testing.assert_close(model.encode_speech(WAVES), normalize(torch.stack(expected), dim=-1), rtol=0, atol=2e-5)
    wrong = state["cascaded_branch.bn_layer.bn_layer.weight"].view(TEXT, KEYWORDS).T.reshape(-1)
    assert (
        wrong - state["cascaded_branch.bn_layer.bn_layer.weight"]
    ).abs().max() > 0.1  # the test distinguishes the two orders


@pytest.mark.parametrize("head", ["parallel", "cascaded"])
def test_converted_checkpoint_equals_original_after_move(
    tmp_path: Path, clip: Path, head: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save_checkpoint_file(tmp_path / "x.ckpt", state_dict(head, IDS, large=True))
    model = SpeechCLIP.from_pretrained(path, clip=str(clip))
    convert(["--checkpoint", str(path), "--out", str(tmp_path / "out"), "--clip", str(clip)])
    assert "All tensors are accounted for" in capsys.readouterr().out
    (tmp_path / "out").rename(tmp_path / "moved")
    path.unlink()
    monkeypatch.chdir(tmp_path)
    origin = json.loads(Path("moved/provenance.json").read_text())
    assert origin["converted_from"] == "x.ckpt" and origin["seed"] is None and origin["published"]["step"] == 50000
    again = SpeechCLIP.from_pretrained("moved")
    assert torch.equal(again.encode_speech(WAVES), model.encode_speech(WAVES))
    assert again.network.config.speech_encoder.normalize is True
    if head == "cascaded":
        assert again.keywords(WAVES) == model.keywords(WAVES)


def test_reader_takes_attention_heads_from_settings(tmp_path: Path) -> None:
    state = state_dict("parallel", IDS)
    assert read_published(save_checkpoint_file(tmp_path / "a.ckpt", state)).config.head.attention_heads == 8
    assert read_published(save_checkpoint_file(tmp_path / "b.ckpt", state, nhead=4)).config.head.attention_heads == 4
    published = read_published(tmp_path / "b.ckpt")
    assert published.facts == {"epoch": 3, "step": 50000, "lightning": "1.5.10"}
    buffers = tuple(f"criterion.{name}" for name in ("eye_mat", "neg_eye_mat", "eye_mat_fl"))
    assert published.dropped == (f"clip.{FULL}", *buffers)


@pytest.mark.parametrize("head", ["parallel", "cascaded", "hybrid_plus"])
def test_reader_accepts_file_without_full_table(tmp_path: Path, clip: Path, head: str) -> None:
    """Compare files with and without CLIP's full subword table. The authors' code stores it, twice with keywords."""
    name = f"clip.{FULL}"
    files = [
        save_checkpoint_file(tmp_path / f"{original}.ckpt", state_dict(head, IDS, original=original))
        for original in (True, False)
    ]
    held, not_held = (read_published(path) for path in files)
    assert held.full is not None and torch.equal(held.full, clip_tensors()["token_embedding.weight"])
    assert not_held.full is None
    expected = {name} if head == "parallel" else {name, f"cascaded_branch.{name}"}
    assert set(held.dropped) - set(not_held.dropped) == expected
    first, second = (SpeechCLIP.from_pretrained(path, clip=str(clip)) for path in files)
    assert torch.equal(first.encode_speech(WAVES), second.encode_speech(WAVES))
    if head != "parallel":
        assert first.network.vocabulary.ids == second.network.vocabulary.ids == tuple(IDS)


def without(name: str) -> Any:
    return lambda state: state.pop(name)


def renamed(old: str, new: str) -> Any:
    return lambda state: state.update({new: state.pop(old)})


@pytest.mark.parametrize(
    ("head", "change", "message"),
    [
        (
            "parallel",
            lambda s: s.update({"parallel_branch.extra": torch.ones(1)}),
            "unknown tensor parallel_branch.extra",
        ),
        ("parallel", lambda s: s.update({"something": torch.ones(1)}), "unknown tensor something"),
        (
            "parallel",
            without("parallel_branch.linear_proj.bias"),
            "the tensor parallel_branch.linear_proj.bias is missing",
        ),
        (
            "parallel",
            without("audio_encoder.weightedsum_layer.weights"),
            "the tensor audio_encoder.weightedsum_layer.weights is missing",
        ),
        (
            "parallel",
            without("clip.model.token_embedding.weight"),
            "tensors under clip.model.token_embedding.weight are missing",
        ),
        (
            "parallel",
            renamed(
                "audio_encoder.encoder.encoder.layers.1.fc1.bias", "audio_encoder.encoder.encoder.layers.1.fc3.bias"
            ),
            "unknown tensor encoder.layers.1.fc3.bias in its HuBERT",
        ),
        (
            "parallel",
            without("audio_encoder.encoder.encoder.layers.1.fc1.bias"),
            "the tensor for encoder.layers.1.feed_forward.intermediate_dense.bias of its HuBERT is missing",
        ),
        (
            "parallel",
            lambda s: s["clip.model.ln_final.weight"].add_(0.5),
            "trained with another CLIP .*ln_final.weight differs",
        ),
        ("parallel", lambda s: s.update({"parallel_branch.cls": torch.ones(WIDTH)}), r"parallel_branch.cls is \[64\]"),
        (
            "parallel",
            lambda s: s.update({"parallel_branch.linear_proj.weight": torch.ones(9, WIDTH)}),
            "checkpoint for other dimensions",
        ),
        (
            "cascaded",
            lambda s: s.update({"cascaded_branch.clip.model.ln_final.bias": torch.ones(TEXT)}),
            "cascaded_branch.clip.model.ln_final.bias differs",
        ),
        (
            "cascaded",
            lambda s: s.update({"cascaded_branch.clip.model.more": torch.ones(1)}),
            "is not below clip. with the same shape",
        ),
        (
            "cascaded",
            lambda s: s.update({f"cascaded_branch.clip.{FULL}": s[f"clip.{FULL}"] + 1}),
            f"cascaded_branch.clip.{FULL} differs",
        ),
        ("cascaded", without(f"clip.{FULL}"), "is not below clip. with the same shape"),
        ("parallel", lambda s: s[f"clip.{FULL}"].add_(1), "another CLIP .*token_embedding.weight differs"),
        (
            "parallel",
            lambda s: s.update({f"clip.{FULL}": torch.ones(9, TEXT + 1)}),
            rf"clip.{FULL} is \[9, 65\], clip.model.token_embedding.weight is \[63, 64\]",
        ),
        (
            "cascaded",
            without("cascaded_branch.bn_layer.bn_layer.running_var"),
            "the tensor cascaded_branch.bn_layer.bn_layer.running_var is missing",
        ),
        (
            "cascaded",
            without("cascaded_branch.linear_proj.bias"),
            "the tensor cascaded_branch.linear_proj.bias is missing",
        ),
        ("cascaded", lambda s: s["clip.model.token_embedding.weight"][5].add_(1), "differs|is not in CLIP's table"),
        (
            "cascaded",
            lambda s: [s.pop(n) for n in list(s) if n.startswith("cascaded")],
            "not a checkpoint of SpeechCLIP",
        ),
        ("cascaded", lambda s: s.update({"x": "text"}), "x is a str, not a tensor"),
    ],
)
def test_reader_names_unfit_tensor(tmp_path: Path, clip: Path, head: str, change: Any, message: str) -> None:
    state = state_dict(head, IDS)
    change(state)
    path = save_checkpoint_file(tmp_path / "x.ckpt", state)
    with pytest.raises(UserError, match=message) as caught:
        SpeechCLIP.from_pretrained(path, clip=str(clip))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_cascaded_checkpoint_needs_its_clip(tmp_path: Path) -> None:
    path = save_checkpoint_file(tmp_path / "x.ckpt", state_dict("cascaded", IDS))
    with pytest.raises(
        UserError, match="no published CLIP has subword embeddings of width 64. Name the CLIP with --clip"
    ):
        SpeechCLIP.from_pretrained(path)
    with pytest.raises(UserError, match="cascaded head needs CLIP"):
        SpeechCLIP.from_pretrained(path, clip="")


def test_reader_refuses_other_files(tmp_path: Path) -> None:
    torch.save({"model": {}}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="not a Lightning checkpoint: state_dict is missing"):
        read_published(tmp_path / "a.ckpt")
