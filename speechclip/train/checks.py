"""Checks that settings and data fit together. They run before training writes anything."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from speechclip.common.errors import UserError
from speechclip.config import Config
from speechclip.model.heads.fast_vgs import holds_transformer

if TYPE_CHECKING:
    from speechclip.train.trainer import TrainingData

logger = logging.getLogger(__name__)


def check_batch_size(batch_size: int, processes: int, fine_batch: int = 0) -> None:
    """Check that every process gets an utterance of each batch.

    Args:
        batch_size: utterances in a global batch, over all processes.
        processes: the number of training processes.
        fine_batch: of the head fast_vgs; else 0.

    Raises:
        UserError: there are more processes than utterances in a batch or in a part of it.
    """
    if 0 < fine_batch < processes:
        raise UserError(
            f"model.head.fast_vgs.fine_batch: {fine_batch} is less than the {processes} processes."
            f" Use at least {processes}."
        )
    if batch_size < processes:
        raise UserError(
            f"data.batch_size: {batch_size} is less than the {processes} processes. Use at least {processes}."
        )


def check_encoder(config: Config) -> None:
    """Check that the speech encoder runs in the training loop if a part of it is trained.

    Raises:
        UserError: training reads stored hidden states.
    """
    if holds_transformer(config.model) and config.train.encoder != "all":
        return
    if config.train.encoder != "frozen" and config.data.feats != "online":
        raise UserError(
            f"train.encoder: {config.train.encoder} needs the encoder in the training loop, but data.feats is "
            f"{config.data.feats}. Set data.feats to online; in a recipe, add --feats online."
        )


def check_data(config: Config, data: TrainingData) -> None:
    """Check that the training split fills a batch and that both splits have more than one image.

    A single dev image, and a run that saves only at its end, are warnings.

    Raises:
        UserError: fewer training utterances than a batch, or a single training image.
    """
    train, dev = data.train, data.dev
    size, count = config.data.batch_size, len(train.ids)
    if size > count:
        raise UserError(f"data.batch_size: {size} is more than the {count} training utterances. Use at most {count}.")
    if (train.utterance_image == train.utterance_image[0]).all():
        raise UserError(
            f"{train.data.path}: all utterances describe one image. The contrastive loss needs at least two images."
        )
    if (dev.utterance_image == dev.utterance_image[0]).all():
        logger.warning("%s: all utterances describe one image. The best step cannot be chosen by R@10.", dev.data.path)
    interval, steps = config.train.eval_interval, config.optim.max_steps
    if interval > steps:
        logger.warning(
            "train.eval_interval: %d is more than the %d steps of the run. Only the last step is scored and saved.",
            interval, steps,
        )  # fmt: skip
