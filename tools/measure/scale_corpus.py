"""Data directories, embeddings and feature stores of any size, written in blocks, for measurements of scale."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

FILES = 1000  # distinct media files: the content does not matter, but each entry is looked up
EACH = 5  # utterances of an image
SPEAKERS = 2000
LAYERS, FRAMES, WIDTH = 2, (3, 4, 5), 16
SHARD = 20_000  # utterances
CAPTION = "a man in a red shirt rides a horse along the beach"


def write_corpus(folder: Path, split: str, count: int, joint: int, seed: int = 0) -> None:
    """Write ``data/SPLIT`` and ``dump/SPLIT`` with ``count`` utterances, one image for five of them.

    Args:
        folder: of the corpus.
        split: name of the data directory.
        count: utterances.
        joint: width of the embeddings.
        seed: of embeddings and features.
    """
    from speechclip.data.embeddings import save_embedding_blocks
    from speechclip.data.mapped import Column

    data, dump, media = folder / "data" / split, folder / "dump" / split, folder / "media"
    for path in (data, dump, media):
        path.mkdir(parents=True, exist_ok=True)
    for number in range(FILES):
        (media / f"{number:03d}").write_bytes(b"x")
    images = -(-count // EACH)
    speaker = [f"spk{number:04d}" for number in range(SPEAKERS)]
    owner = (np.arange(count) * SPEAKERS // count).tolist()
    ids = [f"{speaker[owner[n]]}-{n:09d}" for n in range(count)]
    _write(data / "wav.scp", (f"{name} {media}/{n % FILES:03d}\n" for n, name in enumerate(ids)))
    _write(data / "text", (f"{name} {CAPTION} {n % 977}\n" for n, name in enumerate(ids)))
    _write(data / "utt2spk", (f"{name} {name[:7]}\n" for name in ids))
    _write(data / "utt2img", (f"{name} {n * 7919 % images:09d}\n" for n, name in enumerate(ids)))
    _write(data / "img.scp", (f"{n:09d} {media}/{n % FILES:03d}\n" for n in range(images)))
    groups = itertools.groupby(ids, lambda name: name[:7])
    _write(data / "spk2utt", (f"{name} {' '.join(listed)}\n" for name, listed in groups))
    rng = np.random.default_rng(seed)
    sizes = [min(1 << 14, images - at) for at in range(0, images, 1 << 14)]
    save_embedding_blocks(
        dump / "image_embeddings.npz", Column.of(f"{n:09d}" for n in range(images)),
        (rng.standard_normal((size, joint), dtype=np.float32) for size in sizes), joint,
    )  # fmt: skip
    _write(dump / "feats.scp", _store(dump, ids, rng))


def _write(path: Path, lines: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(lines)


def _store(dump: Path, ids: list[str], rng: np.random.Generator) -> Iterator[str]:
    """Write the shards of a store with random features, and yield the lines of its index."""
    from speechclip.data.shards import make_metadata

    metadata = make_metadata({"name": "random"}, range(LAYERS))
    noise = rng.standard_normal((SHARD, LAYERS, max(FRAMES), WIDTH)).astype(np.float16)
    for number, start in enumerate(range(0, len(ids), SHARD)):
        name, at, entries, parts = f"feats.{number:04d}.safetensors", 0, {}, []
        for row, item in enumerate(ids[start : start + SHARD]):
            frames = FRAMES[row % len(FRAMES)]
            size = LAYERS * frames * WIDTH * 2
            entries[item] = {"dtype": "F16", "shape": [LAYERS, frames, WIDTH], "data_offsets": [at, at + size]}
            parts.append(noise[row, :, :frames].tobytes())
            at += size
            yield f"{item} {name} {frames}\n"
        header = json.dumps({"__metadata__": metadata, **entries}).encode()
        header += b" " * (-len(header) % 8)
        (dump / name).write_bytes(len(header).to_bytes(8, "little") + header + b"".join(parts))
