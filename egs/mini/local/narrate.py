#!/usr/bin/env python3
"""Generate long descriptions of the dev and test scenes: many captions of one scene, spoken by one voice, with pauses.

Writes OUT_DIR/narratives/<split>/*.flac (16 kHz, 16 bit), OUT_DIR/narratives.tsv and OUT_DIR/narratives.ctm, next to
the files of `generate.py`. The first captions of a scene are those of the corpus. The files depend only on the seed,
the counts and the length.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import soundfile
from captions import captions_of
from generate import COLUMNS, Record
from scenes import generator, random_scene
from speak import SAMPLE_RATE, Word, say, voices_of

from speechclip.common.files import replace_file

TABLE, TIMES, FOLDER = "narratives.tsv", "narratives.ctm", "narratives"
PAUSES = (0.3, 1.2)  # seconds between two captions, drawn evenly
LONGEST = 600  # seconds; a scene has enough different captions for more
_PURPOSE = 6  # of the random generator, see scenes.generator


def narrate(seed: int, split: str, index: int, seconds: float) -> tuple[Record, np.ndarray, list[Word]]:
    """Return a narrative of a scene.

    Args:
        seed: of the corpus.
        split: dev or test.
        index: of the scene.
        seconds: the narrative ends with the first caption after this time.

    Returns:
        the utterance, samples [num_samples] at 16 kHz, and the words with their times.
    """
    rng, voices = generator(seed, split, index, _PURPOSE), voices_of(split, "en")
    speaker = sorted(voices)[int(rng.integers(len(voices)))]
    scene, texts = random_scene(seed, split, index), list[str]()
    parts, words, length = list[np.ndarray](), list[Word](), 0
    while length < seconds * SAMPLE_RATE:
        text = captions_of(seed, split, index, scene, len(texts) + 1)[-1]
        samples, spoken = say(text, voices[speaker])
        if texts:
            parts.append(np.zeros(round(float(rng.uniform(*PAUSES)) * SAMPLE_RATE), dtype=np.float32))
            length += len(parts[-1])
        start = length / SAMPLE_RATE
        words += [Word(word.word, word.start + start, word.end + start) for word in spoken]
        parts.append(samples)
        length += len(samples)
        texts.append(text)
    image = f"{split}{index:05d}"
    return Record(f"{speaker}-{image}-long", image, split, speaker, " ".join(texts)), np.concatenate(parts), words


def _make(item: tuple[str, int], out: Path, seed: int, seconds: float) -> tuple[Record, str]:
    """Write the speech of a narrative. Return the utterance and its lines of the ctm file."""
    record, samples, words = narrate(seed, *item, seconds)
    buffer = BytesIO()
    soundfile.write(buffer, np.round(samples * 32767).astype(np.int16), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    replace_file(out / FOLDER / record.split / f"{record.utterance}.flac", buffer.getvalue())
    return record, "".join(f"{record.utterance} 1 {w.start:.3f} {w.end - w.start:.3f} {w.word}\n" for w in words)


def generate(out: Path, seed: int, counts: dict[str, int], seconds: float, jobs: int) -> list[Record]:
    """Write the narratives of some scenes of each split with ``jobs`` processes. Return the utterances."""
    items = [(split, index) for split, count in counts.items() for index in range(count)]
    for split in counts:
        (out / FOLDER / split).mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(jobs) as pool:
        made = list(pool.map(partial(_make, out=out, seed=seed, seconds=seconds), items, chunksize=10))
    made.sort(key=lambda item: item[0].utterance)
    replace_file(out / TIMES, "".join(lines for _, lines in made).encode())
    lines = ["\t".join(COLUMNS), *("\t".join(getattr(record, name) for name in COLUMNS) for record, _ in made)]
    replace_file(out / TABLE, ("\n".join(lines) + "\n").encode())
    return [record for record, _ in made]


def main() -> None:
    """Parse the options and generate the narratives."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT_DIR", help="folder of the corpus")
    parser.add_argument("--seed", type=int, default=0, help="seed of the corpus")
    parser.add_argument("--num_dev", type=int, default=200, help="dev images")
    parser.add_argument("--num_test", type=int, default=200, help="test images")
    parser.add_argument("--seconds", type=float, default=60.0, help="shortest length of a narrative")
    parser.add_argument("--nj", type=int, default=2, help="processes")
    args = parser.parse_args()
    if not 0 < args.seconds <= LONGEST:
        raise SystemExit(f"error: --seconds: {args.seconds:g} is not more than 0 and at most {LONGEST}")
    started = time.monotonic()
    records = generate(args.out, args.seed, {"dev": args.num_dev, "test": args.num_test}, args.seconds, args.nj)
    print(f"{args.out / TABLE}: {len(records)} narratives, {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
