"""Scored runs with round numbers, for the tests of the tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from speechclip.report.runs import Run, load_run

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SETTINGS = "5e77195e77195e77"
Make = Callable[..., Run]


def direction(r1: float) -> dict[str, Any]:
    return {"R@1": r1, "R@5": r1 + 10, "R@10": r1 + 20, "MRR": r1 + 5, "n_queries": 1000, "n_gallery": 200, "ci95": {}}


def retrieval_scores(r1: float) -> dict[str, Any]:
    """Scores that differ by one point from direction to direction."""
    names = ["speech->image", "image->speech", "speech->text", "text->speech"]
    scores: dict[str, Any] = {name: direction(r1 + i) for i, name in enumerate(names)}
    level = {"R@1": 0.004, "R@5": 0.02, "R@10": 5.0, "MRR": 1.0}
    chance = dict.fromkeys([*names, "text->image"], level)
    return {**scores, "text->image": direction(70), "random": chance, "mean_R@10": r1 + 20.5}


def with_interval(value: float, width: float = 1.0) -> dict[str, Any]:
    return {"avg": value, "ci95": {"avg": [value - width, value + width]}}


def keyword_scores(rate: float) -> dict[str, Any]:
    """Scores of an aligned corpus, with every section that tables show."""
    names = ["clean", "reference", "content_top1"]
    controls = {"frequency_prior": {"avg": 9.0}, "shuffled_speech": {"avg": 4.0}}
    flaw = {**with_interval(rate + 2), "difference": {"avg": 2.0, "ci95": [1.0, 3.0]}, "only_special": 1.5}
    flaw |= {"frequency_prior": {"avg": 8.0}, "shuffled_speech": {"avg": 5.5}}
    words = {"precision": 30.0, "recall": 20.0, "f1": 24.0, "whole_f1": 12.0}
    times = {"precision": 20.0, "recall": 16.0, "f1": 18.0, "over_segmentation": -20.0, "r_value": 27.0}
    flaws = (
        "special_tokens", "quantised", "misaligned", "special_tokens+quantised", "special_tokens+quantised+misaligned",
    )  # fmt: skip
    return {
        **{name: {"kw1": rate + i, "kw2": rate + 1 + i, "avg": rate + 0.5 + i} for i, name in enumerate(names)},
        "frequency_prior": dict.fromkeys(names, {"kw1": 9.0, "kw2": 9.0, "avg": 9.0}),
        "shuffled_speech": dict.fromkeys(names, {"kw1": 3.0, "avg": 3.0}),
        "ci95": {"content_top1": {"avg": [rate, rate + 3]}},
        "n_utterances": dict.fromkeys(names, 1000),
        "repetition": {"keywords": 6.25, "distinct": 5.0, "duplicates": 20.0},
        "sweep": {
            "all": {k: {**with_interval(rate + int(k)), **controls} for k in ("1", "5", "20")},
            "content": {"10": {**with_interval(rate), **controls}},
        },
        "reference_sweep": {"all": {"5": with_interval(rate + 9)}, "content": {"1": with_interval(rate - 9)}},
        "flaws": {"clean": {**with_interval(rate), **controls, "only_special": 0.0}, **dict.fromkeys(flaws, flaw)},
        "words": {"content": {**words, "ci95": {"f1": [23.0, 25.0]},
                              "frequency_prior": words | {"f1": 11.0}, "shuffled_speech": words | {"f1": 5.0}}},
        "gold_cosine": {"content": {"avg": 0.381, "frequency_prior": {"avg": 0.3}, "shuffled_speech": {"avg": 0.2}}},
        "distinct": {"all": {"ci95": {"duplicates": [18.0, 21.0]}},
                     "content": {"duplicates": 17.0, "frequency_prior": {"duplicates": 4.0}}},
        "overlap": {"named": 32.0, "overlap": 85.0, "ci95": {"overlap": [83.0, 87.0]},
                    "random_position": {"overlap": 29.0}, "frequency_prior": {"named": 11.0, "overlap": 39.0},
                    "shuffled_speech": {"named": 6.0, "overlap": 30.0}},
        "segmentation": {**times, "ci95": {"f1": [17.0, 19.0]}, "uniform": {**times, "f1": 14.6}},
    }  # fmt: skip


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_run(
    folder: Path, r1: float, seed: int | None = 0, rate: float | None = None, commit: str = COMMIT,
    trained_at: str = "", settings: str = SETTINGS, **origin: Any,
) -> Run:  # fmt: skip
    """Write a scored run and load it. rate: hit rate of its keywords; None for a head without keywords."""
    origin = {"command": "score --data data/test | tee log", **origin}
    origin |= {"seed": seed, "commit": commit, "settings": settings}
    write(folder / "scores" / "retrieval.json", {**retrieval_scores(r1), "provenance": origin})
    if rate is not None:
        write(folder / "scores" / "keywords.json", {**keyword_scores(rate), "provenance": origin})
    training = {"command": f"train --seed {seed}", "seed": seed, "commit": trained_at or commit, "versions": {}}
    write(folder / "best" / "provenance.json", training | {"trained": 7483917, "train_seconds": 61.4})
    return load_run(folder)
