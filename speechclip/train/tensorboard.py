"""What TensorBoard shows of a fixed samples of dev utterances: how they sound, what is attended to, where they lie."""

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

PROJECTOR = "projector"  # folder of the vectors, beside the event files


class Writer(Protocol):
    """The part of torch's ``SummaryWriter`` that is used."""

    def add_audio(self, tag: str, snd_tensor: Any, global_step: int, sample_rate: int) -> None:
        """A waveform [1, n]."""

    def add_text(self, tag: str, text_string: str, global_step: int) -> None:
        """A text."""

    def add_figure(self, tag: str, figure: Any, global_step: int) -> None:
        """A matplotlib figure."""


class TensorBoardSamples:
    """A few utterances of a split, always the same: evenly spaced in its order, so of several speakers.

    Args:
        split: with the images' embeddings. speech: of its utterances. count: how many; fewer where it has fewer.
        folder: of the event files; the vectors for the projector go below it.
    """

    def __init__(self, split: Split, speech: SpeechSource, count: int, folder: Path) -> None:
        self.split, self.speech, self.folder = split, speech, folder
        spaced = np.linspace(0, len(split.ids) - 1, min(count, len(split.ids)))
        self.rows: list[int] = sorted(set(spaced.round().astype(int).tolist()))

    def introduce(self, writer: Writer) -> None:
        """Audio, where the file is still there (stored features do not need it), and caption, once a run."""
        for row in self.rows:
            utterance = self.split.data.utterances[row]
            if utterance.wav.is_file():
                wave = torch.from_numpy(load_audio(utterance.wav))[None]
                writer.add_audio(f"dev/{utterance.id}", wave, 0, SAMPLE_RATE)
            writer.add_text(f"dev/{utterance.id}", utterance.text, 0)

    @torch.no_grad()
    def show(self, writer: Writer, model: SpeechNetwork, embeddings: np.ndarray, step: int) -> None:
        """Attention pictures, and the latest vectors for the projector.

        embeddings: [U, J], L2-normalised, of all utterances of the split. The model is in eval mode.
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
        self._project(embeddings)

    def _project(self, embeddings: np.ndarray) -> None:
        """Vectors of the utterances and of their images, with ids and captions, as the projector reads them."""
        from google.protobuf import text_format
        from tensorboard.plugins.projector import ProjectorConfig

        images = sorted(set(self.split.utterance_image[self.rows].tolist()))
        pictured = self.split.images[images]
        pictured = pictured / np.linalg.norm(pictured, axis=1, keepdims=True).clip(min=1e-12)
        lines = ["kind\tid\tcaption"]
        for row in self.rows:
            utterance = self.split.data.utterances[row]
            lines.append(f"speech\t{utterance.id}\t{utterance.text}")
        lines += [f"image\t{self.split.image_ids[image]}\t" for image in images]
        config = ProjectorConfig()
        entry = config.embeddings.add()
        entry.tensor_name, entry.tensor_path = "dev", f"{PROJECTOR}/vectors.tsv"
        entry.metadata_path = f"{PROJECTOR}/metadata.tsv"
        with writing(self.folder):
            (self.folder / PROJECTOR).mkdir(exist_ok=True)
            vectors = np.concatenate([embeddings[self.rows], pictured])
            np.savetxt(self.folder / entry.tensor_path, vectors, delimiter="\t", fmt="%.5f")
            (self.folder / entry.metadata_path).write_text("\n".join(lines) + "\n", encoding="utf-8")
            (self.folder / "projector_config.pbtxt").write_text(text_format.MessageToString(config), encoding="utf-8")


def attention_picture(weights: np.ndarray, labels: list[str], title: str) -> Figure:
    """Weights over frames [K, T] as rows of shades, each labelled, over time."""
    from matplotlib.figure import Figure

    rows = 0.22 * len(labels)  # inches
    figure = Figure(figsize=(7.0, 0.9 + rows), dpi=80)
    axes = figure.add_axes((0.2, 0.5 / (0.9 + rows), 0.78, rows / (0.9 + rows)))
    peaks = weights / weights.max(axis=1, keepdims=True).clip(min=1e-12)  # of each row, for it to be seen
    seconds = weights.shape[1] * FRAME_SECONDS
    axes.imshow(peaks, aspect="auto", cmap="viridis", extent=(0.0, seconds, len(labels) - 0.5, -0.5), vmin=0, vmax=1)
    axes.set_yticks(range(len(labels)), [f"{number} {label}" for number, label in enumerate(labels, 1)], fontsize=8)
    axes.set_xlabel("seconds", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_title(title, fontsize=8, loc="left")
    return figure
