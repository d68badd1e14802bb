"""Training of a head. Lightning Fabric handles devices, precision and processes; the loop itself is in plain sight."""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

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
from speechclip.data.batches import bucketed_batches
from speechclip.data.dataset import Batch, Crop, SpeechSource, Split, read_batches
from speechclip.data.regions import Regions
from speechclip.eval.coarse_to_fine import two_stage_report
from speechclip.eval.retrieval import retrieval_report
from speechclip.model.feature_augment import FeatureNoise, TimeMask
from speechclip.model.heads.fast_vgs import FastVgsHead
from speechclip.model.inference import Towers, embed_speech, embed_towers, pair_scores
from speechclip.model.network import SpeechNetwork
from speechclip.train.checks import check_batch_size, check_data, check_encoder
from speechclip.train.logger import METRICS, TENSORBOARD, TrainLogger
from speechclip.train.objectives.combined import make_objectives
from speechclip.train.optim import learning_rate, make_optimizer, parameter_groups
from speechclip.train.replaced import holds_weights, keep, restore_interrupted, set_aside
from speechclip.train.state import (
    EmaWeights,
    Progress,
    changed_inputs,
    data_fingerprints,
    read_progress,
    restore_state,
    save_state,
    update_settings,
)
from speechclip.train.step import LossStep, TrainBatch
from speechclip.train.tensorboard import TensorBoardSamples

logger = logging.getLogger(__name__)

#: Folder of the logs of a run that has not saved yet, while the weights of another run are in the run folder.
STARTING = "starting"


@dataclass(frozen=True)
class TrainingData:
    """The train and dev splits, and the sources of their speech."""

    train: Split
    dev: Split
    train_speech: SpeechSource
    dev_speech: SpeechSource


class DevScores(NamedTuple):
    """The scores of dev, and the embeddings of its utterances [U, J]; images [I, J] of a head with an image tower."""

    report: dict[str, Any]
    embeddings: np.ndarray
    images: np.ndarray | None = None

    @property
    def choice(self) -> float:
        """The score that chooses the best weights: mean R@10, or the fine mean R@1 of a head with two stages."""
        second = self.report.get("coarse_to_fine")
        return float(self.report["mean_R@10"] if second is None else second["mean_R@1"])


class Trainer:
    """One training run in one folder.

    The run resumes if the folder holds the same run, and does nothing if that run is finished. If the folder holds
    another run, training starts over. The weights of the other run stay in place until this run saves for the first
    time. Then they move to ``replaced/<number>``.

    The best weights are those with the highest mean R@10 between speech and images of dev. This also holds for the
    supervised topline (``train.supervision: text``): captions of dev choose nothing. The head fast_vgs is chosen by its
    mean fine R@1, as published.

    Args:
        config: the whole configuration.
        model: a fresh network.
        data: both splits.
        folder: receives best/, last/, metrics.jsonl and tensorboard/.
        fabric: launched.
        seed: of batches, crops and dropout, at least 0.
        origin: provenance for the checkpoints.
        force: start over also if the folder holds the same run, and delete the weights of the earlier run after the
            first save.

    Attributes:
        progress: the counters of the run.
        stopped: SIGTERM ended the run before its last step.

    Raises:
        UserError: the settings do not fit the data, or the saved run is damaged.
    """

    def __init__(
        self, config: Config, model: SpeechNetwork, data: TrainingData, folder: Path, *,
        fabric: Fabric, seed: int, origin: dict[str, Any], force: bool = False,
    ) -> None:  # fmt: skip
        check_batch_size(config.data.batch_size, fabric.world_size, config.model.head.fast_vgs.fine_batch)
        check_encoder(config)
        check_data(config, data)
        self.config, self.model, self.data, self.folder = config, model, data, folder
        self.fabric, self.seed, self._force = fabric, seed, force
        model.train_encoder(config.train.encoder)
        self.origin = {**origin, **model.count_parameters(), "inputs": self._inputs()}
        model.encode_batch_size = config.data.encode_batch_size
        model.time_mask = TimeMask(config.data.time_masks, config.data.time_mask_frames)
        model.feature_noise = FeatureNoise(config.data.channel_dropout, config.data.feature_noise)
        model.weighted_sum.dropout = config.data.layer_dropout
        self.objectives = make_objectives(config, model, data.train.images)
        plain = make_optimizer(self._parameters(), config.optim, config.train.precision)
        self.progress = Progress()
        self.stopped, self._first = False, 0
        self.step_module, self.optimizer = fabric.setup(self._step_module(), plain)
        self.ema = EmaWeights(model, config.optim.ema_decay) if config.optim.ema_decay else None
        self._targets, self._target_rows = self._training_targets()
        self._logger: TrainLogger | None = None
        self._replaces = False  # the folder holds another run until the first save
        self._resume(plain)

    def _inputs(self) -> dict[str, str]:
        """Return fingerprints of everything that training reads, except the encoders."""
        return data_fingerprints(self.data, self.model, self.config)

    def _step_module(self) -> nn.Module:
        """Return the module that computes the loss of a :class:`TrainBatch`."""
        return LossStep(self.model, self.config, self.fabric, self.objectives)

    def _parameters(self) -> list[nn.Parameter] | list[dict[str, Any]]:
        train, lr, head = self.config.train, self.config.optim.lr, self.model.head
        encoder = self.model.encoder_parameters()
        others = self.model.trained_parameters()[: -len(encoder) or None]
        images: list[nn.Parameter] = []
        if train.image_lr and isinstance(head, FastVgsHead):
            images = list(head.image.parameters())
            known = {id(parameter) for parameter in images}
            others = [parameter for parameter in others if id(parameter) not in known]
        if self.objectives is not None:
            others += list(self.objectives.parameters())
        return parameter_groups(
            [(others, lr), (images, train.image_lr), (encoder, train.encoder_lr)], self.config.optim
        )

    def _training_targets(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the targets and the row of each training utterance [U] in them.

        The targets are the embeddings of the images, or of the captions for the supervised topline, L2-normalised. They
        may be mapped: a step reads the rows of its batch.
        """
        split = self.data.train
        if self.config.train.supervision == "image":
            return split.images, split.utterance_image
        if split.texts is None or split.text_utterance is None or len(split.texts) != len(split.ids):
            raise UserError(
                "train.supervision: text needs text_embeddings.npz with an embedding of every training caption. "
                "Extract the CLIP embeddings again."
            )
        rows = split.text_utterance
        return split.texts, rows if (rows[1:] > rows[:-1]).all() else rows.argsort()

    def _resume(self, optimizer: torch.optim.Optimizer) -> None:
        """Load ``last``, or the intact checkpoint before it, if it is of this run. Otherwise training starts over."""
        if self._is_main:
            restore_interrupted(self.folder)
        self.fabric.barrier()
        last = self.folder / "last"
        folder = None if self._force else intact_folder(last, all_files=True)
        if folder is None:
            self._replaces = holds_weights(self.folder)
            if self._replaces:
                self._log_start("--force is given" if self._force else "the training state is missing")
            return
        _, saved, origin = read_checkpoint(folder)
        changed = changed_inputs(saved, origin, self.config, self.origin, self.model)
        if changed:
            self._replaces = True
            self._log_start(f"other values of: {', '.join(changed)}")
            return
        self.progress = read_progress(folder)
        if self.ema is not None:  # the checkpoint's own weights are the average
            load_weights(self.model, read_weights(folder / WEIGHTS), folder)
            self.ema.copy_parameters()
        load_weights(self.model, restore_state(folder, optimizer, self.objectives), folder)
        best = self._intact_best()
        self._first = self.progress.step
        self.fabric.barrier()
        if self._is_main:
            if folder != last:  # the next save must not rename the damaged checkpoint to last.old
                shutil.rmtree(last, ignore_errors=True)
                folder.rename(last)
            if best is not None:
                update_settings(best, self.config)
        self.fabric.barrier()
        if not self.progress.finished:
            self._log(f"{self.folder}: resuming after step {self.progress.step}")

    def _log_start(self, reason: str) -> None:
        """Log that training starts over, and where the earlier weights will be."""
        fate = "are deleted" if self._force else "move to replaced/"
        self._log(f"{self.folder}: starting over: {reason}. The earlier weights {fate} after the first save.")

    def _intact_best(self) -> Path | None:
        """Return the folder of the best checkpoint, or None before the first evaluation.

        Raises:
            UserError: it is missing or damaged. A later evaluation may never write it again.
        """
        if not self.progress.best_step:
            return None
        best = find_checkpoint(self.folder / "best")
        if best is None or damaged_file(best, all_files=False):
            raise UserError(
                f"{self.folder / 'best'}: missing or damaged, and training is past its step {self.progress.best_step}. "
                f"Restore it, or start training over with --force."
            )
        return best

    @property
    def _is_main(self) -> bool:
        return self.fabric.global_rank == 0

    def _log(self, message: str) -> None:
        """Log a line in the main process."""
        if self._is_main:
            logger.info("%s", message)

    def run(self) -> Progress:
        """Train to the end, evaluate and save at intervals, and return the final counters.

        SIGTERM ends training after the current step, which is saved, and sets :attr:`stopped`.

        Raises:
            UserError: the loss is not finite, an input cannot be read, or the disk is full.
        """
        config, progress = self.config, self.progress  # one object for the whole run: other processes copy into it
        if progress.finished:
            self._log(f"{self.folder}: already trained: {progress.step} steps, best at step {progress.best_step}")
            return progress
        per_epoch = len(self.data.train.ids) // config.data.batch_size
        try:
            if self._is_main:
                shutil.rmtree(self.folder / STARTING, ignore_errors=True)
                self._logger = self._open_logger(self.folder / STARTING if self._replaces else self.folder)
            with GracefulShutdown() as shutdown:
                clock, losses = _Clock(progress.seconds), list[Tensor]()
                while not progress.finished and not self.stopped:
                    epoch, position = divmod(progress.step, per_epoch)
                    for batch in self._epoch(epoch, position):
                        losses.append(self._update(batch))
                        progress.seconds = clock.seconds()
                        self._log_step(losses)
                        due = progress.step % config.train.eval_interval == 0 or progress.step == config.optim.max_steps
                        self.stopped = self._any_process(shutdown())
                        if due or self.stopped:
                            self._save(evaluate=due)
                            self.stopped = self.stopped and not progress.finished
                        if progress.finished or self.stopped:
                            break
        finally:
            if self._logger is not None:
                self._logger.close()
            if self._is_main:
                shutil.rmtree(self.folder / STARTING, ignore_errors=True)
                restore_interrupted(self.folder)
        if self.stopped:
            self._log(f"{self.folder}: stopped by SIGTERM after step {progress.step}, which is saved")
        return progress

    def _any_process(self, condition: bool) -> bool:
        """Return whether the condition holds in any process. Every process must call this and gets the same answer."""
        if self.fabric.world_size == 1:
            return condition
        flag = torch.tensor(float(condition), device=self.fabric.device)
        return bool(self.fabric.all_reduce(flag, reduce_op="sum"))

    def _open_logger(self, folder: Path) -> TrainLogger:
        config, count, data = self.config, self.config.train.tensorboard_utterances, self.data
        self._first = self.progress.step
        samples = TensorBoardSamples(data.dev, data.dev_speech, count, folder / TENSORBOARD) if count else None
        return TrainLogger(folder, step=self.progress.step, total=config.optim.max_steps, samples=samples)

    def _log_step(self, losses: list[Tensor]) -> None:
        """Log the step, and at intervals the mean of ``losses``, which is then cleared."""
        if self._logger is not None:
            self._logger.step(self.progress.step)
        if self.progress.step % self.config.train.log_interval == 0:
            # Each process knows the quantity loss of its own utterances only.
            loss = cast(Tensor, self.fabric.all_reduce(torch.stack(losses).mean(), reduce_op="mean"))
            if self._logger is not None:
                seen = (self.progress.step - self._first) * self.config.data.batch_size
                self._logger.training(self.progress.step, self._scalars(loss), seen)
            losses.clear()

    def _epoch(self, epoch: int, position: int) -> Any:
        """Read this process's share of an epoch's batches, from batch number ``position`` on."""
        return self._read(self._batches(epoch, position), epoch)

    def _read(self, batches: Sequence[list[int]], epoch: int) -> Any:
        data = self.config.data
        crop = Crop(data.max_seconds, self.seed, epoch)
        return read_batches(self.data.train_speech, batches, crop=crop, workers=data.workers)

    def _batches(self, epoch: int, position: int) -> Sequence[list[int]]:
        """Return this process's share of the batches of an epoch from number ``position`` on."""
        data, rank, world = self.config.data, self.fabric.global_rank, self.fabric.world_size
        batches = bucketed_batches(
            self.data.train_speech.lengths, data.batch_size, bucket_batches=data.bucket_batches, seed=self.seed,
            epoch=epoch,
        )  # fmt: skip
        return batches[position:].share(rank, world)

    def _train_batch(self, batch: Batch) -> TrainBatch:
        indices, device = batch.indices.numpy(), self.fabric.device
        targets = torch.from_numpy(self._targets[self._target_rows[indices]]).to(device)
        groups = torch.from_numpy(self.data.train.utterance_image[indices]).to(device)
        return TrainBatch(batch, targets, groups, self._region_batch(groups), self.progress.step)

    def _update(self, batch: Batch) -> Tensor:
        """Do one optimiser step, and return the loss, detached.

        Raises:
            UserError: the loss is not finite.
        """
        fabric, optim, step = self.fabric, self.config.optim, self.progress.step
        # All randomness of a step starts here, so a resumed run needs no saved random state.
        torch.manual_seed((self.seed * 1_000_003 + step) * 1_009 + fabric.global_rank)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, optim) * group.get("lr_scale", 1.0)
        self.model.train()
        self.model.head.set_step(step)
        loss = self.step_module(self._train_batch(batch))
        if not torch.isfinite(loss):
            raise UserError(
                f"{self.data.train.data.path}: the loss is {loss.item()} at step {step + 1}. {self._suspects(batch)}"
            )
        self.optimizer.zero_grad()
        fabric.backward(loss)
        if optim.clip_norm:
            fabric.clip_gradients(self.step_module, self.optimizer, max_norm=optim.clip_norm)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(step)
        self.progress.step += 1
        return cast(Tensor, loss.detach())

    def _region_batch(self, images: Tensor) -> Regions | None:
        """Read the regions of images [b], positions in the training split; None for a head without regions."""
        split = self.data.train
        if split.regions is None:
            return None
        found = split.regions.batch([split.image_ids[at] for at in images.tolist()])
        return Regions(*(part.to(self.fabric.device) for part in found))

    def _suspects(self, batch: Batch) -> str:
        """Name utterances whose features are not finite, or the first of the batch if all features are finite."""
        states, frames = self.model.features(batch)
        bad = [at for at, count in enumerate(frames.tolist()) if not states[at, :, :count].isfinite().all()]
        ids = [self.data.train.ids[int(batch.indices[at])] for at in bad or range(len(frames))]
        if bad:
            return f"Features are not finite: {', '.join(ids[:5])}. Extract them again, or remove the utterances."
        return f"All features are finite. Lower optim.lr. The batch begins with {', '.join(ids[:5])}."

    def _scalars(self, loss: Tensor) -> dict[str, Any]:
        weights = self.model.weighted_sum.weights.detach().softmax(dim=0)
        return {
            "loss": loss.item(),
            "lr": learning_rate(self.progress.step - 1, self.config.optim),
            "temperature": 1 / self.model.loss.scale.item(),
            "layer_weights": [round(value, 6) for value in weights.tolist()],
        }

    def _save(self, evaluate: bool) -> None:
        """Score dev if ``evaluate`` is set, then save. The moving average is scored and saved if there is one."""
        unaveraged = {name: value.clone() for name, value in self.model.trained_state().items()}
        with self.ema.applied() if self.ema is not None else contextlib.nullcontext():
            scores = self._dev_report() if evaluate else None
            if self._is_main:
                self._write(scores, unaveraged)
        self.fabric.barrier()
        vars(self.progress).update(vars(self.fabric.broadcast(self.progress)))

    def _dev_report(self) -> DevScores:
        """Score dev. All processes take part; the scores of the first one count."""
        dev = self.data.dev
        if dev.regions is None:
            rows = self._dev_embeddings()
            if not self._is_main:
                return DevScores({}, rows)
            return DevScores(retrieval_report(rows, dev.utterance_image, dev.images, n_bootstrap=0), rows)
        share = (self.fabric.global_rank, self.fabric.world_size)
        towers = embed_towers(
            self.model, self.data.dev_speech, dev.regions, dev.image_ids, self.config.data.eval_batch_size, share
        )
        if share[1] > 1:  # every row is zero in all processes but one
            summed = [torch.from_numpy(self._summed(part.float().numpy())) for part in towers]
            towers = Towers(summed[0], summed[1], summed[2] > 0, summed[3], summed[4])
        if not self._is_main:
            return DevScores({}, towers.speech.numpy())
        settings = self.config.model.head.fast_vgs
        report, _ = two_stage_report(
            towers.coarse(), dev.utterance_image, settings.top_k,
            lambda pairs: pair_scores(self.model, towers, pairs, settings.block), n_bootstrap=0,
        )  # fmt: skip
        return DevScores(report, towers.speech.numpy(), towers.images.numpy())

    def _dev_embeddings(self) -> np.ndarray:
        """Return the embeddings of all dev utterances, [U, J]. Each process embeds its share of the batches."""
        share = (self.fabric.global_rank, self.fabric.world_size)
        rows = embed_speech(self.model, self.data.dev_speech, self.config.data.eval_batch_size, share=share)
        return self._summed(rows)

    def _summed(self, rows: np.ndarray) -> np.ndarray:
        """Return the sum of an array over all processes. Every row is zero in all processes but one."""
        if self.fabric.world_size == 1:
            return rows
        summed = self.fabric.all_reduce(torch.from_numpy(rows).to(self.fabric.device), reduce_op="sum")
        return cast(Tensor, summed).cpu().numpy()

    def _write(self, scores: DevScores | None, unaveraged: dict[str, Tensor]) -> None:
        """Log the scores of dev if they are given, and write the checkpoints."""
        config, progress = self.config, self.progress
        weights, origin = self.model.trained_state(), {**self.origin, "step": progress.step}
        origin["train_seconds"] = round(progress.seconds, 1)
        earlier = self._take_over_folder() if self._replaces else None
        assert self._logger is not None
        better = False
        if scores is not None:
            better = progress.record_score(scores.choice, config.optim.max_steps, config.train.patience)
            self._logger.dev(progress.step, scores.report, better)
            self._logger.samples(progress.step, self.model, scores.embeddings, scores.images)
            origin["dev_mean_R@10"] = float(scores.report["mean_R@10"])
            if "coarse_to_fine" in scores.report:
                origin["dev_mean_R@1"] = scores.choice
        if better:
            save_checkpoint(self.folder / "best", self.model, weights, config, origin, keep=True)
        save_checkpoint(
            self.folder / "last", self.model, weights, config, origin, keep=True,
            extra=lambda part: save_state(part, progress, self.optimizer, unaveraged, self.objectives),
        )  # fmt: skip
        if earlier is not None:
            self._replaces = False
            kept = keep(earlier)
            if self._force:
                shutil.rmtree(kept)
            else:
                self._log(f"{self.folder}: the earlier weights are in {kept}")

    def _take_over_folder(self) -> Path:
        """Set the earlier run aside, and move this run's logs to its place. Returns the folder of the earlier run."""
        assert self._logger is not None
        self._logger.close()
        earlier = set_aside(self.folder)
        for name in (METRICS, TENSORBOARD):
            (self.folder / STARTING / name).rename(self.folder / name)
        self._logger = self._open_logger(self.folder)
        return earlier


class _Clock:
    """Seconds of training, including those ``before``. A monotonic clock: changes of the system time do not matter."""

    def __init__(self, before: float) -> None:
        self._start = time.monotonic() - before

    def seconds(self) -> float:
        return time.monotonic() - self._start
