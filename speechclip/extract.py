"""What stage 2 computes once: hidden states of the speech encoder, CLIP embeddings, the reduced vocabulary."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from speechclip.config import Config
from speechclip.constants import SAMPLE_RATE
from speechclip.data.audio import load_audio, num_samples
from speechclip.data.embeddings import load_embeddings, save_embeddings
from speechclip.data.features import FeatureWriter, remove_stale
from speechclip.data.images import load_image
from speechclip.data.kaldi import DataDir
from speechclip.data.vocabulary import Vocabulary
from speechclip.device import pick_device
from speechclip.encoders.clip import OpenClip
from speechclip.encoders.speech import LoadedEncoder, load_speech_encoder
from speechclip.encoders.tokens import surround
from speechclip.errors import UserError

CLIP_BATCH = 64


class Stopped(Exception):
    """A stage was asked to stop, and what it has computed is stored."""


def batches_by_seconds(samples: np.ndarray, batch_seconds: float) -> Iterator[list[int]]:
    """Positions of utterances in batches of similar length, longest first.

    A batch holds at most ``batch_seconds`` of speech, padding included, or one utterance that is longer. samples: [N].
    """
    batch: list[int] = []
    longest = 0
    for position in np.argsort(-samples, kind="stable").tolist():
        if batch and longest * (len(batch) + 1) > batch_seconds * SAMPLE_RATE:
            yield batch
            batch = []
        longest = samples[batch[0]] if batch else samples[position]
        batch.append(position)
    if batch:
        yield batch


def extract_features(
    config: Config, data: str, out: str, *, batch_seconds: float, job: int = 1, jobs: int = 1,
    encoder: LoadedEncoder | None = None, stop: Callable[[], bool] = lambda: False,
) -> tuple[int, float, float]:  # fmt: skip
    """Store the configured hidden states of every utterance of a data directory, or of one job's share of them.

    A store that was begun with the same encoder on the same recordings is continued; another one is replaced. Batches
    are the same for every number of jobs and wherever a run was cut, and so is what is stored; on CPUs up to rounding,
    which goes by the number of threads.

    Args:
        job: from 1 to ``jobs``. With several, :func:`speechclip.data.features.write_index` follows the last.
        encoder: the configured one, where it is loaded already.
        stop: asked before each batch; once it is true, what is pending is written, the index is not.
    Returns:
        utterances encoded now, seconds taken, hours of speech.
    Raises:
        Stopped: by ``stop``.
    """
    directory = DataDir.load(data)
    paths = {utterance.id: utterance.wav for utterance in directory.utterances}
    ids = list(paths)
    samples = np.array([num_samples(path) for path in paths.values()])
    encoder = load_speech_encoder(config.model.speech_encoder) if encoder is None else encoder
    layers = config.model.speech_encoder.layers or list(range(encoder.num_states))
    if max(layers) >= encoder.num_states:
        raise UserError(
            f"model.speech_encoder.layers: {max(layers)}; {encoder.description['path']} has {encoder.num_states}"
        )
    device = pick_device()
    encoder.to(device)
    # where the encoder lies may change, what it is not
    description = {key: value for key, value in encoder.description.items() if key != "path"}
    description |= {"name": Path(encoder.description["path"]).name, "recordings": _recordings(ids, samples)}
    if reason := remove_stale(Path(out), description, layers, config.data.store_dtype):
        print(f"{reason}: replacing it", flush=True)
    batches = [[ids[at] for at in batch] for batch in batches_by_seconds(samples, batch_seconds)][job - 1 :: jobs]
    started, done, total = time.monotonic(), 0, 0
    dtype, number = config.data.store_dtype, job if jobs > 1 else None
    with FeatureWriter(out, encoder=description, layers=layers, dtype=dtype, job=number) as writer:
        finished = writer.finished
        # of a batch that was cut all is encoded again: with other neighbours it would not be the same to the last bit
        todo = [batch for batch in batches if not finished.issuperset(batch)]
        last_said = started
        for count, batch in enumerate(todo, 1):
            if stop():
                writer.flush()
                raise Stopped(f"{out}: stopped after {count - 1} of {len(todo)} batches, which are stored")
            waves = [torch.from_numpy(load_audio(paths[name])).to(device) for name in batch]
            states, frames = encoder(waves)
            for name, row, length in zip(batch, states, frames.tolist()):
                if name not in finished:
                    writer.add(name, row[layers, :length])
            done += len(batch)
            total += sum(len(wave) for wave in waves)
            if time.monotonic() - last_said > 10:
                last_said = time.monotonic()
                left = (last_said - started) / count * (len(todo) - count)
                print(f"{out}: {count}/{len(todo)} batches, {left:.0f} s left", flush=True)
    return done, time.monotonic() - started, total / SAMPLE_RATE / 3600


def _recordings(ids: Sequence[str], samples: np.ndarray) -> str:
    """Fingerprint of which utterances there are and how long each is: a changed corpus is another store."""
    lines = "".join(f"{item} {count}\n" for item, count in zip(ids, samples.tolist()))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def embed_images(directory: DataDir, out: Path, clip: OpenClip | None, given: str | None) -> int:
    """Write ``image_embeddings.npz`` of a data directory's images: by CLIP, or the rows of a user's own file ``given``.

    Returns the number of images. Raises UserError where ``given`` lacks one.
    """
    ids = list(directory.images)
    if given:
        _, rows = load_embeddings(given, ids)
        source = {"path": given}
    else:
        assert clip is not None
        parts = [
            clip.encode_images([load_image(directory.images[item]) for item in ids[at : at + CLIP_BATCH]]).cpu().numpy()
            for at in range(0, len(ids), CLIP_BATCH)
        ]
        rows, source = np.concatenate(parts), clip.description
    save_embeddings(out / "image_embeddings.npz", ids, rows, source)
    return len(ids)


def embed_texts(directory: DataDir, out: Path, clip: OpenClip | None, given: str | None) -> int:
    """Write ``text_embeddings.npz`` of the captions: by CLIP, or those utterances that a user's file ``given`` has.

    The file's ids are utterance ids, or such ids without the speaker in front (as the corpus names its recordings).
    Returns the number of captions embedded; with 0 no file is written, and one of an earlier run is removed.
    """
    target = out / "text_embeddings.npz"
    if given:
        stored, table = load_embeddings(given)
        row_of = {item: row for row, item in enumerate(stored)}
        pairs = [
            (u.id, row_of.get(u.id, row_of.get(u.id.removeprefix(f"{u.speaker}-"), -1))) for u in directory.utterances
        ]
        kept = [(item, row) for item, row in pairs if row >= 0]
        ids, rows, source = [item for item, _ in kept], table[[row for _, row in kept]], {"path": given}
    elif clip is not None:
        ids = [utterance.id for utterance in directory.utterances]
        texts = [utterance.text for utterance in directory.utterances]
        parts = [
            clip.encode_texts(texts[at : at + CLIP_BATCH]).cpu().numpy() for at in range(0, len(texts), CLIP_BATCH)
        ]
        rows, source = np.concatenate(parts), clip.description
    else:
        ids = []
    if not ids:
        target.unlink(missing_ok=True)
        return 0
    save_embeddings(target, ids, rows, source)
    return len(ids)


def count_vocabulary(texts: Iterable[str], clip: OpenClip) -> Vocabulary:
    """The reduced vocabulary of captions, special tokens and padding included and counted, as the published one."""
    tokenizer = clip.tokenizer
    rows = [surround(tokenizer, tokenizer.encode(text), clip.context_length) for text in texts]
    used = {token for row in rows for token in row}
    return Vocabulary.from_rows(rows, {token: tokenizer.subword(token) for token in used})


def vocabulary_texts(directories: Sequence[DataDir], captions: Path, *, only_train: bool) -> list[str]:
    """The captions a vocabulary is counted from.

    Args:
        directories: the splits. captions: ``captions.tsv`` of the preparation, all captions of the corpus, recorded or
            not; the splits' own where there is none. only_train: those of the training split alone.
    Raises:
        UserError: a line of ``captions`` without a tab.
    """
    if not captions.is_file():
        return [u.text for part in directories if part.path.name == "train" or not only_train for u in part.utterances]
    texts = []
    for number, line in enumerate(captions.read_text(encoding="utf-8").splitlines(), 1):
        split, tab, text = line.partition("\t")
        if not tab:
            raise UserError(f"{captions}: line {number}: expected split and caption, separated by a tab")
        if split == "train" or not only_train:
            texts.append(text)
    return texts
