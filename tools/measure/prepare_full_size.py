#!/usr/bin/env python3
"""Write the lists of a corpus in their true layout and size, and measure the time and memory of the preparation.

Numbers, names and fields are true. Recordings and photographs are hard links to a few small files. So the measurement
has every system call for every file, but the content of all files is in the cache of the kernel. Traces of Localized
Narratives are most of its annotations: about 39 kB for each narrative in the published files. --trace_bytes sets their
size.

Usage: tools/measure/prepare_full_size.py --corpus places|localized_narratives --out DIR [--items 402385 ...] [--nj 2]
       [--trace_bytes 1000] [--seed 0]
       The default is the published number of utterances. Several --items show whether the time is linear.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from speechclip.common.arguments import ArgumentParser, exit_on_user_error
from speechclip.common.errors import UserError
from speechclip.common.provenance import commit

SIZES = {"places": 402_385, "localized_narratives": 873_107}  # utterances, as published
WORDS = ("a", "large", "room", "with", "two", "windows", "and", "chairs", "near", "the", "door", "of", "this", "image")
LINKS = 20_000  # to one file; ext4 allows 65,000
PER_FOLDER = 1000


class Links:
    """Hard links to a small file, with a new file after ``LINKS`` of them."""

    def __init__(self, content: bytes, folder: Path, suffix: str) -> None:
        self.content, self.folder, self.suffix, self.count = content, folder, suffix, 0
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, path: Path) -> None:
        """Make a file at a path whose folder exists."""
        source = self.folder / f"{self.count // LINKS}{self.suffix}"
        if self.count % LINKS == 0:
            source.write_bytes(self.content)
        os.link(source, path)
        self.count += 1


def contents() -> tuple[bytes, bytes, bytes]:
    """Return a JPEG of 256 x 256 pixels, and a recording of a second as wav and as ogg."""
    import io

    import soundfile
    from PIL import Image

    picture = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)).resize((256, 256)).save(
        picture, "JPEG"
    )
    recordings = []
    for kind in ("WAV", "OGG"):
        buffer = io.BytesIO()
        soundfile.write(buffer, 0.1 * np.sin(np.arange(16000) * 0.05), 16000, format=kind)
        recordings.append(buffer.getvalue())
    return picture.getvalue(), recordings[0], recordings[1]


def sentence(rng: np.random.Generator, words: int) -> list[str]:
    """Return random words."""
    return [WORDS[at] for at in rng.integers(len(WORDS), size=words)]


def write_places(out: Path, count: int, rng: np.random.Generator) -> None:
    """Write the lists of 2020: 1,000 utterances in each evaluation set, the others in train."""
    picture, wav, _ = contents()
    pictures, waves = Links(picture, out / "source", ".jpg"), Links(wav, out / "source", ".wav")
    distro = out / "PlacesAudio_400k_distro"
    (distro / "metadata").mkdir(parents=True)
    small = min(1000, count // 10)
    number = 0
    for name in ("dev_seen", "dev_unseen", "test_seen", "test_unseen", "train"):
        entries = []
        for _ in range(small if name != "train" else count - 4 * small):
            room = f"{chr(97 + number % 26)}/room_{number // PER_FOLDER}"
            image, recording = f"{room}/gsun_{number:032x}.jpg", f"wavs/{number // PER_FOLDER}/utterance_{number}.wav"
            for path in (out / "images" / image, distro / recording):
                path.parent.mkdir(parents=True, exist_ok=True)
            pictures.add(out / "images" / image)
            waves.add(distro / recording)
            speaker = f"A{number % 2683:013d}"  # the number of speakers that the corpus has
            text = " ".join(sentence(rng, 19))  # words of an average caption
            entry = {"uttid": f"{speaker}-GSUN_{number:032X}", "speaker": speaker, "asr_text": text}
            entries.append({**entry, "wav": recording, "image": image})
            number += 1
        base = {"audio_base_path": "/data/sls/placesaudio/", "image_base_path": "/data/vision/images/"}
        (distro / "metadata" / f"{name}_2020.json").write_text(json.dumps({**base, "data": entries}))


def write_narratives(out: Path, count: int, trace_bytes: int, rng: np.random.Generator) -> None:
    """Write all four parts, with the published share of each list."""
    lists: dict[str, tuple[int, str, str]] = {  # narratives, photograph, image id
        "coco_train": (134_272, "train2017/{:012d}.jpg", "{}"),
        "coco_val": (8_573, "val2017/{:012d}.jpg", "{}"),
        "flickr30k_train": (30_546, "flickr30k-images/{:010d}.jpg", "{:010d}"),
        "flickr30k_val": (1_009, "flickr30k-images/{:010d}.jpg", "{:010d}"),
        "flickr30k_test": (1_023, "flickr30k-images/{:010d}.jpg", "{:010d}"),
        "ade20k_train": (20_476, "ADEChallengeData2016/images/training/ADE_train_{:08d}.jpg", "ADE_train_{:08d}"),
        "ade20k_validation": (2_053, "ADEChallengeData2016/images/validation/ADE_val_{:08d}.jpg", "ADE_val_{:08d}"),
        "open_images_train_v6": (507_444, "open_images/train/{:016x}.jpg", "{:016x}"),
        "open_images_validation": (41_691, "open_images/validation/{:016x}.jpg", "{:016x}"),
        "open_images_test": (126_020, "open_images/test/{:016x}.jpg", "{:016x}"),
    }
    picture, _, ogg = contents()
    pictures, waves = Links(picture, out / "source", ".jpg"), Links(ogg, out / "source", ".ogg")
    number = 1
    points = max(1, trace_bytes // 40)
    traces = [[{"x": 0.1234, "y": 0.5678, "t": round(0.033 * at, 3)} for at in range(points)]]
    for name, (size, photograph, image_id) in lists.items():
        folder = out / "voice-recordings" / name
        folder.mkdir(parents=True)
        (out / photograph.format(0)).parent.mkdir(parents=True, exist_ok=True)
        with (out / f"{name}_localized_narratives.jsonl").open("w") as file:
            for _ in range(max(2, round(size * count / SIZES["localized_narratives"]))):
                pictures.add(out / photograph.format(number))
                padded = name.startswith(("flickr30k", "ade20k"))
                file.write(json.dumps(narrative(name, image_id.format(number), number, traces, rng)) + "\n")
                waves.add(folder / f"{name}_{number:0{16 if padded else 1}d}_{number % 156}.ogg")
                number += 1


def narrative(name: str, image: str, number: int, traces: Any, rng: np.random.Generator) -> dict[str, Any]:
    """Return an annotation with the fields of the published ones and a caption of average length."""
    words = sentence(rng, 37)
    timed = [{"utterance": w, "start_time": 0.4 * at, "end_time": 0.4 * at + 0.3} for at, w in enumerate(words)]
    dataset = {"fli": "Flick30k_train", "ade": "ADE20k_train"}.get(name[:3], name)
    return {
        "dataset_id": dataset, "image_id": image, "annotator_id": number % 156, "caption": " ".join(words),
        "timed_caption": timed, "traces": traces, "voice_recording": f"{name}/{name}_{number}_{number % 156}.ogg",
    }  # fmt: skip


def files(folder: Path) -> Iterator[Path]:
    """Yield the lists."""
    yield from [*folder.glob("*.jsonl"), *folder.rglob("metadata/*.json")]


@exit_on_user_error
def main() -> None:
    """Print a row for each size."""
    parser = ArgumentParser(prog="prepare_full_size.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--corpus", required=True, choices=sorted(SIZES), help="name of the corpus")
    parser.add_argument("--out", required=True, metavar="DIR", help="new folder for everything; removed at the end")
    parser.add_argument("--items", type=int, nargs="+", help="utterances; several for a check of the growth")
    parser.add_argument("--nj", type=int, default=2, help="processes of the preparation")
    parser.add_argument("--trace_bytes", type=int, default=1000, help="size of the traces of a narrative")
    parser.add_argument("--seed", type=int, default=0, help="seed of the captions")
    args = parser.parse_args()
    out = Path(args.out)
    if out.exists():
        raise UserError(f"{out}: exists. Give a new folder.")
    print(f"{args.corpus}, commit {commit()}, {args.nj} processes, {os.cpu_count()} cores")
    print(f"{'utterances':>11}{'lists MB':>10}{'wall s':>9}{'CPU s':>9}{'peak GB':>9}{'us each':>9}", flush=True)
    for count in args.items or [SIZES[args.corpus]]:
        try:
            out.mkdir(parents=True)
            rng = np.random.default_rng(args.seed)
            if args.corpus == "places":
                write_places(out, count, rng)
            else:
                write_narratives(out, count, args.trace_bytes, rng)
            size = sum(file.stat().st_size for file in files(out)) / 1e6
            command = [sys.executable, "-m", "speechclip.bin.prepare_corpus", "--name", args.corpus]
            command += ["--corpus", str(out), "--out", str(out / "data"), "--nj", str(args.nj)]
            started = time.monotonic()
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            _, status, used = os.wait4(process.pid, 0)
            wall = time.monotonic() - started
            if status:
                raise UserError(f"{' '.join(command)}: failed")
            seconds, peak = used.ru_utime + used.ru_stime, used.ru_maxrss / 1e6
            each = seconds / count * 1e6
            print(f"{count:11,}{size:10.0f}{wall:9.1f}{seconds:9.1f}{peak:9.2f}{each:9.0f}", flush=True)
        finally:
            shutil.rmtree(out, ignore_errors=True)


if __name__ == "__main__":
    main()
