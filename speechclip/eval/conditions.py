"""Retrieval scores of several systems under listening conditions: every system hears the same signal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from speechclip.data.conditioned import ConditionedSource, Interference
from speechclip.data.conditions import CLEAN, HELD_OUT, Condition
from speechclip.data.dataset import Batch, Split, read_batches
from speechclip.eval.ranking import Ints, first_hit_ranks
from speechclip.eval.retrieval import evaluate
from speechclip.eval.significance import paired_test
from speechclip.eval.transcripts import wer_report
from speechclip.features.clip import encode_captions
from speechclip.features.speech import batches_by_seconds
from speechclip.model.encoders.base import SpeechEncoder
from speechclip.model.encoders.clip import OpenClip
from speechclip.model.network import SpeechNetwork
from speechclip.model.recognizers.base import Recognizer
from speechclip.model.recognizers.ctc import CtcRecognizer
from speechclip.model.text_head import TextHead

Floats = NDArray[np.float32]
THERE, BACK = "speech->image", "image->speech"
PAIRED_CHOICES = 2000  # random exchanges of a paired test


@dataclass(frozen=True)
class HeadSystem:
    """A trained head.

    Attributes:
        name: of the system in this call.
        seed: of its training.
        model: the network without its speech encoder.
        encoder: key of its speech encoder.
        half: round the hidden states to half precision, as the feature store does.
    """

    name: str
    seed: int | None
    model: SpeechNetwork
    encoder: str
    half: bool


@dataclass(frozen=True)
class RecognizerSystem:
    """A recogniser in front of CLIP, with or without a text head.

    Attributes:
        name: of the system in this call.
        seed: of its training.
        recognizer: the recogniser. Systems with the same object share its transcripts.
        encoder: key of the speech encoder of a CTC recogniser; "" for a recogniser that reads waveforms.
        text_head: the head over CLIP's text embeddings, or None.
    """

    name: str
    seed: int | None
    recognizer: Recognizer
    encoder: str
    text_head: TextHead | None = None


System = HeadSystem | RecognizerSystem


@dataclass
class SystemScores:
    """The scores of one system.

    Attributes:
        conditions: by name of the condition, the content of conditions.json.
        ranks: by "CONDITION/DIRECTION", rank and image of every query.
    """

    conditions: dict[str, dict[str, Any]] = field(default_factory=dict)
    ranks: dict[str, tuple[Ints, Ints]] = field(default_factory=dict)


class ConditionScorer:
    """Scores systems on a split, one condition at a time.

    Args:
        split: the split with its image embeddings.
        interference: noises and rooms of the same data directory.
        systems: the systems; names differ.
        encoders: the speech encoders by key. Each runs once per batch, for all of its systems.
        clip: CLIP with its text tower; needed for recognisers.
        unseen: True for the utterances of speakers that training has not heard, [U].
        batch_seconds: the longest batch, with padding. With that of the feature store, clean speech has its states.
        n_bootstrap: number of resamples; 0 for no intervals.
    """

    def __init__(
        self, split: Split, interference: Interference, systems: Sequence[System],
        encoders: Mapping[str, SpeechEncoder], clip: OpenClip | None, unseen: NDArray[np.bool_], *,
        batch_seconds: float = 60.0, n_bootstrap: int = 1000,
    ) -> None:  # fmt: skip
        self.split, self.interference, self.systems = split, interference, systems
        self.encoders, self.clip, self.unseen = encoders, clip, unseen
        self.batch_seconds, self.n_bootstrap = batch_seconds, n_bootstrap
        self.scores = {system.name: SystemScores() for system in systems}
        self._clean: tuple[dict[str, Floats], dict[str, list[str]]] | None = None

    def score(self, condition: Condition) -> None:
        """Score all systems in a condition.

        HELD_OUT scores the utterances of unseen speakers only, without any noise. It has no result if no speaker is
        unseen.
        """
        if condition.kind in (CLEAN, HELD_OUT):
            if self._clean is None:
                self._clean = self._embed(Condition(CLEAN))
            rows, texts = self._clean
        else:
            rows, texts = self._embed(condition)
        chosen = np.flatnonzero(self.unseen) if condition.kind == HELD_OUT else np.arange(len(self.unseen))
        if not len(chosen):
            return
        for system in self.systems:
            entry: dict[str, Any] = {"kind": condition.kind, "value": condition.value, "n_utterances": len(chosen)}
            entry |= self._retrieval(self.scores[system.name], condition, rows[system.name], chosen)
            if system.name in texts:
                spoken = [self.split.data.utterances[int(at)].text for at in chosen]
                heard = [texts[system.name][at] for at in chosen]
                entry["recognition"] = wer_report(spoken, heard, self.split.utterance_image[chosen], self.n_bootstrap)
            self.scores[system.name].conditions[condition.name] = entry

    def _retrieval(self, scores: SystemScores, condition: Condition, speech: Floats, chosen: Ints) -> dict[str, Any]:
        owner, images = self.split.utterance_image[chosen], self.split.images
        used, every = np.unique(owner), np.arange(len(images))
        cases = {
            THERE: (speech[chosen], images, owner, every, owner),
            BACK: (images[used], speech[chosen], used, owner, used),
        }
        found: dict[str, Any] = {}
        for direction, case in cases.items():
            ranks = first_hit_ranks(*case[:4])
            found[direction] = evaluate(*case, self.n_bootstrap, 0, ranks)
            scores.ranks[f"{condition.name}/{direction}"] = (ranks, case[4])
        found["mean_R@10"] = (found[THERE]["R@10"] + found[BACK]["R@10"]) / 2
        return found

    @torch.no_grad()
    def _embed(self, condition: Condition) -> tuple[dict[str, Floats], dict[str, list[str]]]:
        """Return the embeddings [U, J] of every system, and the transcripts of the recognisers."""
        source = ConditionedSource(self.interference, condition)
        count = len(source.lengths)
        rows: dict[str, Floats] = {}
        heard: dict[int, list[str]] = {id(s.recognizer): [""] * count for s in self._recognizers}
        for batch in read_batches(source, list(batches_by_seconds(source.samples, self.batch_seconds))):
            assert batch.waves is not None
            features = {key: encoder(batch.waves) for key, encoder in self.encoders.items()}
            stored = {
                key: Batch(batch.indices, found.states.half().float(), found.frames, None)
                for key, found in features.items()
            }
            for system in self._heads:
                given = stored[system.encoder]
                if not system.half:
                    given = given._replace(states=features[system.encoder].states)
                unit = nn.functional.normalize(system.model(_select(given, system.model)).embedding.float(), dim=-1)
                rows.setdefault(system.name, np.zeros((count, unit.shape[1]), np.float32))
                rows[system.name][batch.indices.numpy()] = unit.cpu().numpy()
            for recognizer, key in {id(s.recognizer): (s.recognizer, s.encoder) for s in self._recognizers}.values():
                given = batch
                if isinstance(recognizer, CtcRecognizer) and key:
                    states = stored[key].states
                    assert states is not None
                    given = (
                        stored[key]
                        if recognizer.layers is None
                        else stored[key]._replace(states=states[:, recognizer.layers])
                    )
                for at, text in zip(batch.indices.tolist(), recognizer.transcribe(given), strict=True):
                    heard[id(recognizer)][at] = text
        texts = {asr.name: heard[id(asr.recognizer)] for asr in self._recognizers}
        for asr in self._recognizers:
            assert self.clip is not None
            embedded = np.concatenate(list(encode_captions(texts[asr.name], self.clip)))
            if asr.text_head is not None:
                embedded = asr.text_head.embed(torch.from_numpy(embedded)).numpy()
            rows[asr.name] = embedded
        return rows, texts

    @property
    def _heads(self) -> list[HeadSystem]:
        return [system for system in self.systems if isinstance(system, HeadSystem)]

    @property
    def _recognizers(self) -> list[RecognizerSystem]:
        return [system for system in self.systems if isinstance(system, RecognizerSystem)]


def _select(batch: Batch, model: SpeechNetwork) -> Batch:
    """Return a batch with the hidden states that a model reads."""
    layers = model.config.speech_encoder.layers
    assert batch.states is not None
    return batch if layers is None else batch._replace(states=batch.states[:, layers])


def paired_conditions(first: SystemScores, second: SystemScores, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Test two systems on the same queries in every condition, from speech to images.

    Returns:
        by condition, the result of :func:`speechclip.eval.significance.paired_test`.
    """
    tests = {}
    for name in first.conditions:
        (ranks, images), (others, _) = (scores.ranks[f"{name}/{THERE}"] for scores in (first, second))
        tests[name] = paired_test(ranks, others, images, PAIRED_CHOICES, seed)
    return tests


def overtakes(first: Mapping[str, Any], second: Mapping[str, Any], kind: str, score: str = "R@1") -> float | str:
    """Return the SNR in dB below which the first system scores higher than the second, from speech to images.

    The curves are straight lines between the measured SNRs, from the highest to the lowest.

    Args:
        first: the conditions of a system.
        second: the conditions of the other.
        kind: the noise.
        score: the score.
    Returns:
        the SNR of the first crossing, "always" if the first system is ahead at the highest SNR, or "never" if it is not
        ahead at any measured SNR.
    """
    points = sorted(
        ((row["value"], name) for name, row in first.items() if row["kind"] == kind and name in second), reverse=True
    )
    gaps = [(snr, first[name][THERE][score] - second[name][THERE][score]) for snr, name in points]
    if gaps and gaps[0][1] > 0:
        return "always"
    for (high, before), (low, after) in zip(gaps, gaps[1:]):
        if after > 0:
            return float(high + (low - high) * before / (before - after))
    return "never"
