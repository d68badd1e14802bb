"""SpeechCLIP: frozen speech encoder, layer mix, head, frozen CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from speechclip.config import ModelConfig
from speechclip.constants import SAMPLE_RATE
from speechclip.data.audio import load_audio
from speechclip.data.vocabulary import Vocabulary
from speechclip.encoders.clip import OpenClip
from speechclip.encoders.speech import LoadedEncoder, SpeechFeatures
from speechclip.errors import UserError
from speechclip.heads.base import CASCADED, PARALLEL, HeadOutput, Keywords, SpeechOutput
from speechclip.heads.keywords import KeywordHead
from speechclip.heads.parallel import ParallelHead
from speechclip.heads.pooling import LayerMix
from speechclip.heads.registry import make_head
from speechclip.heads.spans import keyword_spans
from speechclip.losses import ContrastiveLoss

if TYPE_CHECKING:
    from PIL.Image import Image

Wave = np.ndarray | Tensor | str | Path
BATCH = 16  # utterances encoded at once by the public methods


@dataclass(frozen=True)
class Keyword:
    """A keyword of an utterance: its nearest subwords with their cosines, best first, and when it was said.

    span: (start, end) in seconds: the segment that a head with integrate-and-fire cut out, or else the shortest stretch
    that holds half of the keyword's attention.
    """

    subwords: tuple[str, ...]
    cosines: tuple[float, ...]
    span: tuple[float, float]


@dataclass(frozen=True)
class Dimensions:
    """Widths that come from the frozen encoders.

    speech: d of the hidden states. states: how many of them are mixed. joint: width of CLIP's joint space.
    """

    speech: int
    states: int
    joint: int


class SpeechCLIP(nn.Module):
    """Speech aligned with CLIP through images (Shih et al. 2022, arXiv 2210.00705).

    Parts are handed in; :func:`build` names the constructors and :meth:`from_pretrained` reads a checkpoint. Without
    ``speech_encoder`` the model works on stored hidden states only, without ``clip`` on embeddings only; what needs the
    missing part says so. Only ``layer_mix``, ``head`` and ``loss`` are trained and saved.
    """

    def __init__(
        self,
        config: ModelConfig,
        dimensions: Dimensions,
        *,
        layer_mix: LayerMix,
        head: ParallelHead | KeywordHead,
        loss: ContrastiveLoss,
        speech_encoder: LoadedEncoder | None = None,
        clip: OpenClip | None = None,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.dimensions = dimensions
        self.layer_mix = layer_mix
        self.head = head
        self.loss = loss
        self.speech_encoder = speech_encoder
        self.clip = clip
        self.vocabulary = vocabulary

    @classmethod
    def from_pretrained(cls, path: str | Path, *, device: str = "cpu", clip: str | None = None) -> SpeechCLIP:
        """Load a model with its frozen encoders, in eval mode.

        Args:
            path: a checkpoint folder, a published SpeechCLIP ``.ckpt``, or the id of a model on the hub.
            clip: of a ``.ckpt``, where its CLIP is; None for OpenAI's by name, empty for none (parallel head).
        Raises:
            UserError: no checkpoint there, damaged, for other dimensions, or an encoder that cannot be found.
        """
        from speechclip.pretrained import load_pretrained

        return load_pretrained(path, clip=clip).to(device).eval()

    @property
    def device(self) -> torch.device:
        """Where the trained parameters are."""
        return self.layer_mix.weights.device

    def trained_modules(self) -> dict[str, nn.Module]:
        """The parts that training changes and checkpoints hold."""
        return {"layer_mix": self.layer_mix, "head": self.head, "loss": self.loss}

    def trained_state(self) -> dict[str, Tensor]:
        """State dict of the trained parts, parameters and statistics."""
        parts = self.trained_modules()
        return {f"{part}.{name}": value for part in parts for name, value in parts[part].state_dict().items()}

    def trained_parameters(self) -> list[nn.Parameter]:
        """Parameters that get gradients."""
        return [p for part in self.trained_modules().values() for p in part.parameters() if p.requires_grad]

    def count_parameters(self) -> dict[str, int]:
        """{"trained", "total"}: numbers of parameters, frozen encoders that are loaded included in the total."""
        trained = sum(p.numel() for p in self.trained_parameters())
        return {"trained": trained, "total": sum(p.numel() for p in self.parameters())}

    # -- from features ------------------------------------------------------------------------------------------------

    def encode_waves(self, waves: Sequence[Tensor]) -> SpeechFeatures:
        """The configured hidden states of 16 kHz waveforms: states [B, L, T, D], frames [B]."""
        features = self._need_speech_encoder()(waves)
        if self.config.speech_encoder.layers is None:
            return cast(SpeechFeatures, features)
        return SpeechFeatures(features.states[:, self.config.speech_encoder.layers], features.frames)

    def apply_head(self, states: Tensor, frames: Tensor, time_masks: Tensor | None = None) -> SpeechOutput:
        """Hidden states [B, L, T, D] and frame counts [B] to what the head reads out of them.

        Keywords are read by CLIP's text transformer. ``time_masks``: [B, T] bool, frames to set to zero (augmentation).
        """
        mixed, padding = self._mix(states, frames)
        if time_masks is not None:
            mixed = mixed.masked_fill(time_masks[:, :, None], 0.0)
        output: HeadOutput = self.head(mixed, padding)
        readouts = {} if output.embedding is None else {PARALLEL: output.embedding}
        if output.keywords is not None:
            counts = output.keywords.mask.sum(dim=1)
            readouts[CASCADED] = self._need_clip().encode_keywords(output.keywords.quantized, counts)
        return SpeechOutput(readouts, output.keywords, output.quantity, output.attention)

    def _mix(self, states: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        padding = torch.arange(states.shape[2], device=frames.device)[None, :] >= frames[:, None]
        return self.layer_mix(states), padding

    # -- the public methods -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_speech(self, waves: Wave | Sequence[Wave], readout: str | None = None) -> Tensor:
        """Utterances, 16 kHz mono arrays or audio files, to [N, J], L2-normalised.

        readout: "parallel" or "cascaded" of a hybrid head; None for the first one the head has.
        Raises UserError for a read-out that the head does not have.
        """
        parts = []
        for batch in self._batches(waves):
            parts.append(self._choose(self.apply_head(*self.encode_waves(batch)).readouts, readout))
        return nn.functional.normalize(torch.cat(parts), dim=-1)

    def encode_image(self, images: Image | str | Path | Sequence[Image | str | Path]) -> Tensor:
        """Images, PIL or files, to [N, J], L2-normalised."""
        from speechclip.data.images import load_image

        items = images if isinstance(images, Sequence) and not isinstance(images, str) else [images]
        loaded = [load_image(item) if isinstance(item, (str, Path)) else item.convert("RGB") for item in items]
        return self._need_clip().encode_images(loaded)

    def encode_text(self, texts: str | Sequence[str]) -> Tensor:
        """Texts to [N, J], L2-normalised."""
        return self._need_clip().encode_texts([texts] if isinstance(texts, str) else list(texts))

    @torch.no_grad()
    def keywords(self, waves: Wave | Sequence[Wave], top_k: int = 5) -> list[list[Keyword]]:
        """The keywords of each utterance with their ``top_k`` nearest subwords, special tokens excluded.

        Raises UserError for a head without keywords.
        """
        if not isinstance(self.head, KeywordHead) or self.vocabulary is None:
            raise UserError(f"model.head.name: a {self.config.head.name} head has no keywords")
        found: list[list[Keyword]] = []
        for batch in self._batches(waves):
            states, frames = self.encode_waves(batch)
            found += self._describe(self.head(*self._mix(states, frames)).keywords, frames, top_k)
        return found

    @torch.no_grad()
    def listen(self, wave: Wave, readout: str | None = None, top_k: int = 5) -> tuple[Tensor, list[Keyword] | None]:
        """One utterance: its embedding [J] as of :meth:`encode_speech` and its keywords, the speech encoded once.

        None in the keywords' place for a head without any. Raises UserError for a read-out the head does not have.
        """
        states, frames = self.encode_waves(self._tensors([wave]))
        output = self.apply_head(states, frames)
        embedding = nn.functional.normalize(self._choose(output.readouts, readout), dim=-1)[0]
        keywords = None if output.keywords is None else self._describe(output.keywords, frames, top_k)[0]
        return embedding, keywords

    def _choose(self, readouts: dict[str, Tensor], readout: str | None) -> Tensor:
        if readout is not None and readout not in readouts:
            raise UserError(f"readout: a {self.config.head.name} head has {' and '.join(readouts)}, not {readout}")
        return readouts[readout or next(iter(readouts))]

    def _describe(self, keywords: Keywords, frames: Tensor, top_k: int) -> list[list[Keyword]]:
        """A batch's keywords with their nearest subwords and spans; frames: [B]."""
        assert isinstance(self.head, KeywordHead) and self.vocabulary is not None
        quantizer, subwords = self.head.quantizer, self.vocabulary.subwords
        top_k = min(top_k, int(quantizer.allowed.sum()))
        best = quantizer.cosines(keywords.vectors).masked_fill(~quantizer.allowed, -torch.inf).topk(top_k, dim=-1)
        found = []
        for i, length in enumerate(frames.tolist()):
            count = int(keywords.mask[i].sum())
            rows, values = best.indices[i, :count].tolist(), best.values[i, :count].tolist()
            spans = keyword_spans(keywords, i, length)
            found.append(
                [
                    Keyword(tuple(subwords[row] for row in near), tuple(cosines), span)
                    for near, cosines, span in zip(rows, values, spans)
                ]
            )
        return found

    @torch.no_grad()
    def hidden_states(self, waves: Wave | Sequence[Wave]) -> tuple[list[Tensor], Tensor]:
        """What the s3prl upstream returns, for one padded batch.

        Returns:
            the encoder's raw states, then the head's own layer over the frames: tensors [B, T, d], all of one size; and
            the valid frames [B].
        """
        states, frames = self._need_speech_encoder()(self._tensors(waves))
        layers = self.config.speech_encoder.layers
        mixed, padding = self._mix(states if layers is None else states[:, layers], frames)
        return [*states.unbind(dim=1), self.head.frame_states(mixed, padding)], frames

    def _batches(self, waves: Wave | Sequence[Wave]) -> list[list[Tensor]]:
        items = self._tensors(waves)
        return [items[at : at + BATCH] for at in range(0, len(items), BATCH)]

    def _tensors(self, waves: Wave | Sequence[Wave]) -> list[Tensor]:
        single = isinstance(waves, (str, Path)) or (isinstance(waves, (np.ndarray, Tensor)) and waves.ndim == 1)
        items = [waves] if single else waves
        tensors = [_as_wave(item).to(self.device) for item in cast(Sequence[Wave], items)]
        if not tensors:
            raise UserError("no waveforms: give at least one")
        return tensors

    def _need_speech_encoder(self) -> Any:
        if self.speech_encoder is None:
            raise UserError("model.speech_encoder.path: this needs the speech encoder, which is not loaded")
        return self.speech_encoder

    def _need_clip(self) -> OpenClip:
        if self.clip is None:
            raise UserError("model.clip.path: this needs CLIP itself; precomputed embeddings do not do")
        return self.clip


def _as_wave(item: Wave) -> Tensor:
    """A file, array or tensor as [n] float at 16 kHz; int16 is scaled to [-1, 1)."""
    if isinstance(item, (str, Path)):
        return torch.from_numpy(load_audio(item))
    wave = torch.as_tensor(item)
    if wave.ndim != 1 or not len(wave):
        raise UserError(
            f"a waveform is a non-empty 1-D array of {SAMPLE_RATE} Hz samples, not of shape {tuple(wave.shape)}"
        )
    if wave.dtype == torch.int16:
        return wave.float() / 2**15
    if not wave.is_floating_point():
        raise UserError(
            f"a waveform of {wave.dtype}; int16 or floating point is needed, since others have no known scale"
        )
    if not torch.isfinite(wave).all():
        raise UserError("a waveform holds NaN or infinite samples")
    return wave.float()


def build(
    config: ModelConfig,
    dimensions: Dimensions,
    *,
    speech_encoder: LoadedEncoder | None = None,
    clip: OpenClip | None = None,
    vocabulary: Vocabulary | None = None,
    subwords: tuple[Tensor, Tensor] | None = None,
) -> SpeechCLIP:
    """A freshly initialised model of the configured head.

    subwords: what :func:`reduced_table` gives, for a head with keywords that no CLIP will read.

    Raises:
        UserError: a head with keywords without CLIP or vocabulary, a vocabulary of another CLIP, attention heads that
            do not divide the width, or layers the encoder does not have.
    """
    settings = config.head
    if dimensions.speech % settings.attention_heads:
        raise UserError(
            f"model.head.attention_heads: {settings.attention_heads} do not divide the width {dimensions.speech}"
        )
    layers = config.speech_encoder.layers
    if layers is not None and speech_encoder is not None and max(layers) >= speech_encoder.num_states:
        raise UserError(
            f"model.speech_encoder.layers: {max(layers)}; the encoder has states 0 to {speech_encoder.num_states - 1}"
        )
    if speech_encoder is not None:
        available = len(layers) if layers is not None else speech_encoder.num_states
        if available != dimensions.states:
            raise UserError(
                f"model.speech_encoder.layers: {available} hidden states, the checkpoint mixes {dimensions.states}: "
                "a checkpoint for other dimensions"
            )
    room = settings.cif.max_keywords
    if settings.has_keywords and subwords is None:
        if clip is None:
            raise UserError(
                f"model.clip.path: a {settings.name} head needs CLIP's text transformer; "
                "precomputed embeddings do not do"
            )
        if vocabulary is None:
            raise UserError(f"data/clip_vocabulary.tsv: a {settings.name} head needs it; stage 2 makes it")
        subwords, room = reduced_table(clip, vocabulary), clip.context_length - 2
    head = make_head(settings, dimensions.speech, dimensions.joint, subwords, room)
    return SpeechCLIP(
        config,
        dimensions,
        layer_mix=LayerMix(dimensions.states, state_norm=config.speech_encoder.state_norm),
        head=head,
        loss=ContrastiveLoss(config.loss.temperature, learn=config.loss.learn_temperature),
        speech_encoder=speech_encoder,
        clip=clip,
        vocabulary=vocabulary,
    )


def reduced_table(clip: OpenClip, vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
    """Subword embeddings of a vocabulary, [V, D], and which of its rows are no special token, [V] bool.

    Raises UserError for an id outside the text tower's table.
    """
    ids = torch.tensor(vocabulary.ids, device=clip.subword_table.device)
    if int(ids.max()) >= len(clip.subword_table):
        raise UserError(
            f"the vocabulary has id {int(ids.max())}, CLIP's table {len(clip.subword_table)} rows: of another CLIP"
        )
    special = torch.tensor([clip.tokenizer.pad, clip.tokenizer.sot, clip.tokenizer.eot], device=ids.device)
    return clip.subword_table[ids], ~torch.isin(ids, special)
