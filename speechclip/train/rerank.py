"""Training of a reranker: hard groups of utterances by the coarse scores, and the loss over all pairs of a group."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from speechclip.checkpoint.folder import WEIGHTS, load_weights, locate, read_checkpoint, read_weights
from speechclip.common.errors import UserError
from speechclip.config import Config
from speechclip.data.dataset import Batch, Split
from speechclip.data.regions import Regions, RegionStore
from speechclip.eval.coarse_to_fine import two_stage_report
from speechclip.eval.second_stage import SECTION
from speechclip.model.heads.reranker import RERANKERS, FrozenSpeech, RerankerHead, SpeechTokens
from speechclip.model.inference import embed_speech
from speechclip.model.losses import masked_cross_entropy
from speechclip.model.network import SpeechNetwork
from speechclip.model.reranking import SpeechCache, coarse_scores, encode_candidates, fine_scores, reranker_of
from speechclip.train.step import TrainBatch, gather_rows
from speechclip.train.trainer import DevScores, Trainer

_COARSE = "head.coarse."  # of the names of the coarse head's tensors
#: Weights of the fine score. The one with the highest mean R@1 on dev is stored in a checkpoint, the least of equals.
FINE_WEIGHTS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.5, 2.0, 3.0)


class HardGroups(Sequence[list[int]]):
    """Batches of hard groups. A group is an utterance and utterances of images that the coarse score places near it.

    The images of a group differ. The batches depend on the arguments only; one is computed when it is read.

    Args:
        anchors: first utterance of each group, [B, G] for B batches.
        speech: [U, J], coarse embeddings of the utterances.
        images: [I, J], embeddings of the images.
        owner: [U], image of each utterance.
        size: utterances in a group.
        pool: the other images are drawn from this many nearest images of the first utterance.
        seed: numbers that seed the draws.
    """

    def __init__(
        self, anchors: np.ndarray, speech: np.ndarray, images: np.ndarray, owner: np.ndarray, *, size: int, pool: int,
        seed: tuple[int, ...],
    ) -> None:  # fmt: skip
        self._anchors, self._speech, self._images, self._owner = anchors, speech, images, owner
        self._size, self._pool, self._seed = size, pool, seed
        self._by_image = np.argsort(owner, kind="stable")
        self._starts = np.searchsorted(owner[self._by_image], np.arange(len(images) + 1))
        self._used = np.flatnonzero(np.diff(self._starts))  # images with an utterance
        self._gallery = images[self._used]

    def __len__(self) -> int:
        return len(self._anchors)

    def __getitem__(self, at: Any) -> Any:
        """Return batch ``at``: its groups one after the other."""
        if isinstance(at, slice):
            return [self[number] for number in range(*at.indices(len(self)))]
        batch: list[int] = []
        for number, anchor in enumerate(self._anchors[at].tolist()):
            rng = np.random.default_rng((*self._seed, at, number))
            scores = self._gallery @ self._speech[anchor]
            scores[self._used == self._owner[anchor]] = -np.inf
            count = min(self._pool, len(scores) - 1)
            near = self._used[np.argpartition(-scores, count - 1)[:count]]
            chosen = rng.choice(np.sort(near), size=self._size - 1, replace=False)
            batch.append(anchor)
            for image in chosen.tolist():
                batch.append(int(self._by_image[rng.integers(self._starts[image], self._starts[image + 1])]))
        return batch


class _Share(Sequence[list[int]]):
    """Every ``world``-th group of each batch, from group ``rank`` on."""

    def __init__(self, batches: HardGroups, first: int, rank: int, world: int, size: int) -> None:
        self._batches, self._first, self._rank, self._world, self._size = batches, first, rank, world, size

    def __len__(self) -> int:
        return len(self._batches) - self._first

    def __getitem__(self, at: Any) -> Any:
        if not 0 <= at < len(self):
            raise IndexError(at)
        batch = self._batches[self._first + at]
        groups = [batch[start : start + self._size] for start in range(0, len(batch), self._size)]
        return [item for group in groups[self._rank :: self._world] for item in group]


class RerankBatch(TrainBatch):
    """The input of a training step of a reranker.

    Args:
        batch: B utterances, group after group.
        targets: [B, J], embeddings of their images.
        groups: [B] int, their images.
        regions: of the images of the first ones, whose groups pass the cross-modal layers.
        speech: the frozen inputs of the utterances, if they are cached.
    """

    def __init__(
        self, batch: Batch, targets: Tensor, groups: Tensor, regions: Regions, speech: FrozenSpeech | None
    ) -> None:
        super().__init__(batch, targets, groups)
        self.found, self.speech = regions, speech


class RerankStep(nn.Module):
    """The loss of a reranker, a sum of three cross-entropies. The coarse scores are not in it.

    The first is that of the fine scores over the pairs of each group, in both directions. The others are those of the
    pooled speech: over all pairs of the global batch, in both directions, and over all images of the training split.

    Args:
        model: a network with a reranker.
        size: utterances in a group.
        groups: groups of the global batch.
        crossed: the cross-modal layers score the pairs of the first groups of the global batch alone, this many.
        gallery: [I, J], embeddings of the training images.
        fabric: launched.
    """

    def __init__(
        self, model: SpeechNetwork, size: int, groups: int, crossed: int, gallery: Tensor, fabric: Fabric
    ) -> None:
        super().__init__()
        self.model, self._size, self._fabric = model, size, fabric
        world = fabric.world_size
        self._sizes = [size * len(range(rank, groups, world)) for rank in range(world)]
        self._share = self._sizes[fabric.global_rank] * world / (size * groups)
        self._crossed_share = world / (size * crossed)  # of one utterance
        self._gallery = gallery.to(fabric.device)

    def forward(self, train_batch: RerankBatch) -> Tensor:
        """Return the loss of a batch, a scalar."""
        head = cast(RerankerHead, self.model.head)
        frozen = train_batch.speech or head.frozen_speech(*self.model.mixed_frames(train_batch.batch))
        speech = head.speech_tokens(frozen)
        count = len(train_batch.found.features)
        images = head.image_tokens(train_batch.found, train_batch.targets[:count])
        known = self._known(head, speech, train_batch.targets)
        crossed = (speech.tokens[:count], speech.valid[:count], images)
        inputs = (part.unflatten(0, (-1, self._size)) for part in crossed)
        fine = head.scorer.score_groups(*inputs).float() + self._own_groups(known, count)
        every = nn.functional.cross_entropy(head.match_pooled(speech, self._gallery), train_batch.groups)
        # Gradients are averaged over processes, whatever the share of each: undo that.
        local = _group_loss(fine) * (self._crossed_share * count) + every * self._share
        return local + masked_cross_entropy(known, self._gather(train_batch.groups))

    def _known(self, head: RerankerHead, speech: SpeechTokens, embeddings: Tensor) -> Tensor:
        """Return the scores of the pooled speech of all pairs of the global batch, [B, B]."""
        if self._fabric.world_size > 1:
            embeddings = self._gather(embeddings)
        return self._gather(head.match_pooled(speech, embeddings), sync_grads=True)

    def _own_groups(self, scores: Tensor, count: int) -> Tensor:
        """Return the scores within the groups of this process's first utterances, [G, size, size].

        Args:
            scores: [B, B], of all pairs of the global batch.
            count: the number of these utterances.
        """
        first = sum(self._sizes[: self._fabric.global_rank])
        own = scores[first : first + count, first : first + count]
        blocks = own.unflatten(0, (-1, self._size)).unflatten(2, (-1, self._size))  # [G, size, G, size]
        return blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1)

    def _gather(self, rows: Tensor, sync_grads: bool = False) -> Tensor:
        return gather_rows(self._fabric, rows, self._sizes, sync_grads)


def _group_loss(scores: Tensor) -> Tensor:
    """Return the mean of the cross-entropies over rows and columns of groups [G, N, N]. Their images differ."""
    right = torch.arange(scores.shape[1], device=scores.device).repeat(len(scores))
    cross_entropy = nn.functional.cross_entropy
    rows, columns = scores.flatten(0, 1), scores.transpose(1, 2).flatten(0, 1)
    return (cross_entropy(rows, right) + cross_entropy(columns, right)) / 2


class RerankTrainer(Trainer):
    """A :class:`Trainer` whose batches are hard groups and whose dev scores are those after reranking.

    The best weights have the highest mean R@1 over both directions of dev after the best candidates
    (``model.head.reranker.dev_top_k``) are reordered. The weight of the fine score (:data:`FINE_WEIGHTS`) is chosen by
    the same score.

    Args:
        regions: of the images of train and dev.
        coarse: fingerprint of the coarse checkpoint.
        options: see :class:`Trainer`.

    Raises:
        UserError: the settings do not fit the data, or the saved run is damaged.
    """

    def __init__(
        self, config: Config, model: SpeechNetwork, data: Any, folder: Path, *,
        regions: tuple[RegionStore, RegionStore], coarse: str, **options: Any,
    ) -> None:  # fmt: skip
        self._settings = config.model.head.reranker
        _check_groups(config, data.train, options["fabric"].world_size)
        self._regions, self._coarse_weights = regions, coarse
        self._coarse: np.ndarray | None = None
        self._cache: SpeechCache | None = None
        for part in (model.weighted_sum, model.loss):
            part.requires_grad_(False)
        reranker_of(model).coarse.requires_grad_(False)
        super().__init__(config, model, data, folder, **options)

    def _inputs(self) -> dict[str, str]:
        """Return fingerprints of everything that training reads."""
        return {**super()._inputs(), "coarse": self._coarse_weights, "regions": str(self._regions[0].source)}

    def _step_module(self) -> nn.Module:
        groups = self.config.data.batch_size // self._settings.group
        gallery = torch.from_numpy(self.data.train.images)
        return RerankStep(self.model, self._settings.group, groups, self._crossed_groups, gallery, self.fabric)

    @property
    def _crossed_groups(self) -> int:
        """Groups of the global batch that pass the cross-modal layers."""
        return self._settings.crossed_groups or self.config.data.batch_size // self._settings.group

    def _batches(self, epoch: int, position: int) -> Sequence[list[int]]:
        size, train = self._settings.group, self.data.train
        groups = self.config.data.batch_size // size
        count = len(train.ids) // self.config.data.batch_size
        order = np.random.default_rng((self.seed, epoch)).permutation(len(train.ids))
        batches = HardGroups(
            order[: count * groups].reshape(count, groups), self._coarse_embeddings(), train.images,
            train.utterance_image, size=size, pool=self._settings.pool, seed=(self.seed, epoch),
        )  # fmt: skip
        return _Share(batches, position, self.fabric.global_rank, self.fabric.world_size, size)

    def _coarse_embeddings(self) -> np.ndarray:
        """Return the coarse embeddings of all training utterances, [U, J], which do not change."""
        if self._coarse is None:
            self._log(f"{self.folder}: embedding {len(self.data.train.ids)} utterances to find hard negatives")
            share = (self.fabric.global_rank, self.fabric.world_size)
            if self._settings.cache:
                self._cache = SpeechCache(self.model, self.data.train_speech, self.config.data.eval_batch_size)
                self._coarse = self._cache.coarse.numpy()
                return self._coarse
            rows = embed_speech(self.model, self.data.train_speech, self.config.data.eval_batch_size, share=share)
            self._coarse = self._summed(rows)
        return self._coarse

    def _train_batch(self, batch: Batch) -> TrainBatch:
        plain, split = super()._train_batch(batch), self.data.train
        own = range(self.fabric.global_rank, self._crossed_groups, self.fabric.world_size)
        crossed = plain.groups[: self._settings.group * len(own)]
        found = self._regions[0].batch([split.image_ids[at] for at in crossed.tolist()])
        regions = Regions(*(part.to(self.fabric.device) for part in found))
        cached = None if self._cache is None else self._cache.read(batch.indices, self.fabric.device)
        return RerankBatch(plain.batch, plain.targets, plain.groups, regions, cached)

    def _epoch(self, epoch: int, position: int) -> Any:
        batches = self._batches(epoch, position)
        if self._cache is None:
            return self._read(batches, epoch)
        return (Batch(torch.tensor(indices), None, None, None) for indices in batches)

    def _suspects(self, batch: Batch) -> str:
        return super()._suspects(self.data.train_speech.batch(batch.indices.tolist()))

    def _dev_report(self) -> DevScores:
        """Score dev in the first process, while the others wait."""
        dev, size = self.data.dev, self.config.data.eval_batch_size
        if not self._is_main:
            return DevScores({}, np.empty((0, 0)))
        found = encode_candidates(self.model, self.data.dev_speech, self._regions[1], dev.image_ids, dev.images, size)
        coarse = (found.coarse @ found.embeddings.T).numpy()
        fine: list[np.ndarray] = []  # by direction
        reports: dict[float, dict[str, Any]] = {}
        for weight in FINE_WEIGHTS:
            calls = iter(range(2))

            def score(pairs: np.ndarray, weight: float = weight, calls: Iterator[int] = calls) -> np.ndarray:
                at = next(calls)
                if at == len(fine):
                    fine.append(fine_scores(self.model, found, pairs, self._settings.block))
                return coarse_scores(self.model, found, pairs) + np.float32(weight) * fine[at]

            reports[weight], _ = two_stage_report(
                coarse, dev.utterance_image, self._settings.dev_top_k, score, n_bootstrap=0
            )
        best = max(reports, key=lambda weight: reports[weight][SECTION]["mean_R@1"])
        reranker_of(self.model).fine_weight.fill_(best)
        return DevScores(reports[best], found.coarse.numpy())

    def _save(self, evaluate: bool) -> None:
        """Save. The weight of the fine score belongs to the saved weights: training goes on without it."""
        super()._save(evaluate)
        reranker_of(self.model).fine_weight.fill_(1.0)


def _check_groups(config: Config, train: Split, processes: int) -> None:
    size, batch = config.model.head.reranker.group, config.data.batch_size
    if config.model.head.reranker.cache and config.data.max_seconds:
        raise UserError("model.head.reranker.cache: needs whole utterances. Set data.max_seconds to 0.")
    if batch % size:
        raise UserError(
            f"data.batch_size: {batch} is not a multiple of model.head.reranker.group ({size}). Change one of them."
        )
    crossed = config.model.head.reranker.crossed_groups
    if crossed and not processes <= crossed <= batch // size:
        raise UserError(
            f"model.head.reranker.crossed_groups: is {crossed}. Choose from {processes} (processes) to {batch // size} "
            "(groups of a batch), or 0 for all groups."
        )
    if batch // size < processes:
        raise UserError(
            f"data.batch_size: {batch} holds {batch // size} groups, less than the {processes} processes. Use at least "
            f"{processes * size}."
        )
    images = len(np.unique(train.utterance_image))
    if min(config.model.head.reranker.pool, images - 1) < size - 1:
        raise UserError(
            f"model.head.reranker.group: {size} images cannot be drawn from {images} images and a pool of "
            f"{config.model.head.reranker.pool}."
            " Change one of them."
        )


def with_coarse_head(config: Config, coarse: str | Path, regions: RegionStore) -> Config:
    """Return the configuration of a reranker over a trained head: its encoders, head and loss are those of the head.

    Args:
        config: the wanted configuration; ``model.head.reranker`` is kept.
        coarse: the checkpoint of the trained head.
        regions: the regions of the training images.

    Raises:
        UserError: the checkpoint is missing or damaged, or its head cannot be reranked.
    """
    folder, saved, origin = read_checkpoint(coarse, strict=True)
    model, head = saved.model, saved.model.head
    if head.name not in RERANKERS:
        raise UserError(f"{folder}: has a {head.name} head. A reranker needs one of: {', '.join(RERANKERS)}.")
    if saved.train.encoder != "frozen":
        raise UserError(f"{folder}: its speech encoder was trained. A reranker needs a head over a frozen encoder.")
    reranker = dataclasses.replace(config.model.head.reranker, region_features=regions.width)
    named = dataclasses.replace(head, name=RERANKERS[head.name], reranker=reranker)
    speech = dataclasses.replace(model.speech_encoder, path=locate(model.speech_encoder.path, folder, origin))
    clip = dataclasses.replace(model.clip, path=locate(model.clip.path, folder, origin))
    return dataclasses.replace(config, model=dataclasses.replace(model, head=named, speech_encoder=speech, clip=clip))


def load_coarse(model: SpeechNetwork, coarse: str | Path) -> None:
    """Load the weights of a trained head into a network with a fresh reranker.

    Raises:
        UserError: the weights do not fit.
    """
    folder, _, _ = read_checkpoint(coarse, strict=True)
    weights = {
        f"{_COARSE}{name.removeprefix('head.')}" if name.startswith("head.") else name: value
        for name, value in read_weights(folder / WEIGHTS).items()
    }
    fresh = {
        name: value for name, value in model.trained_state().items()
        if name.startswith("head.") and not name.startswith(_COARSE)
    }  # fmt: skip
    load_weights(model, fresh | weights, folder / WEIGHTS)
