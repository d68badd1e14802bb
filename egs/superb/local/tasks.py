"""The SUPERB tasks as s3prl 0.4.18 has them, and what has to be on the disk for each."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from speechclip.errors import UserError


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: as SUPERB writes it. problem: class for s3prl-main; empty: only run_downstream has the task.
        metric: in result.yaml. label: what the table calls it. percent: factor from the one to the other.
        higher_better: which of two numbers is better.
        valid_metric: what a sweep of learning rates is decided by; empty: the task has no validation set.
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


_LIBRISPEECH = ("train-clean-100", "dev-clean", "test-clean", "SPEAKERS.TXT")
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
               {"data_dir": "."}, False, valid_metric="der"),
    "qbe": Task("QbE", "", "", "detections", "quesst14",
                tuple(f"scoring/language_key_{name}.lst" for name in ("utterances", "dev", "eval"))),
}  # fmt: skip


def check_corpus(name: str, corpus: Path) -> None:
    """Raise UserError for what is missing below the corpus folder."""
    task = TASKS[name]
    if not corpus.is_dir():
        raise UserError(f"{corpus}: no such folder; give the corpus of {task.name} with --corpus, or --pseudo true")
    for pattern in task.needs:
        if next(corpus.glob(pattern), None) is None:
            raise UserError(f"{corpus / pattern}: nothing there; {task.name} needs {', '.join(task.needs)}")
