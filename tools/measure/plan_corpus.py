#!/usr/bin/env python3
"""Estimate the disk, time and memory of a corpus of any size, from rates measured on this machine.

Each rate is measured for some seconds: the speech encoder, both towers of CLIP, writing and reading the feature
store, a training step, building and opening mapped tables, scoring. The rest is arithmetic, and every line shows its
factors. The rates are those of one process on this machine. --machines divides the time of the work that can be split.

Usage: tools/measure/plan_corpus.py [--times 100] [--corpus spokencoco|flickr8k]
       [--encoder random:base|random:large|FOLDER] [--clip ViT-B-32] [--batch 256] [--epochs 10]
       [--machines 1] [--seconds 10] [--folder DIR] [--seed 0]
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure_feature_costs import load_or_make
from scale_corpus import write_corpus

from speechclip.common.arguments import ArgumentParser, exit_on_user_error
from speechclip.common.constants import FRAME_RATE, SAMPLE_RATE
from speechclip.common.errors import UserError


@dataclass(frozen=True)
class Corpus:
    """The size of a corpus: utterances, images and hours of speech, and the size of its test split."""

    utterances: int
    images: int
    hours: float
    test_utterances: int
    test_images: int


#: SpokenCOCO: Hsu et al. 2021, with the Karpathy test split; Flickr8k: Harwath and Glass 2015.
CORPORA = {
    "spokencoco": Corpus(605_495, 123_287, 742.0, 25_031, 5_000),
    "flickr8k": Corpus(40_000, 8_000, 46.0, 5_000, 1_000),
}


@dataclass(frozen=True)
class MeasuredRates:
    """The rates of one process on this machine.

    Attributes:
        speech: seconds of speech encoded per second.
        images: images embedded per second.
        captions: captions embedded per second.
        written: bytes of the feature store written per second.
        read: bytes of the feature store read per second, in random order.
        step: seconds per training step.
        table_bytes: bytes of a data directory per utterance.
        mapped_bytes: bytes of the mapped columns and index per utterance.
        table_memory: bytes of private memory of a mapped data directory and index per utterance.
        tables: utterances per second whose mapped columns and index are built.
        pairs: query-item pairs scored per second.
        batch: utterances in a training step.
        layers: hidden states of the speech encoder.
        width: width of the hidden states.
        joint: width of CLIP's embeddings.
    """

    speech: float
    images: float
    captions: float
    written: float
    read: float
    step: float
    table_bytes: float
    mapped_bytes: float
    table_memory: float
    tables: float
    pairs: float
    batch: int
    layers: int
    width: int
    joint: int


Row = tuple[str, str, float, str]  # kind (disk, time, memory), item, bytes or seconds, factors


def estimate(rates: MeasuredRates, corpus: Corpus, times: float, epochs: int, machines: int) -> list[Row]:
    """Estimate the needs of a corpus that is ``times`` as large as another one, test split included."""
    speech = corpus.hours * 3600 * times
    utterances, images = corpus.utterances * times, corpus.images * times
    frame = rates.layers * rates.width * 2
    store, embeddings = speech * FRAME_RATE * frame, (utterances + images) * rates.joint * 4
    pairs = corpus.test_utterances * corpus.test_images * times**2
    steps = epochs * utterances / rates.batch
    batch = rates.batch * corpus.hours * 3600 / corpus.utterances * FRAME_RATE * frame
    shared = f" / {machines} machines" if machines > 1 else ""
    return [
        ("disk", "recordings", speech * SAMPLE_RATE * 2, f"{speech:.3g} s x {SAMPLE_RATE} x 2 bytes, 16-bit wav"),
        ("disk", "data directory", utterances * rates.table_bytes, f"utterances x {rates.table_bytes:.0f} bytes"),
        ("disk", "CLIP embeddings", embeddings, f"(utterances + images) x {rates.joint} x 4 bytes"),
        ("disk", "mapped tables", utterances * rates.mapped_bytes + embeddings,
         f"utterances x {rates.mapped_bytes:.0f} bytes, and the embeddings, next to their sources"),
        ("disk", "stored features", store,
         f"{speech:.3g} s x {FRAME_RATE} x {rates.layers} layers x {rates.width} x 2 bytes; 0 with --feats online"),
        ("time", "building mapped tables, once", utterances / rates.tables, f"{rates.tables:.0f} utterances/s"),
        ("time", "CLIP embeddings", (images / rates.images + utterances / rates.captions) / machines,
         f"{rates.images:.1f} images/s, {rates.captions:.1f} captions/s{shared}"),
        ("time", "features", speech / rates.speech / machines, f"{rates.speech:.1f} s of speech/s{shared}"),
        ("time", "writing features", store / rates.written / machines, f"{rates.written / 1e6:.0f} MB/s{shared}"),
        ("time", f"training, {epochs} epochs", steps * rates.step / machines,
         f"{steps:.3g} steps of {rates.batch} x {rates.step:.3f} s{shared}, features in memory"),
        ("time", "reading features in training", epochs * store / rates.read / machines,
         f"{rates.read / 1e6:.0f} MB/s at random{shared}"),
        ("time", "scoring one direction", pairs / rates.pairs, f"{pairs:.3g} pairs, {rates.pairs:.3g}/s"),
        ("memory", "data directory and index", utterances * rates.table_memory,
         f"utterances x {rates.table_memory:.3f} bytes of private memory, per process; the rest is mapped"),
        ("memory", "CLIP embeddings in training", rates.batch * rates.joint * 4,
         "those of a batch; the rest is mapped"),
        ("memory", "a batch of features", batch * 3, f"{rates.batch} utterances in half and single precision"),
    ]  # fmt: skip


def repeated(act: Callable[[], float], seconds: float) -> float:
    """Return the units per second of ``act``, which returns its number of units, after one call to warm up."""
    act()
    done, started = 0.0, time.perf_counter()
    while (spent := time.perf_counter() - started) < seconds or not done:
        done += act()
    return done / spent


def measure(encoder_name: str, clip_name: str, batch: int, seconds: float, folder: Path, seed: int) -> MeasuredRates:
    """Measure the rates of this machine. ``folder`` is on the disk to measure."""
    import torch

    torch.manual_seed(seed)
    encoder: Any = load_or_make(encoder_name, None)
    waves = [torch.randn(4 * SAMPLE_RATE) * 0.1 for _ in range(8)]

    def encode() -> float:
        encoder(waves)
        return len(waves) * 4.0

    speech = repeated(encode, seconds)
    layers, width = encoder.num_states, encoder.dim
    images, captions, joint = _clip_rates(clip_name, seconds)
    written, read = _store_rates(folder / "store", layers, width)
    table_bytes, mapped_bytes, table_memory, tables = _table_rates(folder / "corpus")
    return MeasuredRates(
        speech=speech, images=images, captions=captions, written=written, read=read,
        step=1 / repeated(_training_step(layers, width, joint, batch), seconds), table_bytes=table_bytes,
        mapped_bytes=mapped_bytes, table_memory=table_memory, tables=tables,
        pairs=repeated(_scoring(joint), seconds), batch=batch, layers=layers, width=width, joint=joint,
    )  # fmt: skip


def _clip_rates(name: str, seconds: float) -> tuple[float, float, int]:
    from speechclip.common.compat import prepare

    prepare()
    import open_clip
    import torch

    shape = open_clip.get_model_config(name)
    if shape is None:
        raise UserError(f"--clip: open_clip has no model {name}")
    model = open_clip.model.CLIP(**shape).eval()
    size = model.visual.image_size[0]
    pictures = torch.randn(16, 3, size, size)
    texts = torch.randint(1, 1000, (64, model.context_length))
    with torch.no_grad():
        images = repeated(lambda: float(len(model.encode_image(pictures))), seconds)
        captions = repeated(lambda: float(len(model.encode_text(texts))), seconds)
    return images, captions, int(shape["embed_dim"])


def _store_rates(folder: Path, layers: int, width: int) -> tuple[float, float]:
    """Return the bytes per second of writing, and of reading in random order, with 256 utterances of 4 s."""
    import torch

    from speechclip.data.features import FeatureStore, FeatureWriter

    states = torch.randn(layers, 4 * FRAME_RATE, width).half()
    started = time.perf_counter()
    with FeatureWriter(folder, encoder={}, layers=range(layers)) as writer:
        for number in range(256):
            writer.add(f"u{number:03d}", states)
    total = 256 * states.nbytes
    written = total / (time.perf_counter() - started)
    store = FeatureStore(folder)
    order = torch.randperm(256).tolist()
    started = time.perf_counter()
    for number in order:
        store.read(f"u{number:03d}")
    return written, total / (time.perf_counter() - started)


def _table_rates(folder: Path, number: int = 200_000) -> tuple[float, float, float, float]:
    """Measure a data directory and the index of a store.

    Returns:
        Bytes on disk per utterance, bytes of the mapped tables per utterance, bytes of private memory per utterance
        that a process needs to open them, and utterances per second of processor time whose mapped
        tables are built.
    """
    from speechclip.data.dataset import StoreSource
    from speechclip.data.kaldi import DataDir

    write_corpus(folder, "train", number, joint=1)
    data, store = folder / "data" / "train", folder / "dump" / "train"
    size = sum(path.stat().st_size for path in data.iterdir())
    started = time.process_time()
    StoreSource(store, DataDir.load(data).ids)
    seconds = time.process_time() - started
    mapped = sum(path.stat().st_size for path in (*data.glob(".columns-*/*"), *store.glob(".index-*/*")))
    tracemalloc.start()
    opened = DataDir.load(data)
    source = StoreSource(store, opened.ids)
    memory = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(source.lengths) == number
    return size / number, mapped / number, memory / number, number / seconds


def _training_step(layers: int, width: int, joint: int, batch: int) -> Callable[[], float]:
    """Return a function that runs one training step of a parallel head on features in memory."""
    import torch
    from torch import nn

    from speechclip.config import load
    from speechclip.model.network import Dimensions, build_network

    model = build_network(load([]).model, Dimensions(width, layers, joint))
    optimizer = torch.optim.Adam(model.trained_parameters(), lr=1e-4)
    states = torch.randn(batch, layers, int(4.4 * FRAME_RATE), width, dtype=torch.float16)
    frames, groups = torch.full((batch,), states.shape[2]), torch.arange(batch)
    targets = nn.functional.normalize(torch.randn(batch, joint), dim=-1)

    def step() -> float:
        speech = nn.functional.normalize(model.apply_head(states, frames).embedding, dim=-1)
        optimizer.zero_grad()
        model.loss(speech, targets, groups).backward()
        optimizer.step()
        return 1.0

    return step


def _scoring(joint: int, queries: int = 2000, gallery: int = 1000) -> Callable[[], float]:
    import numpy as np

    from speechclip.eval.retrieval import evaluate

    rng = np.random.default_rng(0)
    asked, searched = (rng.standard_normal((n, joint)).astype(np.float32) for n in (queries, gallery))
    of_query, of_item = np.arange(queries) % gallery, np.arange(gallery)

    def score() -> float:
        evaluate(asked, searched, of_query, of_item, of_query, 0, 0)
        return float(queries * gallery)

    return score


def readable(kind: str, value: float) -> str:
    """Return bytes or seconds in a readable unit."""
    units: Sequence[tuple[float, str]] = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
    if kind == "time":
        units = ((86400 * 365, "years"), (86400, "days"), (3600, "h"), (60, "min"))
    size, unit = next((pair for pair in units if value >= pair[0]), (1.0, "s" if kind == "time" else "bytes"))
    return f"{value / size:.1f} {unit}"


@exit_on_user_error
def main() -> None:
    """Measure the rates, compute and print the table."""
    parser = ArgumentParser(prog="plan_corpus.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=float, default=100.0, help="size of the corpus, as a multiple of --corpus")
    parser.add_argument("--corpus", choices=sorted(CORPORA), default="spokencoco", help="a corpus of known size")
    parser.add_argument("--encoder", default="random:base", help="transformers folder, random:base or random:large")
    parser.add_argument("--clip", default="ViT-B-32", help="name of a CLIP in open_clip")
    parser.add_argument("--batch", type=int, default=256, help="utterances in a training step")
    parser.add_argument("--epochs", type=int, default=10, help="epochs of training")
    parser.add_argument("--machines", type=int, default=1, help="machines like this one that share the work")
    parser.add_argument("--seconds", type=float, default=10.0, help="seconds for measuring each rate")
    parser.add_argument("--folder", default=None, help="folder on the disk to measure (default: a temporary one)")
    parser.add_argument("--seed", type=int, default=0, help="seed of random weights and inputs")
    options = parser.parse_args()
    if options.times <= 0 or options.machines < 1:
        raise UserError("--times, --machines: both have to be positive")

    import torch

    from speechclip.common.provenance import commit

    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        rates = measure(options.encoder, options.clip, options.batch, options.seconds, folder, options.seed)
    finally:
        shutil.rmtree(folder)
    where = f"{options.machines} machines of {torch.get_num_threads()} threads, commit {commit()}"
    print(f"{options.times:g} times {options.corpus}, {options.encoder}, {options.clip}, {where}")
    print("measured: " + ", ".join(f"{name} {value:.4g}" for name, value in dataclasses.asdict(rates).items()))
    for kind, what, value, how in estimate(
        rates, CORPORA[options.corpus], options.times, options.epochs, options.machines
    ):
        print(f"{kind:7}{what:28}{readable(kind, value):>12}   {how}")


if __name__ == "__main__":
    main()
