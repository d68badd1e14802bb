"""pocketsphinx with the English model of its wheel: a weak recogniser that needs no network."""

from __future__ import annotations

import importlib.metadata

import numpy as np

from speechclip.common.constants import SAMPLE_RATE
from speechclip.common.errors import UserError
from speechclip.data.dataset import Batch
from speechclip.model.recognizers.base import Recognizer, waves_of


class PocketSphinx(Recognizer):
    """The decoder with the wheel's acoustic model, language model and dictionary.

    Raises:
        UserError: pocketsphinx is not installed.
    """

    name, weak = "pocketsphinx", True

    def __init__(self) -> None:
        try:
            import pocketsphinx
        except ImportError as error:
            raise UserError("--asr pocketsphinx: is not installed. Run tools/install.sh --extras asr.") from error
        pocketsphinx.set_loglevel("FATAL")
        self._decoder = pocketsphinx.Decoder(samprate=SAMPLE_RATE)
        version = importlib.metadata.version("pocketsphinx")
        self.description = {"path": "pocketsphinx", "kind": "pocketsphinx", "weights": f"en-us of version {version}"}

    def transcribe(self, batch: Batch) -> list[str]:
        """Return the transcripts of the waveforms of a batch."""
        return [self._decode(wave.cpu().numpy()) for wave in waves_of(batch, self.name)]

    def _decode(self, wave: np.ndarray) -> str:
        samples = (np.clip(wave, -1.0, 1.0 - 2.0**-15) * 2**15).astype("<i2")
        self._decoder.reinit_feat()  # no cepstral mean of the utterances before: the order has no effect
        self._decoder.start_utt()
        self._decoder.process_raw(samples.tobytes(), no_search=False, full_utt=True)
        self._decoder.end_utt()
        found = self._decoder.hyp()
        return "" if found is None else " ".join(found.hypstr.split())
