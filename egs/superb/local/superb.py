"""Run one SUPERB task with a SpeechCLIP upstream and a baseline. run.sh passes the options."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
from pathlib import Path
from typing import Any

from query import run_query_by_example
from report import write_report
from sweep import Run, Upstream, merge, parse_overrides, read_yaml, sweep
from tasks import S3PRL_CACHE, SPLIT, TASKS, TRIALS, Task, check_corpus, is_filled

from speechclip.common.arguments import ArgumentParser, exit_on_user_error
from speechclip.common.errors import UserError

ENCODER = "speechclip_encoder_local"
RECIPE = Path(__file__).resolve().parents[1]


def parser() -> ArgumentParser:
    """Return the parser of run.sh's options. The remaining words override s3prl's configuration."""
    made = ArgumentParser(prog="superb.py", description=__doc__)
    made.add_argument("--task", choices=list(TASKS), required=True)
    for name in ("upstream", "checkpoint", "baseline", "baseline_checkpoint", "corpus", "config", "tag", "lr", "folds"):
        made.add_argument(f"--{name}", default="")
    for name in ("stage", "stop_stage", "scale", "seed", "nj", "workers"):
        made.add_argument(f"--{name}", type=int, default=0)
    made.add_argument("--device", default="cpu")
    made.add_argument("--pseudo", choices=("true", "false"), default="false")
    made.add_argument("--force", choices=("true", "false"), default="false")
    made.add_argument("overrides", nargs="*", default=[])
    return made


def corpus_of(options: Any, task: Task) -> Path:
    """Check the corpus (stage 0) and return its folder. With --pseudo true it is generated if it is missing.

    Raises:
        UserError: the folder is not given, or a file of the corpus is missing.
    """
    if options.pseudo == "false":
        if not options.corpus:
            raise UserError(f"--corpus: not set. Give the folder of {task.name}'s corpus, or use --pseudo true.")
        corpus = Path(options.corpus)
    else:
        from layouts import MAKERS

        corpus = Path("data") / f"{task.layout}_{options.scale}_{options.seed}"
        if not corpus.is_dir():
            print(f"{corpus}: generating", flush=True)
            part = corpus.with_name(f"{corpus.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            # librimix's tables hold absolute paths, which must be the final ones
            MAKERS[task.layout](part, options.scale, options.seed)
            for table in part.glob("*/wav.scp"):
                table.write_text(table.read_text().replace(f"{part.resolve()}/", f"{corpus.resolve()}/"))
            part.rename(corpus)
    check_corpus(options.task, corpus)
    return corpus.resolve()


def upstreams_of(options: Any) -> list[Upstream]:
    """Return the upstream and its baseline.

    Raises:
        UserError: s3prl does not have an upstream, or a checkpoint is missing.
    """
    wanted = [Upstream(options.upstream, _absolute(options.checkpoint))]
    encoder = options.baseline == ENCODER  # the same weights without the head; QbE scores each state anyway
    if options.baseline and options.baseline != options.upstream and not (encoder and options.task == "qbe"):
        checkpoint = _absolute(options.baseline_checkpoint or (options.checkpoint if encoder else ""))
        if not encoder or checkpoint:
            wanted.append(Upstream(options.baseline, checkpoint))
        elif options.upstream.startswith("speechclip"):
            wanted.append(Upstream(options.upstream, "", encoder_only=True))
    options_of = (("--upstream", "--checkpoint"), ("--baseline", "--baseline_checkpoint"))
    for (name, checkpoint), upstream in zip(options_of, wanted):
        _check_name(upstream.name, name)
        if upstream.name.endswith("_local") and not upstream.checkpoint:
            raise UserError(f"{checkpoint}: not set, but {upstream.name} needs a checkpoint.")
        if upstream.checkpoint and "://" not in upstream.checkpoint and not Path(upstream.checkpoint).exists():
            raise UserError(f"{upstream.checkpoint}: no such checkpoint")
    return wanted


def _check_name(name: str, option: str) -> None:
    """Raise UserError for an upstream that s3prl's hub does not have."""
    from speechclip.upstream.hubconf import ENTRIES

    if name not in ENTRIES:
        from speechclip.model.encoders.s3prl import check_upstream
        from speechclip.upstream import register

        register()
        from s3prl import hub

        check_upstream(name, option, hub.options())


def check_checkpoints(upstreams: list[Upstream]) -> None:
    """Read the local SpeechCLIP checkpoints, before anything is written.

    Raises:
        UserError: a checkpoint cannot be read.
    """
    from speechclip.checkpoint.folder import WEIGHTS, read_checkpoint, read_weights
    from speechclip.convert.reader import read_published

    own = {Path(item.checkpoint) for item in upstreams if item.name.startswith("speechclip_") and item.checkpoint}
    for path in sorted(own):
        if path.is_dir():
            read_weights(read_checkpoint(path)[0] / WEIGHTS)
        elif path.is_file():
            read_published(path)


def _absolute(path: str) -> str:
    return os.path.abspath(path) if path and "://" not in path else path


def _relative(path: str) -> str:
    return os.path.relpath(path) if path and "://" not in path else path


def learning_rates(words: str, own: float) -> list[float]:
    """Return the learning rates of --lr, or the task's own rate if --lr is empty.

    Raises:
        UserError: a rate is not a number between 0 and 100.
    """
    try:
        rates = [float(word) for word in words.split()] or [own]
    except ValueError as error:
        raise UserError(f"--lr: {error}") from error
    if any(not 0 < rate < 100 for rate in rates):
        raise UserError(f"--lr: {words}: must be above 0 and below 100")
    return rates


def folds_of(words: str, task: Task) -> list[int]:
    """Return the folds of --folds, or all folds of the task if it is empty. A task with one test set has fold 0.

    Raises:
        UserError: a word is not a fold of the task, or is there twice.
    """
    known = list(map(str, range(task.folds)))
    if words and task.folds == 1:
        raise UserError(f"--folds: {task.name} has no folds. Leave the option out.")
    chosen = words.split() or known
    for word in chosen:
        if word not in known or chosen.count(word) > 1:
            raise UserError(f"--folds: {word!r} is not one of: {' '.join(known)}, each at most once.")
    return [int(word) for word in chosen]


def configuration(options: Any, task: Task) -> dict[str, Any]:
    """Merge the task's settings, the settings for generated data, --config, and the overrides.

    Raises:
        UserError: an unknown setting, or steps that would leave no checkpoint to test.
    """
    settings = read_yaml(RECIPE / "conf" / f"{options.task}.yaml")
    layers = [RECIPE / "conf" / "small" / f"{options.task}.yaml"] if options.pseudo == "true" and task.problem else []
    for layer in [*layers, *([Path(options.config)] if options.config else [])]:
        settings = merge(settings, read_yaml(layer), str(layer))
    overrides = parse_overrides(options.overrides)
    if "test_fold" in overrides.get("prepare_data", {}):
        raise UserError("after --: prepare_data.test_fold: is set by --folds. Use --folds 2 for fold 2 alone.")
    settings = merge({"stop": None, **settings}, overrides, "after --")
    if task.problem:
        _check_steps(settings["train"], task)
    return settings


def _check_steps(train: dict[str, Any], task: Task) -> None:
    """Raise UserError if s3prl would train and have no checkpoint to test."""
    total = train["total_steps"]
    for key in ("total_steps", "eval_step", "save_step", "log_step"):
        if not isinstance(train[key], (int, float)) or train[key] < 1:
            raise UserError(f"train.{key}: {train[key]}; must be a number of steps, at least 1")
    # The best checkpoint on validation is tested. Without validation, all saved ones are.
    key = "eval_step" if task.valid_metric else "save_step"
    if train[key] > total:
        raise UserError(
            f"train.total_steps: {total}, but train.{key} is {train[key]}, so {task.name} would have no checkpoint to "
            f"test. Use -- --train.total_steps {total} --train.{key} {total}."
        )


def experiment(options: Any, upstream: Upstream) -> Path:
    """Return exp/<task>[_<tag>][_seed<N>]/<upstream>."""
    name = options.task + (f"_{options.tag}" if options.tag else "") + (f"_seed{options.seed}" if options.seed else "")
    return Path("exp").resolve() / name / upstream.label


def runs_of(options: Any, task: Task, corpus: Path, upstream: Upstream) -> list[Run]:
    """Return one run per learning rate, in :func:`experiment`/lr_<rate>.

    A task with folds has one run per rate and fold, in :func:`experiment`/fold_<number>/lr_<rate>.
    """
    settings = configuration(options, task)
    if settings["stop"] is None:
        del settings["stop"]
    prepare = settings.get("prepare_data", {}) | {key: str(corpus / below) for key, below in task.data.items()}
    cache = cache_of(corpus)
    for pattern in ("metadata/*.json", SPLIT, TRIALS):
        for file in filter(is_filled, corpus.glob(pattern)):
            shutil.copy(file, cache)  # s3prl would download it
    runs = []
    rates = learning_rates(options.lr, float(settings["build_optimizer"]["conf"]["lr"]))
    for fold, rate in itertools.product(folds_of(options.folds, task), rates):
        folder, data = experiment(options, upstream), prepare
        if task.folds > 1:
            folder, data = folder / f"fold_{fold}", {**prepare, "test_fold": fold}
        folder /= f"lr_{rate:g}"
        config = merge(settings, {"build_optimizer": {"conf": {"lr": rate}}, "train": {"seed": options.seed}}, "--lr")
        config |= {
            "prepare_data": data, "target_dir": str(folder), "cache_dir": str(cache), "device": options.device,
            "num_workers": options.workers, "build_upstream": upstream.settings(),
        }  # fmt: skip
        runs.append(Run(task, upstream, folder, config, corpus, fold))
    return runs


def cache_of(corpus: Path) -> Path:
    """Return s3prl's cache folder of a corpus."""
    cache = Path("exp").resolve() / "cache" / corpus.name
    cache.mkdir(parents=True, exist_ok=True)
    return cache


def take_home(home: Path) -> None:
    """Set HOME to ``home`` for s3prl, and keep the files that were downloaded into the real home.

    A ``home`` without downloads shares the real ones. A ``home`` with downloads gets links to the real ones.
    """
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("HF_HOME", str(caches / "huggingface"))
    os.environ.setdefault("TORCH_HOME", str(caches / "torch"))
    real, own = (at / S3PRL_CACHE / "download" for at in (Path.home().resolve(), home))
    with contextlib.suppress(OSError):  # a read-only home holds no downloads
        real.mkdir(parents=True, exist_ok=True)
    own.parent.mkdir(parents=True, exist_ok=True)
    if real.is_dir() and not own.is_dir():
        own.unlink(missing_ok=True)
        own.symlink_to(real)
    for file in real.iterdir() if real.is_dir() else ():
        link = own / file.name
        if file.suffix != ".lock" and is_filled(file) and not link.exists():
            link.unlink(missing_ok=True)  # a broken link
            link.symlink_to(file)
    os.environ["HOME"] = str(home)


def place_speaker_list(corpus: Path) -> Path:
    """Return the path of VoxCeleb1's list for s3prl's SID, which reads it only from HOME.

    If the corpus has a list, HOME becomes a folder of the corpus, so that the user's list stays. An empty file of a
    failed download is removed, because s3prl would read it.
    """
    if is_filled(corpus / SPLIT):
        home = cache_of(corpus) / "home"
        (home / S3PRL_CACHE).mkdir(parents=True, exist_ok=True)
        part = home / S3PRL_CACHE / f"{SPLIT}.{os.getpid()}.part"
        shutil.copy(corpus / SPLIT, part)
        part.replace(home / S3PRL_CACHE / SPLIT)
        take_home(home)
    there = Path.home() / S3PRL_CACHE / SPLIT
    there.parent.mkdir(parents=True, exist_ok=True)
    if there.is_file() and not is_filled(there):
        there.unlink()
    return there


@exit_on_user_error
def main() -> None:
    """Run stages 0 to 2 of run.sh."""
    options = parser().parse_args()
    task = TASKS[options.task]
    trains = options.stage <= 1 <= options.stop_stage
    upstreams = upstreams_of(options) if trains else []
    if options.device != "cpu" and not _has_gpu(options.device):
        raise UserError(f"--device: {options.device}: torch finds no GPU (torch.cuda.is_available())")
    for name in ("nj", "scale"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name}: {getattr(options, name)}; must be at least 1")
    configuration(options, task)  # reports mistakes before anything is written
    folds_of(options.folds, task)
    check_checkpoints(upstreams)
    if options.stage <= 1:
        corpus = corpus_of(options, task)
        if trains:
            train(options, task, corpus, upstreams)
    if options.stop_stage < 2:
        return
    if task.problem:
        write_report(Path("exp"))
    else:
        print(f"{task.name}: the scripts of the corpus score the detections. RESULTS.md gets no row.")


def train(options: Any, task: Task, corpus: Path, upstreams: list[Upstream]) -> None:
    """Train and test the upstream and its baseline (stage 1)."""
    if (corpus / "home").is_dir():  # it holds files that s3prl would download
        take_home(corpus / "home")
    speakers = place_speaker_list(corpus) if options.task == "sid" else None
    for upstream in reversed(upstreams):  # the baseline first, because the other row needs its score
        settings = configuration(options, task)
        if not task.problem:
            run_query_by_example(options, corpus, upstream, settings, experiment(options, upstream))
            continue
        runs = runs_of(options, task, corpus, upstream)
        try:
            best = sweep(runs, options.nj, options.force == "true")
        except UserError as error:
            if speakers is None or is_filled(speakers):
                raise
            speakers.unlink(missing_ok=True)
            raise UserError(
                f"{corpus / SPLIT}: is missing, and s3prl could not download it to {speakers}. Put VoxCeleb1's list "
                f"of recordings there ({error})."
            ) from error
        rates = list(dict.fromkeys(run.config["build_optimizer"]["conf"]["lr"] for run in runs))
        write_best(options, upstream, upstreams, corpus, best, rates)


def _has_gpu(device: str) -> bool:
    """Return whether the GPU is available. torch is imported late, so that wrong options are reported at once."""
    import torch

    return device.startswith("cuda") and torch.cuda.is_available()


def write_best(
    options: Any, upstream: Upstream, upstreams: list[Upstream], corpus: Path, best: dict[str, Any], rates: list[float]
) -> None:
    """Write ``best.json`` of a sweep for the report. ``against`` names the folder of the baseline."""
    others = [other.label for other in upstreams if other is not upstream]
    facts = {
        "task": options.task, "tag": options.tag,
        "upstream": upstream.name + (" (encoder)" if upstream.encoder_only else ""),
        "head": upstream.name.startswith("speechclip") and upstream.name != ENCODER and not upstream.encoder_only,
        "baseline": upstream is not upstreams[0], "against": others[0] if others and upstream is upstreams[0] else "",
        "checkpoint": _relative(upstream.checkpoint), "corpus": corpus.name,
        "rates": rates, "lr": best["lr"], "step": best["step"], "test": best["test"], "valid": best["valid"],
        "layer_weights": best["layer_weights"], "folds": best["folds"], "seed": options.seed,
        "command": best["command"], "commit": best["commit"], "weights": best["settings"]["weights"],
    }  # fmt: skip
    (experiment(options, upstream) / "best.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
