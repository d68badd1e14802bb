"""Speech encoders of transformers that read waveforms: HuBERT, wav2vec 2.0, WavLM and data2vec-audio."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from speechclip.common.compat import prepare
from speechclip.common.constants import HOP, PREPROCESSOR_CONFIG
from speechclip.common.errors import UserError, first_line
from speechclip.common.files import looks_local
from speechclip.config import SpeechEncoderConfig
from speechclip.convert.hubert import read_hubert
from speechclip.model.encoders.base import (
    SpeechEncoder,
    SpeechFeatures,
    StateRecorder,
    attention_frames,
    frame_counts,
    register_encoder,
    top_layers,
    weights_fingerprint,
)
from speechclip.model.encoders.front_end import front_end_of
from speechclip.model.encoders.kernels.convolutions import can_run, convolve
from speechclip.model.encoders.kernels.linear import freeze_linears


class WaveformEncoder(SpeechEncoder):
    """An encoder that reads waveforms.

    Args:
        model: the transformers model, with ``feature_extractor``, ``feature_projection`` and ``encoder``.
        normalize: give every waveform zero mean and unit variance before padding (Large models).
        description: see :class:`SpeechEncoder`.

    Raises:
        UserError: the encoder does not have one frame per 320 samples.
    """

    def __init__(self, model: Any, *, normalize: bool, description: dict[str, str]) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.normalize = normalize
        self.description = description
        self.dim = int(model.config.hidden_size)
        self.num_states = int(model.config.num_hidden_layers) + 1
        stride = 1
        for step in model.config.conv_stride:
            stride *= step
        if stride != HOP:
            raise UserError(
                f"{description['path']}: one frame per {stride} samples; {HOP} (50 Hz) are needed."
                " Use an encoder with this rate."
            )
        self.min_samples = _receptive_field(model.config.conv_kernel, model.config.conv_stride)
        freeze_linears(self.model)
        self._recorder = StateRecorder(model.encoder.layers)
        self._trains_convolutions = False

    def forward(self, waves: Sequence[Tensor]) -> SpeechFeatures:
        """Encode 16 kHz waveforms, each [n_i] float. Utterances shorter than one frame are padded to one."""
        with torch.set_grad_enabled(self.trained and torch.is_grad_enabled()):
            batch, lengths = self._pad(waves)
            features = self._convolve(batch, lengths)
            mask = attention_frames(lengths, batch.shape[1], features.shape[1])
            projected = self.model.feature_projection(features)
            if isinstance(projected, tuple):  # wav2vec 2.0 and WavLM also return the unprojected features
                projected = projected[0]
            self.model.encoder(projected, attention_mask=mask)
            return SpeechFeatures(self._recorder.take(), frame_counts(lengths, features.shape[1]).clamp(min=1))

    def unfreeze(self, part: str | int, states: int) -> None:
        """Let a part of the encoder get gradients. See :class:`SpeechEncoder`."""
        encoder = self.model.encoder
        parts = top_layers(encoder.layers, part, states)
        if isinstance(part, str):
            parts += [self.model.feature_projection, encoder.pos_conv_embed]
            if not getattr(self.model.config, "do_stable_layer_norm", False):
                parts.append(encoder.layer_norm)  # before layer 0; that of a pre-norm encoder is after the last state
        if part == "all":
            parts.append(self.model.feature_extractor)
            self._trains_convolutions = True
        for module in parts:
            module.requires_grad_(True)
        self.trained = True

    def _convolve(self, batch: Tensor, lengths: Tensor) -> Tensor:
        """Return the output of the waveform convolutions for a padded batch [B, N]: [B, T, C]."""
        extractor = self.model.feature_extractor
        if not self._trains_convolutions and can_run(extractor, batch):
            with torch.no_grad():
                return convolve(extractor, batch, lengths.tolist(), self.min_samples)
        features: Tensor = extractor(batch).transpose(1, 2)
        return features

    def _pad(self, waves: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the padded batch [B, N] and the number of samples of each waveform [B]."""
        parameter = self.model.feature_projection.projection.weight  # DataParallel's replicas list no parameters
        rows = [wave.to(parameter.device, torch.float32) for wave in waves]
        if self.normalize:
            rows = [nn.functional.layer_norm(row, row.shape) for row in rows]
        lengths = torch.tensor([len(row) for row in rows], device=parameter.device)
        batch = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        if batch.shape[1] < self.min_samples:
            batch = nn.functional.pad(batch, (0, self.min_samples - batch.shape[1]))
        return batch.to(parameter.dtype), lengths


def _receptive_field(kernels: Sequence[int], strides: Sequence[int]) -> int:
    """Return the number of samples that one frame depends on."""
    field = 1
    for kernel, stride in zip(reversed(list(kernels)), reversed(list(strides))):
        field = (field - 1) * stride + kernel
    return field


@register_encoder("hubert", "wav2vec2", "wavlm", "data2vec-audio")
def load_waveform_encoder(config: SpeechEncoderConfig) -> SpeechEncoder:
    """Load a transformers folder or hub id.

    Raises:
        UserError: the weights or the preprocessor's settings cannot be read.
    """
    model, extractor, kind = load_from_transformers(
        config.path, lambda module, path: module.AutoModel.from_pretrained(path)
    )
    normalize = config.normalize if config.normalize is not None else bool(getattr(extractor, "do_normalize", False))
    return _configured(model, config, kind, normalize)


@register_encoder("file")
def load_fairseq_encoder(config: SpeechEncoderConfig) -> SpeechEncoder:
    """Load a HuBERT or wav2vec 2.0 from fairseq's original file.

    Raises:
        UserError: the file cannot be read or holds another model.
    """
    model, normalized = read_hubert(config.path)
    return _configured(model, config, "hubert", normalized if config.normalize is None else config.normalize)


def _configured(model: Any, config: SpeechEncoderConfig, kind: str, normalize: bool) -> SpeechEncoder:
    """Wrap a transformers model, or its waveform convolutions alone."""
    if config.part == "convolutions":
        return front_end_of(model, config, path=config.path, kind=kind, normalize=normalize)
    return waveform_encoder(model, config.path, kind, normalize)


def load_transformers_model(path: str) -> Any:
    """Load the transformers model of a folder, a hub id or fairseq's file, whose weights a head starts from.

    Raises:
        UserError: the weights cannot be read.
    """
    if Path(path).is_file():
        return read_hubert(path)[0]
    return load_from_transformers(path, lambda module, name: module.AutoModel.from_pretrained(name))[0]


def waveform_encoder(model: Any, path: str, kind: str, normalize: bool) -> WaveformEncoder:
    """Wrap a transformers model.

    Args:
        model: the model.
        path: where it was read from, for errors and descriptions.
        kind: its model type in transformers.
        normalize: see :class:`WaveformEncoder`.
    """
    description = {
        "path": path, "kind": kind, "weights": weights_fingerprint(model), "normalize": str(normalize).lower(),
    }  # fmt: skip
    return WaveformEncoder(model, normalize=normalize, description=description)


def load_from_transformers(path: str, load: Any) -> tuple[Any, Any, str]:
    """Load a model and its feature extractor, which is None for a local folder without one.

    Args:
        path: folder or hub id.
        load: called with the module ``transformers`` and the path; returns the model.

    Returns:
        The model, the feature extractor and the model type.

    Raises:
        UserError: the files cannot be read.
    """
    prepare()
    import transformers

    transformers.logging.set_verbosity_error()  # unused heads in a checkpoint do not matter here
    try:
        kind = str(transformers.AutoConfig.from_pretrained(path).model_type)
        extractor = None
        if not looks_local(path) or (Path(path) / PREPROCESSOR_CONFIG).is_file():
            extractor = transformers.AutoFeatureExtractor.from_pretrained(path)
        return load(transformers, path), extractor, kind
    except UserError:
        raise
    except Exception as error:  # the errors of safetensors, zip, JSON and the hub have no common class
        raise UserError(f"{path}: the speech encoder cannot be loaded: {first_line(error)}") from error
