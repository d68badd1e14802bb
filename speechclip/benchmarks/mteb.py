"""SpeechCLIP in mteb: an encoder and a reranker (extra ``mteb``; mteb 2.26, Enevoldsen et al. 2025, arXiv 2502.13595).

:class:`MtebEncoder` has the methods of mteb's EncoderProtocol, :class:`MtebReranker` those of its CrossEncoderProtocol.
mteb calls both with batches that are dictionaries of lists: "audio", "image" and "text".
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from speechclip.api import BATCH, SpeechCLIP
from speechclip.benchmarks.mteb_meta import describe, training_corpus
from speechclip.common.constants import HOP
from speechclip.common.devices import pick_device
from speechclip.common.errors import UserError
from speechclip.data.batches import evaluation_batches
from speechclip.data.images import as_image
from speechclip.data.waveforms import as_wave

MODALITIES = ("audio", "image", "text")
WINDOW = 512  # utterances that are decoded and sorted by length at a time: 130 MB of 4 s
CACHED = 5_000  # recordings or images whose features a reranker keeps

Batch = Mapping[str, Any]  # of a DataLoader of mteb: lists by modality


class PairScorer(Protocol):
    """A model that scores pairs of a recording and an image, such as a cross-modal reranker."""

    def speech_features(self, waves: Sequence[Tensor]) -> Sequence[Any]:
        """Return the features of recordings, each [n] at 16 kHz."""

    def image_features(self, images: Sequence[Image.Image]) -> Sequence[Any]:
        """Return the features of images."""

    def score_pairs(self, speech: Sequence[Any], images: Sequence[Any]) -> Tensor:
        """Return the scores [N] of N pairs of features. Higher is better."""


class FineScorer:
    """The pairs of a reranker of this project, scored by its ``fine_scores(waves, images)``.

    Args:
        model: a model with a reranker.
        source: its path, for errors.

    Raises:
        UserError: the model has no reranker.
    """

    def __init__(self, model: SpeechCLIP, source: str) -> None:
        fine_scores = getattr(model, "fine_scores", None)
        if fine_scores is None or "rerank" not in model.network.config.head.name:
            raise UserError(
                f"{source}: has a {model.network.config.head.name} head. Give the checkpoint of a reranker."
            )
        self._fine_scores: Callable[[list[Tensor], list[Image.Image]], Tensor] = fine_scores

    def speech_features(self, waves: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the recordings."""
        return waves

    def image_features(self, images: Sequence[Image.Image]) -> Sequence[Image.Image]:
        """Return the images."""
        return images

    def score_pairs(self, speech: Sequence[Any], images: Sequence[Any]) -> Tensor:
        """Score pairs. Each recording of a batch is scored once with all of its images."""
        scores = torch.empty(len(speech))
        places: dict[int, list[int]] = {}
        for at, wave in enumerate(speech):
            places.setdefault(id(wave), []).append(at)
        for same in places.values():
            scores[same] = self._fine_scores([speech[same[0]]], [images[at] for at in same])[0].float().cpu()
        return scores


class _Described:
    """A model with the description that mteb needs."""

    def __init__(self, meta: Any) -> None:
        self._meta = meta

    @property
    def mteb_model_meta(self) -> Any:
        """The ``ModelMeta`` of mteb."""
        return self._meta


class MtebEncoder(_Described):
    """SpeechCLIP with mteb's encoder interface.

    Args:
        model: the model.
        meta: its ``ModelMeta``, see :func:`speechclip.benchmarks.mteb_meta.describe`.
        branch: "parallel" or "cascaded" for a hybrid head; None for the first branch of the head.
    """

    def __init__(self, model: SpeechCLIP, meta: Any, branch: str | None = None) -> None:
        super().__init__(meta)
        if branch is not None and branch not in model.branches:
            raise UserError(f"branch: {branch!r} is unknown. The head has {' and '.join(model.branches)}.")
        self.model, self.branch = model, branch

    def encode(
        self, inputs: Iterable[Batch], *, task_metadata: Any, hf_split: str, hf_subset: str, prompt_type: Any = None,
        **kwargs: Any,
    ) -> np.ndarray:  # fmt: skip
        """Encode the items of a task. Instructions are not used.

        An item with several modalities is the normalised mean of their embeddings. Utterances are encoded in batches
        of similar length, as in stage 4: the last frame of an utterance, and the group norm of HuBERT Base, depend on
        the padding.

        Args:
            inputs: batches with "audio", "image" or "text".
            task_metadata: the description of the task.
            hf_split: its split.
            hf_subset: its subset.
            prompt_type: "query" or "document".
            kwargs: "show_progress_bar"; other settings, such as "batch_size", are for mteb's loader.

        Returns:
            [N, J] float32, L2-normalised.

        Raises:
            UserError: the items have no modality of the model, or cannot be read.
        """
        known = MODALITIES if self.model.network.clip is not None else MODALITIES[:1]
        rows: dict[str, list[np.ndarray]] = {}
        waiting: list[Tensor] = []  # utterances of the present window
        label = f"{task_metadata.name}: {getattr(prompt_type, 'value', prompt_type) or 'items'}"
        seen = 0
        for batch in tqdm(inputs, label, disable=not kwargs.get("show_progress_bar", False)):
            present = [name for name in known if name in batch]
            if not present or (rows and set(present) != set(rows)):
                raise UserError(f"{label}: {', '.join(sorted(batch))} in a batch; the model encodes {', '.join(known)}")
            for name in present:
                parts = rows.setdefault(name, [])
                if name == "audio":
                    waiting += [as_wave(item, f"{label} {seen + at}") for at, item in enumerate(batch[name])]
                    if len(waiting) >= WINDOW:
                        parts.append(self._encode_sorted(waiting))
                        waiting = []
                elif name == "image":
                    images = [as_image(item, f"{label} {seen + at}") for at, item in enumerate(batch[name])]
                    parts.append(self.model.encode_image(images).cpu().numpy())
                else:
                    parts.append(self.model.encode_text(list(batch[name])).cpu().numpy())
            seen += len(batch[present[0]])
        if waiting:
            rows["audio"].append(self._encode_sorted(waiting))
        if not seen:
            raise UserError(f"{label}: no items")
        return _unit(np.sum([np.concatenate(parts) for parts in rows.values()], axis=0))

    def _encode_sorted(self, waves: list[Tensor]) -> np.ndarray:
        """Return the embeddings [N, J] of utterances, encoded in the batches of an evaluation of the recipes."""
        found = np.empty((len(waves), self.model.network.dimensions.joint), dtype=np.float32)
        for part in evaluation_batches(np.round(np.array([len(item) for item in waves]) / HOP), BATCH):
            found[part] = self.model.encode_speech([waves[item] for item in part], self.branch).float().cpu().numpy()
        return found

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Return the cosines [N, M] of embeddings [N, J] and [M, J]."""
        return torch.from_numpy(_unit(_rows(embeddings1)) @ _unit(_rows(embeddings2)).T)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Return the cosines [N] of the rows of embeddings [N, J] and [N, J]."""
        return torch.from_numpy((_unit(_rows(embeddings1)) * _unit(_rows(embeddings2))).sum(axis=1))


def load_encoder(
    name: str, revision: str | None = None, device: str | None = None, *, path: str, branch: str | None = None,
    **settings: Any,
) -> MtebEncoder:  # fmt: skip
    """Return the encoder of a checkpoint. mteb calls this function with the fields of ``ModelMeta``.

    Args:
        name: ``owner/name``; "" for :func:`speechclip.benchmarks.mteb_meta.model_name`.
        revision: not used: a path has one revision.
        device: "cpu" or "cuda"; None for the GPU if there is one.
        path: the checkpoint, see :meth:`SpeechCLIP.from_pretrained`.
        branch: see :class:`MtebEncoder`.
        settings: see :func:`speechclip.benchmarks.mteb_meta.describe`.

    Raises:
        UserError: the checkpoint cannot be loaded, or its training corpus is unknown.
    """
    training_corpus(path, settings.get("trained_on", ""))  # before minutes of loading
    model = SpeechCLIP.from_pretrained(path, device=device or str(pick_device()))
    meta = describe(model.network, path, name=name, loader=load_encoder, **settings)
    return MtebEncoder(model, meta, branch)


def load_reranker(path: str, device: str | None = None, **settings: Any) -> MtebReranker:
    """Return the reranker of a checkpoint.

    Args:
        path: the checkpoint.
        device: "cpu" or "cuda"; None for the GPU if there is one.
        settings: see :func:`speechclip.benchmarks.mteb_meta.describe`.

    Raises:
        UserError: the checkpoint cannot be loaded or has no reranker, or its training corpus is unknown.
    """
    training_corpus(path, settings.get("trained_on", ""))
    model = SpeechCLIP.from_pretrained(path, device=device or str(pick_device()))
    scorer = FineScorer(model, path)
    return MtebReranker(scorer, describe(model.network, path, reranker=True, **settings))


class MtebReranker(_Described):
    """A scorer of pairs with mteb's cross-encoder interface.

    mteb repeats a query for each of its documents. The features of the last recordings and images are kept, so that the
    encoders run once for each of them.

    Args:
        scorer: the model.
        meta: its ``ModelMeta``.
        cached: recordings or images whose features are kept.
    """

    def __init__(self, scorer: PairScorer, meta: Any, cached: int = CACHED) -> None:
        super().__init__(meta)
        self.scorer, self.cached = scorer, cached
        self._features: dict[str, dict[bytes, Any]] = {"audio": {}, "image": {}}

    def predict(
        self, inputs1: Iterable[Batch], inputs2: Iterable[Batch], *, task_metadata: Any, hf_split: str, hf_subset: str,
        prompt_type: Any = None, **kwargs: Any,
    ) -> np.ndarray:  # fmt: skip
        """Score pairs of a query and a document: a recording and an image, in either order.

        Args:
            inputs1: batches of queries.
            inputs2: batches of documents, one for each query.
            task_metadata: the description of the task.
            hf_split: its split.
            hf_subset: its subset.
            prompt_type: not used.
            kwargs: "show_progress_bar"; other settings are for mteb's loader.

        Returns:
            [N] float32. Higher is better.

        Raises:
            UserError: the pairs are not a recording and an image, or the numbers of queries and documents differ.
        """
        scores: list[np.ndarray] = []
        pairs = zip_longest(inputs1, inputs2)
        for query, document in tqdm(pairs, task_metadata.name, disable=not kwargs.get("show_progress_bar", False)):
            sides = {
                name: side[name]
                for side in (query or {}, document or {})
                for name in ("audio", "image")
                if name in side
            }
            if set(sides) != {"audio", "image"} or len(sides["audio"]) != len(sides["image"]):
                raise UserError(f"{task_metadata.name}: the reranker needs pairs of a recording and an image")
            speech, images = self._of("audio", sides["audio"]), self._of("image", sides["image"])
            scores.append(self.scorer.score_pairs(speech, images).detach().float().cpu().numpy())
        return np.concatenate(scores) if scores else np.empty(0, np.float32)

    def _of(self, kind: str, items: Sequence[Any]) -> list[Any]:
        """Return the features of a batch. New items are encoded, each once."""
        known, keys = self._features[kind], [_key(item) for item in items]
        new = {key: item for key, item in zip(keys, items) if key not in known}
        if new:
            if kind == "audio":
                found = self.scorer.speech_features([as_wave(item, kind) for item in new.values()])
            else:
                found = self.scorer.image_features([as_image(item, kind) for item in new.values()])
            known.update(zip(new, found, strict=True))
        features = [known[key] for key in keys]
        for key in list(known)[: max(0, len(known) - self.cached)]:  # the oldest
            del known[key]
        return features


def _key(item: Any) -> bytes:
    """Return a digest of a recording or an image as mteb's loader yields it."""
    digest = hashlib.sha256()
    for part in _content(item):
        digest.update(part)
    return digest.digest()


def _content(item: Any) -> Iterator[bytes]:
    if hasattr(item, "get_all_samples"):  # torchcodec
        samples = item.get_all_samples()
        yield str(samples.sample_rate).encode()
        yield samples.data.numpy().tobytes()
    elif isinstance(item, Mapping) and item.get("array") is not None:
        yield str(item.get("sampling_rate")).encode()
        yield np.asarray(item["array"]).tobytes()
    elif isinstance(item, Mapping):  # not decoded
        yield str(item.get("path")).encode()
        yield item.get("bytes") or b""
    elif isinstance(item, Image.Image):
        yield f"{item.size} {item.mode}".encode()
        yield item.tobytes()
    else:
        raise UserError(f"{type(item).__name__}: neither a recording nor an image of mteb")


def _rows(values: Any) -> np.ndarray:
    """Return embeddings as a float matrix."""
    array = values.detach().float().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values, np.float32)
    return array[None, :] if array.ndim == 1 else array


def _unit(values: np.ndarray) -> np.ndarray:
    """Scale rows to length one. Zero rows stay zero."""
    length = np.linalg.norm(values, axis=1, keepdims=True)
    unit: np.ndarray = (values / np.where(length > 0, length, 1)).astype(np.float32)
    return unit
