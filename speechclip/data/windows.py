"""Long utterances in windows: a source of speech whose items are parts of another source's utterances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from speechclip.common.errors import UserError
from speechclip.data.dataset import Batch, Crop, SpeechSource


@dataclass(frozen=True)
class _Part(Crop):
    """A crop at a fixed place.

    Attributes:
        offset: start in seconds.
    """

    offset: float = 0.0

    def start(self, index: int, length: int, limit: int) -> int:
        """Return the first sample or frame. The last window ends with the utterance."""
        return max(0, min(round(self.offset / self.seconds * limit), length - limit))


class WindowSource:
    """Windows of the utterances of a source.

    Windows begin every ``hop`` seconds. The last one ends with the utterance, so no window is shorter than the others.
    An utterance that is not longer than a window is one window.

    Args:
        source: the utterances.
        seconds: length of a window.
        hop: seconds between the starts of two windows, at most ``seconds``.

    Raises:
        UserError: the lengths do not fit.
    """

    def __init__(self, source: SpeechSource, seconds: float, hop: float) -> None:
        if not 0 < hop <= seconds:
            raise UserError(
                f"eval.window_hop: {hop:g} is not more than 0 and at most eval.window_seconds ({seconds:g})."
                " Change the value."
            )
        self.source, self.seconds = source, seconds
        counts = 1 + np.ceil(np.maximum(source.lengths - seconds, 0) / hop - 1e-9).astype(int)
        self.owner = np.repeat(np.arange(len(counts)), counts)  # [W], utterance of each window
        first = np.cumsum(counts) - counts
        self.offsets = (np.arange(len(self.owner)) - first[self.owner]) * hop  # [W], seconds
        self.lengths = np.minimum(source.lengths[self.owner], seconds)

    def batch(self, indices: Sequence[int], crop: Crop | None = None) -> Batch:
        """Read windows. They are not cropped further."""
        parts = [
            self.source.batch([int(self.owner[at])], _Part(self.seconds, 0, 0, float(self.offsets[at])))
            for at in indices
        ]
        positions = torch.tensor(list(indices))
        waves = [wave for part in parts for wave in part.waves or ()]
        if waves:
            return Batch(positions, None, None, tuple(waves))
        states = [part.states[0] for part in parts if part.states is not None]  # W times [L, t, D]
        frames = torch.tensor([item.shape[1] for item in states])
        padded = states[0].new_zeros(len(states), states[0].shape[0], int(frames.max()), states[0].shape[2])
        for target, item in zip(padded, states):
            target[:, : item.shape[1]] = item
        return Batch(positions, padded, frames, None)
