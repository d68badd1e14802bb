#!/usr/bin/env python3
"""Train the tiny HuBERT of the mini corpus, self-supervised: predict the clusters of masked frames.

The convolutions are trained first and alone, to predict the log mel spectrum of the waveform. Then they are frozen.
The transformer predicts several clusterings of MFCCs in their context, with a linear map each (an ensemble, as Hsu et
al. 2021 propose). Further rounds keep its weights and cluster its own upper layer. The speech is captions of scenes
that are in no split, spoken by the training voices with other pitches, rates and vocal tract lengths. The same
arguments give the same model on one machine. The default arguments made models/hubert.
Writes OUT_DIR/{config.json,model.safetensors,preprocessor_config.json,provenance.json}.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from artifacts import Progress, provenance, publish
from captions import captions_of
from generate import plan_corpus
from scenes import generator, random_scene
from speak import VOICES, say
from tiny_hubert import (
    CONTEXTS,
    FIELD,
    fit_clusters,
    hubert_config,
    log_mel,
    mfcc,
    span_mask,
    standardised,
    with_context,
)

from speechclip.common.constants import HOP, SAMPLE_RATE
from speechclip.common.files import write_json

SPLIT = "pretrain_hubert"
PACKAGES = ("torch", "transformers", "librosa", "scikit-learn", "espeakng-loader", "numpy")


def speak_one(index: int, seed: int, avoid: frozenset[str]) -> np.ndarray:
    """Return utterance ``index`` of the pretraining speech, int16 [n]."""
    rng = generator(seed, SPLIT, index, 4)
    caption = captions_of(seed, SPLIT, index, random_scene(seed, SPLIT, index), 1, avoid)[0]
    voice = VOICES["train"][sorted(VOICES["train"])[int(rng.integers(len(VOICES["train"])))]]
    voice = replace(
        voice,
        pitch=int(rng.integers(25, 80)),
        pitch_range=int(rng.integers(30, 70)),
        rate=voice.rate + int(rng.integers(-15, 26)),
        formants=int(rng.integers(90, 112)),
    )
    return np.round(say(caption, voice)[0] * 32767).astype(np.int16)


def speech(seed: int, count: int, jobs: int) -> list[np.ndarray]:
    """Return the pretraining speech, shortest utterance first."""
    counts = {"train": 4000, "dev": 200, "test": 200}
    avoid = frozenset(r.caption for r in plan_corpus(seed, counts, 3) if r.split != "train")
    waves, progress = [], Progress("speech", count)
    with ProcessPoolExecutor(jobs) as pool:
        for wave in pool.map(partial(speak_one, seed=seed, avoid=avoid), range(count), chunksize=50):
            waves.append(wave)
            progress.step(len(waves), "utterances")
    return sorted(waves, key=len)


def cached_speech(args: argparse.Namespace) -> list[np.ndarray]:
    """Return the pretraining speech, from ``--cache`` if the file exists."""
    if args.cache is None or not args.cache.exists():
        waves = speech(args.seed, args.utterances, args.nj)
        if args.cache is not None:
            np.savez(
                args.cache, ends=np.cumsum([len(wave) for wave in waves]), samples=np.concatenate(waves), seed=args.seed
            )
        return waves
    with np.load(args.cache) as stored:
        if int(stored["seed"]) != args.seed or len(stored["ends"]) != args.utterances:
            raise SystemExit(f"error: {args.cache}: holds speech of another seed or number of utterances")
        return np.split(stored["samples"], stored["ends"][:-1])


def to_float(wave: np.ndarray) -> np.ndarray:
    """Convert int16 to float32 of zero mean and unit variance, as ``do_normalize`` of the preprocessor does."""
    samples = wave.astype(np.float32) / 32768
    return np.asarray((samples - samples.mean()) / np.sqrt(samples.var() + 1e-7))


def batches(rng: np.random.Generator, lengths: np.ndarray, size: int) -> list[np.ndarray]:
    """Yield the batches of an epoch in random order. A batch holds utterances of similar length."""
    noisy = np.argsort(lengths * rng.uniform(0.97, 1.03, len(lengths)))
    chunks = [noisy[i : i + size] for i in range(0, len(noisy) - size + 1, size)]
    return [chunks[int(i)] for i in rng.permutation(len(chunks))]


def crops(rng: np.random.Generator, frames: list[int]) -> tuple[list[int], int]:
    """Return random first frames, and the number of frames of the shortest utterance."""
    shortest = min(frames)
    return [int(rng.integers(0, count - shortest + 1)) for count in frames], shortest


def scheduled(optimizer: Any, rate: float, steps: int, warmup: int) -> Iterator[int]:
    """Yield steps 1 to ``steps`` and set the learning rate before each: warm-up, plateau, linear decay."""
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, step / warmup, max(0.02, 1.4 * (1 - step / steps)))
        yield step


def train_front(model: Any, waves: list[np.ndarray], args: argparse.Namespace) -> dict[str, Any]:
    """Train the convolutions and a linear map to predict the log mel spectrum of each frame."""
    import torch

    rng = np.random.default_rng([args.seed, 1])
    targets = [log_mel(to_float(wave)) for wave in waves[::5]]
    waves = waves[::5]
    lengths = np.array([len(target) for target in targets])
    mean, spread = np.concatenate(targets).mean(0), np.concatenate(targets).std(0)
    front, head = model.feature_extractor, torch.nn.Linear(model.config.conv_dim[-1], len(mean))
    optimizer = torch.optim.AdamW([*front.parameters(), *head.parameters()], betas=(0.9, 0.98))
    progress, queue, recent = Progress("front end", args.front_steps), list[np.ndarray](), list[float]()
    for step in scheduled(optimizer, 3e-3, args.front_steps, 20):
        queue = queue or batches(rng, lengths, 4)
        chosen = queue.pop()
        firsts, frames = crops(rng, list(lengths[chosen]))
        size = (frames - 1) * HOP + FIELD
        samples = [to_float(waves[i])[f * HOP : f * HOP + size] for i, f in zip(chosen, firsts, strict=True)]
        wanted = [(targets[i][f : f + frames] - mean) / spread for i, f in zip(chosen, firsts, strict=True)]
        given = head(front(torch.from_numpy(np.stack(samples))).transpose(1, 2))
        loss = (given - torch.from_numpy(np.stack(wanted))).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        recent = [*recent[-19:], loss.item()]
        progress.step(step, f"unexplained variance {np.mean(recent):.3f}")
    return {"steps": args.front_steps, "unexplained_variance": round(float(np.mean(recent)), 3)}


def front_features(model: Any, waves: list[np.ndarray]) -> list[np.ndarray]:
    """Return the output of the convolutions, float32 [T, C] for each utterance."""
    import torch

    features, progress = [], Progress("front end's features", len(waves))
    with torch.inference_mode():
        for wave in waves:
            given = model.feature_extractor(torch.from_numpy(to_float(wave))[None])
            features.append(np.ascontiguousarray(given[0].T.numpy()))
            progress.step(len(features), "utterances")
    return features


def layer_features(model: Any, layer: int, front: np.ndarray) -> np.ndarray:
    """Return hidden state ``layer`` [T, D] for front-end features [T, C], standardised to remove most of the voice."""
    import torch

    with torch.inference_mode():
        hidden = model.feature_projection(torch.from_numpy(front)[None])
        states = model.encoder(hidden, output_hidden_states=True).hidden_states
    return standardised(states[layer][0].numpy())


def cluster_labels(features: list[np.ndarray], count: int, seed: int) -> list[np.ndarray]:
    """Return the clusters of every frame, int64 [T, Q], one per ``CONTEXTS``. k-means uses every fifth utterance."""
    labels = []
    for shifts in CONTEXTS:
        fitted = fit_clusters(np.concatenate([with_context(f, shifts) for f in features[::5]]), count, seed)
        labels.append([fitted.predict(with_context(f, shifts)) for f in features])
    return [np.stack(rows, axis=1).astype(np.int64) for rows in zip(*labels, strict=True)]


def masked_loss(model: Any, head: Any, front: Any, targets: Any, mask: Any, seen: float) -> tuple[Any, float]:
    """Return the loss and the accuracy on masked frames.

    The loss is the cross-entropy of masked frames plus ``seen`` times that of the other frames.

    Shapes: front [B, T, C], targets int64 [B, T, Q], mask bool [B, T]. The mean over the Q clusterings is taken.
    """
    from torch.nn.functional import cross_entropy

    hidden = model.feature_projection(front)
    hidden = hidden.masked_scatter(mask[..., None], model.masked_spec_embed.expand_as(hidden))
    logits = head(model.encoder(hidden).last_hidden_state).unflatten(-1, (targets.shape[-1], -1))
    losses = cross_entropy(logits.flatten(0, 2), targets.flatten(), reduction="none").view(targets.shape).mean(-1)
    accuracy = float((logits.argmax(-1) == targets)[mask].float().mean())
    return losses[mask].mean() + seen * losses[~mask].mean(), accuracy


def train_round(
    model: Any, features: list[np.ndarray], labels: list[np.ndarray], number: int, args: argparse.Namespace
) -> dict[str, Any]:
    """Train one round of masked prediction of ``labels`` [T, Q]. ``number`` seeds the round."""
    import torch

    rng = np.random.default_rng([args.seed, 2, number])
    head = torch.nn.Linear(model.config.hidden_size, len(CONTEXTS) * args.clusters)
    parameters = [
        *model.feature_projection.parameters(),
        *model.encoder.parameters(),
        model.masked_spec_embed,
        *head.parameters(),
    ]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.98), weight_decay=0.01)
    lengths = np.array([len(label) for label in labels])
    progress, queue, recent = Progress(f"round {number}", args.steps), list[np.ndarray](), list[float]()
    model.train()
    for step in scheduled(optimizer, args.lr, args.steps, 100):
        queue = queue or batches(rng, lengths, args.batch)
        chosen = queue.pop()
        firsts, frames = crops(rng, list(lengths[chosen]))
        front = np.stack([features[i][f : f + frames] for i, f in zip(chosen, firsts, strict=True)])
        targets = np.stack([labels[i][f : f + frames] for i, f in zip(chosen, firsts, strict=True)])
        mask = torch.from_numpy(span_mask(rng, len(targets), frames, args.masked))
        loss, accuracy = masked_loss(model, head, torch.from_numpy(front), torch.from_numpy(targets), mask, args.seen)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        recent = [*recent[-49:], accuracy]
        progress.step(step, f"loss {loss.item():.3f} masked frames right {100 * np.mean(recent):.1f} %")
    model.eval()
    return {"steps": args.steps, "masked_frames_right": round(100 * float(np.mean(recent)), 1)}


def save(model: Any, out: Path, record: dict[str, Any]) -> None:
    """Write a folder for ``HubertModel.from_pretrained``, with weights in fp16."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    temporary.chmod(0o755)
    model.half().save_pretrained(temporary, safe_serialization=True)
    model.float()
    config = model.config.to_dict() | {"architectures": ["HubertModel"], "dtype": "float32"}
    kept = sorted(config.keys() - {"torch_dtype", "_name_or_path"})
    write_json(temporary / "config.json", {key: config[key] for key in kept})
    write_json(
        temporary / "preprocessor_config.json",
        {
            "feature_extractor_type": "Wav2Vec2FeatureExtractor",
            "feature_size": 1,
            "sampling_rate": SAMPLE_RATE,
            "padding_value": 0.0,
            "padding_side": "right",
            "do_normalize": True,
            "return_attention_mask": True,
        },
    )
    write_json(temporary / "provenance.json", record)
    publish(temporary, out)


def pretrain(waves: list[np.ndarray], args: argparse.Namespace) -> dict[str, Any]:
    """Train the front end and all rounds, save the model after each round, and return the measurements."""
    import torch
    from transformers import HubertModel

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    model: Any = HubertModel(hubert_config())
    hours = sum(len(wave) for wave in waves) / SAMPLE_RATE / 3600
    print(f"{hours:.2f} hours of speech, {sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    measured: dict[str, Any] = {"hours": round(hours, 2), "front_end": train_front(model, waves, args)}
    features = front_features(model, waves)
    for number in range(1, args.rounds + 1):
        if number == 1:
            clustered = [mfcc(log_mel(to_float(wave)))[:, :13] for wave in waves]
        else:
            clustered = [layer_features(model, args.layer, front) for front in features]
        labels = cluster_labels(clustered, args.clusters, args.seed)
        measured[f"round_{number}"] = train_round(model, features, labels, number, args)
        save(model, args.out, provenance(args.seed, PACKAGES, measured))
    return measured


def main() -> None:
    """Parse the options and train the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT_DIR", help="folder of the model")
    parser.add_argument("--seed", type=int, default=0, help="seed of the speech and of training")
    parser.add_argument("--utterances", type=int, default=5000, help="utterances of pretraining speech")
    parser.add_argument("--front_steps", type=int, default=1500, help="steps for the convolutions alone")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of clustering and training")
    parser.add_argument("--steps", type=int, default=3000, help="steps a round")
    parser.add_argument("--batch", type=int, default=16, help="utterances a step")
    parser.add_argument("--lr", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--masked", type=float, default=0.45, help="share of masked frames")
    parser.add_argument("--seen", type=float, default=0.5, help="weight of the loss of the other frames")
    parser.add_argument("--clusters", type=int, default=512, help="clusters in each clustering")
    parser.add_argument("--layer", type=int, default=4, help="hidden state clustered from the second round on")
    parser.add_argument("--cache", type=Path, help=".npz file that caches the speech between runs")
    parser.add_argument("--nj", type=int, default=1, help="processes that synthesise speech")
    parser.add_argument("--threads", type=int, default=1, help="training threads; their number changes the last bits")
    args = parser.parse_args()
    from speechclip.common.compat import prepare

    prepare()
    print(pretrain(cached_speech(args), args))


if __name__ == "__main__":
    main()
