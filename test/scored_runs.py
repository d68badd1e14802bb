"""Runs as stages 3 to 5 leave them, with random scores: what reports are drawn from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from fixtures import make_data, store_embeddings

from speechclip.data.dataset import Split
from speechclip.data.embeddings import save_embeddings
from speechclip.eval.retrieval import retrieval_report
from speechclip.eval.significance import save_ranks

KEYWORDS = 3
SUBWORDS = ["▁red", "▁blue", "▁dog", "<b>", "▁tree", "▁</script>", "▁near"]
NAMES = [*(f"kw{number}" for number in range(1, KEYWORDS + 1)), "avg"]
SCORES = ("clean", "reference", "content_top1")


def scored_data(folder: Path, *, images: int, each: int) -> Path:
    """A recipe's folder with data/test (an alignment of every second utterance among it) and dump/test."""
    data = make_data(folder / "data" / "test", images=images, each=each)
    store_embeddings(data, folder / "dump" / "test")
    lines = []
    for utterance in data.utterances[::2]:
        words = utterance.text.split()
        lines += [f"{utterance.id} 1 {0.04 * at:.2f} 0.04 {word}\n" for at, word in enumerate(words)]
    (data.path / "ctm").write_text("".join(lines))
    return folder


def scored_run(recipe: Path, name: str, *, noise: float, seed: int = 0, suite: bool = True) -> Path:
    """exp/<name> of the recipe: speech is the image's embedding and ``noise``; a cascaded head has keywords too.

    suite: with the whole keyword suite and kept attention; without: what older versions wrote.
    """
    split = Split.load(recipe / "data" / "test", recipe / "dump" / "test")
    rng = np.random.default_rng(seed)
    images = split.images[split.utterance_image]
    speech = images + noise * rng.standard_normal(images.shape) / np.sqrt(images.shape[1])
    run = recipe / "exp" / name
    scores = run / "scores"
    scores.mkdir(parents=True)
    save_embeddings(scores / "speech_embeddings.npz", split.ids, speech)
    kept: dict[str, Any] = {}
    texts = [utterance.text for utterance in split.data.utterances]
    report = retrieval_report(
        speech, split.utterance_image, split.images, split.texts, texts, n_bootstrap=20, keep=kept
    )  # fmt: skip
    command = "score --data_dir data/test --dump_dir dump/test"
    report["provenance"] = {"command": command, "seed": seed, "commit": "0123456789ab"}
    (scores / "retrieval.json").write_text(json.dumps(report))
    save_ranks(scores / "ranks.npz", kept, {"test": "x"})
    lines: list[dict[str, Any]] = [
        {"step": 10 * step, "loss": 3.0 / step, "lr": 1e-4, "temperature": 0.07, "layer_weights": [0.2, 0.3, 0.5]}
        for step in range(1, 4)
    ]
    dev = dict.fromkeys(("speech->image", "image->speech"), {"R@1": 10.0, "R@10": 30.0})
    lines.append({"step": 30, "dev": {**dev, "mean_R@10": 30.0 + seed}})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if "cascaded" in name:
        _keywords(scores, split, rng, seed, suite)
    return run


def _keywords(scores: Path, split: Split, rng: np.random.Generator, seed: int, suite: bool) -> None:
    content: dict[str, Any] = {score: dict(zip(NAMES, (20.0, 30.0, 40.0, 30.0))) for score in SCORES}
    content["frequency_prior"] = {score: dict.fromkeys(NAMES, 10.0) for score in SCORES}
    content["repetition"] = {"keywords": 3.0, "distinct": 2.5, "duplicates": 16.0}
    content["n_utterances"] = dict.fromkeys(SCORES, len(split.ids))
    content["provenance"] = {"command": "score_keywords", "seed": seed, "commit": "0123456789ab"}
    if suite:
        content |= keyword_suite()
    (scores / "keywords.json").write_text(json.dumps(content))
    frames = [10 + at % 5 for at in range(len(split.ids))]
    with (scores / "keywords.jsonl").open("w", encoding="utf-8") as file:
        for utterance in split.data.utterances:
            for number in range(1, KEYWORDS + 1):
                file.write(json.dumps(_record(utterance.id, utterance.text, number, rng, suite)) + "\n")
    if suite:
        weights = [rng.dirichlet(np.ones(length), KEYWORDS).ravel() for length in frames]
        np.savez(
            scores / "attention.npz", ids=np.array(split.ids), frames=np.array(frames, dtype=np.int32),
            keywords=np.full(len(frames), KEYWORDS, dtype=np.int32), weights=np.concatenate(weights).astype(np.float16),
        )  # fmt: skip


def _record(utterance: str, caption: str, number: int, rng: np.random.Generator, suite: bool) -> dict[str, Any]:
    near = [
        {"subword": SUBWORDS[at], "id": int(at), "cosine": round(0.6 - 0.1 * place, 4)}
        for place, at in enumerate(rng.permutation(len(SUBWORDS))[:5])
    ]
    record = {
        "utterance": utterance, "keyword": number, "neighbours": near, "span": [0.04, 0.12], "caption": caption,
    }  # fmt: skip
    if suite:
        hit = any(item["subword"].lstrip("▁") in caption.split() for item in near)
        record |= {"hit": hit, "gold": near[0], "word": None, "overlap": None, "spoken": ["red"]}
    return record


def keyword_suite() -> dict[str, Any]:
    """The figures of the keyword suite, all with intervals and controls."""
    row = dict(zip(NAMES, (20.0, 30.0, 40.0, 30.0)))
    interval = {name: [value - 5, value + 5] for name, value in row.items()}
    control = dict.fromkeys(NAMES, 10.0)
    full = {**row, "ci95": interval, "frequency_prior": control, "shuffled_speech": control}
    words = {"precision": 31.0, "recall": 21.0, "f1": 25.0, "whole_words": 20.0}
    distinct = {"keywords": 3.0, "distinct": 2.5, "duplicates": 16.0}
    times = {"precision": 17.0, "recall": 18.0, "f1": 17.5, "over_segmentation": 8.0, "r_value": 27.0}
    place = {"named": 32.0, "overlap": 85.0}

    def controlled(values: dict[str, float]) -> dict[str, Any]:
        ends = {name: [value - 1, value + 1] for name, value in values.items()}
        return {**values, "ci95": ends, "frequency_prior": values, "shuffled_speech": values}

    return {
        "ci95": dict.fromkeys(SCORES, interval), "shuffled_speech": dict.fromkeys(SCORES, control),
        "sweep": {words: {k: full for k in ("1", "3", "5", "10", "20")} for words in ("all", "content")},
        "gold_cosine": {"all": {**full, **dict.fromkeys(NAMES, 0.412)}},
        "distinct": {"all": controlled(distinct)}, "words": {"content": controlled(words)},
        "flaws": {"clean": full, "special_tokens+quantised": {
            **full, "difference": {"avg": -2.7, "ci95": [-4.5, -0.8]}, "only_special": 1.9}},
        "segmentation": {**controlled(times), "of": "attention spans", "tolerance": 0.02, "n_utterances": 3,
                         "uniform": times},
        "overlap": {**controlled(place), "of": "attention spans", "mean_seconds": 0.5, "n_keywords": 9,
                    "random_position": {"overlap": 29.0}},
    }  # fmt: skip
