"""The training of a CTC recogniser on the captions of a corpus, over the hidden states of the frozen speech encoder."""

from __future__ import annotations

import copy
import logging
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from speechclip.common.errors import UserError
from speechclip.config import OptimConfig
from speechclip.data.batches import bucketed_batches, evaluation_batches
from speechclip.data.dataset import Crop, SpeechSource, read_batches
from speechclip.data.kaldi import DataDir
from speechclip.eval.transcripts import word_errors
from speechclip.model.recognizers.ctc import BLANK, CtcNetwork, CtcRecognizer, CtcSettings, count_units, split_units
from speechclip.train.optim import learning_rate, make_optimizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CtcTraining:
    """The training of a CTC recogniser.

    Attributes:
        batch_size: utterances per step.
        steps: number of steps.
        lr: peak learning rate.
        eval_interval: steps between evaluations on dev.
        clip_norm: largest norm of the gradient.
    """

    batch_size: int = 64
    steps: int = 300
    lr: float = 2e-3
    eval_interval: int = 100
    clip_norm: float = 4.0


@dataclass(frozen=True)
class TrainedCtc:
    """A trained network.

    Attributes:
        network: with the weights of the best step.
        units: the text of each unit.
        shape: number and width of the hidden states.
        facts: "step", "dev_wer", "trained" (parameters), "train_seconds".
    """

    network: CtcNetwork
    units: list[str]
    shape: tuple[int, int]
    facts: dict[str, Any]


def train_ctc(
    train: DataDir, speech: SpeechSource, dev: DataDir, dev_speech: SpeechSource, shape: tuple[int, int],
    settings: CtcSettings, training: CtcTraining, seed: int,
) -> TrainedCtc:  # fmt: skip
    """Train a recogniser. The lowest word error rate on dev chooses the step.

    Args:
        train: the training utterances.
        speech: their hidden states.
        dev: the dev utterances.
        dev_speech: their hidden states.
        shape: number and width of the hidden states.
        settings: the size of the network.
        training: batches and steps.
        seed: of the initialisation, the batches and dropout.
    Raises:
        UserError: there are fewer utterances than the batch holds, or the loss is not finite.
    """
    torch.manual_seed(seed)
    captions = [utterance.text for utterance in train.utterances]
    units = count_units(captions, settings.units)
    number = {unit: at + 1 for at, unit in enumerate(units)}
    targets = [torch.tensor([number[unit] for unit in split_units(text, settings.units)]) for text in captions]
    network = CtcNetwork(*shape, len(units), settings)
    optim = OptimConfig(lr=training.lr, warmup_steps=min(50, training.steps), max_steps=training.steps)
    optimizer = make_optimizer(network.parameters(), optim)
    best, best_step, lowest = copy.deepcopy(network.state_dict()), 0, float("inf")
    step, epoch, started = 0, 0, time.monotonic()
    while step < training.steps:
        batches = bucketed_batches(speech.lengths, training.batch_size, bucket_batches=8, seed=seed, epoch=epoch)
        for batch in read_batches(speech, batches, crop=Crop(0.0, seed, epoch)):
            network.train()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, optim)
            assert batch.states is not None and batch.frames is not None
            loss = _loss(network, batch.states, batch.frames, [targets[at] for at in batch.indices.tolist()])
            if not torch.isfinite(loss):
                raise UserError(
                    f"{train.path}: the loss of the recogniser is {loss.item()} at step {step + 1}."
                    " Choose a smaller learning rate."
                )
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), training.clip_norm)
            optimizer.step()
            step += 1
            if step % training.eval_interval == 0 or step == training.steps:
                wer = dev_wer(network, units, settings.units, dev, dev_speech)
                logger.info("recogniser: step %d: loss %.3f, WER on dev %.1f", step, loss.item(), wer)
                if wer < lowest:
                    best, best_step, lowest = copy.deepcopy(network.state_dict()), step, wer
            if step == training.steps:
                break
        epoch += 1
    network.load_state_dict(best)
    facts = {
        "step": best_step, "dev_wer": lowest, "trained": sum(p.numel() for p in network.parameters()),
        "train_seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip
    return TrainedCtc(network.eval(), units, shape, facts)


def _loss(network: CtcNetwork, states: Tensor, frames: Tensor, targets: list[Tensor]) -> Tensor:
    """Return the CTC loss of a batch. Utterances that are too short for their caption do not count."""
    log_probs, lengths = network(states, frames)
    sizes = torch.tensor([len(target) for target in targets])
    return nn.functional.ctc_loss(
        log_probs.transpose(0, 1), torch.cat(targets), lengths, sizes, blank=BLANK, zero_infinity=True
    )


def dev_wer(network: CtcNetwork, units: list[str], kind: str, data: DataDir, speech: SpeechSource) -> float:
    """Return the word error rate of a split in percent."""
    recognizer = CtcRecognizer("ctc", network, units, kind, {})
    texts = [""] * len(data.utterances)
    for batch in read_batches(speech, evaluation_batches(speech.lengths, 64)):
        for at, text in zip(batch.indices.tolist(), recognizer.transcribe(batch)):
            texts[at] = text
    errors, words = word_errors([utterance.text for utterance in data.utterances], texts)
    return 100.0 * float(errors.sum()) / float(words.sum())
