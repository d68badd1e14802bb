#!/usr/bin/env python3
"""Run egs/flickr8k on generated files at full size, and print the time, memory and disk space of each step.

tools/measure/generate_flickr8k.py writes files in the true layout, and HuBERT Base and CLIP ViT-B/32 with random
weights. The stages of the recipe run in a copy under --out: preparation, CLIP embeddings, hidden states, a few training
steps on stored states, and the same steps with the encoder in the loop. The table shows wall time, CPU time of all
processes, and the peak memory of the largest process.

Usage: tools/measure/dry_run_flickr8k.py --out DIR [--images 8091] [--seconds 0.4] [--steps 4] [--batch_size 256]
       [--nj 2] [--embeddings tower|random] [--seed 0]
       It takes hours on one core, most of them for HuBERT and CLIP. --embeddings random skips CLIP.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from speechclip.common.arguments import ArgumentParser, exit_on_user_error
from speechclip.common.errors import UserError
from speechclip.data.embeddings import save_embeddings
from speechclip.data.kaldi import read_table

ROOT = Path(__file__).resolve().parents[2]
SPLITS = ("train", "dev", "test")
CODE, RECIPE = ("speechclip", "utils"), ("egs/conf", "egs/flickr8k")
MADE = ("corpus", "data", "dump", "exp", ".run.lock")  # files that runs write into a recipe
RANDOM_WIDTH = 512


class Table:
    """Run commands in a folder and print one row for each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        print(f"{'step':34}{'wall s':>10}{'CPU s':>13}{'peak GB':>9}{'disk GB':>9}", flush=True)

    def run(self, name: str, command: Sequence[str | Path], output: Path) -> None:
        """Run a command and print its row.

        Args:
            name: of the row.
            command: the words.
            output: the folder whose growth is measured.

        Raises:
            UserError: the command fails. The message holds its last line.
        """
        before, started = size(output), time.monotonic()
        log = self.folder / "dry_run.log"
        with log.open("a", encoding="utf-8") as file:
            process = subprocess.Popen(command, cwd=self.folder, stdout=file, stderr=file)
            _, status, used = os.wait4(process.pid, 0)  # includes the peak and times of its children
        wall = time.monotonic() - started
        if status:
            raise UserError(f"{log}: {name} failed: {log.read_text(encoding='utf-8').splitlines()[-1]}")
        numbers = wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1e6, (size(output) - before) / 1e9
        print(f"{name:34}{numbers[0]:10.1f}{numbers[1]:13.1f}{numbers[2]:9.2f}{numbers[3]:9.2f}", flush=True)


def size(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def copy_recipe(out: Path) -> Path:
    """Copy the recipe and the code it needs, so that the runs of the user are not touched."""
    for name in (*CODE, *RECIPE):
        left = ("__pycache__", *(() if name in CODE else MADE))
        shutil.copytree(ROOT / name, out / name, ignore=shutil.ignore_patterns(*left))
    return out / "egs" / "flickr8k"


def random_embeddings(recipe: Path, out: Path, seed: int) -> list[str]:
    """Return options that replace both towers by random embeddings."""
    rng = np.random.default_rng(seed)
    options = []
    for option, table in (("--clip_embeddings", "img.scp"), ("--text_embeddings", "text")):
        ids = [item for split in SPLITS for item in read_table(recipe / "data" / split / table)]
        file = out / f"{table}.npz"
        save_embeddings(file, ids, rng.standard_normal((len(ids), RANDOM_WIDTH)))
        options += [option, str(file)]
    return options


def train(table: Table, recipe: Path, run: Sequence[str | Path], feats: str, steps: int, batch_size: int) -> None:
    """Run a few training steps with one dev evaluation at the end, and print the time of a step."""
    before = set((recipe / "exp").glob("*"))
    overrides = (
        f"--optim.max_steps={steps} --optim.warmup_steps=1 --train.eval_interval={steps} --train.log_interval=1 "
        f"--data.batch_size={batch_size}"
    )
    command = [*run, "--stage", "3", "--stop_stage", "3", "--feats", feats, "--tag", feats, "--", *overrides.split()]
    table.run(f"3 train, {feats}, and score dev", command, recipe / "exp")
    (folder,) = (path for path in set((recipe / "exp").glob("*")) - before if path.is_dir() and path.name != "log")
    each = json.loads((folder / "last" / "provenance.json").read_text())["train_seconds"] / steps
    print(f"  {steps} steps of {batch_size} utterances: {each:.2f} s each", flush=True)


@exit_on_user_error
def main() -> None:
    """Run all steps and print the table."""
    parser = ArgumentParser(prog="dry_run_flickr8k.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", required=True, metavar="DIR", help="new folder for everything")
    parser.add_argument("--images", type=int, default=8091, help="number of photographs; the splits shrink with it")
    parser.add_argument("--seconds", type=float, default=0.4, help="mean length of a recording")
    parser.add_argument("--steps", type=int, default=4, help="training steps")
    parser.add_argument("--batch_size", type=int, default=256, help="utterances in a training batch")
    parser.add_argument("--nj", type=int, default=2, help="processes for the preparation")
    parser.add_argument(
        "--embeddings", choices=("tower", "random"), default="tower", help="CLIP embeddings or random ones"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of all random values")
    args = parser.parse_args()

    from speechclip.common.provenance import commit

    out = Path(args.out).resolve()
    if out.exists():
        raise UserError(f"{out}: exists. Give a new folder.")
    out.mkdir(parents=True)
    recipe, corpus = copy_recipe(out), out / "corpus"
    os.environ |= {"SPEECHCLIP_PYTHON": sys.executable, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(out), os.environ.get("PYTHONPATH"))))
    print(f"{args.images:,} photographs, recordings of {args.seconds} s, commit {commit()}, {os.cpu_count()} cores")
    table = Table(recipe)
    numbers = {"images": args.images, "seconds": args.seconds, "seed": args.seed}
    generate = [sys.executable, ROOT / "tools/measure/generate_flickr8k.py", "--out", corpus, "--encoders", "base"]
    table.run("generate", [*generate, *(f"--{k}={v}" for k, v in numbers.items())], out)
    # Short noise is intended here. The two recordings of unusual length and the captions without a photograph are
    # skipped. In a small corpus they are a larger fraction than the recipe allows.
    run = ["./run.sh", "--corpus", str(corpus), "--models", str(corpus / "models"), "--nj", str(args.nj)]
    run += ["--min_seconds", str(min(0.3, 0.75 * args.seconds)), "--seed", str(args.seed)]
    run += ["--max_bad", str(max(0.01, 2 / args.images))]
    table.run("0, 1 download and prepare", [*run, "--stop_stage", "1"], recipe)
    if args.embeddings == "random":
        run += random_embeddings(recipe, out, args.seed)
    dump = recipe / "dump" / "base_hubert-base-ls960"
    table.run("2 features: CLIP", [*run, "--stage", "2", "--stop_stage", "2", "--feats", "online"], recipe / "dump")
    encoder = ["--config", "../conf/base.yaml", "--model.speech_encoder.path", str(corpus / "models/hubert-base-ls960")]
    for split in SPLITS:  # as stage 2 does with --feats dump, after CLIP
        command = [sys.executable, "-m", "speechclip.bin.extract_features", *encoder, "--data_dirs", f"[data/{split}]"]
        table.run(f"2 features: HuBERT, {split}", [*command, "--dump_root", str(dump)], dump)
    for feats in ("dump", "online"):
        train(table, recipe, run, feats, args.steps, args.batch_size)


if __name__ == "__main__":
    main()
