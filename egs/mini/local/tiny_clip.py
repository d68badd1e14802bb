"""The tiny CLIP of the mini corpus: its shape, vocabulary, token layout and retrieval figures."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from io import BytesIO
from typing import Any

import numpy as np

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
CONTEXT = 32
PAD = 0  # sentencepiece id of padding; the two ids after the last piece are SOT and EOT


def model_config(pieces: int) -> dict[str, Any]:
    """Return the arguments of ``open_clip.model.CLIP`` for a vocabulary of ``pieces`` sentencepiece pieces."""
    return {
        "embed_dim": 128,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None},
        "text_cfg": {"context_length": CONTEXT, "vocab_size": pieces + 2, "width": 128, "heads": 4, "layers": 2},
    }


def train_vocabulary(captions: Iterable[str], size: int) -> bytes:
    """Return a serialised sentencepiece unigram model of at most ``size`` pieces. Id 0 is padding, id 1 is unknown.

    Its seeds are the words and letters of the captions, so that most words are one piece and the rarest are spelt.
    """
    import sentencepiece

    texts = list(captions)
    words = Counter(word for text in texts for word in text.split())
    seeds = Counter({f"\u2581{word}": count for word, count in words.items()})
    for word, count in words.items():
        seeds.update(dict.fromkeys(word, count))
    model = BytesIO()
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".tsv") as file:
        file.write("".join(f"{piece}\t{count}\n" for piece, count in sorted(seeds.items())))
        file.flush()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            vocab_size=size,
            model_type="unigram",
            pad_id=PAD,
            unk_id=1,
            bos_id=-1,
            eos_id=-1,
            add_dummy_prefix=True,
            character_coverage=1.0,
            hard_vocab_limit=False,
            num_threads=1,
            minloglevel=2,
            seed_sentencepieces_file=file.name,
            normalization_rule_name="identity",
        )
    return model.getvalue()


def encode(pieces: Any, texts: Sequence[str], length: int = CONTEXT) -> np.ndarray:
    """Return token ids int64 [N, length]: SOT, the pieces (truncated to fit), EOT, padding."""
    count = pieces.get_piece_size()
    tokens = np.full((len(texts), length), PAD, dtype=np.int64)
    for row, ids in enumerate(pieces.encode(list(texts))):
        ids = [count, *ids[: length - 2], count + 1]
        tokens[row, : len(ids)] = ids
    return tokens


def to_input(images: np.ndarray) -> np.ndarray:
    """Convert uint8 [N, 64, 64, 3] to the normalised float32 [N, 3, 64, 64] of the image tower."""
    scaled = (images.astype(np.float32) / 255 - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def recalls(similarity: np.ndarray, relevant: np.ndarray) -> dict[str, float]:
    """Return R@1/5/10 in percent for similarity [Q, G] and relevant bool [Q, G]. Any relevant item is a hit."""
    order = np.argsort(-similarity, axis=1, kind="stable")
    hits = np.take_along_axis(relevant, order, axis=1)
    return {f"R@{k}": round(100 * float(hits[:, :k].any(axis=1).mean()), 2) for k in (1, 5, 10)}


def retrieval(images: np.ndarray, texts: np.ndarray, owner: np.ndarray) -> dict[str, dict[str, float]]:
    """Return the recalls in both directions of unit embeddings [G, D], [Q, D]. Text q describes image owner[q]."""
    similarity = texts @ images.T
    relevant = owner[:, None] == np.arange(len(images))[None, :]
    return {"text->image": recalls(similarity, relevant), "image->text": recalls(similarity.T, relevant.T)}
