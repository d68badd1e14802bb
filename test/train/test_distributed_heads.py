"""Two processes train the heads fast_vgs and reranker to the weights of one, with equal and unequal shares."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import save_hubert
from test_distributed import start_two
from test_rerank import make_recipe as make_rerank_recipe
from test_rerank import rerank_config, rerank_trainer
from test_train_encoder import make_recipe as make_tower_recipe
from test_train_encoder import tower_config, tower_trainer

from speechclip.checkpoint.folder import WEIGHTS, read_weights

pytestmark = pytest.mark.slow

STEPS = 4
#: A softmax or a BatchNorm removes these shifts. Their gradients are only rounding, which Adam scales to its step size.
#: The running mean follows the last one.
WITHOUT_EFFECT = (
    ".key.bias", "pooled.weights.bias", "resdavenet.linear.bias",
    "resdavenet.norm.running_mean", "scorer.score.2.bias",
)  # fmt: skip
#: A group of a reranker has four utterances: 12 of them are two groups and one.
RUNS = {
    "reranker": 8, "uneven_reranker": 12, "crossed_reranker": 12, "fast_vgs": 8, "uneven_fast_vgs": 7,
    "parts_fast_vgs": 9, "similar_fast_vgs": 9,
}  # fmt: skip


def _trainer(folder: Path, name: str, out: Path, fabric: Any = None) -> Any:
    """Return the trainer of a run. Dropout is off, because each process draws its own masks."""
    common = {
        "data__batch_size": RUNS[name], "optim__max_steps": STEPS, "train__eval_interval": 2,
        "train__log_interval": 1, "optim__lr": 1e-4,
    }  # fmt: skip
    if name.endswith("reranker"):
        crossed = 2 if name == "crossed_reranker" else 0
        config = rerank_config(
            **common, model__head__reranker__dropout=0, model__head__reranker__input_dropout=0,
            model__head__reranker__crossed_groups=crossed,
        )  # fmt: skip
        return rerank_trainer(folder / "rerank", out, config, fabric)
    parts: dict[str, Any] = {}
    if name in ("parts_fast_vgs", "similar_fast_vgs"):
        parts = {"model__head__fast_vgs__fine_batch": 3, "train__image_lr": 5e-5}
        parts["model__head__fast_vgs__fine_parts"] = "similar" if name == "similar_fast_vgs" else "shuffled"
    config = tower_config(folder / "tower", "all", **common, **parts, model__head__dropout=0)
    return tower_trainer(folder / "tower", out, config, fabric)


def _train(folder: Path, out: Path, fabric: Any = None) -> None:
    for name in RUNS:
        assert _trainer(folder, name, out / name, fabric).run().finished


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every run by one process in one/NAME and by two in two/NAME."""
    folder = tmp_path_factory.mktemp("trained")
    make_rerank_recipe(folder / "rerank")
    make_tower_recipe(folder / "tower")
    save_hubert(folder / "tower" / "hubert0")
    started = start_two([sys.executable, str(Path(__file__).resolve()), str(folder), str(folder / "two")], folder)
    try:
        _train(folder, folder / "one")
        for rank, process in enumerate(started):
            assert process.wait(timeout=200) == 0, (folder / f"rank{rank}.log").read_text()[-3000:]
    finally:  # one process may wait for the other forever
        for process in started:
            process.kill()
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_these_heads_as_one(trained: Path, name: str) -> None:
    one, two = (read_weights(trained / processes / name / "last" / WEIGHTS) for processes in ("one", "two"))
    assert one.keys() == two.keys()
    compared = [key for key in one if not key.endswith(WITHOUT_EFFECT)]
    away = {key: (one[key].double() - two[key].double()).abs().max().item() for key in compared}
    worst = max(away, key=lambda key: away[key])
    assert away[worst] < 2e-5, f"{away[worst]:.1e} in {worst}"
    lines = [
        [json.loads(line) for line in (trained / processes / name / "metrics.jsonl").read_text().splitlines()]
        for processes in ("one", "two")
    ]
    assert len(lines[0]) == len(lines[1]) == STEPS + STEPS // 2
    for ours, theirs in zip(*lines, strict=True):
        if "dev" in ours:
            assert ours["dev"] == theirs["dev"]
        else:
            assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)


def _worker(folder: Path, out: Path) -> None:
    from speechclip.train.setup import launch

    torch.set_num_threads(1)
    fabric = launch("32-true")
    assert fabric.world_size == 2
    _train(folder, out, fabric)


if __name__ == "__main__":
    _worker(Path(sys.argv[1]), Path(sys.argv[2]))
