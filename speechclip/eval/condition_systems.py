"""The systems that are scored under listening conditions, from their folders, and the content of conditions.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speechclip.checkpoint.folder import load_model, read_checkpoint
from speechclip.checkpoint.recognizers import PROVENANCE, load_recognizer
from speechclip.common.devices import pick_device
from speechclip.common.files import read_json
from speechclip.config import SpeechEncoderConfig
from speechclip.data.conditions import Condition
from speechclip.eval.conditions import (
    HeadSystem,
    RecognizerSystem,
    System,
    SystemScores,
    overtakes,
    paired_conditions,
)
from speechclip.eval.recognition import load_text_head
from speechclip.model.encoders.base import SpeechEncoder
from speechclip.model.encoders.factory import load_speech_encoder
from speechclip.model.recognizers.base import Recognizer
from speechclip.model.recognizers.ctc import CtcRecognizer

PAIRED_SCORES = ("R@1", "R@10")
TEXT_HEAD = "text_head"  # the folder of a text head in its experiment folder


@dataclass
class Systems:
    """Systems and the speech encoders that they share.

    Attributes:
        systems: in the order in which they were added.
        encoders: by key.
    """

    systems: list[System] = field(default_factory=list)
    encoders: dict[str, SpeechEncoder] = field(default_factory=dict)
    _recognizers: dict[str, tuple[Recognizer, str]] = field(default_factory=dict)
    _by_path: dict[str, str] = field(default_factory=dict)

    def add_head(self, checkpoint: str, exp: str) -> None:
        """Load a checkpoint whose scores are in an experiment folder.

        Raises:
            UserError: the checkpoint or its speech encoder is missing or damaged.
        """
        _, config, origin = read_checkpoint(checkpoint, strict=True)
        model = load_model(Path(checkpoint), with_speech_encoder=False, with_clip=False).to(pick_device()).eval()
        half = config.data.feats == "dump" and config.data.store_dtype == "float16"
        key = self._encoder(config.model.speech_encoder)
        self.systems.append(HeadSystem(exp, origin.get("seed"), model, key, half))

    def add_recognizer(self, recognizer: str, exp: str) -> None:
        """Load a recogniser, and the text head of its experiment folder if it has one.

        Raises:
            UserError: the recogniser or the text head is missing or damaged.
        """
        if recognizer not in self._recognizers:
            loaded = load_recognizer(recognizer)
            key = ""
            if isinstance(loaded, CtcRecognizer) and loaded.encoder is not None:
                key = self._keep(loaded.encoder)
            self._recognizers[recognizer] = loaded, key
        loaded, key = self._recognizers[recognizer]
        trained = Path(recognizer) / PROVENANCE
        seed = read_json(trained).get("seed") if trained.is_file() else None
        folder = Path(exp) / TEXT_HEAD
        head = load_text_head(folder) if folder.is_dir() else None
        if head is not None:
            seed = read_json(folder / PROVENANCE).get("seed", seed)
        self.systems.append(RecognizerSystem(exp, seed, loaded, key, head))

    def _encoder(self, config: SpeechEncoderConfig) -> str:
        known = f"{config.path} {config.normalize} {config.window_seconds}"
        if known not in self._by_path:
            self._by_path[known] = self._keep(load_speech_encoder(config).to(pick_device()))
        return self._by_path[known]

    def _keep(self, encoder: SpeechEncoder) -> str:
        """Return the key of an encoder. Encoders with equal weights and settings are kept once."""
        key = " ".join(f"{name}={value}" for name, value in sorted(encoder.description.items()) if name != "path")
        self.encoders.setdefault(key, encoder)
        return key


def condition_report(
    system: System, others: Sequence[System], scores: Mapping[str, SystemScores], conditions: Sequence[Condition]
) -> dict[str, Any]:
    """Return the content of conditions.json of a system, without provenance.

    Args:
        system: the system.
        others: all systems of the call.
        scores: their scores by name.
        conditions: all conditions.
    Returns:
        "conditions": the scores by condition.
        "paired": for a head, by system of the same seed, the R@1 and R@10 of :func:`paired_conditions`.
        "overtakes": for a head, by system and noise, the SNR of :func:`overtakes` for R@1.
    """
    mine = scores[system.name]
    report: dict[str, Any] = {"conditions": mine.conditions}
    if not isinstance(system, HeadSystem):
        return report
    kinds = list(dict.fromkeys(condition.kind for condition in conditions if condition.is_noise))
    compared = [other for other in others if _comparable(system, other)]
    report["paired"] = {
        Path(o.name).name: {
            name: {score: tests[score] for score in PAIRED_SCORES}
            for name, tests in paired_conditions(mine, scores[o.name]).items()
        }
        for o in compared
    }
    report["overtakes"] = {
        Path(o.name).name: {kind: overtakes(mine.conditions, scores[o.name].conditions, kind) for kind in kinds}
        for o in compared
    }
    return report


def _comparable(system: HeadSystem, other: System) -> bool:
    """Return whether paired tests are of interest: a recogniser or another training of the same head, of one seed."""
    if other is system or (other.seed is not None and other.seed != system.seed):
        return False
    return isinstance(other, RecognizerSystem) or other.model.config.head.name == system.model.config.head.name
