"""Frozen speech encoders: waveforms in, every hidden state out. Those of transformers are here, s3prl's beside it.

HuBERT, wav2vec 2.0, WavLM, data2vec-audio and Whisper. Frame masks, frame counts and the numbering of hidden states
follow fairseq's HuBERT, with which SpeechCLIP was trained (Shih et al. 2022; arXiv 2210.00705).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Union

import torch
from torch import Tensor, nn

from speechclip.config import SpeechEncoderConfig
from speechclip.constants import FRAME_SECONDS, HOP, SAMPLE_RATE
from speechclip.encoders.convolutions import can_run, convolve
from speechclip.errors import UserError
from speechclip.matmul import freeze_linears

if TYPE_CHECKING:
    from speechclip.encoders.s3prl_upstream import S3prlEncoder

LoadedEncoder = Union["WaveformEncoder", "WhisperSpeechEncoder", "S3prlEncoder"]  # what load_speech_encoder returns
WAVEFORM_MODELS = ("hubert", "wav2vec2", "wavlm", "data2vec-audio")


class SpeechFeatures(NamedTuple):
    """Hidden states of a batch.

    states: [B, L, T, D] float; layer 0 is the input of the first transformer layer.
    frames: [B] int64, valid frames of each utterance (the rest is padding).
    """

    states: Tensor
    frames: Tensor


class SpeechEncoder(Protocol):
    """What the model asks of a speech encoder. Implementations are ``nn.Module`` in eval mode, without gradients."""

    dim: int
    num_states: int
    description: dict[str, str]

    def __call__(self, waves: Sequence[Tensor]) -> SpeechFeatures:
        """Encode 16 kHz mono waveforms, each [n_i] float."""
        ...


def frame_counts(num_samples: Tensor, num_frames: int) -> Tensor:
    """Valid frames of utterances of ``num_samples`` [B]: min(round(n / 320), num_frames), halves to even. [B] int64."""
    return torch.round(num_samples.double() / HOP).long().clamp(max=num_frames)


def attention_frames(num_samples: Tensor, max_samples: int, num_frames: int) -> Tensor:
    """fairseq's frame mask: a frame is padding where every sample of its equal share of the batch is padding.

    The samples left over after the division into ``num_frames`` shares are ignored.
    Returns: [B, num_frames] bool, True where the encoder may attend.
    """
    share = max_samples // num_frames
    starts = torch.arange(num_frames, device=num_samples.device) * share
    return starts[None, :] < num_samples[:, None]


class _StateRecorder:
    """Collects the input of the first layer and the output of each, as raw as the layers give them.

    Hooks instead of ``output_hidden_states``: whether that applies the final LayerNorm of a pre-norm encoder to the
    last state depends on the version of transformers.
    """

    def __init__(self, layers: nn.ModuleList) -> None:
        self.states: list[Tensor] = []
        layers[0].register_forward_pre_hook(self._first, with_kwargs=True)
        for layer in layers:
            layer.register_forward_hook(self._output)

    def _first(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.states = [args[0] if args else kwargs["hidden_states"]]

    def _output(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.states.append(output[0] if isinstance(output, tuple) else output)

    def take(self) -> Tensor:
        """The states of the last forward, [B, L, T, D]; forgets them."""
        states = torch.stack(self.states, dim=1)
        self.states = []
        return states


class WaveformEncoder(nn.Module):
    """An encoder that reads waveforms: HuBERT, wav2vec 2.0, WavLM or data2vec-audio of transformers.

    Args:
        model: the transformers model, with ``feature_extractor``, ``feature_projection`` and ``encoder``.
        normalize: give every waveform zero mean and unit variance before padding (Large models).
        description: what identifies the encoder, for feature stores and checkpoints.
    """

    def __init__(self, model: Any, *, normalize: bool, description: dict[str, str]) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.normalize = normalize
        self.description = description
        self.dim: int = model.config.hidden_size
        self.num_states: int = model.config.num_hidden_layers + 1
        stride = 1
        for step in model.config.conv_stride:
            stride *= step
        if stride != HOP:
            raise UserError(f"{description['path']}: a frame every {stride} samples, expected {HOP} (50 Hz)")
        self.min_samples = _receptive_field(model.config.conv_kernel, model.config.conv_stride)
        freeze_linears(self.model)
        self._recorder = _StateRecorder(model.encoder.layers)

    def train(self, mode: bool = True) -> WaveformEncoder:
        """Stay in eval mode: frozen means no dropout and no layer drop either.

        The published code lets its trainer switch the encoder back; not doing so is a stated departure.
        """
        return super().train(False)

    @torch.no_grad()
    def forward(self, waves: Sequence[Tensor]) -> SpeechFeatures:
        """Encode 16 kHz waveforms, each [n_i] float. Utterances shorter than a frame are padded to one."""
        batch, lengths = self._pad(waves)
        if can_run(self.model.feature_extractor, batch):
            features = convolve(self.model.feature_extractor, batch, lengths.tolist(), self.min_samples)
        else:
            features = self.model.feature_extractor(batch).transpose(1, 2)  # [B, T, C]
        mask = attention_frames(lengths, batch.shape[1], features.shape[1])
        projected = self.model.feature_projection(features)
        if isinstance(projected, tuple):  # wav2vec 2.0 and WavLM also return the unprojected features
            projected = projected[0]
        self.model.encoder(projected, attention_mask=mask)
        return SpeechFeatures(self._recorder.take(), frame_counts(lengths, features.shape[1]).clamp(min=1))

    def _pad(self, waves: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        parameter = next(self.model.parameters())
        rows = [wave.to(parameter.device, torch.float32) for wave in waves]
        if self.normalize:
            rows = [nn.functional.layer_norm(row, row.shape) for row in rows]
        lengths = torch.tensor([len(row) for row in rows], device=parameter.device)
        batch = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        if batch.shape[1] < self.min_samples:
            batch = nn.functional.pad(batch, (0, self.min_samples - batch.shape[1]))
        return batch.to(parameter.dtype), lengths


class WhisperSpeechEncoder(nn.Module):
    """The encoder of Whisper: log-mel windows in, hidden states at 50 Hz out, cut to the utterance's own frames.

    Args:
        model: transformers' ``WhisperEncoder``.
        extractor: its ``WhisperFeatureExtractor``.
        window_seconds: length the audio is padded to. Whisper was trained with 30 s; a shorter window costs less and
            changes the states, since attention then sees less silence. Longer audio is encoded window by window.
    """

    def __init__(self, model: Any, extractor: Any, *, window_seconds: float, description: dict[str, str]) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.extractor = extractor
        self.description = description
        self.dim: int = model.config.d_model
        self.num_states: int = model.config.encoder_layers + 1
        self.window = round(window_seconds * SAMPLE_RATE)
        longest = model.config.max_source_positions * HOP
        if not HOP <= self.window <= longest or self.window % HOP:
            raise UserError(
                f"model.speech_encoder.window_seconds: {window_seconds} is not between "
                f"{FRAME_SECONDS} and {longest / SAMPLE_RATE}, in steps of {FRAME_SECONDS}"
            )
        freeze_linears(self.model)
        self._recorder = _StateRecorder(model.layers)

    def train(self, mode: bool = True) -> WhisperSpeechEncoder:
        """Stay in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, waves: Sequence[Tensor]) -> SpeechFeatures:
        """Encode 16 kHz waveforms, each [n_i] float."""
        windows, owner = [], []
        for index, wave in enumerate(waves):
            for start in range(0, max(len(wave), 1), self.window):
                windows.append(wave[start : start + self.window].cpu().float().numpy())
                owner.append(index)
        states = self._encode_windows(windows)  # [W, L, T, D]
        rows = [
            torch.cat([s for s, o in zip(states, owner) if o == i], dim=1) for i in range(len(waves))
        ]  # [L, T_i, D]
        lengths = torch.tensor([len(wave) for wave in waves], device=states.device)
        frames = frame_counts(lengths, max(row.shape[1] for row in rows)).clamp(min=1)
        longest = int(frames.max())
        out = states.new_zeros(len(rows), self.num_states, longest, self.dim)
        for i, row in enumerate(rows):
            kept = min(int(frames[i]), row.shape[1])
            out[i, :, :kept] = row[:, :kept]
        return SpeechFeatures(out, frames)

    def _encode_windows(self, windows: list[Any]) -> Tensor:
        parameter = next(self.model.parameters())
        mel = self.extractor(
            windows, sampling_rate=SAMPLE_RATE, return_tensors="pt", padding="max_length", max_length=self.window,
            truncation=False,
        ).input_features.to(parameter.device, parameter.dtype)  # fmt: skip
        x = nn.functional.gelu(self.model.conv1(mel))
        x = nn.functional.gelu(self.model.conv2(x)).transpose(1, 2)  # [W, T, D]
        x = x + self.model.embed_positions.weight[: x.shape[1]]
        for layer in self.model.layers:
            x = layer(x, None, layer_head_mask=None)[0]
        return self._recorder.take()


def _receptive_field(kernels: Sequence[int], strides: Sequence[int]) -> int:
    field = 1
    for kernel, stride in zip(reversed(list(kernels)), reversed(list(strides))):
        field = (field - 1) * stride + kernel
    return field


def weights_fingerprint(model: nn.Module) -> str:
    """First 16 hex digits of the SHA-256 over a model's parameter names, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def load_speech_encoder(config: SpeechEncoderConfig) -> LoadedEncoder:
    """Load what ``config.path`` names: a transformers folder, a hub id, fairseq's HuBERT ``.pt``, an upstream of s3prl.

    Raises:
        UserError: no such folder, no readable weights, or a model type that is not supported.
    """
    if config.path.startswith("s3prl:"):
        from speechclip.encoders.s3prl_upstream import load_s3prl_encoder

        return load_s3prl_encoder(config)
    from speechclip.compat import prepare

    prepare()
    import transformers

    transformers.logging.set_verbosity_error()  # unused heads in a checkpoint are no concern of the user
    path = config.path
    if not path:
        raise UserError("model.speech_encoder.path: not set; give a transformers folder or hub id")
    if Path(path).is_file():
        return _from_fairseq(config)
    if _looks_local(path) and not (Path(path) / "config.json").is_file():
        raise UserError(f"{path}/config.json: no such file; a speech encoder is a transformers folder or a hub id")
    try:
        settings = transformers.AutoConfig.from_pretrained(path)
    except (OSError, ValueError, json.JSONDecodeError) as error:
        absent = "" if Path(path).exists() else "no such folder, and as a hub id "
        raise UserError(f"{path}: {absent}not readable as a speech encoder: {_first_line(error)}") from error
    kind = settings.model_type
    if kind not in (*WAVEFORM_MODELS, "whisper"):
        raise UserError(f"{path}: model type {kind!r} is not one of {', '.join((*WAVEFORM_MODELS, 'whisper'))}")
    try:
        extractor = _feature_extractor(transformers, path)
        if kind == "whisper":
            model = transformers.WhisperModel.from_pretrained(path).get_encoder()
        else:
            model = transformers.AutoModel.from_pretrained(path)
    except UserError:
        raise
    except Exception as error:  # safetensors, zip, JSON and hub errors have no common class
        raise UserError(f"{path}: speech encoder cannot be loaded: {_first_line(error)}") from error
    if kind == "whisper":
        description = {
            "path": path, "kind": kind, "weights": weights_fingerprint(model),
            "window_seconds": str(config.window_seconds),
        }  # fmt: skip
        return WhisperSpeechEncoder(model, extractor, window_seconds=config.window_seconds, description=description)
    normalize = config.normalize if config.normalize is not None else bool(getattr(extractor, "do_normalize", False))
    return waveform_encoder(model, path, kind, normalize)


def waveform_encoder(model: Any, path: str, kind: str, normalize: bool) -> WaveformEncoder:
    """A transformers model as an encoder that tells where it comes from. kind: transformers' model type."""
    description = {
        "path": path, "kind": kind, "weights": weights_fingerprint(model), "normalize": str(normalize).lower(),
    }  # fmt: skip
    return WaveformEncoder(model, normalize=normalize, description=description)


def _from_fairseq(config: SpeechEncoderConfig) -> WaveformEncoder:
    """A HuBERT in fairseq's original file."""
    from speechclip.published.hubert import read_hubert

    model, normalized = read_hubert(config.path)
    normalize = normalized if config.normalize is None else config.normalize
    return waveform_encoder(model, config.path, "hubert", normalize)


def _feature_extractor(transformers: Any, path: str) -> Any:
    """The extractor beside the weights; None where a waveform model comes without one."""
    if _looks_local(path) and not (Path(path) / "preprocessor_config.json").is_file():
        return None
    return transformers.AutoFeatureExtractor.from_pretrained(path)


def _looks_local(path: str) -> bool:
    return Path(path).exists() or path.startswith((".", "/", "~")) or path.count("/") > 1


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
