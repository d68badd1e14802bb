"""Training a head: Lightning Fabric for devices, precision and processes, the rest in plain sight."""

from __future__ import annotations

import contextlib
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from speechclip.checkpoint import WEIGHTS, existing_folder, load_weights, read_checkpoint, read_weights, save_checkpoint
from speechclip.config import Config
from speechclip.data.dataset import Batch, Crop, SpeechSource, Split, bucketed_batches, read_batches
from speechclip.embed import embed_speech, features_of
from speechclip.errors import UserError
from speechclip.eval.retrieval import retrieval_report
from speechclip.heads.base import CASCADED, PARALLEL
from speechclip.model import SpeechCLIP
from speechclip.train.board import Handful
from speechclip.train.journal import Journal
from speechclip.train.schedule import learning_rate
from speechclip.train.state import (
    EmaWeights,
    Progress,
    differences,
    read_progress,
    restore_state,
    save_state,
    weights_of,
)


@dataclass(frozen=True)
class TrainingData:
    """Both splits and where their speech comes from."""

    train: Split
    dev: Split
    train_speech: SpeechSource
    dev_speech: SpeechSource


class Task:
    """What a training step works on. A plain class: Fabric rounds tensors and named tuples of them to the training
    precision on their way into a module, and waveforms, stored states and targets have to arrive as they are.

    Args:
        batch: B utterances. targets: [B, J] L2-normalised. groups: [B] int, their images.
    """

    def __init__(self, batch: Batch, targets: Tensor, groups: Tensor) -> None:
        self.batch, self.targets, self.groups = batch, targets, groups


class LossStep(nn.Module):
    """From a batch to its loss, as one module, so that DistributedDataParallel sees every trained parameter used.

    With several processes the embeddings of all of them are gathered with their gradients: the loss is that of the
    global batch, negatives included.
    """

    def __init__(self, model: SpeechCLIP, config: Config, fabric: Fabric) -> None:
        super().__init__()
        self.model = model
        self._config = config
        self._fabric = fabric

    def forward(self, task: Task) -> Tensor:
        """The loss of a batch, a scalar."""
        batch, targets, groups = task.batch, task.targets, task.groups
        # transformers draws for layer drop even where none is done: stored and online features see one random state
        with torch.no_grad(), torch.random.fork_rng(devices=()):
            states, frames = features_of(self.model, batch, self._config.data.encode_batch_size)
        data = self._config.data
        masks = (
            random_spans(frames, states.shape[2], data.time_masks, data.time_mask_frames) if data.time_masks else None
        )
        output = self.model.apply_head(states, frames, masks)
        gather = self._fabric.all_gather if self._fabric.world_size > 1 else None
        if gather is not None:
            targets = cast(Tensor, gather(targets)).flatten(0, 1)
            groups = cast(Tensor, gather(groups)).flatten(0, 1)
        weights = self._config.model.loss
        total = 0.0 if output.quantity is None else weights.quantity_weight * output.quantity
        for name, embedding in output.readouts.items():
            speech = nn.functional.normalize(embedding.float(), dim=-1)
            if gather is not None:
                speech = cast(Tensor, gather(speech, sync_grads=True)).flatten(0, 1)
            # one read-out is weighed against nothing but its quantity loss
            weight = {PARALLEL: weights.parallel_weight, CASCADED: weights.cascaded_weight}[name]
            weight = weight if len(output.readouts) > 1 else 1.0
            total = total + weight * self.model.loss(speech, targets, groups)
        return cast(Tensor, total)


def random_spans(frames: Tensor, width: int, count: int, longest: int) -> Tensor:
    """``count`` random spans of 0 to ``longest`` frames in each utterance: [B, width] bool. frames: [B]."""
    sizes = torch.randint(0, longest + 1, (len(frames), count))
    starts = (torch.rand(len(frames), count) * frames.cpu()[:, None]).long()
    at = torch.arange(width)[None, None, :]
    inside = (at >= starts[..., None]) & (at < (starts + sizes)[..., None])
    return inside.any(dim=1).to(frames.device)


class Trainer:
    """One training run in one folder, which it resumes if it finds the same configuration there.

    Args:
        config: all of it. model: freshly built. data: both splits. folder: best/, last/, metrics.jsonl, tensorboard/.
        fabric: launched. seed: of batches, crops and dropout. origin: provenance for the checkpoints.
    """

    def __init__(
        self, config: Config, model: SpeechCLIP, data: TrainingData, folder: Path, *,
        fabric: Fabric, seed: int, origin: dict[str, Any],
    ) -> None:  # fmt: skip
        if config.data.batch_size % fabric.world_size:
            raise UserError(
                f"data.batch_size: {config.data.batch_size} is not a multiple of {fabric.world_size} processes"
            )
        self.config, self.model, self.data, self.folder = config, model, data, folder
        self.fabric, self.seed, self.origin = fabric, seed, {**origin, **model.count_parameters()}
        optim = config.optim
        algorithm = torch.optim.Adam if optim.algorithm == "adam" else torch.optim.AdamW
        plain = algorithm(model.trained_parameters(), lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay)
        self.progress = Progress()
        self.step_module, self.optimizer = fabric.setup(LossStep(model, config, fabric), plain)
        self.ema = EmaWeights(model, optim.ema_decay) if optim.ema_decay else None
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
        """Go on from ``last`` if it holds this run; clear the folder if it holds another."""
        last = existing_folder(self.folder / "last")
        if last is None:
            return
        folder, saved, origin = read_checkpoint(last)
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
        self.fabric.print(f"{self.folder}: resuming after step {self.progress.step}")

    def run(self) -> Progress:
        """Train to the end, evaluating and saving on the way. Returns the final counters."""
        config, main = self.config, self.fabric.global_rank == 0
        progress = self.progress  # one object for the whole run: what other processes send is copied into it
        if progress.finished:
            self.fabric.print(f"{self.folder}: already trained, {progress.step} steps, best at {progress.best_step}")
            return progress
        journal = self._open_journal() if main else None
        per_epoch = len(self.data.train.ids) // config.data.batch_size
        started, before, seen = time.monotonic(), progress.seconds, 0
        losses: list[Tensor] = []
        try:
            while not progress.finished:
                epoch, position = divmod(progress.step, max(1, per_epoch))
                for batch in self._epoch(epoch, position):
                    losses.append(self._update(batch))
                    seen += config.data.batch_size
                    progress.seconds = before + time.monotonic() - started
                    if journal is not None:
                        journal.step(progress.step)
                        if progress.step % config.train.log_interval == 0:
                            journal.training(progress.step, self._scalars(losses), seen)
                    if progress.step % config.train.log_interval == 0:
                        losses.clear()
                    if progress.step % config.train.eval_interval == 0 or progress.step == config.optim.max_steps:
                        self._evaluate(journal)
                        if progress.finished:
                            break
        finally:
            if journal is not None:
                journal.close()
        return progress

    def _open_journal(self) -> Journal:
        config, count, data = self.config, self.config.train.board_utterances, self.data
        handful = Handful(data.dev, data.dev_speech, count, self.folder / "tensorboard") if count else None
        return Journal(self.folder, step=self.progress.step, total=config.optim.max_steps, handful=handful)

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
        loss = self.step_module(Task(batch, self._targets[indices], self._groups[indices]))
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
        states, frames = features_of(self.model, batch)
        bad = [at for at, count in enumerate(frames.tolist()) if not states[at, :, :count].isfinite().all()]
        ids = [self.data.train.ids[batch.indices[at]] for at in bad or range(len(frames))]
        return ("features that are not finite: " if bad else "the batch begins with ") + ", ".join(ids[:5])

    def _scalars(self, losses: list[Tensor]) -> dict[str, Any]:
        weights = self.model.layer_mix.weights.detach().softmax(dim=0)
        return {
            "loss": float(torch.stack(losses).mean()),
            "lr": learning_rate(self.progress.step - 1, self.config.optim),
            "temperature": 1 / self.model.loss.scale.item(),
            "layer_weights": [round(value, 6) for value in weights.tolist()],
        }

    def _evaluate(self, journal: Journal | None) -> None:
        """Score dev, keep the best and the last weights. The average is scored and saved where there is one."""
        if journal is not None:  # the main process
            unaveraged = {name: value.clone() for name, value in self.model.trained_state().items()}
            with self.ema.applied() if self.ema is not None else contextlib.nullcontext():
                self._score_and_save(journal, unaveraged)
        self.fabric.barrier()
        vars(self.progress).update(vars(self.fabric.broadcast(self.progress)))

    def _score_and_save(self, journal: Journal, unaveraged: dict[str, Tensor]) -> None:
        config, progress, dev = self.config, self.progress, self.data.dev
        embeddings = embed_speech(self.model, self.data.dev_speech, config.data.eval_batch_size)
        report = retrieval_report(embeddings, dev.utterance_image, dev.images, n_bootstrap=0)
        score = float(report["mean_R@10"])
        better = score > progress.best
        if better:
            progress.best, progress.best_step, progress.stale = score, progress.step, 0
        else:
            progress.stale += 1
        patience = config.train.patience
        progress.finished = progress.step >= config.optim.max_steps or bool(patience and progress.stale >= patience)
        journal.dev(progress.step, report, better)
        journal.show(progress.step, self.model, embeddings)
        weights, origin = self.model.trained_state(), {**self.origin, "step": progress.step, "dev_mean_R@10": score}
        origin["train_seconds"] = round(progress.seconds, 1)
        if better:
            save_checkpoint(self.folder / "best", self.model, weights, config, origin)
        save_checkpoint(
            self.folder / "last", self.model, weights, config, origin,
            extra=lambda part: save_state(part, progress, self.optimizer, unaveraged),
        )  # fmt: skip
