"""The public class: load a model, encode speech, images and texts, find keywords."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from speechclip.checkpoint.pretrained import load_pretrained
from speechclip.common.errors import UserError, first_line
from speechclip.data.images import ImageInput, as_image, list_images
from speechclip.data.waveforms import Wave, as_wave, check_rate, list_waves
from speechclip.model.encoders.base import SpeechFeatures
from speechclip.model.heads.base import Keywords
from speechclip.model.heads.keyword_head import KeywordHead
from speechclip.model.heads.spans import keyword_spans
from speechclip.model.network import SpeechNetwork
from speechclip.model.parametrizations import merge_parametrizations
from speechclip.model.reranking import image_tokens, reranker_of, score_batch

BATCH = 16  # utterances that are encoded at once
CLIP_BATCH = 64  # images or texts that are encoded at once


@dataclass(frozen=True)
class Keyword:
    """A keyword of an utterance.

    Attributes:
        subwords: the nearest subwords, best first.
        cosines: their cosines with the keyword.
        span: start and end in seconds, to the millisecond. For a head with integrate-and-fire this is the keyword's
            segment, for the others the shortest span that holds half of the keyword's attention.
    """

    subwords: tuple[str, ...]
    cosines: tuple[float, ...]
    span: tuple[float, float]


class SpeechCLIP:
    """Speech aligned with CLIP through images (Shih et al. 2022, arXiv 2210.00705).

    It can be copied and pickled, for example for worker processes.

    Args:
        network: the network, which :meth:`from_pretrained` loads. It is set to eval mode.
    """

    def __init__(self, network: SpeechNetwork) -> None:
        self.network = network.eval()
        merge_parametrizations(self.network)

    @classmethod
    def from_pretrained(cls, path: str | Path, *, device: str = "cpu", clip: str | None = None) -> SpeechCLIP:
        """Load a model with its frozen encoders.

        Args:
            path: a checkpoint folder, a published SpeechCLIP ``.ckpt``, the name of a published model (see
                `speechclip models`), "mini", or the id of a model on the hub.
            device: "cpu" or "cuda".
            clip: path of the CLIP that belongs to a ``.ckpt``; None for OpenAI's, downloaded by name; "" for none
                (parallel head).

        Raises:
            UserError: the checkpoint is missing, damaged or for other dimensions, or an encoder cannot be found.
            UserError: an argument is wrong.
        """
        if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
            raise UserError(f"path: {path!r} is not a checkpoint. Give a folder, a .ckpt file or a hub id.")
        if clip is not None and not isinstance(clip, (str, os.PathLike)):
            raise UserError(f"clip: {type(clip).__name__} is not a path. Give a string.")
        place = _check_device(device)  # before minutes of loading
        return cls(load_pretrained(path, clip=None if clip is None else os.fspath(clip))).to(place)

    def to(self, device: str | torch.device) -> SpeechCLIP:
        """Move the model to a device and return it.

        Raises:
            UserError: torch does not have the device.
        """
        self.network.to(_check_device(device))
        return self

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.network.device

    @property
    def branches(self) -> tuple[str, ...]:
        """The branches of the head: "parallel", "cascaded", or both for a hybrid head. The first one is the default."""
        return self.network.head.branches

    @property
    def has_keywords(self) -> bool:
        """True if the head finds keywords."""
        return self.network.head.has_keywords

    @torch.no_grad()
    def encode_speech(
        self, waves: Wave | Iterable[Wave], branch: str | None = None, *, sampling_rate: int | None = None
    ) -> Tensor:
        """Encode utterances.

        Args:
            waves: one or several utterances. Each is a path, the bytes of an audio file, an open file, a mono array or
                tensor [n], or a dictionary of ``datasets``. An array or tensor [N, n] holds N utterances.
            branch: "parallel" or "cascaded" for a hybrid head; None for the first branch of the head.
            sampling_rate: rate of plain arrays and tensors in Hz, None for 16 kHz. Other rates are resampled. Files and
                dictionaries have their own rate.

        Returns:
            [N, J], L2-normalised.

        Raises:
            UserError: an argument is wrong, or an utterance cannot be read.
            UserError: the head does not have the branch.
        """
        self._check_branch(branch)
        parts = []
        for batch in self._batches(waves, sampling_rate):
            parts.append(self._choose(self.network.apply_head(*self.network.encode_waves(batch)).branches, branch))
        return nn.functional.normalize(torch.cat(parts), dim=-1)

    def encode_image(self, images: ImageInput | Iterable[ImageInput]) -> Tensor:
        """Encode images. :mod:`speechclip.data.images` describes how their colours are read.

        Args:
            images: one or several images. Each is a path, the bytes of a file, an open file, a PIL image, a uint8 array
                or tensor [height, width, 3], or a dictionary of ``datasets``.

        Returns:
            [N, J], L2-normalised.

        Raises:
            UserError: an argument is wrong, or an image cannot be read.
            UserError: the model has no CLIP.
        """
        clip, items = self.network.require_clip(), list_images(images)
        parts = []
        for at in range(0, len(items), CLIP_BATCH):
            batch = enumerate(items[at : at + CLIP_BATCH], start=at)
            parts.append(clip.encode_images([as_image(item, f"images[{number}]") for number, item in batch]))
        return torch.cat(parts)

    @torch.no_grad()
    def fine_scores(
        self, waves: Wave | Iterable[Wave], images: ImageInput | Iterable[ImageInput], *,
        sampling_rate: int | None = None,
    ) -> Tensor:  # fmt: skip
        """Score all pairs of utterances and images with the cross-modal layers of a reranker.

        Use it for the best images of :meth:`encode_speech` and :meth:`encode_image`: it costs much more.

        Args:
            waves: one or several utterances; see :meth:`encode_speech`.
            images: one or several images; see :meth:`encode_image`.
            sampling_rate: rate of plain arrays and tensors in Hz, None for 16 kHz.

        Returns:
            [N, M]. Higher is better; the scores of one utterance are comparable, those of different ones are not.

        Raises:
            UserError: an argument is wrong, or an utterance or image cannot be read.
            UserError: the model has no reranker.
        """
        reranker_of(self.network, "fine_scores")
        clip, items = self.network.require_clip(), list_images(images)
        parts = []
        for at in range(0, len(items), CLIP_BATCH):
            batch = [as_image(item, f"images[{at + n}]") for n, item in enumerate(items[at : at + CLIP_BATCH])]
            pixels = torch.stack([clip.preprocess(image) for image in batch])
            parts.append(image_tokens(self.network, clip.encode_patches(pixels), clip.encode_pixels(pixels)))
        tokens = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
        rows = [score_batch(self.network, batch, *tokens) for batch in self._batches(waves, sampling_rate)]
        return torch.cat(rows)

    def encode_text(self, texts: str | Iterable[str]) -> Tensor:
        """Encode texts.

        Args:
            texts: one or several strings.

        Returns:
            [N, J], L2-normalised.

        Raises:
            UserError: an argument is wrong.
            UserError: the model has no CLIP.
        """
        clip = self.network.require_clip()
        if isinstance(texts, (bytes, Mapping)) or not isinstance(texts, Iterable):
            raise UserError(f"texts: {type(texts).__name__} is not a text. Give a string or a list of strings.")
        items = [texts] if isinstance(texts, str) else list(texts)
        if not items:
            raise UserError("texts: empty. Give at least one text.")
        for number, item in enumerate(items):
            if not isinstance(item, str):
                raise UserError(f"texts[{number}]: {type(item).__name__} is not a text. Give a string.")
            if any("\ud800" <= letter <= "\udfff" for letter in item):
                raise UserError(f"texts[{number}]: {item!r} is not valid Unicode. Remove the surrogates.")
        return torch.cat([clip.encode_texts(items[at : at + CLIP_BATCH]) for at in range(0, len(items), CLIP_BATCH)])

    @torch.no_grad()
    def keywords(
        self, waves: Wave | Iterable[Wave], top_k: int = 5, *, sampling_rate: int | None = None
    ) -> list[list[Keyword]]:
        """Return the keywords of each utterance with their nearest subwords, special tokens excluded.

        Args:
            waves: one or several utterances; see :meth:`encode_speech`.
            top_k: number of subwords per keyword.
            sampling_rate: rate of plain arrays and tensors in Hz, None for 16 kHz.

        Raises:
            UserError: an argument is wrong, or an utterance cannot be read.
            UserError: the head has no keywords.
        """
        if not self.has_keywords or self.network.vocabulary is None:
            raise UserError(
                f"model.head.name: a {self.network.config.head.name} head has no keywords."
                " Use a cascaded or hybrid head."
            )
        _check_top_k(top_k)
        found: list[list[Keyword]] = []
        for batch in self._batches(waves, sampling_rate):
            features = self.network.encode_waves(batch)
            keywords = self.network.find_keywords(SpeechFeatures(*features)).keywords
            assert keywords is not None
            found += self._describe(keywords, features.frames, top_k)
        return found

    @torch.no_grad()
    def encode_with_keywords(
        self, wave: Wave, branch: str | None = None, top_k: int = 5, *, sampling_rate: int | None = None
    ) -> tuple[Tensor, list[Keyword] | None]:
        """Encode one utterance once, for its embedding and its keywords.

        Args:
            wave: one utterance; see :meth:`encode_speech`.
            branch: see :meth:`encode_speech`.
            top_k: number of subwords per keyword.
            sampling_rate: rate of a plain array or tensor in Hz, None for 16 kHz.

        Returns:
            The embedding [J] of :meth:`encode_speech`, and the keywords; None for a head without keywords.

        Raises:
            UserError: an argument is wrong, or the utterance cannot be read.
            UserError: the head does not have the branch.
        """
        self._check_branch(branch)
        _check_top_k(top_k)
        check_rate(sampling_rate)
        states, frames = self.network.encode_waves([as_wave(wave, "wave", sampling_rate).to(self.device)])
        output = self.network.apply_head(states, frames)
        embedding = nn.functional.normalize(self._choose(output.branches, branch), dim=-1)[0]
        keywords = None if output.keywords is None else self._describe(output.keywords, frames, top_k)[0]
        return embedding, keywords

    @torch.no_grad()
    def hidden_states(
        self, waves: Wave | Iterable[Wave], *, sampling_rate: int | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """Return the hidden states of one padded batch, as the s3prl upstream does.

        They differ for SpeechCLIP+ Base: this method normalises its waveforms, the upstream does not.

        Args:
            waves: one or several utterances; see :meth:`encode_speech`.
            sampling_rate: rate of plain arrays and tensors in Hz, None for 16 kHz.

        Returns:
            See :meth:`speechclip.model.network.SpeechNetwork.hidden_states`.

        Raises:
            UserError: an argument is wrong, or an utterance cannot be read.
        """
        items = list_waves(waves)
        check_rate(sampling_rate)
        return self.network.hidden_states(self._tensors(items, 0, sampling_rate))

    def _check_branch(self, branch: str | None) -> None:
        if branch is not None and branch not in self.branches:
            name, known = self.network.config.head.name, " and ".join(self.branches)
            raise UserError(f"branch: a {name} head has the branch {known}, not {branch}. Choose one that it has.")

    def _choose(self, branches: dict[str, Tensor], branch: str | None) -> Tensor:
        return branches[branch or next(iter(branches))]

    def _describe(self, keywords: Keywords, frames: Tensor, top_k: int) -> list[list[Keyword]]:
        """Return the keywords of a batch with their nearest subwords and spans. frames: [B]."""
        assert isinstance(self.network.head, KeywordHead) and self.network.vocabulary is not None
        quantizer, subwords = self.network.head.quantizer, self.network.vocabulary.subwords
        top_k = min(top_k, int(quantizer.valid_mask.sum()))
        best = quantizer.cosines(keywords.vectors).masked_fill(~quantizer.valid_mask, -torch.inf).topk(top_k, dim=-1)
        found = []
        for i, length in enumerate(frames.tolist()):
            count = int(keywords.mask[i].sum())
            rows, values = best.indices[i, :count].tolist(), best.values[i, :count].tolist()
            spans = keyword_spans(keywords, i, length)
            found.append(
                [
                    Keyword(
                        tuple(subwords[row] for row in near), tuple(cosines), (round(span[0], 3), round(span[1], 3))
                    )
                    for near, cosines, span in zip(rows, values, spans)
                ]
            )
        return found

    def _batches(self, waves: Wave | Iterable[Wave], sampling_rate: int | None) -> Iterator[list[Tensor]]:
        """Yield the utterances in batches; a batch is read when it is needed."""
        items = list_waves(waves)
        check_rate(sampling_rate)
        for at in range(0, len(items), BATCH):
            yield self._tensors(items[at : at + BATCH], at, sampling_rate)

    def _tensors(self, items: list[Wave], first: int, sampling_rate: int | None) -> list[Tensor]:
        numbered = enumerate(items, start=first)
        return [as_wave(item, f"waves[{at}]", sampling_rate).to(self.device) for at, item in numbered]


def _check_top_k(top_k: int) -> None:
    if not isinstance(top_k, (int, np.integer)) or isinstance(top_k, bool) or top_k < 1:
        raise UserError(f"top_k: {top_k!r} is not a number of subwords. Give an integer of at least 1.")


def _check_device(device: str | torch.device) -> torch.device:
    """Return a device that torch can use."""
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"device: {device!r} is not a device. Give 'cpu' or 'cuda'.") from error
    try:
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = first_line(error).rstrip(".")
        raise UserError(f"device: {str(place)!r} cannot be used ({reason}). Give 'cpu'.") from error
    return place
