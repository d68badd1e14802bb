"""Two processes train to the weights of one with the same global batch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from fixtures import save_clip, settings, stored_split, trainer, training_data

from speechclip.checkpoint import WEIGHTS, read_weights
from speechclip.config import ClipConfig
from speechclip.encoders.clip import load_clip

# BatchNorm takes a shift before it away, so the gradients of these are rounding alone, which Adam blows up to its
# step size whatever the number of processes; the running mean follows them.
WITHOUT_EFFECT = ("head.norm.bias", "head.projection.bias", "head.batch_norm.running_mean")
HEADS = ("parallel", "cascaded", "hybrid_plus")
CHANGES = {
    "model__head__dropout": 0, "model__loss__learn_temperature": True, "optim__lr": 1e-4, "optim__max_steps": 5,
    "train__eval_interval": 2, "train__log_interval": 1, "model__head__cif__dropout": 0,
    "model__head__cif__frames_per_keyword": 4,
}  # fmt: skip


def _train(folder: Path, out: Path, fabric: object = None) -> None:
    clip = load_clip(ClipConfig(str(folder / "clip")))
    for head in HEADS:
        config = settings(model__head__name=head, **CHANGES)
        used = clip if head != "parallel" else None
        run = trainer(config, training_data(folder), out / head, clip=used, fabric=fabric)
        assert run.run().finished


def _worker(folder: Path, out: Path) -> None:
    from speechclip.assemble import launch

    torch.set_num_threads(1)
    fabric = launch("32-true")
    assert fabric.world_size == 2
    _train(folder, out, fabric)


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    stored_split(tmp_path, "train", images=8, each=3, seed=0)
    stored_split(tmp_path, "dev", images=4, each=2, seed=1)
    save_clip(tmp_path / "clip")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = Path(__file__).resolve()
    paths = [str(here.parents[2]), str(here.parents[1]), os.environ.get("PYTHONPATH", "")]
    shared = {  # what torchrun sets
        **os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
        "GLOO_SOCKET_IFNAME": "lo", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0",
    }  # fmt: skip
    command = [sys.executable, str(here), str(tmp_path), str(tmp_path / "two")]
    started = []
    for rank in ("0", "1"):
        environment = {**shared, "RANK": rank, "LOCAL_RANK": rank}
        with (tmp_path / f"rank{rank}.log").open("w") as log:
            started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
    _train(tmp_path, tmp_path / "one")
    try:
        for rank, process in enumerate(started):
            assert process.wait(timeout=90) == 0, (tmp_path / f"rank{rank}.log").read_text()[-3000:]
    finally:  # where one waits for the other for ever
        for process in started:
            process.kill()
    for head in HEADS:
        losses = [
            [
                json.loads(line).get("loss")
                for line in (tmp_path / name / head / "metrics.jsonl").read_text().splitlines()
            ]
            for name in ("one", "two")
        ]
        assert len(losses[0]) == len(losses[1]) == 8  # five steps and three evaluations, each told once
        one, two = (read_weights(tmp_path / name / head / "last" / WEIGHTS) for name in ("one", "two"))
        for name, value in one.items():
            if head == "parallel" or name not in WITHOUT_EFFECT:
                difference = (value.double() - two[name].double()).abs().max()
                assert difference < 1e-5, f"{head} {name}: {difference}"


if __name__ == "__main__":
    _worker(Path(sys.argv[1]), Path(sys.argv[2]))
