#!/usr/bin/env python3
"""Write files in the layout and size of the whole Flickr8k, and encoders of Base size, for a dry run of the recipe.

The corpus has 8,091 photographs, 40,460 captions and 40,000 recordings of 183 speakers. As published, five captions
belong to 2258277193_586949ec62.jpg.1, which has no photograph, and two recordings have 323 s and 0.23 s. The pictures
are coloured blocks with noise, in files of the real size. The recordings are noise, and the encoders have random
weights. Names, numbers and sizes are true, except the length of the recordings (4.2 s on average in the real corpus).

Usage: tools/measure/generate_flickr8k.py --out DIR [--captions FILE] [--seconds 0.4] [--images 8091]
       [--encoders base] [--seed 0]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from speechclip.common.arguments import ArgumentParser, exit_on_user_error
from speechclip.common.constants import SAMPLE_RATE
from speechclip.common.errors import UserError

SPLITS = {"train": 6000, "dev": 1000, "test": 1000}
GHOST = "2258277193_586949ec62.jpg.1"  # the captions without a photograph
SPEAKERS = 183
WORDS = ("a", "dog", "man", "woman", "child", "runs", "jumps", "sits", "in", "on", "the", "grass", "water", "red")
WIDTH, HEIGHT = 500, 375  # pixels of a photograph


def sentences(file: str, count: int, rng: np.random.Generator) -> list[str]:
    """Return captions: those of a Flickr8k.token.txt, repeated, or random words."""
    if file:
        lines = [line.split("\t")[1].strip() for line in Path(file).read_text(encoding="utf-8").splitlines()]
        return [lines[at % len(lines)] for at in range(count)]
    return [" ".join(rng.choice(WORDS, size=rng.integers(6, 16)).tolist()) + " ." for _ in range(count)]


def write_images(folder: Path, names: list[str], rng: np.random.Generator) -> None:
    """Write JPEG files of 140 kB: coloured blocks with noise."""
    from PIL import Image

    folder.mkdir(parents=True)
    noise = rng.integers(-32, 33, (2 * HEIGHT, 2 * WIDTH, 1), dtype=np.int16)
    for name in names:
        blocks = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)).resize((WIDTH, HEIGHT))
        top, left = rng.integers(HEIGHT), rng.integers(WIDTH)
        pixels = np.asarray(blocks, dtype=np.int16) + noise[top : top + HEIGHT, left : left + WIDTH]
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name, quality=95)


def write_audio(folder: Path, items: list[tuple[str, int]], seconds: float, rng: np.random.Generator) -> None:
    """Write a recording of every caption, and the two tables."""
    import soundfile

    (folder / "wavs").mkdir(parents=True)
    noise = rng.standard_normal(323 * SAMPLE_RATE) * 0.1
    captions, speakers = [], []
    for number, (image, caption) in enumerate(items):
        name = f"{image.removesuffix('.jpg')}_{caption}.wav"
        length = {0: 323.0, 1: 0.23}.get(number, seconds * rng.uniform(0.8, 1.2))
        start = int(rng.integers(1 + len(noise) - int(length * SAMPLE_RATE)))
        wave = noise[start : start + int(length * SAMPLE_RATE)]
        soundfile.write(folder / "wavs" / name, wave, SAMPLE_RATE, subtype="PCM_16")
        captions.append(f"{name} {image} #{caption}\n")
        speakers.append(f"{name} {1 + number % SPEAKERS}\n")
    (folder / "wav2capt.txt").write_text("".join(captions))
    (folder / "wav2spk.txt").write_text("".join(speakers))


def write_encoders(folder: Path, seed: int) -> None:
    """Write HuBERT Base and CLIP ViT-B/32 with random weights, in the layout of --models."""
    from speechclip.common.compat import prepare

    prepare()
    import open_clip
    import torch
    import transformers

    from speechclip.checkpoint.pretrained import save_speech_encoder
    from speechclip.convert.clip import save_clip_folder

    torch.manual_seed(seed)
    folder.mkdir(parents=True)
    save_speech_encoder(transformers.HubertModel(transformers.HubertConfig()), False, folder / "hubert-base-ls960")
    settings = open_clip.get_model_config("ViT-B-32-quickgelu")
    save_clip_folder(open_clip.model.CLIP(**settings), settings, folder / "ViT-B-32")


@exit_on_user_error
def main() -> None:
    """Write all files into a new folder."""
    parser = ArgumentParser(prog="generate_flickr8k.py", description=__doc__)
    parser.add_argument("--out", required=True, metavar="DIR", help="new folder")
    parser.add_argument("--captions", default="", metavar="FILE", help="Flickr8k.token.txt with the captions to use")
    parser.add_argument("--seconds", type=float, default=0.4, help="mean length of a recording")
    parser.add_argument("--images", type=int, default=8091, help="number of photographs; the splits shrink with it")
    parser.add_argument("--encoders", choices=("none", "base"), default="none", help="also write models/")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random values")
    args = parser.parse_args()
    out, rng = Path(args.out), np.random.default_rng(args.seed)
    if out.exists():
        raise UserError(f"{out}: exists already")
    names = [f"{1000000000 + 77 * at}_{at:010x}.jpg" for at in range(args.images)]
    share = args.images / 8091
    text = out / "Flickr8k_text"
    text.mkdir(parents=True)
    used = 0
    for split, size in SPLITS.items():
        count = max(1, round(size * share))
        (text / f"Flickr_8k.{split}Images.txt").write_text("".join(f"{name}\n" for name in names[used : used + count]))
        used += count
    captioned = [*names, GHOST]
    written = sentences(args.captions, 5 * len(captioned), rng)
    keys = [f"{name}#{number}" for name in captioned for number in range(5)]
    (text / "Flickr8k.token.txt").write_text("".join(f"{k}\t{s}\n" for k, s in zip(keys, written)), encoding="utf-8")
    write_images(out / "Flicker8k_Dataset", names, rng)
    write_audio(out / "flickr_audio", [(name, n) for name in names[:used] for n in range(5)], args.seconds, rng)
    if args.encoders == "base":
        write_encoders(out / "models", args.seed)
    print(json.dumps({"images": len(names), "captions": len(keys), "recordings": 5 * used}), file=sys.stdout)


if __name__ == "__main__":
    main()
