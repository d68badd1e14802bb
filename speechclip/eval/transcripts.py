"""Transcripts of a recogniser: their files, and the word error rate."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from speechclip.common.errors import MissingFileError, UserError
from speechclip.common.files import replacing
from speechclip.eval.bootstrap import Bootstrap, interval

Ints = NDArray[np.int64]


def normalize_text(text: str) -> str:
    """Return a text for the word error rate: lower case, without punctuation, single blanks."""
    kept = "".join(character if character.isalnum() or character in "' " else " " for character in text.lower())
    return " ".join(word.strip("'") for word in kept.split() if word.strip("'"))


def word_errors(references: Sequence[str], hypotheses: Sequence[str]) -> tuple[Ints, Ints]:
    """Count the word errors of every transcript with jiwer, after :func:`normalize_text`.

    Returns:
        substitutions, deletions and insertions of each transcript, [U, 3].
        words of each reference, [U].
    Raises:
        UserError: jiwer is not installed.
    """
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references and {len(hypotheses)} transcripts")
    try:
        import jiwer
    except ImportError as error:
        raise UserError("jiwer: is not installed. Run tools/install.sh --extras asr.") from error
    errors, words = np.zeros((len(references), 3), np.int64), np.zeros(len(references), np.int64)
    for row, (reference, hypothesis) in enumerate(zip(references, hypotheses)):
        said, heard = normalize_text(reference), normalize_text(hypothesis)
        words[row] = len(said.split())
        if not said:  # jiwer refuses an empty reference
            errors[row, 2] = len(heard.split())
            continue
        found = jiwer.process_words(said, heard)
        errors[row] = found.substitutions, found.deletions, found.insertions
    return errors, words


def wer_report(
    references: Sequence[str], hypotheses: Sequence[str], clusters: ArrayLike, n_bootstrap: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Return the word error rate in percent, its parts, and its interval over images.

    Args:
        references: U captions as they were spoken.
        hypotheses: U transcripts.
        clusters: the image of each utterance, [U].
        n_bootstrap: number of resamples; 0 for no interval.
        seed: seed of the resamples.
    Returns:
        "wer", "substitutions", "deletions", "insertions" in percent of the spoken words, "words", "sentences" (percent
        of transcripts without an error), and "ci95" of "wer".
    """
    errors, words = word_errors(references, hypotheses)
    total = int(words.sum())
    if not total:
        raise ValueError("the references have no words")
    parts = 100.0 * errors.sum(axis=0) / total
    report: dict[str, Any] = {
        "wer": float(parts.sum()), "substitutions": float(parts[0]), "deletions": float(parts[1]),
        "insertions": float(parts[2]), "words": total, "sentences": 100.0 * float((errors.sum(axis=1) == 0).mean()),
    }  # fmt: skip
    if n_bootstrap:
        sums = Bootstrap(clusters, n_bootstrap, seed).sums(np.stack([errors.sum(axis=1), words], axis=1))
        low, high = 100.0 * interval(sums[:, :1] / sums[:, 1:])
        report["ci95"] = {"wer": [float(low[0]), float(high[0])]}
    return report


def write_transcripts(path: Path, transcripts: Mapping[str, str], recognizer: Mapping[str, str]) -> None:
    """Write one JSON object a line: first the recogniser's description, then "utterance" and "transcript"."""
    with replacing(path) as part, part.open("w", encoding="utf-8") as file:
        file.write(json.dumps({"recognizer": dict(recognizer)}, ensure_ascii=False) + "\n")
        for utterance, text in transcripts.items():
            file.write(json.dumps({"utterance": utterance, "transcript": text}, ensure_ascii=False) + "\n")


def read_transcripts(path: Path, ids: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Read the transcripts of utterances, in their order, and the recogniser's description.

    Raises:
        UserError: the file is missing, a line is damaged, or an utterance has no transcript.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise MissingFileError(path) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8. Transcribe again.") from error
    found: dict[str, str] = {}
    recognizer: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if number == 1:
                recognizer = {str(key): str(value) for key, value in record["recognizer"].items()}
            else:
                found[str(record["utterance"])] = str(record["transcript"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: line {number} is not a transcript. Transcribe again.") from error
    missing = [name for name in ids if name not in found]
    if missing:
        raise UserError(f"{path}: {missing[0]} has no transcript ({len(missing)} such utterances). Transcribe again.")
    return [found[name] for name in ids], recognizer
