"""The logs of a run: metrics.jsonl, TensorBoard, and a progress bar or a line at intervals."""

from __future__ import annotations

import json
import logging
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

METRICS, TENSORBOARD = "metrics.jsonl", "tensorboard"
logger = logging.getLogger(__name__)


class TrainLogger:
    """Logs the progress of a run.

    Args:
        folder: receives metrics.jsonl and tensorboard/.
        step: finished steps. Later records are dropped: a killed process wrote them.
        total: the number of steps of the whole run.
        samples: utterances to show in TensorBoard, or None.
    """

    def __init__(self, folder: Path, *, step: int, total: int, samples: TensorBoardSamples | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from tqdm import tqdm

        path = folder / METRICS
        kept = [line for line in _lines(path) if json.loads(line)["step"] <= step]
        replace_file(path, "".join(line + "\n" for line in kept).encode())
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / TENSORBOARD), purge_step=step + 1 if step else None)
        self._samples = samples
        if samples is not None and not step:
            samples.introduce(self._board)
        self._total = total
        self._started, self._first = time.monotonic(), step
        self._bar = tqdm(total=total, initial=step, unit="step", dynamic_ncols=True) if sys.stderr.isatty() else None

    def step(self, step: int) -> None:
        """Log that ``step`` steps are finished."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def training(self, step: int, values: dict[str, Any], utterances: int) -> None:
        """Log scalars of training.

        Args:
            step: finished steps.
            values: loss, lr, temperature and layer_weights.
            utterances: the number of utterances since this logger was opened.
        """
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
        left = timedelta(seconds=round(seconds / max(1, step - self._first) * (self._total - step)))
        logger.info("step %d/%d %s | %.0f utt/s %s left", step, self._total, shown, utterances / seconds, left)

    def dev(self, step: int, report: dict[str, Any], best: bool) -> None:
        """Log an evaluation on dev.

        Args:
            step: finished steps.
            report: see :func:`speechclip.eval.retrieval.retrieval_report`.
            best: it is the best evaluation so far.
        """
        scores = {name: {k: v for k, v in row.items() if k in ("R@1", "R@5", "R@10", "MRR")}
                  for name, row in report.items() if isinstance(row, dict) and "R@1" in row}  # fmt: skip
        second = report.get("coarse_to_fine", {})
        scores |= {f"{name} (coarse to fine)": {k: second[name][k] for k in ("R@1", "R@5", "R@10", "MRR")}
                   for name in list(scores) if name in second}  # fmt: skip
        self._record({"step": step, "dev": {**scores, "mean_R@10": report["mean_R@10"]}})
        for name, row in scores.items():
            for key, value in row.items():
                self._board.add_scalar(f"dev/{name}/{key}", value, step)
        self._board.add_scalar("dev/mean_R@10", report["mean_R@10"], step)
        there, back = scores["speech->image"], scores["image->speech"]
        line = (
            f"step {step} dev R@1/R@5/R@10 speech->image {there['R@1']:.1f}/{there['R@5']:.1f}/{there['R@10']:.1f} "
            f"image->speech {back['R@1']:.1f}/{back['R@5']:.1f}/{back['R@10']:.1f} "
            f"mean R@10 {report['mean_R@10']:.2f}"
        )
        if second:
            fine = [second[name]["R@1"] for name in ("speech->image", "image->speech")]
            line += f", reordered R@1 {fine[0]:.1f} and {fine[1]:.1f}, mean {second['mean_R@1']:.2f}"
        line += " (best)" if best else ""
        if self._bar is not None:
            self._bar.write(line)
        else:
            logger.info("%s", line)

    def samples(
        self, step: int, model: SpeechNetwork, embeddings: np.ndarray, images: np.ndarray | None = None
    ) -> None:
        """Show attention and embeddings of the samples in TensorBoard.

        Args:
            step: finished steps.
            model: in evaluation mode.
            embeddings: [U, J] of all dev utterances.
            images: [I, J] of the images, for a head with an image tower of its own.
        """
        if self._samples is not None:
            self._samples.show(self._board, model, embeddings, step, images)

    def close(self) -> None:
        """Write everything to disk, and close the files."""
        if self._bar is not None:
            self._bar.close()
        self._file.close()
        self._board.close()

    def _record(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def _lines(path: Path) -> list[str]:
    """Return the complete lines of a log. A last line without its end was cut by a kill, and is dropped."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    return text[: text.rfind("\n") + 1].splitlines()
