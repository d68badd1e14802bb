"""The training of a text head: transcripts of the training utterances against the embeddings of their images."""

from __future__ import annotations

import copy
import logging
import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from speechclip.config import OptimConfig
from speechclip.data.dataset import Split
from speechclip.eval.retrieval import retrieval_report
from speechclip.model.losses import ContrastiveLoss
from speechclip.model.text_head import TextHead
from speechclip.train.optim import learning_rate, make_optimizer

logger = logging.getLogger(__name__)

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class TextHeadSettings:
    """The size and the training of a text head.

    Attributes:
        hidden: width of the hidden layer.
        dropout: probability of dropout of the hidden layer.
        batch_size: pairs per step.
        steps: number of steps.
        lr: peak learning rate.
        weight_decay: L2 penalty.
        eval_interval: steps between evaluations on dev.
        temperature: temperature of the loss at the start; it is learned.
    """

    hidden: int = 512
    dropout: float = 0.2
    batch_size: int = 256
    steps: int = 1000
    lr: float = 1e-3
    weight_decay: float = 1e-6
    eval_interval: int = 50
    temperature: float = 0.07


@dataclass(frozen=True)
class TrainedTextHead:
    """A trained text head.

    Attributes:
        head: with the best weights.
        step: their step; 0 if no step is better than CLIP itself.
        dev_score: their mean R@10 on dev.
        seconds: the time of the training.
    """

    head: TextHead
    step: int
    dev_score: float
    seconds: float

    def embed(self, texts: Floats) -> Floats:
        """Map text embeddings [N, J]."""
        rows: Floats = self.head.embed(torch.from_numpy(texts)).numpy()
        return rows


def train_text_head(
    texts: Floats, train: Split, dev_texts: Floats, dev: Split, settings: TextHeadSettings, seed: int
) -> TrainedTextHead:
    """Train a text head. The loss is that of the speech heads; the highest mean R@10 on dev chooses the step.

    Args:
        texts: CLIP embeddings of the training transcripts [U, J], in the order of ``train``.
        train: the training split with its image embeddings.
        dev_texts: the same of dev.
        dev: the dev split.
        settings: size and training.
        seed: of the initialisation, the batches and dropout.
    """
    started = time.monotonic()
    torch.manual_seed(seed)
    head = TextHead(texts.shape[1], settings.hidden, settings.dropout)
    loss = ContrastiveLoss(settings.temperature, learn=True)
    optim = OptimConfig(
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        warmup_steps=min(50, settings.steps),
        max_steps=settings.steps,
    )
    optimizer = make_optimizer([*head.parameters(), *loss.parameters()], optim)
    spoken, groups = torch.from_numpy(texts), torch.from_numpy(train.utterance_image)
    targets = torch.from_numpy(train.images[groups])
    held = torch.from_numpy(dev_texts)

    best, best_step, best_score = copy.deepcopy(head.state_dict()), 0, dev_score(head, held, dev)
    size = min(settings.batch_size, len(spoken))
    head.train()
    for step in range(settings.steps):
        epoch, place = divmod(step, max(1, len(spoken) // size))
        if place == 0:
            order = torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(len(spoken)))
        rows = order[place * size : (place + 1) * size]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, optim)
        optimizer.zero_grad()
        loss(head(spoken[rows]), targets[rows], groups[rows]).backward()
        optimizer.step()
        if (step + 1) % settings.eval_interval == 0 or step + 1 == settings.steps:
            score = dev_score(head, held, dev)
            logger.info("text head: step %d: mean R@10 on dev %.1f", step + 1, score)
            if score > best_score:
                best, best_step, best_score = copy.deepcopy(head.state_dict()), step + 1, score
    head.load_state_dict(best)
    return TrainedTextHead(head.eval(), best_step, best_score, round(time.monotonic() - started, 1))


def dev_score(head: TextHead, texts: Tensor, split: Split) -> float:
    """Return the mean R@10 of both directions of a split, in percent."""
    report = retrieval_report(head.embed(texts).numpy(), split.utterance_image, split.images, n_bootstrap=0)
    return float(report["mean_R@10"])
