"""s3prl's upstreams as speech encoders: equal states for equal weights, and refused upstreams."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import JOINT, settings
from test_transformers import BASE, LARGE, _encoder, _fairseq_name, _reference_shape, _save, _waves
from torch import nn

from speechclip.api import SpeechCLIP
from speechclip.checkpoint.folder import save_checkpoint
from speechclip.common.compat import prepare
from speechclip.common.constants import SAMPLE_RATE
from speechclip.common.errors import UserError
from speechclip.config import SpeechEncoderConfig
from speechclip.model.encoders.factory import load_speech_encoder
from speechclip.model.encoders.s3prl import S3prlEncoder
from speechclip.model.network import Dimensions, build_network
from speechclip.upstream.expert import UpstreamExpert

pytest.importorskip("s3prl", reason="extra 's3prl' is not installed")


def _s3prl_file(hf_folder: Path, large: bool, target: Path) -> str:
    """Save the weights of a transformers folder in s3prl's format, which ``hubert_local`` reads."""
    prepare()
    from s3prl.upstream.hubert.hubert_model import HubertConfig, HubertModel, HubertPretrainingConfig

    shape, symbols = _reference_shape(large), [list(range(10))]
    model = HubertModel(HubertConfig(**shape), HubertPretrainingConfig(normalize=large), symbols)
    weights = {_fairseq_name(name, large): value for name, value in _encoder(hf_folder).model.state_dict().items()}
    _, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    state = {
        "task_cfg": {"normalize": large}, "model_cfg": shape, "model_weight": model.state_dict(),
        "dictionaries_symbols": symbols,
    }  # fmt: skip
    torch.save(state, target)
    return f"s3prl:hubert_local:{target}"


@pytest.mark.parametrize("large", [False, True], ids=["base", "large"])
def test_hubert_of_s3prl_equals_the_own_encoder(tmp_path: Path, large: bool) -> None:
    folder = _save(tmp_path / "hubert", "Hubert", **(LARGE if large else BASE))
    core = _encoder(folder, normalize=large)
    path = _s3prl_file(folder, large, tmp_path / "hubert.pt")
    other = load_speech_encoder(SpeechEncoderConfig(path=path))
    assert (other.num_states, other.dim) == (core.num_states, core.dim) == (4, 48)
    assert other.description["kind"] == "s3prl hubert_local" and other.description["path"] == path
    states, frames = core(_waves())
    found, counts = other(_waves())
    assert torch.equal(frames, counts) and found.shape == states.shape
    expected = states.clone()
    if large:  # s3prl applies the final LayerNorm of a pre-norm encoder to the last state
        with torch.no_grad():
            expected[:, -1] = core.model.encoder.layer_norm(states[:, -1])
    for row, count in enumerate(frames.tolist()):
        assert (found[row, :, :count] - expected[row, :, :count]).abs().max() < 3e-5
    assert ((states[:, -1] - found[:, -1]).abs().max() > 1e-2) == large


def test_s3prl_encoder_supports_layers_and_masks(tmp_path: Path) -> None:
    folder = _save(tmp_path / "hubert", "Hubert", **BASE)
    core = _encoder(folder, normalize=False)
    other: Any = load_speech_encoder(SpeechEncoderConfig(path=_s3prl_file(folder, False, tmp_path / "h.pt")))
    config = settings(model__head__name="parallel").model
    config = replace(config, speech_encoder=replace(config.speech_encoder, layers=[1, 3]))
    outputs = []
    for encoder in (core, other):
        torch.manual_seed(0)
        model = build_network(config, Dimensions(48, 2, JOINT), speech_encoder=encoder).eval()
        outputs.append(SpeechCLIP(model).encode_speech(_waves((9000, 5203))))
    assert (outputs[0] - outputs[1]).abs().max() < 1e-5


def test_s3prl_encoder_takes_short_waves_in_eval_mode(tmp_path: Path) -> None:
    folder = _save(tmp_path / "hubert", "Hubert", **BASE)
    encoder: Any = load_speech_encoder(SpeechEncoderConfig(path=_s3prl_file(folder, False, tmp_path / "h.pt")))
    states, frames = encoder([torch.randn(100), torch.randn(300)])
    assert frames.tolist() == [1, 1] and torch.isfinite(states).all()
    nn.Sequential(encoder).train()
    assert not encoder.upstream.training and not any(p.requires_grad for p in encoder.parameters())


class _Upstream(nn.Module):
    """States of the given widths, with a frame every ``rate`` samples."""

    def __init__(self, widths: tuple[int, ...], rate: int) -> None:
        super().__init__()
        self.widths, self.rate = widths, rate

    def get_downsample_rates(self, key: str) -> int:
        return self.rate

    def forward(self, waves: list[torch.Tensor]) -> dict[str, list[torch.Tensor]]:
        frames = max(len(wave) for wave in waves) // self.rate
        return {"hidden_states": [torch.zeros(len(waves), frames, width) for width in self.widths]}


def test_s3prl_encoder_refuses_states_of_different_shapes() -> None:
    described = {"path": "s3prl:odd"}
    assert S3prlEncoder(_Upstream((8, 8), 320), description=described).dim == 8
    for rate in (0, 200, 640):  # 640: missing frames cannot be computed
        with pytest.raises(UserError, match=f"s3prl:odd: has a frame every {rate} samples, which does not divide 320"):
            S3prlEncoder(_Upstream((8, 8), rate), description=described)
    with pytest.raises(UserError, match=rf"s3prl:odd: .*\[1, {SAMPLE_RATE // 320}, 9\]"):
        S3prlEncoder(_Upstream((8, 9), 320), description=described)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("s3prl:wavlm_bse_plus", "no upstream 'wavlm_bse_plus', did you mean 'wavlm_base_plus'"),
        ("s3prl:", "no upstream ''"),
        ("s3prl:hubert_local:/no/such.pt", "^/no/such.pt: no such checkpoint"),
        ("s3prl:apc", "cannot load it"),
    ],
)
def test_load_s3prl_encoder_reports_one_line(path: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3prl.util.download

    def no_network(*urls: str, **options: Any) -> str:
        raise OSError("no network in tests")

    monkeypatch.setattr(s3prl.util.download, "_download", no_network)
    with pytest.raises(UserError, match=message) as caught:
        load_speech_encoder(SpeechEncoderConfig(path=path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "counts"), [("fbank", [27, 16, 2]), ("mel", [28, 16, 2])])
def test_s3prl_encoder_keeps_every_second_filter_bank_frame(name: str, counts: list[int]) -> None:
    encoder: Any = load_speech_encoder(SpeechEncoderConfig(path=f"s3prl:{name}"))
    waves = [*_waves((9000, 5203)), torch.full((500,), 0.1)]
    states, frames = encoder(waves)
    assert frames.tolist() == counts  # min(round(n / 320), frames)
    longer = [*waves[:2], nn.functional.pad(waves[2], (0, 300))]  # a filter bank's window is 400 samples
    own = encoder.upstream(longer)["hidden_states"][0]  # a frame every 160 samples
    for frame in range(states.shape[2]):
        assert torch.equal(states[:, 0, frame], own[:, 2 * frame])
    assert torch.isfinite(states).all() and states[1].std() > 0.1
    again = load_speech_encoder(SpeechEncoderConfig(path=f"s3prl:{name}"))
    assert again.description == encoder.description
    other = load_speech_encoder(SpeechEncoderConfig(path="s3prl:mfcc"))  # has no weights, like fbank
    assert other.description["weights"] != encoder.description["weights"]


@pytest.mark.parametrize("name", ["hubert", "mel"])
def test_model_on_s3prl_encoder_is_saved_and_an_upstream(name: str, tmp_path: Path) -> None:
    path = "s3prl:mel"
    if name == "hubert":
        folder = _save(tmp_path / "hubert", "Hubert", **BASE)
        path = _s3prl_file(folder, False, tmp_path / "h.pt")
    config = settings(model__head__name="parallel", model__speech_encoder__path=path, model__clip__path="")
    encoder = load_speech_encoder(config.model.speech_encoder)
    shape = Dimensions(encoder.dim, encoder.num_states, JOINT)
    model = build_network(config.model, shape, speech_encoder=encoder).eval()
    save_checkpoint(tmp_path / "best", model, model.trained_state(), config, {"seed": 0})
    waves = _waves((9000, 5203))
    expected, _ = model.hidden_states(waves)
    again = SpeechCLIP.from_pretrained(tmp_path / "best")
    assert torch.equal(again.encode_speech(waves), SpeechCLIP(model).encode_speech(waves))
    states = UpstreamExpert(tmp_path / "best").eval()(waves)["hidden_states"]
    assert len(states) == encoder.num_states + 1
    assert all(torch.equal(a, b) for a, b in zip(states, expected, strict=True))


def test_load_s3prl_encoder_refuses_normalize() -> None:
    with pytest.raises(UserError, match="leave it null"):
        load_speech_encoder(SpeechEncoderConfig(path="s3prl:hubert_local:x", normalize=True))


class _Evil:
    """An object that writes a file when Python unpickles it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_load_s3prl_encoder_runs_no_pickled_code(tmp_path: Path) -> None:
    torch.save({"model": _Evil(tmp_path / "ran")}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match="s3prl cannot load it: "):
        load_speech_encoder(SpeechEncoderConfig(path=f"s3prl:hubert_local:{tmp_path / 'evil.pt'}"))
    assert not (tmp_path / "ran").exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
