"""The public class: load a model, encode speech, images and texts, find keywords."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor, nn

from speechclip.checkpoint.pretrained import load_pretrained
from speechclip.common.errors import UserError
from speechclip.data.images import load_image
from speechclip.data.waveforms import Wave, as_wave
from speechclip.model.encoders.base import SpeechFeatures
from speechclip.model.heads.base import Keywords
from speechclip.model.heads.keyword_head import KeywordHead
from speechclip.model.heads.spans import keyword_spans
from speechclip.model.network import SpeechNetwork

if TYPE_CHECKING:
    from PIL.Image import Image

BATCH = 16  # utterances that are encoded at once


@dataclass(frozen=True)
class Keyword:
    """A keyword of an utterance.

    Attributes:
        subwords: the nearest subwords, best first.
        cosines: their cosines with the keyword.
        span: start and end in seconds. For a head with integrate-and-fire this is the keyword's segment, for the others
            the shortest span that holds half of the keyword's attention.
    """

    subwords: tuple[str, ...]
    cosines: tuple[float, ...]
    span: tuple[float, float]


class SpeechCLIP:
    """Speech aligned with CLIP through images (Shih et al. 2022, arXiv 2210.00705).

    Args:
        network: the network, which :meth:`from_pretrained` loads.
    """

    def __init__(self, network: SpeechNetwork) -> None:
        self.network = network.eval()

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
        """
        return cls(load_pretrained(path, clip=clip)).to(device)

    def to(self, device: str | torch.device) -> SpeechCLIP:
        """Move the model to a device and return it."""
        self.network.to(device)
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
        """Whether the head finds keywords."""
        return self.network.head.has_keywords

    @torch.no_grad()
    def encode_speech(self, waves: Wave | Sequence[Wave], branch: str | None = None) -> Tensor:
        """Encode utterances.

        Args:
            waves: 16 kHz mono arrays or tensors [n], or audio files; one or several.
            branch: "parallel" or "cascaded" for a hybrid head; None for the first branch of the head.

        Returns:
            [N, J], L2-normalised.

        Raises:
            UserError: an utterance that cannot be read, or a branch that the head does not have.
        """
        self._check_branch(branch)
        parts = []
        for batch in self._batches(waves):
            parts.append(self._choose(self.network.apply_head(*self.network.encode_waves(batch)).branches, branch))
        return nn.functional.normalize(torch.cat(parts), dim=-1)

    def encode_image(self, images: Image | str | Path | Sequence[Image | str | Path]) -> Tensor:
        """Encode images, PIL or files, to [N, J], L2-normalised.

        Raises:
            UserError: a file that is not an image, or a model without CLIP.
        """
        items = images if isinstance(images, Sequence) and not isinstance(images, str) else [images]
        loaded = [load_image(item) if isinstance(item, (str, Path)) else item.convert("RGB") for item in items]
        return self.network.require_clip().encode_images(loaded)

    def encode_text(self, texts: str | Sequence[str]) -> Tensor:
        """Encode texts to [N, J], L2-normalised.

        Raises:
            UserError: a model without CLIP.
        """
        return self.network.require_clip().encode_texts([texts] if isinstance(texts, str) else list(texts))

    @torch.no_grad()
    def keywords(self, waves: Wave | Sequence[Wave], top_k: int = 5) -> list[list[Keyword]]:
        """Return the keywords of each utterance with their ``top_k`` nearest subwords, special tokens excluded.

        Raises:
            UserError: a head without keywords.
        """
        if not self.has_keywords or self.network.vocabulary is None:
            raise UserError(f"model.head.name: a {self.network.config.head.name} head has no keywords")
        found: list[list[Keyword]] = []
        for batch in self._batches(waves):
            features = self.network.encode_waves(batch)
            keywords = self.network.find_keywords(SpeechFeatures(*features)).keywords
            assert keywords is not None
            found += self._describe(keywords, features.frames, top_k)
        return found

    @torch.no_grad()
    def encode_with_keywords(
        self, wave: Wave, branch: str | None = None, top_k: int = 5
    ) -> tuple[Tensor, list[Keyword] | None]:
        """Encode one utterance once, for its embedding and its keywords.

        Returns:
            The embedding [J] as :meth:`encode_speech` gives it, and the keywords; None for a head without keywords.

        Raises:
            UserError: a branch that the head does not have.
        """
        self._check_branch(branch)
        states, frames = self.network.encode_waves(self._tensors([wave]))
        output = self.network.apply_head(states, frames)
        embedding = nn.functional.normalize(self._choose(output.branches, branch), dim=-1)[0]
        keywords = None if output.keywords is None else self._describe(output.keywords, frames, top_k)[0]
        return embedding, keywords

    @torch.no_grad()
    def hidden_states(self, waves: Wave | Sequence[Wave]) -> tuple[list[Tensor], Tensor]:
        """Return the hidden states of one padded batch, as the s3prl upstream: see :meth:`SpeechNetwork.hidden_states`.

        They differ for SpeechCLIP+ Base: this method normalises its waveforms, the upstream does not.
        """
        return self.network.hidden_states(self._tensors(waves))

    def _check_branch(self, branch: str | None) -> None:
        if branch is not None and branch not in self.branches:
            name = self.network.config.head.name
            raise UserError(f"branch: a {name} head has the branch {' and '.join(self.branches)}, not {branch}")

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
                    Keyword(tuple(subwords[row] for row in near), tuple(cosines), span)
                    for near, cosines, span in zip(rows, values, spans)
                ]
            )
        return found

    def _batches(self, waves: Wave | Sequence[Wave]) -> list[list[Tensor]]:
        items = self._tensors(waves)
        return [items[at : at + BATCH] for at in range(0, len(items), BATCH)]

    def _tensors(self, waves: Wave | Sequence[Wave]) -> list[Tensor]:
        single = isinstance(waves, (str, Path)) or (isinstance(waves, (np.ndarray, Tensor)) and waves.ndim == 1)
        items = [waves] if single else waves
        tensors = [as_wave(item).to(self.device) for item in cast(Sequence[Wave], items)]
        if not tensors:
            raise UserError("waves: empty. Give at least one waveform.")
        return tensors
