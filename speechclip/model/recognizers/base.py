"""The interface of a speech recogniser."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from speechclip.common.errors import UserError
from speechclip.data.dataset import Batch


class Recognizer(ABC):
    """A speech recogniser.

    Attributes:
        name: short name of the recogniser, for tables and folders.
        description: strings that identify the recogniser and its weights.
        weak: whether tables mark the recogniser as weak.
    """

    name: str
    description: dict[str, str]
    weak: bool = False

    @abstractmethod
    def transcribe(self, batch: Batch) -> list[str]:
        """Return the transcript of every utterance of a batch. A transcript may be empty."""


def waves_of(batch: Batch, name: str) -> tuple[Tensor, ...]:
    """Return the waveforms of a batch.

    Args:
        batch: the batch.
        name: the recogniser in the error message.
    Raises:
        UserError: the batch holds stored hidden states.
    """
    if batch.waves is None:
        raise UserError(f"{name}: needs waveforms. The batch holds stored hidden states.")
    return batch.waves
