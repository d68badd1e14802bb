"""What a run tells: metrics.jsonl, TensorBoard, and a progress bar or a line at intervals."""

from __future__ import annotations

import json
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechclip.common.files import replace_file

if TYPE_CHECKING:
    import numpy as np

    from speechclip.model.network import SpeechNetwork
    from speechclip.train.tensorboard import TensorBoardSamples


class TrainLogger:
    """Writes a run's progress.

    Args:
        folder: where metrics.jsonl and tensorboard/ go. step: steps done by an earlier part of this run; what was
            written after them (by a part that was killed) is dropped.
        total: steps of the whole run. samples: utterances to show in TensorBoard, None for none.
    """

    def __init__(self, folder: Path, *, step: int, total: int, samples: TensorBoardSamples | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from tqdm import tqdm

        path = folder / "metrics.jsonl"
        kept = [line for line in _lines(path) if json.loads(line)["step"] <= step]
        replace_file(path, "".join(line + "\n" for line in kept).encode())
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)
        self._handful = samples
        if samples is not None and not step:
            samples.introduce(self._board)
        self._total = total
        self._started, self._first = time.monotonic(), step
        self._bar = tqdm(total=total, initial=step, unit="step", dynamic_ncols=True) if sys.stderr.isatty() else None

    def step(self, step: int) -> None:
        """One more step is done."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def training(self, step: int, values: dict[str, Any], utterances: int) -> None:
        """Scalars of training at ``step``, ``utterances`` seen since this part of the run began."""
        self._record({"step": step, **values})
        for key, value in values.items():
            if isinstance(value, list):
                for index, item in enumerate(value):
                    self._board.add_scalar(f"train/{key}/{index}", item, step)
            else:
                self._board.add_scalar(f"train/{key}", value, step)
        seconds = time.monotonic() - self._started
        shown = f"loss {values['loss']:.4f} lr {values['lr']:.2e} temperature {values['temperature']:.4f}"
        if self._bar is not None:
            self._bar.set_postfix_str(f"{shown} {utterances / seconds:.0f} utt/s")
            return
        left = seconds / max(1, step - self._first) * (self._total - step)
        rate = f"{utterances / seconds:.0f} utt/s {timedelta(seconds=round(left))} left"
        print(f"step {step}/{self._total} {shown} | {rate}", flush=True)

    def dev(self, step: int, report: dict[str, Any], best: bool) -> None:
        """A dev evaluation at ``step``."""
        scores = {name: {k: v for k, v in row.items() if k in ("R@1", "R@5", "R@10", "MRR")}
                  for name, row in report.items() if isinstance(row, dict) and "R@1" in row}  # fmt: skip
        self._record({"step": step, "dev": {**scores, "mean_R@10": report["mean_R@10"]}})
        for name, row in scores.items():
            for key, value in row.items():
                self._board.add_scalar(f"dev/{name}/{key}", value, step)
        self._board.add_scalar("dev/mean_R@10", report["mean_R@10"], step)
        there, back = scores["speech->image"], scores["image->speech"]
        line = (
            f"step {step} dev speech->image {there['R@1']:.1f}/{there['R@5']:.1f}/{there['R@10']:.1f} "
            f"image->speech {back['R@1']:.1f}/{back['R@5']:.1f}/{back['R@10']:.1f} "
            f"mean R@10 {report['mean_R@10']:.2f}" + (" (best)" if best else "")
        )
        if self._bar is not None:
            self._bar.write(line)
        else:
            print(line, flush=True)

    def show(self, step: int, model: SpeechNetwork, embeddings: np.ndarray) -> None:
        """What the model makes of the samples at ``step``. embeddings: [U, J] of all dev utterances."""
        if self._handful is not None:
            self._handful.show(self._board, model, embeddings, step)

    def close(self) -> None:
        """Flush everything."""
        if self._bar is not None:
            self._bar.close()
        self._file.close()
        self._board.close()

    def _record(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def _lines(path: Path) -> list[str]:
    """Whole lines of a logger; a last one that a kill cut short is dropped."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    return text[: text.rfind("\n") + 1].splitlines()
