"""The data that a page shows next to the scores: recordings, images, captions and their embeddings."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speechclip.common.constants import SCORES
from speechclip.common.errors import UserError
from speechclip.data.alignments import AlignedWord, find_alignments, load_alignments
from speechclip.data.dataset import Split
from speechclip.data.kaldi import Utterance
from speechclip.eval.score_files import read_image_embeddings, read_speech_embeddings
from speechclip.eval.transcripts import read_transcripts
from speechclip.report.runs import Run


@dataclass(frozen=True)
class EvalSplit:
    """The split that a run was scored on.

    Attributes:
        utterances: the utterances, U.
        speech: their embeddings [U, D], L2-normalised.
        images: embeddings of the images [I, D], L2-normalised.
        image_ids: ids of the images, I.
        image_files: files of the images, I.
        utterance_image: the image row of each utterance, [U].
        words: aligned words by utterance id; not every utterance has them.
        transcripts: by recogniser, the transcripts of the utterances, U.
    """

    utterances: Sequence[Utterance]
    speech: NDArray[np.float32]
    images: NDArray[np.float32]
    image_ids: tuple[str, ...]
    image_files: tuple[Path, ...]
    utterance_image: NDArray[np.int64]
    words: dict[str, list[AlignedWord]]
    transcripts: dict[str, list[str]] = field(default_factory=dict)


def load_eval_split(
    run: Run, data_dir: str | Path, dump_dir: str | Path, transcripts: Sequence[str | Path] = ()
) -> EvalSplit:
    """Read the split of a run.

    Args:
        run: the run.
        data_dir: data directory of the split.
        dump_dir: folder of the features and embeddings of the split.
        transcripts: files of transcripts of the split.

    Raises:
        UserError: a file is missing, or the run was scored on another split or with another CLIP.
    """
    split = Split.load(data_dir, dump_dir, run.retrieval.content.get("provenance", {}).get("languages", ()))
    speech = read_speech_embeddings(run.directory / SCORES, split.ids)
    images = read_image_embeddings(run.directory / SCORES, split.image_ids)
    if images is None:
        images = np.asarray(split.images)
    if speech.shape[1] != images.shape[1]:
        raise UserError(
            f"{dump_dir}/image_embeddings.npz: {run.directory} was scored with another CLIP. Score the run again."
        )
    aligned = find_alignments(data_dir)
    heard = dict(_transcripts(Path(path), split.ids) for path in transcripts)
    return EvalSplit(
        split.data.utterances, speech, images, tuple(split.image_ids),
        tuple(split.data.images[name] for name in split.image_ids), np.asarray(split.utterance_image),
        load_alignments(aligned, split.ids) if aligned else {}, heard,
    )  # fmt: skip


def _transcripts(path: Path, ids: Sequence[str]) -> tuple[str, list[str]]:
    """Return the name of a recogniser and its transcripts."""
    texts, recognizer = read_transcripts(path, ids)
    return recognizer.get("name", path.parent.parent.name), texts


def scored_on(run: Run) -> tuple[str, str]:
    """Return the data directory and the dump folder that a run was scored on, relative to the recipe.

    Raises:
        UserError: the command in the scores does not name them.
    """
    words = shlex.split(str(run.retrieval.get("provenance", "command")))
    named = dict(zip(words, words[1:]))
    try:
        return named["--data_dir"], named["--dump_dir"]
    except KeyError as error:
        raise UserError(f"{run.retrieval.path}: its command has no {error}. Give --data_dir and --dump_dir.") from None
