"""Two processes with the same global batch train to the weights of one, also with unequal shares and after a kill."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fixtures import save_clip, save_hubert, settings, stored_split, trainer, training_data
from torch import Tensor

from speechclip.checkpoint.folder import WEIGHTS, read_weights
from speechclip.common.arguments import configure_logging
from speechclip.config import ClipConfig, Config, SpeechEncoderConfig
from speechclip.model.encoders.clip import load_clip
from speechclip.model.encoders.factory import load_speech_encoder
from speechclip.model.network import ENCODER_PREFIX
from speechclip.train.state import TENSORS
from speechclip.train.trainer import Trainer

# BatchNorm removes a shift before it. The gradients of these tensors are only rounding, which Adam scales to its step
# size with any number of processes. The running mean follows them.
WITHOUT_EFFECT = ("head.norm.bias", "head.projection.bias", "head.batch_norm.running_mean")
HEADS = ("parallel", "cascaded", "hybrid", "cascaded_plus", "hybrid_plus")
STEPS = 20
RUNS = {  # name: head, utterances in the global batch; 7 are 4 and 3, and dev's 5 batches are 3 and 2
    **{head: (head, 8) for head in HEADS}, "uneven_parallel": ("parallel", 7), "uneven_hybrid_plus": ("hybrid_plus", 7),
    "uneven_sigmoid_parallel": ("parallel", 7),
}  # fmt: skip
ENCODER = "trained_encoder"  # a parallel head and the transformer of the speech encoder, with an uneven batch
RUNS[ENCODER] = ("parallel", 7)
OBJECTIVES = "uneven_objectives_hybrid"  # queue, momentum model and both distillations; keyword losses
PAIRS = "pairs_parallel"  # matching and denoising draw random numbers in each process, so one and two processes differ
RUNS |= {OBJECTIVES: ("hybrid", 7), PAIRS: ("parallel", 8)}
FURTHER = {
    OBJECTIVES: {
        "train__objectives__queue": 20, "train__objectives__momentum": 0.8, "train__objectives__distillation": 0.3,
        "train__objectives__image_distillation": 0.2, "model__loss__diversity_weight": 0.5,
        "model__loss__coverage_weight": 0.5, "train__objectives__keyword_weight": 0.5,
    },
    PAIRS: {
        "train__objectives__queue": 20, "train__objectives__matching_weight": 0.5,
        "train__objectives__denoising_weight": 0.5,
    },
}  # fmt: skip
CUT = "uneven_hybrid_plus"  # a kill ends both processes of this run after step CUT_AT, which is not saved
CUT_AT = 14


def _config(name: str) -> Config:
    head, batch = RUNS[name]
    trained = {"data__feats": "online", "train__encoder": "transformer", "train__encoder_lr": 1e-4}
    return settings(
        **(trained if name == ENCODER else FURTHER.get(name, {})),
        # the encoder sees padding, which depends on the batch: one utterance at a time
        data__encode_batch_size=1,
        model__loss__name="sigmoid" if "sigmoid" in name else "softmax",
        model__head__name=head, model__head__dropout=0, model__loss__learn_temperature=True, optim__lr=1e-4,
        optim__max_steps=STEPS, train__eval_interval=5, train__log_interval=1, model__head__cif__dropout=0,
        model__head__cif__frames_per_keyword=4, data__batch_size=batch, data__eval_batch_size=2,
    )  # fmt: skip


class Cut(Exception):
    """Stands for a kill of all processes."""


def _train(folder: Path, out: Path, fabric: object = None, cut: bool = False) -> None:
    clip = load_clip(ClipConfig(str(folder / "clip")))
    for name in RUNS:
        used = clip if RUNS[name][0] != "parallel" else None

        def make(name: str = name, used: object = used) -> Trainer:
            feats, encoder = "dump", None
            if name == ENCODER:
                feats, encoder = "online", load_speech_encoder(SpeechEncoderConfig(str(folder / "hubert")))
            data = training_data(folder, feats=feats)
            return trainer(_config(name), data, out / name, clip=used, encoder=encoder, fabric=fabric)

        if cut and name == CUT:
            _cut(make())
        run = make()
        assert run.progress.step == (10 if cut and name == CUT else 0)
        assert run.run().finished


def _cut(run: Trainer) -> None:
    plain = run._update

    def update(batch: object) -> Tensor:
        if run.progress.step == CUT_AT:
            raise Cut
        return plain(batch)

    run._update = update
    with pytest.raises(Cut):
        run.run()


def _worker(folder: Path, out: Path) -> None:
    from speechclip.train.setup import launch

    configure_logging()
    torch.set_num_threads(1)
    fabric = launch("32-true")
    assert fabric.world_size == 2
    _train(folder, out, fabric, cut=True)


def start_two(command: list[str], folder: Path) -> list[subprocess.Popen[bytes]]:
    """Start the command as two processes, as torchrun does. Their logs are rank0.log and rank1.log."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = Path(__file__).resolve()
    paths = [str(here.parents[2]), str(here.parents[1]), os.environ.get("PYTHONPATH", "")]
    shared = {
        **os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
        "GLOO_SOCKET_IFNAME": "lo", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0",
    }  # fmt: skip
    started = []
    for rank in ("0", "1"):
        environment = {**shared, "RANK": rank, "LOCAL_RANK": rank}
        with (folder / f"rank{rank}.log").open("w") as log:
            started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
    return started


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every run by one process in one/NAME and by two in two/NAME."""
    folder = tmp_path_factory.mktemp("trained")
    stored_split(folder, "train", images=8, each=3, seed=0)
    stored_split(folder, "dev", images=5, each=2, seed=1)
    save_clip(folder / "clip")
    save_hubert(folder / "hubert")
    started = start_two([sys.executable, str(Path(__file__).resolve()), str(folder), str(folder / "two")], folder)
    try:
        _train(folder, folder / "one")
        for rank, process in enumerate(started):
            assert process.wait(timeout=200) == 0, (folder / f"rank{rank}.log").read_text()[-3000:]
    finally:  # one process may wait for the other forever
        for process in started:
            process.kill()
    return folder


def _both(folder: Path, name: str, file: str) -> list[dict[str, Tensor]]:
    return [read_weights(folder / processes / name / "last" / file) for processes in ("one", "two")]


@pytest.mark.parametrize("name", [name for name in RUNS if name != PAIRS])
def test_two_processes_train_as_one(trained: Path, name: str) -> None:
    one, two = _both(trained, name, WEIGHTS)
    differences = {key: (value.double() - two[key].double()).abs().max().item() for key, value in one.items()}
    compared = [key for key in differences if RUNS[name][0] == "parallel" or key not in WITHOUT_EFFECT]
    compared = [key for key in compared if not key.endswith("k_proj.bias")]  # has no gradient but rounding
    worst = max(compared, key=lambda key: differences[key])
    print(f"{name}: {differences[worst]:.1e} in {worst}")
    assert differences[worst] < 1e-5, worst
    assert len(compared) >= len(differences) - len(WITHOUT_EFFECT)
    assert (name == ENCODER) == any(key.startswith(ENCODER_PREFIX) for key in compared)


@pytest.mark.parametrize("name", [name for name in RUNS if name != PAIRS])
def test_two_processes_log_every_step_once(trained: Path, name: str) -> None:
    one, two = (
        [json.loads(line) for line in (trained / processes / name / "metrics.jsonl").read_text().splitlines()]
        for processes in ("one", "two")
    )
    assert len(one) == len(two) == STEPS + STEPS // 5
    for ours, theirs in zip(one, two, strict=True):
        assert ours["step"] == theirs["step"]
        if "dev" in ours:
            assert ours["dev"] == theirs["dev"]  # each process scored its share of five batches
        else:
            assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)


def test_two_processes_fill_one_queue(trained: Path) -> None:
    one, two = _both(trained, OBJECTIVES, TENSORS)
    names = [name for name in one if name.startswith("objectives.")]
    assert {"objectives.queue.speech", "objectives.momentum.average0"} <= set(names)
    for name in names:
        away = (one[name].double() - two[name].double()).abs().max()
        # an average follows its weights, and those without a gradient follow rounding
        assert away < (1e-3 if "average" in name else 1e-5), name


def test_two_processes_train_matching_and_denoising(trained: Path) -> None:
    one, two = _both(trained, PAIRS, TENSORS)
    assert one.keys() == two.keys()
    for part in ("matching", "denoiser"):
        for processes in (one, two):
            moved = [processes[f"optimizer.{at}.exp_avg"] for at in range(sum("exp_avg_sq" in key for key in one))]
            assert all(value.isfinite().all() for value in moved)
        difference = one[f"objectives.{part}.out.weight"] - two[f"objectives.{part}.out.weight"]
        assert 0 < difference.abs().max() < 0.1  # other draws, the same direction


def test_a_killed_run_of_two_processes_resumes(trained: Path) -> None:
    said = (trained / "rank0.log").read_text()
    assert f"{CUT}: resuming after step 10" in said
    assert said.count("resuming after") == 1
    one, two = _both(trained, CUT, TENSORS)
    for key, value in one.items():  # Adam's moments, too
        assert key.startswith("weights.") or (value - two[key]).abs().max() < 1e-5, key


@pytest.mark.parametrize("name", ["parallel", "uneven_hybrid_plus"])
def test_one_process_resumes_a_run_of_two(trained: Path, tmp_path: Path, name: str) -> None:
    """The number of processes is not an input of a run: a finished run stays finished, and nothing is replaced."""
    clip = load_clip(ClipConfig(str(trained / "clip"))) if "parallel" not in name else None
    copied = Path(shutil.copytree(trained / "two" / name, tmp_path / name))
    run = trainer(_config(name), training_data(trained), copied, clip=clip)
    assert run.run().finished and run.progress.step == STEPS
    assert not (copied / "replaced").exists()


if __name__ == "__main__":
    _worker(Path(sys.argv[1]), Path(sys.argv[2]))
