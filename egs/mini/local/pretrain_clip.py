#!/usr/bin/env python3
"""Train the tiny CLIP of the mini corpus on rendered scenes that are in none of its splits.

Writes OUT_DIR/{open_clip_config.json,open_clip_model.safetensors,spm.model,provenance.json}: `open_clip.model.CLIP`
with a sentencepiece vocabulary. It is trained with the symmetric contrastive loss and, at the start, with auxiliary
losses for the image tower (`clip_hints.py`). Some texts are keywords only, so that the text tower learns sentences and
bags of words. The default arguments are those of the shipped model. A time limit ended its training after these steps
(see its provenance.json), so a new model is close to it, not equal.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from artifacts import Progress, provenance, publish, save_half
from captions import captions_of, keywords
from generate import plan_corpus
from render import render
from scenes import Scene, generator, random_scene
from tiny_clip import MEAN, STD, encode, model_config, retrieval, to_input, train_vocabulary

from speechclip.common.files import write_json

SPLIT = "pretrain_clip"
CORPUS_COUNTS = {"train": 4000, "dev": 200, "test": 200}
PACKAGES = ("torch", "open_clip_torch", "sentencepiece", "numpy", "pillow")


def draw(seed: int, split: str, count: int) -> tuple[list[Scene], np.ndarray]:
    """Return the first ``count`` scenes of a split and their pictures, uint8 [count, 64, 64, 3]."""
    scenes = [random_scene(seed, split, index) for index in range(count)]
    pictures = np.zeros((count, 64, 64, 3), np.uint8)
    progress = Progress(f"draw {split}", count)
    for index, scene in enumerate(scenes):
        pictures[index] = np.asarray(render(scene, generator(seed, split, index, 2)))
        progress.step(index + 1, "pictures")
    return scenes, pictures


def training_text(rng: np.random.Generator, captions: list[str]) -> str:
    """Return a caption or, four times in ten, its keywords, some of them repeated, mixed with a few filler words."""
    caption = captions[int(rng.integers(len(captions)))]
    if rng.random() < 0.6:
        return caption
    if rng.random() < 0.3:
        caption = " ".join(captions)
    words = keywords(rng, caption).split()
    if rng.random() < 0.4:
        words += [words[int(rng.integers(len(words)))] for _ in range(int(rng.integers(1, 4)))]
    if rng.random() < 0.3:
        spoken = caption.split()
        words += [spoken[int(rng.integers(len(spoken)))] for _ in range(int(rng.integers(1, 4)))]
    return " ".join(words[int(i)] for i in rng.permutation(len(words))[:8])


def text_features(model: Any, tokens: Any) -> Any:
    """Encode token ids [N, T] to [N, D] as ``model.encode_text`` does, without padding that the batch does not need."""
    length = int((tokens != 0).sum(1).max())
    tokens = tokens[:, :length]
    hidden = model.token_embedding(tokens) + model.positional_embedding[:length]
    hidden = model.transformer(hidden, attn_mask=model.attn_mask[:length, :length])
    ends = hidden[range(len(tokens)), tokens.argmax(1)]
    return model.ln_final(ends) @ model.text_projection


def augment(images: Any, rng: np.random.Generator) -> Any:
    """Shift the whole batch by up to two pixels and vary the brightness of each picture: [N, 3, 64, 64]."""
    import torch

    across, down = (int(v) for v in rng.integers(0, 5, size=2))
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2), mode="replicate")
    light = torch.from_numpy(rng.uniform(0.92, 1.08, size=(len(images), 1, 1, 1)).astype(np.float32))
    return padded[:, :, down : down + 64, across : across + 64] * light


def contrastive_loss(model: Any, seen: Any, tokens: Any) -> Any:
    """Return the symmetric cross-entropy of a batch of pairs: image embeddings [B, D], token ids [B, T]."""
    import torch
    from torch.nn.functional import cross_entropy, normalize

    read = normalize(text_features(model, tokens), dim=-1)
    logits = model.logit_scale.exp() * read @ normalize(seen, dim=-1).T
    target = torch.arange(len(logits))
    return (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2


def train(
    model: Any,
    hints: Any,
    pictures: np.ndarray,
    captions: list[list[str]],
    pieces: Any,
    args: argparse.Namespace,
    check: tuple[np.ndarray, list[str], np.ndarray],
) -> None:
    """Train with AdamW, warm-up and linear decay. Print the recalls on the check scenes every two minutes."""
    import torch

    rng = np.random.default_rng([args.seed, 7])
    parameters = [*model.parameters(), *hints.parameters()]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.05},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=args.lr,
        betas=(0.9, 0.98),
    )
    progress, order, shown = Progress("clip", args.steps), np.zeros(0, int), 0.0
    model.train()
    for step in range(args.steps):
        done = (step + 1) / args.steps
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1.0, (step + 1) / 60, max(0.01, 1.3 * (1 - done)))
        if len(order) < args.batch:
            order = rng.permutation(len(pictures))
        chosen, order = order[: args.batch], order[args.batch :]
        tokens = torch.from_numpy(encode(pieces, [training_text(rng, captions[i]) for i in chosen]))
        seen = model.encode_image(augment(torch.from_numpy(to_input(pictures[chosen])), rng))
        contrast = contrastive_loss(model, seen, tokens)
        hint, right = hints(chosen, seen)
        optimizer.zero_grad()
        (contrast + max(0.1, 1 - done) * hint).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, np.log(100))
        progress.step(
            step + 1,
            f"loss {contrast.item():.3f} hints {hint.item():.2f} shapes named {100 * right:.0f} % "
            f"scale {model.logit_scale.exp().item():.1f}",
        )
        if time.monotonic() - shown > 120:
            shown = time.monotonic()
            print(f"clip check scenes, text->image {evaluate(model, pieces, *check)['text->image']}", flush=True)
            model.train()


def evaluate(model: Any, pieces: Any, pictures: np.ndarray, texts: list[str], owner: np.ndarray) -> Any:
    """Return the recalls of ``texts`` with open_clip's own encoders. Text q describes picture owner[q]."""
    import torch

    model.eval()
    with torch.inference_mode():
        seen = torch.cat(
            [
                model.encode_image(torch.from_numpy(to_input(part)), normalize=True)
                for part in np.array_split(pictures, max(1, len(pictures) // 100))
            ]
        )
        read = torch.cat(
            [
                model.encode_text(torch.from_numpy(encode(pieces, texts[i : i + 200])), normalize=True)
                for i in range(0, len(texts), 200)
            ]
        )
    return retrieval(seen.numpy(), read.numpy(), owner)


def test_figures(model: Any, pieces: Any, seed: int) -> dict[str, Any]:
    """Return the recalls on the test scenes of the corpus: with captions, and with four and eight of their keywords."""
    records = [record for record in plan_corpus(seed, CORPUS_COUNTS, 3) if record.split == "test"]
    _, pictures = draw(seed, "test", CORPUS_COUNTS["test"])
    owner = np.array([int(record.image[-5:]) for record in records])
    rng = np.random.default_rng(0)
    figures = {"captions": evaluate(model, pieces, pictures, [record.caption for record in records], owner)}
    for most in (4, 8):
        texts = [keywords(rng, record.caption, most) for record in records]
        figures[f"up to {most} keywords"] = evaluate(model, pieces, pictures, texts, owner)
    return figures


def main() -> None:
    """Parse the options and train the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT_DIR", help="folder of the model")
    parser.add_argument("--seed", type=int, default=0, help="seed of the scenes and of training")
    parser.add_argument("--scenes", type=int, default=12000, help="training scenes, six captions each")
    parser.add_argument("--steps", type=int, default=962, help="training steps")
    parser.add_argument("--batch", type=int, default=128, help="pairs a step")
    parser.add_argument("--lr", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--pieces", type=int, default=320, help="size of the vocabulary")
    parser.add_argument("--nj", type=int, default=1, help="threads")
    args = parser.parse_args()
    import sentencepiece
    import torch

    from speechclip.common.compat import prepare

    prepare()
    from clip_hints import Hints
    from open_clip.model import CLIP

    torch.set_num_threads(args.nj)
    torch.manual_seed(args.seed)
    held_out = {r.caption for r in plan_corpus(args.seed, CORPUS_COUNTS, 3) if r.split != "train"}
    scenes, pictures = draw(args.seed, SPLIT, args.scenes + 200)
    captions = [captions_of(args.seed, SPLIT, i, scene, 6, held_out) for i, scene in enumerate(scenes)]
    vocabulary = train_vocabulary([text for texts in captions[:4000] for text in texts], args.pieces)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=vocabulary)
    config = model_config(pieces.get_piece_size())
    model: Any = CLIP(**config)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {pieces.get_piece_size()} pieces", flush=True)
    check = pictures[-200:], [texts[0] for texts in captions[-200:]], np.arange(200)
    hints = Hints(model.visual, config["vision_cfg"]["width"], config["embed_dim"], scenes, captions)
    started = time.monotonic()
    train(model, hints, pictures[:-200], captions[:-200], pieces, args, check)
    measured: dict[str, Any] = {"steps": args.steps, "seconds": round(time.monotonic() - started)}
    measured |= {"test": test_figures(model, pieces, args.seed)}
    print(measured)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{args.out.name}.", dir=args.out.parent))
    temporary.chmod(0o755)
    save_half(model.state_dict(), temporary / "open_clip_model.safetensors")
    (temporary / "spm.model").write_bytes(vocabulary)
    write_json(
        temporary / "open_clip_config.json",
        {
            "model_cfg": config,
            "preprocess_cfg": {"size": [64, 64], "mean": MEAN, "std": STD, "interpolation": "bicubic"},
        },
    )
    write_json(temporary / "provenance.json", provenance(args.seed, PACKAGES, measured))
    publish(temporary, args.out)


if __name__ == "__main__":
    main()
