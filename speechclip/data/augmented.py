"""Training speech with noise and rooms: drawn for every epoch, or read from stored copies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from speechclip.common.errors import MissingFileError
from speechclip.config import AugmentConfig
from speechclip.data.conditioned import Interference
from speechclip.data.conditions import Wave
from speechclip.data.dataset import Crop, StoreSource, WaveSource
from speechclip.data.kaldi import DataDir

_COPY_SEED = 20_000  # of the noises of stored copies: other noises than those of an evaluation with a small seed


def copy_folder(dump: Path, copy: int) -> Path:
    """Return the feature store of a copy, from 1, of the training speech: next to that of the speech itself."""
    return dump.with_name(f"{dump.name}_augment{copy}")


class Augmentation:
    """Draws conditions for training utterances. Every draw depends on its seed, epoch and utterance only.

    Args:
        data: the training utterances, which babble is made of.
        config: the settings.
    Raises:
        UserError: a folder of noises or impulse responses has no recording.
    """

    def __init__(self, data: DataDir, config: AugmentConfig) -> None:
        self.config = config
        self._interference = Interference(data, config.noise_dir, config.rir_dir, _COPY_SEED)

    def chosen(self, seed: int, epoch: int, index: int) -> int:
        """Return 0 if an utterance stays as it is in an epoch, or else the number of its copy, from 1."""
        rng = np.random.default_rng((seed, epoch, index, 1))
        changed, copy = rng.random() < self.config.probability, int(rng.integers(self.config.copies))
        return 1 + copy if changed else 0

    def change(self, index: int, wave: Wave, variant: str) -> Wave:
        """Return an utterance in a condition that depends on the variant."""
        number = sum(ord(character) * 257**place for place, character in enumerate(variant)) % 2**32
        rng = np.random.default_rng((_COPY_SEED, number, index))
        condition = self._interference.draw(self.config.kinds, self.config.snr, rng)
        return self._interference.apply(condition, index, wave, variant)


class AugmentedWaves(WaveSource):
    """Waveforms with noise and rooms that are drawn again in every epoch.

    Args:
        data: the data directory.
        config: the settings.
    """

    def __init__(self, data: DataDir, config: AugmentConfig) -> None:
        super().__init__(data)
        self._augmentation = Augmentation(data, config)

    def read(self, index: int, crop: Crop | None = None) -> np.ndarray:
        """Return one utterance; without a crop, which has seed and epoch, it stays as it is."""
        wave = super().read(index, crop)
        if crop is None or not self._augmentation.chosen(crop.seed, crop.epoch, index):
            return wave
        return self._augmentation.change(index, wave, f"{crop.seed} {crop.epoch}")


class AugmentedStore(StoreSource):
    """Hidden states of the speech or of one of its stored copies, drawn again in every epoch.

    Args:
        directory: the store of the speech.
        data: the data directory.
        config: the settings.
        layers: see :class:`StoreSource`.
    Raises:
        MissingFileError: the store of a copy is missing.
    """

    def __init__(
        self, directory: str | Path, data: DataDir, config: AugmentConfig, layers: Sequence[int] | None = None
    ) -> None:
        super().__init__(directory, data.ids, layers)
        self._augmentation = Augmentation(data, config)
        folders = [copy_folder(Path(directory), copy) for copy in range(1, config.copies + 1)]
        self.copies = [StoreSource(folder, data.ids, layers) for folder in folders]
        for folder, copy in zip(folders, self.copies):
            if not np.array_equal(copy.lengths, self.lengths):
                raise MissingFileError(folder / "feats.scp", "the copies are of other recordings")

    def read(self, index: int, crop: Crop | None = None) -> Tensor:
        """Return the states of one utterance; without a crop, which has seed and epoch, those of the speech itself."""
        copy = self._augmentation.chosen(crop.seed, crop.epoch, index) if crop else 0
        return self.copies[copy - 1].read(index, crop) if copy else super().read(index, crop)
