"""Write a folder of generated noises in MUSAN's layout, for the listening conditions of the mini corpus.

MUSAN itself (Snyder et al. 2015) has recorded noises. These are synthetic: coloured noise, hum, sirens, ticks, tones.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

RATE, SECONDS = 16000, 12
Noise = Callable[[np.random.Generator, np.ndarray], np.ndarray]


def coloured(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    """Return noise with a power that falls with the frequency, by a random exponent."""
    spectrum = np.fft.rfft(rng.standard_normal(len(time)))
    frequency = np.maximum(np.fft.rfftfreq(len(time), 1 / RATE), 20.0)
    return np.fft.irfft(spectrum / frequency ** rng.uniform(0.4, 1.1), len(time))


def hum(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    """Return a hum with harmonics and a little noise, as of a machine."""
    base = rng.uniform(45, 140)
    tones = [rng.uniform(0.2, 1) / order * np.sin(2 * np.pi * base * order * time) for order in range(1, 20)]
    return np.sum(tones, axis=0) + 0.2 * rng.standard_normal(len(time))


def siren(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    """Return a tone that rises and falls."""
    swing = np.sin(2 * np.pi * rng.uniform(0.2, 2.0) * time)
    phase = 2 * np.pi * np.cumsum(rng.uniform(600, 1200) * (1 + 0.4 * swing)) / RATE
    return np.sin(phase) + 0.3 * np.sin(2 * phase) + 0.1 * rng.standard_normal(len(time))


def ticks(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    """Return short bursts at random times over quiet noise."""
    out = 0.1 * rng.standard_normal(len(time))
    burst = np.exp(-np.arange(1600) / 200)
    for start in rng.integers(0, len(time) - len(burst), size=rng.integers(40, 160)):
        out[start : start + len(burst)] += 3 * burst * rng.standard_normal(len(burst))
    return out


def waves(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    """Return coloured noise with a level that rises and falls, as of passing cars."""
    level = 0.3 + 0.7 * np.sin(np.pi * rng.uniform(0.2, 0.8) * time + rng.uniform(0, np.pi)) ** 2
    return level * coloured(rng, time)


KINDS: tuple[Noise, ...] = (coloured, hum, siren, ticks, waves)


def main() -> None:
    """Write the noises."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, help="folder; the noises go to OUT/noise/generated")
    parser.add_argument("--count", type=int, default=30, help="number of recordings of 12 s")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noises")
    options = parser.parse_args()
    folder = Path(options.out) / "noise" / "generated"
    folder.mkdir(parents=True, exist_ok=True)
    time = np.arange(RATE * SECONDS) / RATE
    for number in range(options.count):
        make = KINDS[number % len(KINDS)]
        wave = make(np.random.default_rng((options.seed, number)), time)
        path = folder / f"noise-generated-{number:04d}.flac"
        soundfile.write(path, 0.3 * wave / np.abs(wave).max(), RATE, subtype="PCM_16")
    print(f"{folder}: {options.count} noises")


if __name__ == "__main__":
    main()
