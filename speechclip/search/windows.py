"""Cut a recording into overlapping windows whose ends are in pauses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speechclip.common.constants import SAMPLE_RATE
from speechclip.common.errors import UserError

FRAME = SAMPLE_RATE // 50  # samples
RATE = SAMPLE_RATE / FRAME  # frames per second
SMOOTH = 5  # frames whose mean energy is compared
PAUSE = 0.4  # seconds; a shorter silence does not separate speech
MARGIN = 0.1  # seconds of silence that stay next to speech
LEAST_SPEECH = 0.2  # seconds; a window with less speech is dropped
RANGE_DB = 6.0  # a recording with a smaller range of energy has no pauses
SILENT_DB = 40.0  # below the loud parts


@dataclass(frozen=True)
class WindowSettings:
    """The lengths of windows.

    Attributes:
        seconds: length of a window. A recording up to a quarter longer is one window.
        overlap: seconds that two windows share if no pause is between them.
    """

    seconds: float = 6.0
    overlap: float = 2.0

    def __post_init__(self) -> None:
        """Check the bounds."""
        if not 1 <= self.seconds <= 60:
            raise UserError(f"--window: {self.seconds:g} s. Give 1 to 60.")
        if not 0 <= self.overlap <= self.seconds / 2:
            raise UserError(f"--overlap: {self.overlap:g} s. Give 0 to {self.seconds / 2:g}, half of --window.")


DEFAULT_WINDOWS = WindowSettings()


def cut_windows(wave: NDArray[np.float32], settings: WindowSettings = DEFAULT_WINDOWS) -> list[tuple[float, float]]:
    """Cut a recording.

    A window ends at the quietest place within a quarter of its length around its nominal end. The next window starts at
    the next speech if the place is in a pause, and else ``overlap`` seconds earlier, at the quietest place nearby.
    Silence at both ends of the recording, and windows without speech, are left out.

    Args:
        wave: [n], 16 kHz.
        settings: see there.

    Returns:
        Start and end of each window in seconds, in order. A recording that is short enough is one whole window.
    """
    total = len(wave) / SAMPLE_RATE
    if total <= 1.25 * settings.seconds:
        return [(0.0, round(total, 3))]
    energy = _energy(wave)
    speech = _speech(energy)
    voiced = np.flatnonzero(speech)
    if not len(voiced):
        return []
    stop = min(len(energy), int(voiced[-1] + 1 + MARGIN * RATE))
    at = max(0, int(voiced[0] - MARGIN * RATE))
    windows = []
    while at < stop:
        end = _end(energy, at, stop, settings)
        if speech[at:end].sum() >= LEAST_SPEECH * RATE:
            windows.append((round(at / RATE, 3), round(min(end / RATE, total), 3)))
        if end >= stop:
            break
        at = _next_start(energy, speech, at, end, settings)
    return windows


def _end(energy: NDArray[np.float64], at: int, stop: int, settings: WindowSettings) -> int:
    """Return the frame at which the window that starts at a frame ends."""
    if stop - at <= 1.25 * settings.seconds * RATE:
        return stop
    return _quietest(energy, at + settings.seconds * RATE, settings.seconds / 4 * RATE)


def _next_start(
    energy: NDArray[np.float64], speech: NDArray[np.bool_], at: int, end: int, settings: WindowSettings
) -> int:
    """Return the frame at which the window after [at, end] starts."""
    if not speech[end]:
        later = np.flatnonzero(speech[end:])
        return max(end, int(end + later[0] - MARGIN * RATE)) if len(later) else len(energy)
    if not settings.overlap:
        return end
    start = _quietest(energy, end - settings.overlap * RATE, settings.overlap / 4 * RATE)
    return max(start, at + int(settings.seconds * RATE / 3))


def _quietest(energy: NDArray[np.float64], centre: float, reach: float) -> int:
    """Return the quietest frame around another one; of equally quiet ones, the nearest."""
    low, high = max(0, round(centre - reach)), min(len(energy), round(centre + reach) + 1)
    near = energy[low:high]
    best = np.flatnonzero(near <= near.min() + 1e-9) + low
    return int(best[np.abs(best - centre).argmin()])


def _energy(wave: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the smoothed energy of each frame in dB."""
    count = -(-len(wave) // FRAME)
    padded = np.zeros(count * FRAME, dtype=np.float32)
    padded[: len(wave)] = wave
    power = np.square(padded.reshape(count, FRAME)).mean(axis=1, dtype=np.float64)
    smooth = np.convolve(np.pad(power, SMOOTH // 2, mode="edge"), np.full(SMOOTH, 1 / SMOOTH), mode="valid")
    return 10 * np.log10(np.maximum(smooth, 1e-10))


def _speech(energy: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which frames are speech: all that are not in a pause. The threshold depends on the recording's levels."""
    quiet, loud = np.percentile(energy, [10, 95])
    if loud - quiet < RANGE_DB:
        return np.ones(len(energy), dtype=bool)
    active = energy > max(quiet + 0.25 * (loud - quiet), loud - SILENT_DB)
    edges = np.flatnonzero(np.diff(np.concatenate([[True], active, [True]]).astype(int)))
    for start, end in zip(edges[::2], edges[1::2]):  # silences
        if start > 0 and end < len(active) and end - start < PAUSE * RATE:
            active[start:end] = True
    return active
