"""The recordings that pages show, each read once: the pages of several runs show the same ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from speechclip.common.constants import SAMPLE_RATE
from speechclip.data.audio import load_audio
from speechclip.report.page import media

ENVELOPE_POINTS = 240


@dataclass(frozen=True)
class Recording:
    """A recording as a page holds it.

    Attributes:
        seconds: its length.
        envelope: see :func:`speechclip.report.page.media.envelope`, packed.
        spectrogram: data URI of an image.
        audio: data URI of the sound, or empty.
    """

    seconds: float
    envelope: str
    spectrogram: str
    audio: str = ""


class Recordings:
    """Reads recordings and keeps what pages show of them."""

    def __init__(self) -> None:
        self._read: dict[Path, Recording] = {}

    def get(self, wav: Path, audible: bool) -> Recording:
        """Return a recording.

        Args:
            wav: the file, as in wav.scp.
            audible: also the sound. It is the largest part.

        Raises:
            UserError: the file is missing or damaged.
        """
        known = self._read.get(wav)
        if known is None or (audible and not known.audio):
            wave = load_audio(wav)
            known = known or Recording(
                round(len(wave) / SAMPLE_RATE, 3), media.packed(media.envelope(wave, ENVELOPE_POINTS)),
                media.spectrogram_uri(wave),
            )  # fmt: skip
            if audible:
                known = replace(known, audio=media.audio_uri(wave))
            self._read[wav] = known
        return known
