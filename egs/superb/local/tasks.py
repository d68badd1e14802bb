"""The SUPERB tasks of s3prl 0.4.18, and the files that each of them needs."""

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
        name: SUPERB's name.
        problem: class for s3prl-main; empty if only run_downstream has the task.
        metric: name in result.yaml.
        label: name in the table.
        layout: layout of the generated corpus.
        needs: globs of required files, relative to the corpus folder.
        data: keys of ``prepare_data``, and folders relative to the corpus folder.
        higher_better: True if higher numbers are better.
        percent: factor from result.yaml to the table.
        valid_metric: metric that decides a sweep of learning rates; empty if the task has no validation set.
        scorer: file that the task's optional last stage writes.
        folds: number of test folds; SUPERB's score is their mean. 1 for a task with one test set.
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
    folds: int = 1


S3PRL_CACHE = Path(".cache") / "s3prl"  # below HOME
SPLIT, TRIALS = "iden_split.txt", "voxceleb1_test_v2.txt"  # VoxCeleb1's split of SID, and pairs of ASV
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
               tuple(f"Session{i}/dialog/EmoEvaluation/*.txt" for i in range(1, 6)), {"iemocap": "."}, folds=5),
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
    """Check the files of a corpus.

    Args:
        name: the task.
        corpus: the corpus folder.

    Raises:
        UserError: a required file is missing, or a recording of one of the lists.
    """
    task = TASKS[name]
    if not corpus.is_dir():
        raise UserError(
            f"{corpus}: no such folder. Give the corpus of {task.name} with --corpus, or use --pseudo true."
        )
    for pattern in task.needs:
        if next(corpus.glob(pattern), None) is None:
            raise UserError(f"{corpus / pattern}: is missing. {task.name} needs {', '.join(task.needs)}.")
    try:
        listed = list(_listed(name, corpus))
    except (LookupError, ValueError) as error:
        raise UserError(
            f"{corpus}: a list of {task.name}'s recordings differs from the published format: {error!r}"
        ) from error
    missing = [(source, paths) for source, paths in listed if not any(path.is_file() for path in paths)]
    if missing:
        source, paths = missing[0]
        raise UserError(
            f"{' or '.join(map(str, paths))}: is missing, but {source} lists it. "
            f"{len(missing)} of {len(listed)} recordings of {task.name} are missing."
        )


def _listed(name: str, corpus: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Yield each listed recording: the list, and the paths of which one must exist."""
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
    """Return VoxCeleb1's list of recordings from the corpus, else from s3prl's cache, else None."""
    known = (corpus / SPLIT, Path.home() / S3PRL_CACHE / SPLIT)
    return next((path for path in known if is_filled(path)), None)


def is_filled(path: Path) -> bool:
    """Return whether a file exists and is not empty. A failed ``wget -O`` leaves an empty file."""
    return path.is_file() and path.stat().st_size > 0
