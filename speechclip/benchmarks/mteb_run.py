"""The evaluation of a model on tasks of mteb, with results in mteb's own format (extra ``mteb``)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mteb
from mteb.cache import ResultCache

from speechclip.benchmarks.mteb import MtebEncoder, MtebReranker
from speechclip.benchmarks.mteb_tasks import caveats, load_undecoded
from speechclip.common.errors import UserError, first_line

SCORES = ("hit_rate_at_1", "hit_rate_at_5", "hit_rate_at_10", "recall_at_10", "ndcg_at_10")
PREDICTIONS = "predictions"  # folder of the rankings that a reranker reads
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskScores:
    """The scores of a model on one split of a task.

    Attributes:
        task: the name of the task.
        model: the name of the model.
        split: the split.
        scores: by name, from 0 to 1.
        path: the result file of mteb.
    """

    task: str
    model: str
    split: str
    scores: dict[str, float]
    path: Path


def evaluate(
    encoder: MtebEncoder, tasks: Sequence[Any], out: Path, *, reranker: MtebReranker | None = None, top_k: int = 100,
    batch_size: int = 32, overwrite: bool = False, progress: bool = False,
) -> Iterator[TaskScores]:  # fmt: skip
    """Score a model on tasks, one after the other, and yield the scores.

    Results are ``OUT/results/OWNER__NAME/REVISION/TASK.json``. A task that has a result of the same model is not run
    again. With a reranker, the encoder's best documents of each query are ranked again.

    Args:
        encoder: the model.
        tasks: the tasks.
        out: the folder.
        reranker: scores the best documents of each query again.
        top_k: number of documents for the reranker.
        batch_size: items per batch of mteb's loader.
        overwrite: run tasks that have a result, too.
        progress: show progress bars.

    Raises:
        UserError: the data of a task cannot be loaded, or the model lacks a modality of a task.
    """
    cache = ResultCache(cache_path=out)
    for task in tasks:
        for line in caveats(task, encoder.mteb_model_meta.training_datasets):
            logger.warning("%s", line)
        predictions = out / PREDICTIONS / encoder.mteb_model_meta.revision if reranker is not None else None
        settings = {
            "cache": cache, "encode_kwargs": {"batch_size": batch_size, "show_progress_bar": progress},
            "show_progress_bar": False, "num_proc": 1, "co2_tracker": False,
        }  # fmt: skip
        strategy = "always" if overwrite else "only-missing"
        ranked = predictions is None or (predictions / task.prediction_file_name).is_file()
        if not ranked:  # a result without its ranking does not help the reranker
            strategy = "always"
        try:
            load_undecoded(task)
            yield from _scores(
                mteb.evaluate(encoder, task, overwrite_strategy=strategy, prediction_folder=predictions, **settings),
                encoder, cache,
            )  # fmt: skip
            if reranker is not None:
                task.convert_to_reranking(predictions, top_k=top_k)
                again = "always" if overwrite else "only-missing"
                yield from _scores(mteb.evaluate(reranker, task, overwrite_strategy=again, **settings), reranker, cache)
        except ValueError as error:
            raise UserError(f"{task.metadata.name}: {first_line(error)}. Check the path.") from error
        finally:
            if task.data_loaded:
                task.unload_data()


def _scores(result: Any, model: Any, cache: ResultCache) -> Iterator[TaskScores]:
    for found in result.task_results:
        path = cache.get_task_result_path(found.task_name, model.mteb_model_meta)
        for split, parts in found.scores.items():
            for part in parts:
                wanted = {name: float(part[name]) for name in (*SCORES, "main_score") if name in part}
                yield TaskScores(found.task_name, model.mteb_model_meta.name, split, wanted, path)
