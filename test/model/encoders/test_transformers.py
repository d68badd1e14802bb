"""Speech encoders: hidden states against fairseq and s3prl, frame masks, frame counts, every model family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from speechclip.common.compat import prepare
from speechclip.common.errors import UserError
from speechclip.config import SpeechEncoderConfig
from speechclip.model.encoders.base import attention_frames, frame_counts
from speechclip.model.encoders.factory import load_speech_encoder

SMALL = {
    "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96,
    "conv_dim": [32] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip
LENGTHS = (16000, 12345, 9000, 5203, 30001)


def _waves(lengths: tuple[int, ...] = LENGTHS) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(n, generator=generator) * 0.1 for n in lengths]


def _save(folder: Path, family: str, **changes: Any) -> Path:
    prepare()
    import transformers

    config_class = getattr(transformers, f"{family}Config")
    torch.manual_seed(5)
    model = getattr(transformers, f"{family}Model")(config_class(**{**SMALL, **changes}))
    with torch.no_grad():  # random LayerNorms, so that a missing one changes the result
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    return folder


def _encoder(folder: Path, **settings: Any) -> Any:
    return load_speech_encoder(SpeechEncoderConfig(path=str(folder), **settings))


BASE = {"feat_extract_norm": "group", "do_stable_layer_norm": False}
LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}


def _reference_shape(large: bool) -> dict[str, Any]:
    """Return SMALL with the names of fairseq's HubertConfig, which s3prl also uses."""
    return {
        "encoder_layers": 3, "encoder_embed_dim": 48, "encoder_ffn_embed_dim": 96, "encoder_attention_heads": 4,
        "conv_feature_layers": "[(32,10,5)] + [(32,3,2)]*4 + [(32,2,2)]*2", "conv_pos": 16, "conv_pos_groups": 4,
        "extractor_mode": "layer_norm" if large else "default", "layer_norm_first": large, "conv_bias": large,
        "final_dim": 16, "encoder_layerdrop": 0.0, "label_rate": 50,
    }  # fmt: skip


def _fairseq_model(hf_folder: Path, large: bool) -> Any:
    """Build fairseq's HuBERT with the weights of a transformers folder."""
    pytest.importorskip("fairseq", reason="extra 'fairseq' is not installed")
    from fairseq.models.hubert.hubert import HubertConfig, HubertModel
    from fairseq.tasks.hubert_pretraining import HubertPretrainingConfig

    settings = HubertConfig(**_reference_shape(large))
    model = HubertModel(settings, HubertPretrainingConfig(), [list(range(10))])
    own = _encoder(hf_folder).model.state_dict()
    renamed = {_fairseq_name(name, large): value for name, value in own.items()}
    missing, unexpected = model.load_state_dict(renamed, strict=False)
    assert not unexpected
    assert set(missing) <= {"label_embs_concat", "final_proj.weight", "final_proj.bias", "mask_emb"}
    return model.eval()


def _fairseq_name(name: str, large: bool) -> str:
    for old, new in (
        ("encoder.pos_conv_embed.conv.parametrizations.weight.original0", "encoder.pos_conv.0.weight_g"),
        ("encoder.pos_conv_embed.conv.parametrizations.weight.original1", "encoder.pos_conv.0.weight_v"),
        ("encoder.pos_conv_embed.conv.bias", "encoder.pos_conv.0.bias"),
        ("feature_projection.layer_norm", "layer_norm"),
        ("feature_projection.projection", "post_extract_proj"),
        ("attention.", "self_attn."),
        ("feed_forward.intermediate_dense", "fc1"),
        ("feed_forward.output_dense", "fc2"),
        ("masked_spec_embed", "mask_emb"),
    ):
        name = name.replace(old, new)
    if name.startswith("encoder.layers.") and ".layer_norm" in name:
        name = name.replace(".layer_norm", ".self_attn_layer_norm")
    if name.startswith("feature_extractor.conv_layers."):
        index, part = name.split(".")[2], name.split(".", 3)[3]
        if part.startswith("conv."):
            return f"feature_extractor.conv_layers.{index}.0.{part[5:]}"
        return f"feature_extractor.conv_layers.{index}.2.{'1.' if large else ''}{part.split('.')[-1]}"
    return name


@pytest.mark.parametrize("large", [False, True], ids=["base", "large"])
def test_hidden_states_equal_fairseq(tmp_path: Path, large: bool) -> None:
    folder = _save(tmp_path / "hubert", "Hubert", **(LARGE if large else BASE))
    reference = _fairseq_model(folder, large)
    encoder = _encoder(folder, normalize=False)
    waves = _waves()
    padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    mask = torch.arange(padded.shape[1])[None] >= torch.tensor([len(w) for w in waves])[:, None]
    seen: list[torch.Tensor] = []
    for layer in reference.encoder.layers:
        layer.register_forward_hook(lambda module, args, output: seen.append(output[0].transpose(0, 1)))
    reference.encoder.layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].transpose(0, 1)))
    with torch.no_grad():
        reference.extract_features(padded, padding_mask=mask, mask=False)
        states, frames = encoder(waves)
    assert states.shape[1] == len(seen) == 4
    for layer in range(4):
        for row, count in enumerate(frames.tolist()):
            difference = (states[row, layer, :count] - seen[layer][row, :count]).abs().max()
            assert difference < 2e-5, (layer, row)


@pytest.mark.parametrize("large", [False, True], ids=["base", "large"])
def test_hidden_states_equal_s3prl(tmp_path: Path, large: bool) -> None:
    pytest.importorskip("s3prl", reason="extra 's3prl' is not installed")
    prepare()
    from s3prl.upstream.hubert.hubert_model import HubertConfig, HubertModel, HubertPretrainingConfig

    folder = _save(tmp_path / "hubert", "Hubert", **(LARGE if large else BASE))
    settings = HubertConfig(**_reference_shape(large))
    reference = HubertModel(settings, HubertPretrainingConfig(), [list(range(10))])
    encoder = _encoder(folder, normalize=False)
    own = encoder.model.state_dict()
    _, unexpected = reference.load_state_dict({_fairseq_name(k, large): v for k, v in own.items()}, strict=False)
    assert not unexpected
    reference.eval()
    waves = _waves()
    padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    mask = torch.arange(padded.shape[1])[None] >= torch.tensor([len(w) for w in waves])[:, None]
    with torch.no_grad():
        # the encoder's output: for a pre-norm model its final LayerNorm is applied
        output, _ = reference.extract_features(padded, padding_mask=mask, mask=False)
        states, frames = encoder(waves)
        last = states[:, -1]
        if large:
            last = encoder.model.encoder.layer_norm(last)
    for row, count in enumerate(frames.tolist()):
        assert (last[row, :count] - output[row, :count]).abs().max() < 2e-5
    if large:
        assert (states[0, -1, :10] - output[0, :10]).abs().max() > 1e-2  # it is not applied here


def test_frame_counts_round_half_to_even() -> None:
    samples = torch.tensor([320 * 10 + 159, 320 * 10 + 160, 320 * 11 + 160, 320 * 100, 10])
    assert frame_counts(samples, 50).tolist() == [10, 10, 12, 50, 0]


def test_attention_frames_drop_the_remainder() -> None:
    # 10 samples in 3 frames: shares of 3, the tenth sample ignored
    mask = attention_frames(torch.tensor([10, 3, 4, 7]), 10, 3)
    assert mask.tolist() == [[True, True, True], [True, False, False], [True, True, False], [True, True, True]]


@pytest.mark.parametrize("family", ["Hubert", "Wav2Vec2", "WavLM", "Data2VecAudio"])
def test_every_family_returns_all_states(tmp_path: Path, family: str) -> None:
    # For data2vec this is the number of layers of the positional convolution, for the others its kernel.
    position = {"num_conv_pos_embeddings": 1} if family == "Data2VecAudio" else {}
    folder = _save(tmp_path / family, family, feat_extract_norm="layer", **position)
    encoder = _encoder(folder)
    alone = encoder([_waves((8000,))[0]])
    together = encoder([_waves((8000,))[0], torch.randn(12000) * 0.1])
    assert alone.states.shape == (1, 4, 24, 48)
    assert together.frames.tolist() == [25, 37]  # round(8000 / 320); a batch has frames that reach into the padding
    # The last frame sees the padding, so it differs. Attention spreads a small part of that.
    assert (alone.states[0, :, :20] - together.states[0, :, :20]).abs().mean() < 0.05
    assert torch.isfinite(together.states).all()
    assert not any(p.requires_grad for p in encoder.parameters())


def test_encoder_stays_in_eval_mode(tmp_path: Path) -> None:
    encoder = _encoder(_save(tmp_path / "h", "Hubert", hidden_dropout=0.5, layerdrop=0.5))
    torch.nn.Sequential(encoder).train()
    waves = _waves((6000,))
    assert torch.equal(encoder(waves).states, encoder(waves).states)
    assert not encoder.model.training


def test_normalize_follows_the_preprocessor(tmp_path: Path) -> None:
    folder = _save(tmp_path / "h", "Hubert", **LARGE)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"feature_extractor_type": "Wav2Vec2FeatureExtractor", "do_normalize": True})
    )
    loud = [wave * 7 + 0.5 for wave in _waves((8000, 5000))]
    expected = [torch.nn.functional.layer_norm(wave, wave.shape) for wave in loud]
    assert torch.allclose(_encoder(folder)(loud).states, _encoder(folder, normalize=False)(expected).states, atol=1e-5)


def test_whisper_states_equal_transformers(tmp_path: Path) -> None:
    prepare()
    import transformers

    torch.manual_seed(1)
    config = transformers.WhisperConfig(
        d_model=32, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=64, decoder_layers=1,
        decoder_attention_heads=2, decoder_ffn_dim=32, vocab_size=51865, num_mel_bins=80,
    )  # fmt: skip
    whisper = transformers.WhisperModel(config).eval()
    whisper.save_pretrained(tmp_path / "w")
    extractor = transformers.WhisperFeatureExtractor()
    extractor.save_pretrained(tmp_path / "w")
    encoder = _encoder(tmp_path / "w")
    waves = _waves((16000, 20000))
    states, frames = encoder(waves)
    mel = extractor([w.numpy() for w in waves], sampling_rate=16000, return_tensors="pt").input_features
    with torch.no_grad():
        reference = whisper.get_encoder()(mel, output_hidden_states=True).hidden_states
    assert frames.tolist() == [50, 62] and states.shape == (2, 3, 62, 32)
    assert (states[1, 1] - reference[1][1, :62]).abs().max() < 1e-5
    normed = whisper.get_encoder().layer_norm(states[1, 2])
    assert (normed - reference[2][1, :62]).abs().max() < 1e-5
    short = _encoder(tmp_path / "w", window_seconds=1.0)
    states, frames = short(_waves((40000,)))
    assert frames.tolist() == [125] and states.shape[2] == 125
    assert torch.allclose(states[:, :, :50], short([_waves((40000,))[0][:16000]]).states, atol=1e-5)


def test_encoder_takes_fifty_milliseconds(tmp_path: Path) -> None:
    encoder = _encoder(_save(tmp_path / "h", "Hubert", **LARGE))
    states, frames = encoder([torch.randn(100)])
    assert frames.tolist() == [1] and states.shape[2] == 1 and torch.isfinite(states).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: None, "config.json: is missing"),
        (lambda f: (f.mkdir(), (f / "config.json").write_text("{")), "not readable as a speech encoder"),
        (
            lambda f: (f.mkdir(), (f / "config.json").write_text('{"model_type": "bert"}')),
            "model type 'bert' is not supported",
        ),
        (lambda f: (f.mkdir(), (f / "config.json").write_text('{"model_type": "hubert"}')), "cannot be loaded"),
    ],
)
def test_load_speech_encoder_names_a_bad_folder(tmp_path: Path, make: Any, message: str) -> None:
    folder = tmp_path / "encoder"
    make(folder)
    with pytest.raises(UserError) as caught:
        _encoder(folder)
    assert str(folder) in str(caught.value) and message in str(caught.value) and "\n" not in str(caught.value)


def test_load_speech_encoder_reports_truncated_weights(tmp_path: Path) -> None:
    folder = _save(tmp_path / "h", "Hubert")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    with pytest.raises(UserError, match="cannot be loaded"):
        _encoder(folder)


def test_encoder_refuses_another_frame_rate(tmp_path: Path) -> None:
    folder = _save(tmp_path / "h", "Hubert", conv_stride=[5, 2, 2, 2, 2, 2, 1])
    with pytest.raises(UserError, match="one frame per 160 samples"):
        _encoder(folder)
