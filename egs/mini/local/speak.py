"""Text to speech with word alignments: espeak-ng's shared library (PyPI wheel `espeakng-loader`) through ctypes.

It needs no system package. `say` returns 16 kHz mono audio, and the start and end of each word in seconds. The same
arguments give the same samples. The library keeps phases of its oscillators between utterances, and its interface
cannot reset them, so it is loaded again for each utterance (3 ms). "Breath" (noise from the C library's generator) is
removed from the voices.
"""

from __future__ import annotations

import _ctypes
import ctypes
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import numpy as np

from speechclip.common.constants import SAMPLE_RATE

EDGE_SILENCE = 0.06  # seconds of quiet kept before the first and after the last sound
QUIET = 0.004  # amplitude (full scale is 1); quieter edges of an utterance are silence

# espeak-ng/speak_lib.h
_SYNCHRONOUS, _CHARS_UTF8, _POS_CHARACTER = 2, 1, 1
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_EVENT_END_OF_LIST, _EVENT_WORD = 0, 1


@dataclass(frozen=True)
class Voice:
    """A speaker.

    Attributes:
        language, variant: espeak-ng's names of the language and of the voice variant.
        pitch, pitch_range: 0 to 99.
        rate: words per minute.
        formants: scale of all formants in percent. Below 100 the vocal tract is longer and the voice lower.
    """

    language: str
    variant: str
    pitch: int
    pitch_range: int
    rate: int
    formants: int = 100


@dataclass(frozen=True)
class Word:
    """A word of the text, with its start and end in seconds from the start of the audio."""

    word: str
    start: float
    end: float


def _voices(prefix: str, rows: Sequence[tuple[str, str, int, int, int]]) -> dict[str, Voice]:
    return {f"{prefix}{number:02d}": Voice(*row) for number, row in enumerate(rows, 1)}


# No variant is in two splits. Speaker ids sort by split, and so do utterance ids. The accents of dev and test are in
# train, too; only the voices are held out.
VOICES: dict[str, dict[str, Voice]] = {
    "train": _voices(
        "tr",
        [
            ("en-us", "m1", 45, 50, 165),
            ("en-us", "f1", 55, 50, 170),
            ("en", "m3", 35, 45, 175),
            ("en", "f2", 60, 55, 165),
            ("en-us", "m7", 50, 60, 175),
            ("en-us", "f4", 50, 45, 170),
            ("en-gb-scotland", "m2", 45, 50, 170),
            ("en", "Alex", 40, 55, 165),
            ("en-us", "Annie", 60, 50, 170),
            ("en-us", "Andy", 55, 40, 175),
            ("en", "linda", 50, 50, 165),
            ("en-us", "ed", 40, 45, 170),
            ("en-gb-x-rp", "steph", 45, 60, 170),
            ("en-us", "Mike", 50, 55, 175),
            ("en-us", "steph2", 55, 55, 170),
            ("en", "john", 45, 40, 170),
            ("en-us", "adam", 40, 50, 170),
            ("en-us", "anika", 60, 50, 165),
            ("en", "antonio", 45, 55, 170),
            ("en-us", "aunty", 50, 45, 165),
            ("en", "benjamin", 40, 50, 175),
            ("en-us", "david", 45, 50, 170),
            ("en", "edward", 35, 50, 165),
            ("en-us", "grandma", 55, 50, 165),
            ("en-us", "grandpa", 40, 45, 165),
            ("en", "marcelo", 50, 50, 170),
            ("en-us", "max", 45, 55, 175),
            ("en-us", "michel", 50, 50, 165),
            ("en", "norbert", 40, 45, 170),
            ("en-us", "pablo", 50, 55, 175),
            ("en", "paul", 45, 50, 165),
            ("en-us", "quincy", 45, 45, 170),
            ("en-us", "rob", 40, 50, 175),
            ("en", "robert", 45, 50, 170),
            ("en-us", "Alicia", 60, 50, 165),
            ("en-us", "Andrea", 55, 55, 170),
            ("en", "Denis", 45, 50, 170),
            ("en-us", "Gene", 40, 50, 175),
            ("en-us", "Jacky", 55, 45, 170),
            ("en", "Michael", 45, 50, 165),
            ("en-us", "travis", 45, 55, 170),
            ("en-us", "shelby", 55, 45, 165),
        ],
    ),
    "dev": _voices("dv", [("en-us", "m4", 50, 50, 170), ("en", "belinda", 55, 50, 170), ("en-us", "m6", 45, 50, 170)]),
    "test": _voices(
        "te",
        [
            ("en-us", "f3", 50, 50, 170),
            ("en", "m5", 45, 50, 170),
            ("en-us", "m8", 55, 50, 170),
            ("en-us", "f5", 55, 45, 165),
        ],
    ),
}

#: espeak-ng's Spanish accent by the English accent of the same voice; the others speak "es".
_SPANISH = {"en-us": "es-419"}
LANGUAGES = ("en", "es")


def voices_of(split: str, language: str) -> dict[str, Voice]:
    """Return the speakers of a split in a language.

    Spanish speakers have the voices of the English ones and ids of their own, such as ``tres01``. So no voice is in two
    splits, in any language.
    """
    if language == "en":
        return VOICES[split]
    return {
        f"{speaker[:2]}{language}{speaker[2:]}": replace(voice, language=_SPANISH.get(voice.language, "es"))
        for speaker, voice in VOICES[split].items()
    }


class _EventId(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@lru_cache(maxsize=128)
def _variant_file(source: Path, formants: int) -> str:
    """A voice variant's definition (text of `source`) with the frequencies of all formants scaled to `formants` %,
    and without breath noise, which is not repeatable."""
    lines, seen = [], set()
    for line in source.read_text(encoding="utf-8").splitlines():
        fields = line.split()
        if fields[:1] == ["formant"] and len(fields) > 2:
            seen.add(int(fields[1]))
            fields[2] = str(round(int(fields[2]) * formants / 100))
        if fields[:1] != ["breath"]:
            lines.append(" ".join(fields))
    if formants != 100:
        lines += [f"formant {n} {formants} 100 100" for n in range(9) if n not in seen]
    return "\n".join([*lines, ""])


class _Engine:
    """The library with voice variants of our own; `speak` gives the raw samples and the word events."""

    def __init__(self) -> None:
        import espeakng_loader

        self.path = str(espeakng_loader.get_library_path())
        self.data = Path(espeakng_loader.get_data_path())
        self.home = Path(tempfile.mkdtemp(prefix="espeak-ng-"))  # the wheel's data, with variants of our own
        Finalize(None, shutil.rmtree, (self.home, True), exitpriority=0)  # atexit does not run in pool workers
        home_data = self.home / "espeak-ng-data"
        self.variants = home_data / "voices" / "!v"
        self.variants.mkdir(parents=True)
        entries = [entry for entry in self.data.iterdir() if entry.name not in ("voices", "lang")]
        # espeak-ng opens all files of languages for each utterance
        entries += [entry for entry in self.data.glob("lang/*/*") if entry.name.split("-")[0] in LANGUAGES]
        for entry in entries:
            link = home_data / entry.relative_to(self.data)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(entry.resolve())
        self.chunks: list[np.ndarray] = []
        self.events: list[tuple[int, float]] = []
        self.callback = _Callback(self._receive)  # kept, because the library holds only a pointer to it
        self.rate = 0
        self.library: Any = None

    def _unload(self) -> None:
        self.library.espeak_Terminate()
        handle, self.library = self.library._handle, None
        _ctypes.dlclose(handle)

    def _load(self) -> None:
        self.library = ctypes.CDLL(self.path)
        self.rate = int(self.library.espeak_Initialize(_SYNCHRONOUS, 100, str(self.home).encode(), 0))
        if self.rate <= 0:
            raise RuntimeError(f"{self.path}: espeak-ng did not start")
        self.library.espeak_SetSynthCallback(self.callback)
        self.library.espeak_Synth.argtypes = [
            ctypes.c_char_p,
            ctypes.c_size_t,
            ctypes.c_uint,
            ctypes.c_int,
            ctypes.c_uint,
            ctypes.c_uint,
            ctypes.c_void_p,
            ctypes.c_void_p,
        ]

    def _select(self, voice: Voice) -> None:
        source = self.data / "voices" / "!v" / voice.variant
        if not source.is_file():
            raise ValueError(f"{voice.variant}: not a voice variant of espeak-ng")
        # one file, written again for each utterance, because espeak-ng can hold only a few hundred voices
        (self.variants / "speaker").write_text(_variant_file(source, voice.formants), encoding="utf-8")
        if self.library.espeak_SetVoiceByName(f"{voice.language}+speaker".encode()) != 0:
            raise ValueError(f"{voice.language}: not a language of espeak-ng")
        for parameter, value in (
            (_RATE, voice.rate),
            (_PITCH, voice.pitch),
            (_RANGE, voice.pitch_range),
            (_VOLUME, 80),
        ):
            self.library.espeak_SetParameter(parameter, value, 0)

    def _receive(self, wave: Any, count: int, events: Any) -> int:
        if wave and count > 0:
            self.chunks.append(np.ctypeslib.as_array(wave, shape=(count,)).copy())
        index = 0
        while events and events[index].type != _EVENT_END_OF_LIST:
            if events[index].type == _EVENT_WORD:
                self.events.append((events[index].text_position - 1, events[index].sample / self.rate))
            index += 1
        return 0

    def speak(self, text: str, voice: Voice) -> tuple[np.ndarray, list[tuple[int, float]]]:
        """Return int16 samples at ``self.rate``, and (character offset, seconds) of every word event."""
        self.chunks, self.events = [], []
        data = text.encode()
        self._load()
        try:
            self._select(voice)
            self.library.espeak_Synth(data, len(data) + 1, 0, _POS_CHARACTER, 0, _CHARS_UTF8, None, None)
        finally:
            self._unload()  # now, so that a forked process does not inherit the loaded library
        return np.concatenate(self.chunks) if self.chunks else np.zeros(0, np.int16), self.events


@lru_cache(maxsize=1)
def _engine(process: int) -> _Engine:
    """Return the engine of a process. A forked process must not write voices into its parent's folder."""
    return _Engine()


def _word_starts(words: Sequence[str], events: Sequence[tuple[int, float]], end: float) -> list[float]:
    """Return the start of every word. espeak-ng has one event for joined words ("of the"): split those by letters."""
    offsets, position = [], 0
    for word in words:
        offsets.append(position)
        position += len(word) + 1
    known = dict(reversed([(offset, time) for offset, time in events if offset in set(offsets)]))
    known.setdefault(0, 0.0)
    anchors = [*sorted(known), position]
    times = [known[anchor] for anchor in anchors[:-1]] + [end]
    return [float(np.interp(offset, anchors, times)) for offset in offsets]


def say(text: str, voice: Voice) -> tuple[np.ndarray, list[Word]]:
    """Synthesise ``text``.

    Args:
        text: lower-case words with single spaces between them.
        voice: the speaker.

    Returns:
        16 kHz mono float32 samples in [-1, 1], with ``EDGE_SILENCE`` at both ends, and the words in order with their
        start and end in seconds.

    Raises:
        ValueError: the voice is unknown, or the text has no sound.
    """
    import soxr

    words = text.split()
    engine = _engine(os.getpid())
    raw, events = engine.speak(text, voice)
    if not words or not len(raw):
        raise ValueError(f"{text!r}: empty. Give at least one word.")
    samples = soxr.resample(raw.astype(np.float32) / 32768, engine.rate, SAMPLE_RATE, quality="HQ")
    loud = np.flatnonzero(np.abs(samples) > QUIET)
    if not len(loud):
        raise ValueError(f"{text!r}: no sound")
    first = max(0, int(loud[0]) - round(EDGE_SILENCE * SAMPLE_RATE))
    samples = samples[first : int(loud[-1]) + 1 + round(EDGE_SILENCE * SAMPLE_RATE)]
    samples = np.clip(samples * (0.7 / max(0.7, float(np.abs(samples).max()))), -1, 1)
    end = loud[-1] / SAMPLE_RATE
    starts = [*_word_starts(words, events, end), end]
    limits = np.maximum.accumulate(np.clip(np.array(starts) - first / SAMPLE_RATE, 0, len(samples) / SAMPLE_RATE))
    return samples.astype(np.float32), [
        Word(word, float(limits[i]), float(limits[i + 1])) for i, word in enumerate(words)
    ]
