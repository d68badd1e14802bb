"""A recogniser in front of CLIP: transcripts of a split, and their retrieval scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechclip.common.files import read_json, replace_folder, write_json
from speechclip.data.batches import evaluation_batches
from speechclip.data.dataset import SpeechSource, Split, read_batches
from speechclip.eval.ranking import Ints
from speechclip.eval.retrieval import retrieval_report
from speechclip.eval.transcripts import wer_report
from speechclip.model.recognizers.base import Recognizer
from speechclip.model.text_head import TextHead

Floats = NDArray[np.float32]
HEAD_SETTINGS, HEAD_WEIGHTS, HEAD_PROVENANCE = "text_head.json", "model.safetensors", "provenance.json"


def transcribe(recognizer: Recognizer, source: SpeechSource, batch_size: int) -> list[str]:
    """Return the transcripts of all utterances of a source, in its order."""
    texts = [""] * len(source.lengths)
    for batch in read_batches(source, evaluation_batches(source.lengths, batch_size)):
        for at, text in zip(batch.indices.tolist(), recognizer.transcribe(batch), strict=True):
            texts[at] = text
    return texts


def recognition_report(
    split: Split, transcripts: list[str], embeddings: Floats, n_bootstrap: int = 1000
) -> tuple[dict[str, Any], dict[str, tuple[Ints, Ints]]]:
    """Score the retrieval of transcripts, and their word errors.

    Args:
        split: the split.
        transcripts: U transcripts.
        embeddings: their embeddings in the joint space, [U, J].
        n_bootstrap: number of resamples; 0 for no intervals.
    Returns:
        :func:`speechclip.eval.retrieval.retrieval_report` with the transcripts instead of the speech, and
        "recognition" with :func:`speechclip.eval.transcripts.wer_report`.
        the rank and the image of every query, by direction.
    """
    captions = None
    if split.text_utterance is not None:
        captions = [split.data.utterances[at].clip_text for at in split.text_utterance]
    ranks: dict[str, tuple[Ints, Ints]] = {}
    report = retrieval_report(
        embeddings, split.utterance_image, split.images, split.texts, captions, split.text_utterance,
        n_bootstrap=n_bootstrap, keep=ranks,
    )  # fmt: skip
    spoken = [utterance.text for utterance in split.data.utterances]
    report["recognition"] = wer_report(spoken, transcripts, split.utterance_image, n_bootstrap)
    return report, ranks


def save_text_head(target: Path, head: TextHead, origin: dict[str, Any]) -> None:
    """Write a text head. The folder is replaced as a whole."""
    from safetensors.torch import save_file

    def write(folder: Path) -> None:
        save_file(head.state_dict(), folder / HEAD_WEIGHTS, metadata={"format": "speechclip"})
        write_json(folder / HEAD_SETTINGS, {"width": head.inner.in_features, "hidden": head.inner.out_features})
        write_json(folder / HEAD_PROVENANCE, origin)

    replace_folder(target, write)


def load_text_head(folder: Path) -> TextHead:
    """Read a text head.

    Raises:
        UserError: a file is missing or damaged.
    """
    from safetensors.torch import load_file

    settings = read_json(folder / HEAD_SETTINGS)
    head = TextHead(int(settings["width"]), int(settings["hidden"]))
    head.load_state_dict(load_file(folder / HEAD_WEIGHTS))
    return head.eval()
