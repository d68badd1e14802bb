"""Benchmark 3: retrieval scores of 25,000 utterances and 5,000 images in both directions, against sorting all scores.

"scores" starts from the matrix of scores. "embeddings" starts from the embeddings: both compute the matrix product,
ours once per direction, in blocks that never hold all scores.
"""

from __future__ import annotations

from typing import Any

import measure
import numpy as np
import plain
import torch
from measure import OURS, PLAIN

from speechclip.eval.ranking import first_hit_ranks, ranks_from_scores
from speechclip.eval.retrieval import recall_table

WIDTH = 512


def embeddings(images: int, each: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return unit vectors of images, of ``each`` noisy utterances per image, and the image of each utterance."""
    rng = np.random.default_rng(seed)
    pictured = rng.standard_normal((images, WIDTH), dtype=np.float32)
    owner = np.repeat(np.arange(images), each)
    spoken = pictured[owner] + 4 * rng.standard_normal((len(owner), WIDTH), dtype=np.float32)
    return tuple(x / np.linalg.norm(x, axis=1, keepdims=True) for x in (spoken, pictured)) + (owner,)


def ours(spoken: np.ndarray, pictured: np.ndarray, owner: np.ndarray) -> dict[str, float]:
    """Return recall in both directions as this project computes it, with the names of ``plain.recall``."""
    every = np.arange(len(pictured))
    forth, back = first_hit_ranks(spoken, pictured, owner, every), first_hit_ranks(pictured, spoken, every, owner)
    return _named(forth, back)


def ours_from_scores(scores: np.ndarray, owner: np.ndarray) -> dict[str, float]:
    """Return the result of :func:`ours` from the scores [U, I]. owner: [U], sorted."""
    query = np.arange(len(owner))
    return _named(ranks_from_scores(scores, query, owner), ranks_from_scores(scores.T, owner, query))


def _named(forth: np.ndarray, back: np.ndarray) -> dict[str, float]:
    return {
        f"{direction} {name}": value
        for direction, ranks in (("speech->image", forth), ("image->speech", back))
        for name, value in recall_table(ranks).items()
        if name != "MRR"
    }


def run(images: int, each: int, repeats: int) -> list[dict[str, Any]]:
    """Measure the ratio from scores and from embeddings.

    Raises:
        RuntimeError: plain and ours give different recall.
    """
    spoken, pictured, owner = embeddings(images, each)
    s, p, o = torch.from_numpy(spoken), torch.from_numpy(pictured), torch.from_numpy(owner)
    scores = s @ p.T
    held = scores.numpy()
    cases = {
        "scores": {
            PLAIN: lambda: plain.recall_of_scores(scores, o),
            OURS: lambda: ours_from_scores(held, owner),
        },
        "embeddings": {PLAIN: lambda: plain.recall(s, p, o), OURS: lambda: ours(spoken, pictured, owner)},
    }
    rows = []
    for case, works in cases.items():
        expected, found = (works[kind]() for kind in (PLAIN, OURS))
        off = max(abs(expected[key] - found[key]) for key in found)
        # rounding may move an utterance over a cutoff in one of them
        if expected.keys() != found.keys() or off > 100 * 3 / images:
            raise RuntimeError(f"recall differs: {expected} and {found}")
        time = measure.compare(measure.interleaved(works, repeats, warm_up=False))
        rows.append({"case": case, "images": images, "utterances": len(owner), "time": time, "recall_off": off})
        print(f"scoring {len(owner)} x {images} from {case}: {time['ratio']:.1f} x", flush=True)
    return rows
