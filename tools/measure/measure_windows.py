#!/usr/bin/env python3
"""Score long utterances as a whole and in windows. Long utterances are the captions of an image, one after the other.

The captions of each image of a data directory are joined, with a pause between them, until there are N of them. With
more than the image has, they are repeated. Each image has one such utterance. They are embedded by a trained head as a
whole, and as the mean over windows. The table has recall from speech to image.

Usage: tools/measure/measure_windows.py --run exp/tiny_parallel/best [...] --data_dir data/test
       --dump_dir dump/tiny/test [--captions 1 3 6 12] [--windows 3 6] [--hop 0.5] [--pause 0.3]
       It runs in the folder of a recipe.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from speechclip.common.arguments import ArgumentParser, exit_on_user_error
from speechclip.common.constants import FRAME_RATE, HOP, SAMPLE_RATE
from speechclip.common.provenance import commit

if TYPE_CHECKING:
    from speechclip.data.dataset import Batch, Crop, Split


class JoinedSource:
    """One utterance per image: its captions, joined.

    Args:
        split: the data.
        count: captions in each utterance.
        pause: seconds of silence between two captions.
    """

    def __init__(self, split: Split, count: int, pause: float) -> None:
        from speechclip.data.audio import load_audio

        captions: dict[int, list[np.ndarray]] = {}
        for utterance, image in zip(split.data.utterances, split.utterance_image):
            captions.setdefault(int(image), []).append(load_audio(utterance.wav))
        self.images = np.array(sorted(captions))
        silence = np.zeros(round(pause * SAMPLE_RATE), dtype=np.float32)
        self.waves = []
        for image in self.images:
            own = captions[int(image)]
            parts = [part for at in range(count) for part in (own[at % len(own)], silence)]
            self.waves.append(np.concatenate(parts[:-1]))
        self.lengths = np.round(np.array([len(wave) for wave in self.waves]) / HOP) / FRAME_RATE

    def batch(self, indices: Sequence[int], crop: Crop | None = None) -> Batch:
        """Return waveforms; see :class:`speechclip.data.dataset.SpeechSource`."""
        import torch

        from speechclip.data.dataset import Batch

        limit = round(crop.seconds * SAMPLE_RATE) if crop else 0
        waves = []
        for index in indices:
            wave = self.waves[index]
            start = crop.start(index, len(wave), limit) if crop else 0
            waves.append(torch.from_numpy(wave[start : start + limit] if limit else wave))
        return Batch(torch.tensor(list(indices)), None, None, tuple(waves))


@exit_on_user_error
def main() -> None:
    """Print a row for each run, number of captions and window."""
    parser = ArgumentParser(prog="measure_windows.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", required=True, nargs="+", metavar="DIR", help="checkpoint folders")
    parser.add_argument("--data_dir", required=True, help="data directory")
    parser.add_argument("--dump_dir", required=True, help="folder with its image embeddings")
    parser.add_argument("--captions", type=int, nargs="+", default=[1, 3, 6, 12], help="captions in an utterance")
    parser.add_argument("--windows", type=float, nargs="+", default=[3.0, 6.0], help="lengths in seconds")
    parser.add_argument("--hop", type=float, default=0.5, help="distance of windows, as a share of their length")
    parser.add_argument("--pause", type=float, default=0.3, help="seconds between two captions")
    parser.add_argument("--batch_size", type=int, default=16, help="utterances in a batch")
    args = parser.parse_args()

    from speechclip.checkpoint.folder import load_model
    from speechclip.data.dataset import Split
    from speechclip.data.windows import WindowSource
    from speechclip.eval.ranking import first_hit_ranks
    from speechclip.eval.retrieval import bootstrap_ci, recall_table
    from speechclip.model.inference import embed_branches, embed_windows

    split = Split.load(args.data_dir, args.dump_dir)
    print(f"commit {commit()}, {' '.join(sys.argv[1:])}")
    print(f"{'run':40}{'captions':>9}{'seconds':>9}{'scored':>12}{'R@1':>7}{'R@5':>7}{'R@10':>7}   95% of R@1")
    for run in args.run:
        model = load_model(run, with_speech_encoder=True, with_clip=False)
        for count in args.captions:
            source = JoinedSource(split, count, args.pause)
            scored = {"whole": embed_branches(model, source, args.batch_size)}
            for seconds in args.windows:
                windows = WindowSource(source, seconds, seconds * args.hop)
                scored[f"{seconds:g} s"] = embed_windows(model, windows, args.batch_size)
            for name, branches in scored.items():
                speech = next(iter(branches.values()))
                ranks = first_hit_ranks(speech, split.images, source.images, np.arange(len(split.images)))
                row, (low, high) = recall_table(ranks), bootstrap_ci(ranks, source.images)["R@1"]
                recalls = "".join(f"{row[key]:7.1f}" for key in ("R@1", "R@5", "R@10"))
                length = source.lengths.mean()
                print(f"{run:40}{count:9}{length:9.1f}{name:>12}{recalls}   [{low:.1f}, {high:.1f}]", flush=True)


if __name__ == "__main__":
    main()
