#!/usr/bin/env python3
"""Generate the mini corpus: rendered scenes, captions, and captions spoken by several voices with word alignments.

Writes OUT_DIR/images/*.png, OUT_DIR/audio/<split>/*.flac (16 kHz, 16 bit), OUT_DIR/captions.tsv and OUT_DIR/ctm.
The corpus depends only on the seed and the counts. A second run keeps finished files and makes the others.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from captions import captions_of
from scenes import generator, random_scene
from speak import LANGUAGES, SAMPLE_RATE, say, voices_of

COLUMNS = ("utterance", "image", "split", "speaker", "caption")
ENGLISH = ("en",)  # the corpus without a column for the language


@dataclass(frozen=True)
class Record:
    """A spoken caption. Its id starts with the speaker's id, because Kaldi sorts by it."""

    utterance: str
    image: str
    split: str
    speaker: str
    caption: str
    language: str = ""


def columns_of(languages: Sequence[str]) -> tuple[str, ...]:
    """Return the columns of captions.tsv. English alone has no column for the language."""
    return COLUMNS if tuple(languages) == ENGLISH else (*COLUMNS, "language")


def plan_corpus(seed: int, counts: dict[str, int], captions: int, languages: Sequence[str] = ENGLISH) -> list[Record]:
    """Return all utterances of the corpus, those of one language after those of another.

    No caption is in two splits. The utterances of a language do not depend on the other languages.

    Args:
        seed: of everything random.
        counts: scenes of each split.
        captions: captions of a scene in each language.
        languages: of `LANGUAGES`.
    """
    records = []
    for language in languages:
        found = _plan_language(seed, counts, captions, language)
        records += [replace(r, language=language) for r in found] if "language" in columns_of(languages) else found
    return records


def _plan_language(seed: int, counts: dict[str, int], captions: int, language: str) -> list[Record]:
    """Return the utterances of one language."""
    records: list[Record] = []
    taken: set[str] = set()
    for split, count in counts.items():
        speakers = sorted(voices_of(split, language))
        split_captions: set[str] = set()
        for index in range(count):
            scene = random_scene(seed, split, index)
            texts = captions_of(seed, split, index, scene, captions, taken if split != "train" else (), language)
            order = generator(seed, split, index, 3).permutation(len(speakers))
            for number, text in enumerate(texts):
                speaker = speakers[int(order[number % len(speakers)])]
                image = f"{split}{index:05d}"
                records.append(Record(f"{speaker}-{image}-{number}", image, split, speaker, text))
                split_captions.add(text)
        taken |= split_captions
    return records


def caption_overlap(records: Iterable[Record]) -> set[str]:
    """Return the captions that are in more than one split. For ``plan_corpus`` the set is empty."""
    seen: dict[str, str] = {}
    return {record.caption for record in records if seen.setdefault(record.caption, record.split) != record.split}


def _publish(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    temporary.replace(path)


def _make_image(image: str, out: Path, seed: int) -> bool:
    """Render one picture. Return False if its file exists already."""
    from io import BytesIO

    from render import render

    path = out / "images" / f"{image}.png"
    if path.exists():
        return False
    split, index = image[:-5], int(image[-5:])
    buffer = BytesIO()
    render(random_scene(seed, split, index), generator(seed, split, index, 2)).save(buffer, format="PNG")
    _publish(path, buffer.getvalue())
    return True


def _make_audio(record: Record, out: Path) -> bool:
    """Write the speech of a caption (.flac) and its alignment (.ctm). Return False if both files exist already."""
    from io import BytesIO

    import soundfile

    path = out / "audio" / record.split / f"{record.utterance}.flac"
    if path.exists() and path.with_suffix(".ctm").exists():
        return False
    samples, words = say(record.caption, voices_of(record.split, record.language or "en")[record.speaker])
    lines = [f"{record.utterance} 1 {w.start:.3f} {w.end - w.start:.3f} {w.word}\n" for w in words]
    buffer = BytesIO()
    soundfile.write(buffer, np.round(samples * 32767).astype(np.int16), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    _publish(path.with_suffix(".ctm"), "".join(lines).encode())
    _publish(path, buffer.getvalue())
    return True


def _claim(out: Path, settings: str) -> None:
    """Keep the files of an earlier run with the same settings and scripts. Delete those of other settings."""
    stamp = out / ".settings"
    digest = hashlib.sha256()
    for name in ("backgrounds", "captions", "captions_es", "generate", "render", "scenes", "speak", "templates"):
        digest.update(Path(__file__).with_name(f"{name}.py").read_bytes())
    settings += f"scripts {digest.hexdigest()[:16]}\n"
    if stamp.exists() and stamp.read_text(encoding="utf-8") != settings:
        print(f"{out}: made with other settings or scripts. It is generated again.", flush=True)
        for folder in ("images", "audio"):
            shutil.rmtree(out / folder, ignore_errors=True)
    _publish(stamp, settings.encode())


def generate(
    out: Path, seed: int, counts: dict[str, int], captions: int, jobs: int, languages: Sequence[str] = ENGLISH
) -> list[Record]:
    """Generate the corpus in ``out`` with ``jobs`` processes and return its records.

    Speech of languages that ``out`` has already and that are not wanted now stays there. No table names it.
    """
    records = plan_corpus(seed, counts, captions, languages)
    overlap = caption_overlap(records)
    assert not overlap, f"captions in two splits: {sorted(overlap)[:3]}"
    out.mkdir(parents=True, exist_ok=True)
    _claim(out, f"seed={seed} counts={counts} captions={captions}\n")
    for folder in ("images", *(f"audio/{split}" for split in counts)):
        (out / folder).mkdir(parents=True, exist_ok=True)
    images = sorted({record.image for record in records})
    with ProcessPoolExecutor(jobs) as pool:
        spoken = pool.map(partial(_make_audio, out=out), records, chunksize=50)
        drawn = pool.map(partial(_make_image, out=out, seed=seed), images, chunksize=50)
        made = sum(spoken), sum(drawn)
    print(f"made {made[1]} of {len(images)} images and {made[0]} of {len(records)} utterances; the others exist")
    columns = columns_of(languages)
    lines = ["\t".join(columns)] + ["\t".join(getattr(r, column) for column in columns) for r in records]
    _publish(out / "captions.tsv", ("\n".join(lines) + "\n").encode())
    order = sorted(records, key=lambda record: record.utterance)
    parts = [(out / "audio" / r.split / f"{r.utterance}.ctm").read_bytes() for r in order]
    _publish(out / "ctm", b"".join(parts))
    return records


def summary(out: Path, records: list[Record]) -> str:
    """Return the size of the corpus, one line per split."""
    ends: dict[str, float] = {}
    for line in (out / "ctm").read_text(encoding="utf-8").splitlines():
        utterance, _, start, duration, _ = line.split()
        ends[utterance] = float(start) + float(duration)
    lines = []
    for split in dict.fromkeys(record.split for record in records):
        mine = [record for record in records if record.split == split]
        hours = sum(ends[record.utterance] for record in mine) / 3600
        lines.append(
            f"{split}: {len({r.image for r in mine})} images, {len(mine)} utterances, {hours:.2f} hours, "
            f"{len({r.speaker for r in mine})} speakers"
        )
    return "\n".join(lines)


def main() -> None:
    """Parse the options and generate the corpus."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT_DIR", help="folder of the corpus")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random")
    parser.add_argument("--num_train", type=int, default=4000, help="train images")
    parser.add_argument("--num_dev", type=int, default=200, help="dev images")
    parser.add_argument("--num_test", type=int, default=200, help="test images")
    parser.add_argument("--captions", type=int, default=3, help="captions per image")
    parser.add_argument("--languages", default="en", help="languages of the captions, of: " + " ".join(LANGUAGES))
    parser.add_argument("--nj", type=int, default=2, help="processes")
    args = parser.parse_args()
    started = time.monotonic()
    counts = {"train": args.num_train, "dev": args.num_dev, "test": args.num_test}
    if min(args.nj, args.captions, *counts.values()) < 1 or args.seed < 0 or max(counts.values()) > 99999:
        raise SystemExit(
            "error: counts and --nj are at least 1, a split has at most 99999 images, and --seed is not negative"
        )
    languages = args.languages.split()
    if not languages or len(set(languages)) < len(languages) or set(languages) - set(LANGUAGES):
        raise SystemExit(f"error: --languages: {args.languages!r} is not a list of: {' '.join(LANGUAGES)}")
    try:
        records = generate(args.out, args.seed, counts, args.captions, args.nj, languages)
    except OSError as error:
        raise SystemExit(f"error: {error.filename or args.out}: {error.strerror or error}") from error
    print(summary(args.out, records))
    print(f"{args.out}: {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
