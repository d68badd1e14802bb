"""Runs as stages 3 to 5 leave them, scored by what these stages score with: what reports are drawn from."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from fixtures import WORDS, make_data, store_embeddings

from speechclip.bin.score_keywords import write_scores
from speechclip.config import EvalConfig
from speechclip.data.alignments import load_alignments
from speechclip.data.dataset import Split
from speechclip.data.embeddings import save_embeddings
from speechclip.eval.gold import Word, count_utterances
from speechclip.eval.neighbours import Subwords
from speechclip.eval.retrieval import retrieval_report
from speechclip.eval.setup import KeywordGold
from speechclip.eval.significance import save_ranks
from speechclip.eval.stopwords import stop_word_ids
from speechclip.model.inference import KeywordTable

KEYWORDS = 3
SPECIAL = 3  # the first subwords
SUBWORDS = ["<pad>", "<start>", "<end>", *(f"▁{word}" for word in WORDS), "<b>", "▁</script>"]
SUBWORDS += [f"▁piece{number}" for number in range(20)]  # so many are looked at
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
    """What stage 5 writes of keywords that lie near a subword of the caption, sometimes, with random attention."""
    captions = [utterance.text.split() for utterance in split.data.utterances]
    ids = {word: SUBWORDS.index(f"▁{word}") for word in WORDS}
    strings = dict(enumerate(SUBWORDS))
    embeddings = rng.standard_normal((len(SUBWORDS), 8)).astype(np.float32)
    content = [{ids[word] for word in caption} for caption in captions]
    counts = count_utterances(content) + Counter(range(SPECIAL, len(SUBWORDS)))  # each of them occurs in training
    gold = KeywordGold(
        Subwords(embeddings, np.arange(len(SUBWORDS)), frozenset(range(SPECIAL)), stop_word_ids(strings)),
        content, [{*found, *range(SPECIAL)} for found in content],
        [[Word(word, (ids[word],)) for word in caption] for caption in captions], dict(counts), strings,
        lambda text: [ids[text]],
    )  # fmt: skip
    said = np.array([[ids[word] for word in rng.choice(caption, KEYWORDS)] for caption in captions])
    vectors = (embeddings[said] + rng.standard_normal((*said.shape, 8))).astype(np.float32)
    attention = [rng.dirichlet(np.ones(10 + at % 5), KEYWORDS).astype(np.float32) for at in range(len(captions))]
    found = KeywordTable(vectors, np.ones(said.shape, dtype=bool), attention, None)
    spoken = load_alignments(split.data.path / "ctm", split.ids)
    provenance = {"command": "score_keywords", "seed": seed, "commit": "0123456789ab"}
    report = write_scores(scores, found, gold, split, spoken, EvalConfig(bootstrap=20), provenance)
    if not suite:
        kept = (*SCORES, "frequency_prior", "n_utterances", "provenance")
        (scores / "keywords.json").write_text(json.dumps({name: report[name] for name in kept}))
        lines = [json.loads(line) for line in (scores / "keywords.jsonl").read_text().splitlines()]
        fields = ("utterance", "keyword", "neighbours", "span", "caption")
        lines = [{name: line[name] for name in fields} for line in lines]
        (scores / "keywords.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        for name in ("attention.npz", "keywords.npz"):
            (scores / name).unlink()
