"""The data that a page shows beside the scores: recordings, pictures, captions and their embeddings."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speechclip.common.errors import UserError
from speechclip.data.alignments import AlignedWord, find_alignments, load_alignments
from speechclip.data.dataset import Split
from speechclip.data.embeddings import load_embeddings
from speechclip.data.kaldi import Utterance
from speechclip.report.runs import Run


@dataclass(frozen=True)
class EvalSplit:
    """The split that a run was scored on.

    utterances [U]; speech [U, D] and images [I, D] of length one; image_ids and image_files [I]; utterance_image [U],
    the row of each utterance's image; words, the alignment of those utterances that have one.
    """

    utterances: tuple[Utterance, ...]
    speech: NDArray[np.float32]
    images: NDArray[np.float32]
    image_ids: tuple[str, ...]
    image_files: tuple[Path, ...]
    utterance_image: NDArray[np.int64]
    words: dict[str, list[AlignedWord]]


def load_eval_split(run: Run, data_dir: str | Path, dump_dir: str | Path) -> EvalSplit:
    """Read the split. Raises UserError: something of it is missing, or it is not the one the run was scored on."""
    split = Split.load(data_dir, dump_dir)
    speech = load_embeddings(run.directory / "scores" / "speech_embeddings.npz", split.ids)[1]
    if speech.shape[1] != split.images.shape[1]:
        raise UserError(f"{dump_dir}/image_embeddings.npz: made by another CLIP than {run.directory} was scored with")
    aligned = find_alignments(data_dir)
    return EvalSplit(
        split.data.utterances, speech, np.asarray(split.images), tuple(split.image_ids),
        tuple(split.data.images[name] for name in split.image_ids), np.asarray(split.utterance_image),
        load_alignments(aligned, split.ids) if aligned else {},
    )  # fmt: skip


def scored_on(run: Run) -> tuple[str, str]:
    """The data directory and the dump folder that stage 4 was called with, relative to the recipe.

    Raises UserError where the scores' command does not name them.
    """
    words = shlex.split(str(run.retrieval.get("provenance", "command")))
    named = dict(zip(words, words[1:]))
    try:
        return named["--data_dir"], named["--dump_dir"]
    except KeyError as error:
        raise UserError(f"{run.retrieval.path}: its command does not name {error}: give it") from None
