"""SpeechCLIP in MSEB, the Massive Sound Embedding Benchmark of google-research (mseb 0.1.0).

MSEB needs Python 3.12, jax and tensorflow, so it has an environment of its own and no extra here. No other module
imports this one. ``egs/README.md`` has the commands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mseb import encoder, types
from mseb.encoders.encoder_registry import EncoderMetadata, register_encoder
from PIL import Image

from speechclip.api import SpeechCLIP
from speechclip.data.waveforms import as_wave

FULL_SCALE = {"float32": 1.0, "float64": 1.0, "int16": 2.0**15, "int32": 2.0**31, "int8": 2.0**7}  # full scale by type

Loader = Callable[[], SpeechCLIP]


def shared_loader(path: str | Path, device: str = "cpu") -> Loader:
    """Return a function that loads a model at its first call, and returns the same model later.

    Args:
        path: the checkpoint, see :meth:`SpeechCLIP.from_pretrained`.
        device: "cpu" or "cuda".
    """
    loaded: list[SpeechCLIP] = []

    def load() -> SpeechCLIP:
        if not loaded:
            loaded.append(SpeechCLIP.from_pretrained(path, device=device))
        return loaded[0]

    return load


class _SpeechClipEncoder(encoder.MultiModalEncoder):
    """An encoder of one type of input.

    Args:
        load: returns the model; called once, in ``setup``.
    """

    kind: Any = None  # of the inputs

    def __init__(self, load: Loader) -> None:
        super().__init__()
        self._load = load
        self._model: SpeechCLIP | None = None

    def _setup(self) -> None:
        self._model = self._load()

    def _check_input_types(self, batch: Sequence[Any]) -> None:
        for item in batch:
            if not isinstance(item, self.kind):
                raise ValueError(f"{type(self).__name__}: {type(item).__name__} is not {self.kind.__name__}")

    @property
    def model(self) -> SpeechCLIP:
        """The loaded model.

        Raises:
            RuntimeError: ``setup`` was not called.
        """
        if self._model is None:
            raise RuntimeError(f"{type(self).__name__}: call setup() first")
        return self._model


class SpeechClipSoundEncoder(_SpeechClipEncoder):
    """Utterances as one vector each, [1, J]. The segment of the context is used."""

    kind = types.Sound

    def __init__(self, load: Loader, branch: str | None = None) -> None:
        super().__init__(load)
        self._branch = branch

    def _encode(self, batch: Sequence[types.Sound]) -> Sequence[types.SoundEmbedding]:
        waves = [as_wave(_segment(item), item.context.id, item.context.sample_rate) for item in batch]
        rows = self.model.encode_speech(waves, self._branch).cpu().numpy()
        return [
            types.SoundEmbedding(
                embedding=row[None, :],
                timestamps=np.array([[0.0, len(_segment(item)) / item.context.sample_rate]]),
                context=item.context,
            )
            for row, item in zip(rows, batch, strict=True)
        ]


class SpeechClipImageEncoder(_SpeechClipEncoder):
    """Images as one vector each, [1, J]."""

    kind = types.Image

    def _encode(self, batch: Sequence[types.Image]) -> Sequence[types.ImageEmbedding]:
        rows = self.model.encode_image([_picture(item) for item in batch]).cpu().numpy()
        return [
            types.ImageEmbedding(
                embedding=row[None, :],
                patch_indices=np.array([[0, item.image.shape[0], 0, item.image.shape[1]]]),
                context=item.context,
            )
            for row, item in zip(rows, batch, strict=True)
        ]


class SpeechClipTextEncoder(_SpeechClipEncoder):
    """Texts as one vector each, [1, J]."""

    kind = types.Text

    def _encode(self, batch: Sequence[types.Text]) -> Sequence[types.TextEmbedding]:
        rows = self.model.encode_text([item.text for item in batch]).cpu().numpy()
        return [
            types.TextEmbedding(
                embedding=row[None, :], spans=np.array([[0, len(item.text)]]), context=item.context
            )  # fmt: skip
            for row, item in zip(rows, batch, strict=True)
        ]


def speechclip_encoder(path: str, device: str = "cpu", branch: str | None = None) -> encoder.CollectionEncoder:
    """Return an encoder of recordings, images and texts. They share one model.

    Args:
        path: the checkpoint, see :meth:`SpeechCLIP.from_pretrained`.
        device: "cpu" or "cuda".
        branch: "parallel" or "cascaded" for a hybrid head; None for the first branch of the head.
    """
    load = shared_loader(path, device)
    return encoder.CollectionEncoder(
        {
            types.Sound: SpeechClipSoundEncoder(load, branch),
            types.Image: SpeechClipImageEncoder(load),
            types.Text: SpeechClipTextEncoder(load),
        }
    )


def register(path: str, name: str = "speechclip", device: str = "cpu", branch: str | None = None) -> None:
    """Register a model under a name, for MSEB's ``run_task.py --encoder NAME``. The model is loaded when it is used."""
    settings = {"path": path, "device": device, "branch": branch}
    register_encoder(
        EncoderMetadata(
            name=name, encoder=speechclip_encoder, params=lambda: settings,
            url="https://arxiv.org/abs/2210.00705", base_model="speechclip",
        )
    )  # fmt: skip


def _segment(item: types.Sound) -> np.ndarray:
    """Return the samples of the context's segment, float32 with full scale 1."""
    rate, context = item.context.sample_rate, item.context
    samples = np.asarray(item.waveform)
    start = round(context.waveform_start_second * rate)
    end = min(len(samples), round(min(context.waveform_end_second, len(samples) / rate) * rate))
    return (samples[start:end] / FULL_SCALE[samples.dtype.name]).astype(np.float32)


def _picture(item: types.Image) -> Image.Image:
    """Return an image. Floating-point pixels are from 0 to 1."""
    pixels = np.asarray(item.image)
    if np.issubdtype(pixels.dtype, np.floating):
        pixels = np.round(np.clip(pixels, 0, 1) * 255)
    pixels = pixels.astype(np.uint8)
    return Image.fromarray(np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels)
