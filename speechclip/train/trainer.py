"""Training a head: Lightning Fabric for devices, precision and processes, the rest in plain sight."""

from __future__ import annotations

import contextlib
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from speechclip.checkpoint.folder import (
    WEIGHTS,
    find_checkpoint,
    intact_folder,
    load_weights,
    read_checkpoint,
    read_weights,
    save_checkpoint,
)
from speechclip.common.errors import UserError
from speechclip.common.files import damaged_file
from speechclip.common.shutdown import GracefulShutdown
from speechclip.config import Config
from speechclip.data.dataset import Batch, Crop, SpeechSource, Split, bucketed_batches, read_batches
from speechclip.eval.retrieval import retrieval_report
from speechclip.model.inference import embed_speech
from speechclip.model.network import SpeechNetwork, TimeMask
from speechclip.train.logger import TrainLogger
from speechclip.train.optim import learning_rate, make_optimizer
from speechclip.train.state import (
    EmaWeights,
    Progress,
    differences,
    read_progress,
    restore_state,
    save_state,
    weights_of,
)
from speechclip.train.step import LossStep, TrainBatch
from speechclip.train.tensorboard import TensorBoardSamples


@dataclass(frozen=True)
class TrainingData:
    """Both splits and where their speech comes from."""

    train: Split
    dev: Split
    train_speech: SpeechSource
    dev_speech: SpeechSource


class Trainer:
    """One training run in one folder, which it resumes if it finds the same configuration there.

    The best weights are those of the highest mean R@10 between speech and images of dev, of the supervised topline
    (``train.supervision: text``) too: no text of dev has a part in any choice.

    Args:
        config: all of it. model: freshly built. data: both splits. folder: best/, last/, metrics.jsonl, tensorboard/.
        fabric: launched. seed: of batches, crops and dropout. origin: provenance for the checkpoints.
    """

    def __init__(
        self, config: Config, model: SpeechNetwork, data: TrainingData, folder: Path, *,
        fabric: Fabric, seed: int, origin: dict[str, Any],
    ) -> None:  # fmt: skip
        if config.data.batch_size < fabric.world_size:
            raise UserError(f"data.batch_size: {config.data.batch_size} is less than the {fabric.world_size} processes")
        self.config, self.model, self.data, self.folder = config, model, data, folder
        self.fabric, self.seed, self.origin = fabric, seed, {**origin, **model.count_parameters()}
        model.encode_batch_size = config.data.encode_batch_size
        model.time_mask = TimeMask(config.data.time_masks, config.data.time_mask_frames)
        plain = make_optimizer(model.trained_parameters(), config.optim, config.train.precision)
        self.progress = Progress()
        self.stopped, self._first = False, 0
        self.step_module, self.optimizer = fabric.setup(LossStep(model, config, fabric), plain)
        self.ema = EmaWeights(model, config.optim.ema_decay) if config.optim.ema_decay else None
        self._resume(plain)
        self._targets = self._training_targets()
        self._groups = torch.from_numpy(data.train.utterance_image).to(fabric.device)

    def _training_targets(self) -> Tensor:
        """[U, J] L2-normalised: each training utterance's image, or its caption for the supervised topline."""
        split = self.data.train
        if self.config.train.supervision == "image":
            rows = split.images[split.utterance_image]
        else:
            if split.texts is None or split.text_utterance is None or len(split.texts) != len(split.ids):
                raise UserError("train.supervision: text needs the text embedding of every training caption (stage 2)")
            rows = split.texts[split.text_utterance.argsort()]
        return torch.from_numpy(rows).to(self.fabric.device)

    def _resume(self, optimizer: torch.optim.Optimizer) -> None:
        """Go on from ``last``, or a whole one before it, if it holds this run; clear the folder if it holds another."""
        last = self.folder / "last"
        folder = intact_folder(last, all_files=True)
        if folder is None:
            return
        folder, saved, origin = read_checkpoint(folder)
        changed = differences(saved, self.config)
        changed += [key for key in ("seed", "data") if origin.get(key) != self.origin[key]]
        before, now = weights_of(origin), weights_of(self.origin)
        changed += [part for part in sorted(before.keys() & now.keys()) if before[part] != now[part]]
        if changed:
            self.fabric.print(f"{self.folder}: trained with another {', '.join(changed)}; starting anew")
            self.fabric.barrier()
            if self.fabric.global_rank == 0:
                for name in ("best", "last", "best.old", "last.old", "tensorboard", "scores", "figures"):
                    shutil.rmtree(self.folder / name, ignore_errors=True)
                (self.folder / "metrics.jsonl").unlink(missing_ok=True)
            self.fabric.barrier()
            return
        self.progress = read_progress(folder)
        if self.ema is not None:  # the checkpoint proper holds the average
            load_weights(self.model, read_weights(folder / WEIGHTS), folder)
            self.ema.copy_parameters()
        load_weights(self.model, restore_state(folder, optimizer), folder)
        self._check_best()
        self._first = self.progress.step
        self.fabric.barrier()
        if folder != last and self.fabric.global_rank == 0:  # the next save must not put a damaged one in its place
            shutil.rmtree(last, ignore_errors=True)
            folder.rename(last)
        self.fabric.print(f"{self.folder}: resuming after step {self.progress.step}")

    def _check_best(self) -> None:
        """What a later evaluation may never write again has to be whole."""
        best = find_checkpoint(self.folder / "best")
        if self.progress.best_step and (best is None or damaged_file(best, all_files=False)):
            raise UserError(
                f"{self.folder / 'best'}: missing or damaged, and training is past its step {self.progress.best_step}; "
                f"remove {self.folder / 'last'} to train anew"
            )

    def run(self) -> Progress:
        """Train to the end, evaluating and saving on the way. Returns the final counters.

        SIGTERM ends it after the step at hand, saved; :attr:`stopped` tells that.
        """
        config, main = self.config, self.fabric.global_rank == 0
        progress = self.progress  # one object for the whole run: what other processes send is copied into it
        if progress.finished:
            self.fabric.print(f"{self.folder}: already trained, {progress.step} steps, best at {progress.best_step}")
            return progress
        logger = self._open_logger() if main else None
        per_epoch = len(self.data.train.ids) // config.data.batch_size
        try:
            with GracefulShutdown() as shutdown:
                clock, losses = _Clock(progress.seconds), list[Tensor]()
                while not progress.finished and not self.stopped:
                    epoch, position = divmod(progress.step, max(1, per_epoch))
                    for batch in self._epoch(epoch, position):
                        losses.append(self._update(batch))
                        progress.seconds = clock.seconds()
                        self._tell(logger, losses)
                        due = progress.step % config.train.eval_interval == 0 or progress.step == config.optim.max_steps
                        self.stopped = self._any_process(shutdown())
                        if due or self.stopped:
                            self._save(logger, evaluate=due)
                            self.stopped = self.stopped and not progress.finished
                        if progress.finished or self.stopped:
                            break
        finally:
            if logger is not None:
                logger.close()
        if self.stopped:
            self.fabric.print(f"{self.folder}: stopped by SIGTERM after step {progress.step}, which is saved")
        return progress

    def _any_process(self, condition: bool) -> bool:
        """Return whether the condition holds in any process: the same answer in all. Every process has to call it."""
        if self.fabric.world_size == 1:
            return condition
        flag = torch.tensor(float(condition), device=self.fabric.device)
        return bool(self.fabric.all_reduce(flag, reduce_op="sum"))

    def _open_logger(self) -> TrainLogger:
        config, count, data = self.config, self.config.train.tensorboard_utterances, self.data
        samples = TensorBoardSamples(data.dev, data.dev_speech, count, self.folder / "tensorboard") if count else None
        return TrainLogger(self.folder, step=self.progress.step, total=config.optim.max_steps, samples=samples)

    def _tell(self, logger: TrainLogger | None, losses: list[Tensor]) -> None:
        """The step in the logger, and at intervals the mean of ``losses``, which starts anew then."""
        if logger is not None:
            logger.step(self.progress.step)
        if self.progress.step % self.config.train.log_interval == 0:
            # each process knows the number of keywords of its own utterances alone
            loss = cast(Tensor, self.fabric.all_reduce(torch.stack(losses).mean(), reduce_op="mean"))
            if logger is not None:
                seen = (self.progress.step - self._first) * self.config.data.batch_size
                logger.training(self.progress.step, self._scalars(loss), seen)
            losses.clear()

    def _epoch(self, epoch: int, position: int) -> Any:
        """This process's share of an epoch's batches, from ``position`` on."""
        data = self.config.data
        batches = bucketed_batches(
            self.data.train_speech.lengths,
            data.batch_size,
            bucket_batches=data.bucket_batches,
            seed=self.seed,
            epoch=epoch,
        )
        rank, world = self.fabric.global_rank, self.fabric.world_size
        mine = [batch[rank::world] for batch in batches[position:]]
        crop = Crop(data.max_seconds, self.seed, epoch)
        return read_batches(self.data.train_speech, mine, crop=crop, workers=data.workers)

    def _update(self, batch: Batch) -> Tensor:
        """One optimiser step. Returns the loss, detached."""
        fabric, optim, step = self.fabric, self.config.optim, self.progress.step
        # all randomness of a step comes from here, so a resumed run needs no saved random state
        torch.manual_seed((self.seed * 1_000_003 + step) * 1_009 + fabric.global_rank)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, optim)
        self.model.train()
        self.model.head.set_step(step)
        indices = batch.indices.to(fabric.device)
        loss = self.step_module(TrainBatch(batch, self._targets[indices], self._groups[indices]))
        if not torch.isfinite(loss):
            raise UserError(f"training: the loss is {loss.item()} at step {step + 1}; {self._suspects(batch)}")
        self.optimizer.zero_grad()
        fabric.backward(loss)
        if optim.clip_norm:
            fabric.clip_gradients(self.step_module, self.optimizer, max_norm=optim.clip_norm)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(step)
        self.progress.step += 1
        return cast(Tensor, loss.detach())

    def _suspects(self, batch: Batch) -> str:
        """Whose features are not finite, or how the batch begins where all are."""
        states, frames = self.model.features(batch)
        bad = [at for at, count in enumerate(frames.tolist()) if not states[at, :, :count].isfinite().all()]
        ids = [self.data.train.ids[batch.indices[at]] for at in bad or range(len(frames))]
        return ("features that are not finite: " if bad else "the batch begins with ") + ", ".join(ids[:5])

    def _scalars(self, loss: Tensor) -> dict[str, Any]:
        weights = self.model.weighted_sum.weights.detach().softmax(dim=0)
        return {
            "loss": loss.item(),
            "lr": learning_rate(self.progress.step - 1, self.config.optim),
            "temperature": 1 / self.model.loss.scale.item(),
            "layer_weights": [round(value, 6) for value in weights.tolist()],
        }

    def _save(self, logger: TrainLogger | None, evaluate: bool) -> None:
        """Save the last weights; ``evaluate`` dev before, and save the best. The average where there is one."""
        unaveraged = {name: value.clone() for name, value in self.model.trained_state().items()}
        with self.ema.applied() if self.ema is not None else contextlib.nullcontext():
            embeddings = self._dev_embeddings() if evaluate else None
            if logger is not None:  # the main process
                self._write(logger, embeddings, unaveraged)
        self.fabric.barrier()
        vars(self.progress).update(vars(self.fabric.broadcast(self.progress)))

    def _dev_embeddings(self) -> np.ndarray:
        """Of all dev utterances, [U, J]; each process embeds its share of the batches."""
        share = (self.fabric.global_rank, self.fabric.world_size)
        rows = embed_speech(self.model, self.data.dev_speech, self.config.data.eval_batch_size, share=share)
        if self.fabric.world_size == 1:
            return rows
        # every row is zero in all processes but one
        summed = self.fabric.all_reduce(torch.from_numpy(rows).to(self.fabric.device), reduce_op="sum")
        return cast(Tensor, summed).cpu().numpy()

    def _write(self, logger: TrainLogger, embeddings: np.ndarray | None, unaveraged: dict[str, Tensor]) -> None:
        """Score dev, where its embeddings are given, and write the checkpoints."""
        config, progress, dev = self.config, self.progress, self.data.dev
        weights, origin = self.model.trained_state(), {**self.origin, "step": progress.step}
        origin["train_seconds"] = round(progress.seconds, 1)
        if embeddings is not None:
            report = retrieval_report(embeddings, dev.utterance_image, dev.images, n_bootstrap=0)
            better = progress.scored(float(report["mean_R@10"]), config.optim.max_steps, config.train.patience)
            logger.dev(progress.step, report, better)
            logger.show(progress.step, self.model, embeddings)
            origin["dev_mean_R@10"] = float(report["mean_R@10"])
            if better:
                save_checkpoint(self.folder / "best", self.model, weights, config, origin, keep=True)
        save_checkpoint(
            self.folder / "last", self.model, weights, config, origin, keep=True,
            extra=lambda part: save_state(part, progress, self.optimizer, unaveraged),
        )  # fmt: skip


class _Clock:
    """Seconds spent, ``before`` included, by a clock that nobody sets."""

    def __init__(self, before: float) -> None:
        self._start = time.monotonic() - before

    def seconds(self) -> float:
        return time.monotonic() - self._start
