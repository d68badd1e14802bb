"""Audio, attention and embeddings of a few dev utterances in TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from speechclip.common.constants import FRAME_SECONDS, SAMPLE_RATE
from speechclip.common.errors import writing
from speechclip.data.audio import load_audio
from speechclip.data.dataset import SpeechSource, Split
from speechclip.model.network import SpeechNetwork

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROJECTOR = "projector"  # folder of the vectors, next to the event files


class Writer(Protocol):
    """The methods of torch's ``SummaryWriter`` that are used here."""

    def add_audio(self, tag: str, snd_tensor: Any, global_step: int, sample_rate: int) -> None:
        """Add a waveform [1, n]."""

    def add_text(self, tag: str, text_string: str, global_step: int) -> None:
        """Add a text."""

    def add_figure(self, tag: str, figure: Any, global_step: int) -> None:
        """Add a matplotlib figure."""


class TensorBoardSamples:
    """A few utterances of a split. They are evenly spaced in its order, so they have several speakers.

    Args:
        split: a split with image embeddings.
        speech: the speech of its utterances.
        count: the number of samples; a smaller split gives all its utterances.
        folder: the folder of the event files. The vectors for the projector are written below it.
    """

    def __init__(self, split: Split, speech: SpeechSource, count: int, folder: Path) -> None:
        self.split, self.speech, self.folder = split, speech, folder
        spaced = np.linspace(0, len(split.ids) - 1, min(count, len(split.ids)))
        self.rows: list[int] = sorted(set(spaced.round().astype(int).tolist()))

    def introduce(self, writer: Writer) -> None:
        """Write caption and audio of each sample once. Training on stored features works without the audio file."""
        for row in self.rows:
            utterance = self.split.data.utterances[row]
            if utterance.wav.is_file():
                wave = torch.from_numpy(load_audio(utterance.wav))[None]
                writer.add_audio(f"dev/{utterance.id}", wave, 0, SAMPLE_RATE)
            writer.add_text(f"dev/{utterance.id}", utterance.text, 0)

    @torch.no_grad()
    def show(
        self, writer: Writer, model: SpeechNetwork, embeddings: np.ndarray, step: int, images: np.ndarray | None = None
    ) -> None:
        """Draw the attention of each sample, and write the vectors for the projector.

        Args:
            writer: TensorBoard's writer.
            model: in evaluation mode.
            embeddings: [U, J] of all utterances of the split.
            step: finished steps.
            images: [I, J] of the images, for a head with an image tower of its own; else those of CLIP.
        """
        batch = self.speech.batch(self.rows)
        states, frames = model.features(batch)
        output = model.apply_head(states, frames)
        for at, row in enumerate(batch.indices.tolist()):
            utterance, length = self.split.data.utterances[row], int(frames[at])
            weights, labels = output.attention, ["[CLS]"]
            if output.keywords is not None:
                count, weights = int(output.keywords.mask[at].sum()), output.keywords.attention
                assert model.vocabulary is not None
                labels = [model.vocabulary.subwords[i] for i in output.keywords.rows[at, :count].tolist()]
            if weights is not None and labels:
                shown = weights[at, : len(labels), :length].float().cpu().numpy()
                writer.add_figure(f"dev/{utterance.id}", attention_picture(shown, labels, utterance.text), step)
        self._project(embeddings, self.split.images if images is None else images)

    def _project(self, speech: np.ndarray, images: np.ndarray) -> None:
        """Write the vectors of the samples and of their images, with ids and captions, for the projector."""
        from google.protobuf import text_format
        from tensorboard.plugins.projector import ProjectorConfig

        shown = sorted(set(self.split.utterance_image[self.rows].tolist()))
        vectors = np.concatenate([speech[self.rows], images[shown]])
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12)
        lines = ["kind\tid\tcaption"]
        for row in self.rows:
            utterance = self.split.data.utterances[row]
            lines.append(f"speech\t{utterance.id}\t{utterance.text}")
        lines += [f"image\t{self.split.image_ids[image]}\t" for image in shown]
        config = ProjectorConfig()
        entry = config.embeddings.add()
        entry.tensor_name, entry.tensor_path = "dev", f"{PROJECTOR}/vectors.tsv"
        entry.metadata_path = f"{PROJECTOR}/metadata.tsv"
        with writing(self.folder):
            (self.folder / PROJECTOR).mkdir(exist_ok=True)
            np.savetxt(self.folder / entry.tensor_path, vectors, delimiter="\t", fmt="%.5f")
            (self.folder / entry.metadata_path).write_text("\n".join(lines) + "\n", encoding="utf-8")
            (self.folder / "projector_config.pbtxt").write_text(text_format.MessageToString(config), encoding="utf-8")


def attention_picture(weights: np.ndarray, labels: list[str], title: str) -> Figure:
    """Draw attention weights over time, one row per keyword.

    Args:
        weights: [K, T], non-negative.
        labels: K row labels.
        title: shown above the rows.
    """
    from matplotlib.figure import Figure

    rows = 0.22 * len(labels)  # height in inches
    figure = Figure(figsize=(7.0, 0.9 + rows), dpi=80)
    axes = figure.add_axes((0.2, 0.5 / (0.9 + rows), 0.78, rows / (0.9 + rows)))
    # each row has its own scale, so that weak rows stay visible
    peaks = weights / weights.max(axis=1, keepdims=True).clip(min=1e-12)
    seconds = weights.shape[1] * FRAME_SECONDS
    axes.imshow(peaks, aspect="auto", cmap="viridis", extent=(0.0, seconds, len(labels) - 0.5, -0.5), vmin=0, vmax=1)
    axes.set_yticks(range(len(labels)), [f"{number} {label}" for number, label in enumerate(labels, 1)], fontsize=8)
    axes.set_xlabel("seconds", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_title(title, fontsize=8, loc="left")
    return figure
