"""The SUPERB tasks as s3prl 0.4.18 has them, and what has to be on the disk for each."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from speechclip.common.errors import UserError


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: as SUPERB writes it. problem: class for s3prl-main; empty: only run_downstream has the task.
        metric: in result.yaml. label: what the table calls it. percent: factor from the one to the other.
        higher_better: which of two numbers is better.
        valid_metric: what a sweep of learning rates is decided by; empty: the task has no validation set.
        scorer: file that a last stage of the task's own writes, which a run may leave out.
        layout: of a generated corpus. needs: what there has to be below the corpus folder, globs.
        data: keys of ``prepare_data`` and folders below the corpus folder.
    """

    name: str
    problem: str
    metric: str
    label: str
    layout: str
    needs: tuple[str, ...]
    data: dict[str, str] = field(default_factory=dict)
    higher_better: bool = True
    percent: float = 100.0
    valid_metric: str = "accuracy"
    scorer: str = ""


S3PRL_CACHE = Path(".cache") / "s3prl"  # below HOME
SPLIT, TRIALS = "iden_split.txt", "voxceleb1_test_v2.txt"  # VoxCeleb1's: who trains and tests SID, and ASV's pairs
_LIBRISPEECH = (*(f"{part}/*/*/*.flac" for part in ("train-clean-100", "dev-clean", "test-clean")), "SPEAKERS.TXT")
TASKS = {
    "pr": Task("PR", "SuperbPR", "per", "PER", "librispeech", _LIBRISPEECH, {"dataset_root": "."}, False,
               valid_metric="per"),
    "asr": Task("ASR", "SuperbASR", "wer", "WER", "librispeech", _LIBRISPEECH, {"dataset_root": "."}, False,
                valid_metric="wer"),
    "ks": Task("KS", "SuperbKS", "accuracy", "accuracy", "speech_commands",
               ("speech_commands_v0.01/*/*.wav", "speech_commands_v0.01/_background_noise_/*.wav",
                "speech_commands_test_set_v0.01/*/*.wav"),
               {"gsc1": "speech_commands_v0.01", "gsc1_test": "speech_commands_test_set_v0.01"}),
    "ic": Task("IC", "SuperbIC", "accuracy", "accuracy", "fluent",
               ("data/train_data.csv", "data/valid_data.csv", "data/test_data.csv", "wavs"), {"dataset_root": "."}),
    "sf": Task("SF", "SuperbSF", "slot_type_f1", "slot type F1", "snips",
               ("all.iob.snips.txt", "train", "valid", "test"), {"dataset_root": "."}, valid_metric="slot_type_f1"),
    "er": Task("ER", "SuperbER", "accuracy", "accuracy", "iemocap",
               tuple(f"Session{i}/dialog/EmoEvaluation/*.txt" for i in range(1, 6)), {"iemocap": "."}),
    "sid": Task("SID", "SuperbSID", "accuracy", "accuracy", "voxceleb1", ("dev/wav/*/*/*.wav", "test/wav/*/*/*.wav"),
                {"dataset_root": "."}),
    "asv": Task("ASV", "SuperbASV", "EER", "EER", "voxceleb1", ("dev/wav/*/*/*.wav", "test/wav/*/*/*.wav"),
                {"dataset_root": "."}, False, valid_metric=""),
    "sd": Task("SD", "SuperbSD", "der", "DER by frames", "librimix",
               tuple(f"{part}/{table}" for part in ("train", "dev", "test")
                     for table in ("wav.scp", "segments", "utt2spk", "reco2dur")),
               {"data_dir": "."}, False, valid_metric="der", scorer="dscore.yaml"),
    "qbe": Task("QbE", "", "", "detections", "quesst14",
                tuple(f"scoring/language_key_{name}.lst" for name in ("utterances", "dev", "eval"))),
}  # fmt: skip


def check_corpus(name: str, corpus: Path) -> None:
    """Raise UserError for what is missing below the corpus folder, a recording that one of its lists names too."""
    task = TASKS[name]
    if not corpus.is_dir():
        raise UserError(f"{corpus}: no such folder; give the corpus of {task.name} with --corpus, or --pseudo true")
    for pattern in task.needs:
        if next(corpus.glob(pattern), None) is None:
            raise UserError(f"{corpus / pattern}: nothing there; {task.name} needs {', '.join(task.needs)}")
    try:
        listed = list(_listed(name, corpus))
    except (LookupError, ValueError) as error:
        raise UserError(f"{corpus}: a list of {task.name}'s recordings is not as published: {error!r}") from error
    missing = [(source, paths) for source, paths in listed if not any(path.is_file() for path in paths)]
    if missing:
        source, paths = missing[0]
        raise UserError(
            f"{' or '.join(map(str, paths))}: no such file, {source} names it; "
            f"{len(missing)} of {len(listed)} recordings are missing for {task.name}"
        )


def _listed(name: str, corpus: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Every recording that a list names: the list, and the paths of which one has to be there."""
    if name in ("sid", "asv"):
        source = speaker_list(corpus)
        for line in [] if source is None else source.read_text(encoding="utf-8").splitlines():
            uid = line.split()[1]
            trial = 10270 <= int(uid[2:7]) < 10310
            halves = ["test" if trial else "dev"] if name == "asv" else ["dev", "test"]
            yield source, [corpus / half / "wav" / uid for half in halves]
    if name == "asv" and is_filled(corpus / TRIALS):
        source = corpus / TRIALS
        trials = [line.split() for line in source.read_text(encoding="utf-8").splitlines()]
        for uid in sorted({uid for _, *pair in trials for uid in pair}):
            yield source, [corpus / "test" / "wav" / uid]
    if name == "ic":
        for source in (corpus / "data" / f"{part}_data.csv" for part in ("train", "valid", "test")):
            with source.open(encoding="utf-8", newline="") as file:
                yield from ((source, [corpus / row["path"]]) for row in csv.DictReader(file))
    if name == "sd":
        for source in (corpus / part / "wav.scp" for part in ("train", "dev", "test")):
            for line in source.read_text(encoding="utf-8").splitlines():
                yield source, [Path(line.split(maxsplit=1)[1])]


def speaker_list(corpus: Path) -> Path | None:
    """VoxCeleb1's list of recordings: the corpus's own, else that which s3prl has downloaded, else None."""
    known = (corpus / SPLIT, Path.home() / S3PRL_CACHE / SPLIT)
    return next((path for path in known if is_filled(path)), None)


def is_filled(path: Path) -> bool:
    """Whether there is a file with something in it; a failed ``wget -O`` leaves an empty one."""
    return path.is_file() and path.stat().st_size > 0
