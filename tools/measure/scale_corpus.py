"""Data directories, embeddings and feature stores of any size, written in blocks, for measurements of scale.

All lines of a table have the same width, so that a block of lines is one array of bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FILES = 1000  # distinct media files: the content does not matter, but each entry is looked up
EACH = 5  # utterances of an image
SPEAKERS = 2000
LAYERS, FRAMES, WIDTH = 2, (3, 4, 5), 16
SHARD = 20_000  # utterances
CAPTION = b" a man in a red shirt rides a horse along the beach "
_BLOCK = 1 << 17  # lines

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]


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
    images, place = -(-count // EACH), f" {media}/".encode()

    def speaker(rows: Ints) -> Bytes:
        return _joined(b"spk", _digits(rows * SPEAKERS // count, 4))

    def ids(rows: Ints) -> Bytes:
        return _joined(speaker(rows), b"-", _digits(rows, 9))

    _write(data / "wav.scp", count, lambda rows: _joined(ids(rows), place, _digits(rows % FILES, 3)))
    _write(data / "text", count, lambda rows: _joined(ids(rows), CAPTION, _digits(rows % 977, 3)))
    _write(data / "utt2spk", count, lambda rows: _joined(ids(rows), b" ", speaker(rows)))
    _write(data / "utt2img", count, lambda rows: _joined(ids(rows), b" ", _digits(rows * 7919 % images, 9)))
    _write(data / "img.scp", images, lambda rows: _joined(_digits(rows, 9), place, _digits(rows % FILES, 3)))
    starts = -(-np.arange(SPEAKERS + 1) * count // SPEAKERS)  # the first utterance of each speaker
    with (data / "spk2utt").open("wb") as file:
        for rows in (np.arange(*pair) for pair in zip(starts[:-1], starts[1:]) if pair[0] < pair[1]):
            file.write(speaker(rows[:1]).tobytes() + _joined(b" ", ids(rows)).tobytes() + b"\n")
    rng = np.random.default_rng(seed)
    sizes = [min(1 << 14, images - at) for at in range(0, images, 1 << 14)]
    save_embedding_blocks(
        dump / "image_embeddings.npz", Column.of(f"{n:09d}" for n in range(images)),
        (rng.standard_normal((size, joint), dtype=np.float32) for size in sizes), joint,
    )  # fmt: skip
    _write_shards(dump, count, ids, rng)
    _write(
        dump / "feats.scp", count,
        lambda rows: _joined(
            ids(rows), b" feats.", _digits(rows // SHARD, 4), b".safetensors ", _digits(_frames(rows), 1)
        ),
    )  # fmt: skip


def _digits(values: Ints, width: int) -> Bytes:
    """Return numbers as decimal digits with leading zeros, [n, width]."""
    return (values[:, None] // 10 ** np.arange(width - 1, -1, -1) % 10 + ord("0")).astype(np.uint8)


def _padded(values: Ints, width: int) -> Bytes:
    """Return numbers as decimal digits with leading blanks, [n, width]."""
    found = _digits(values, width)
    found[np.cumsum(found != ord("0"), axis=1) == 0] = ord(" ")
    found[values == 0, -1] = ord("0")
    return found


def _joined(*parts: Bytes | bytes) -> Bytes:
    """Join columns of bytes. A constant is repeated in each row."""
    rows = next(len(part) for part in parts if not isinstance(part, bytes))
    columns = [
        np.broadcast_to(np.frombuffer(part, np.uint8), (rows, len(part))) if isinstance(part, bytes) else part
        for part in parts
    ]
    return np.concatenate(columns, axis=1)


def _write(path: Path, count: int, lines: Callable[[Ints], Bytes]) -> None:
    """Write ``count`` lines block by block."""
    with path.open("wb") as file:
        for start in range(0, count, _BLOCK):
            file.write(_joined(lines(np.arange(start, min(start + _BLOCK, count))), b"\n").tobytes())


def _frames(rows: Ints) -> Ints:
    return np.array(FRAMES)[rows % SHARD % len(FRAMES)]


def _write_shards(dump: Path, count: int, ids: Callable[[Ints], Bytes], rng: np.random.Generator) -> None:
    """Write the shards of a store with random features."""
    from speechclip.data.shards import make_metadata

    start_of_header = (
        json.dumps({"__metadata__": make_metadata({"name": "random"}, range(LAYERS))})[:-1].encode() + b","
    )
    noise = rng.standard_normal(SHARD * LAYERS * max(FRAMES) * WIDTH).astype(np.float16).tobytes()
    for number, start in enumerate(range(0, count, SHARD)):
        rows = np.arange(start, min(start + SHARD, count))
        frames = _frames(rows)
        ends = np.cumsum(frames * LAYERS * WIDTH * 2)
        entries = _joined(
            b'"', ids(rows), b'":{"dtype":"F16","shape":[%d,' % LAYERS, _digits(frames, 1), b",%d" % WIDTH,
            b'],"data_offsets":[', _padded(ends - frames * LAYERS * WIDTH * 2, 9), b",", _padded(ends, 9), b"]},",
        )  # fmt: skip
        header = start_of_header + entries.tobytes()[:-1] + b"}"
        header += b" " * (-len(header) % 8)
        name = dump / f"feats.{number:04d}.safetensors"
        name.write_bytes(len(header).to_bytes(8, "little") + header + noise[: int(ends[-1])])
