"""Scored runs as stages 3 to 5 write them, for the tests of tables and pages. The code of these stages scores them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from fixtures import WORDS, make_data, store_embeddings

from speechclip.config import EvalConfig
from speechclip.data.alignments import load_alignments
from speechclip.data.dataset import Split
from speechclip.eval.gold import Word, count_utterances
from speechclip.eval.keyword_report import score_keywords
from speechclip.eval.neighbours import Subwords
from speechclip.eval.retrieval import branch_report
from speechclip.eval.score_files import write_keywords, write_retrieval
from speechclip.eval.setup import KeywordGold
from speechclip.eval.stopwords import stop_word_ids
from speechclip.model.inference import KeywordTable

KEYWORDS = 3
SPECIAL = 3  # the first subwords are special tokens
SUBWORDS = ["<pad>", "<start>", "<end>", *(f"▁{word}" for word in WORDS), "<b>", "▁</script>"]
SUBWORDS += [f"▁piece{number}" for number in range(20)]  # the sweep needs at least 20
SCORES = ("clean", "reference", "content_top1")


def scored_data(folder: Path, *, images: int, each: int) -> Path:
    """Write data/test and dump/test of a recipe. Every second utterance has an alignment."""
    data = make_data(folder / "data" / "test", images=images, each=each)
    store_embeddings(data, folder / "dump" / "test")
    lines = []
    for utterance in data.utterances[::2]:
        words = utterance.text.split()
        lines += [f"{utterance.id} 1 {0.04 * at:.2f} 0.04 {word}\n" for at, word in enumerate(words)]
    (data.path / "ctm").write_text("".join(lines))
    return folder


def scored_run(recipe: Path, name: str, *, noise: float, seed: int = 0) -> Path:
    """Write exp/<name>. Speech embeddings are image embeddings plus noise. A cascaded head has keywords."""
    split = Split.load(recipe / "data" / "test", recipe / "dump" / "test")
    rng = np.random.default_rng(seed)
    images = split.images[split.utterance_image]
    speech = images + noise * rng.standard_normal(images.shape) / np.sqrt(images.shape[1])
    run = recipe / "exp" / name
    scores = run / "scores"
    texts = [utterance.text for utterance in split.data.utterances]
    speech = speech.astype(np.float32)
    report, ranks = branch_report(
        {"parallel": speech}, split.utterance_image, split.images, split.texts, texts, n_bootstrap=20
    )  # fmt: skip
    command = "score --data_dir data/test --dump_dir dump/test"
    origin = {"command": command, "seed": seed, "commit": "0123456789ab", "settings": "s" * 16, "data": {"test": "x"}}
    write_retrieval(scores, {**report, "provenance": origin}, split.ids, {"parallel": speech}, ranks)
    lines: list[dict[str, Any]] = [
        {"step": 10 * step, "loss": 3.0 / step, "lr": 1e-4, "temperature": 0.07, "layer_weights": [0.2, 0.3, 0.5]}
        for step in range(1, 4)
    ]
    dev = dict.fromkeys(("speech->image", "image->speech"), {"R@1": 10.0, "R@10": 30.0})
    lines.append({"step": 30, "dev": {**dev, "mean_R@10": 30.0 + seed}})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if "cascaded" in name:
        _keywords(scores, split, rng, seed)
    return run


def _keywords(scores: Path, split: Split, rng: np.random.Generator, seed: int) -> None:
    """Write the files of stage 5 for keywords near subwords of the caption, with noise and random attention."""
    captions = [utterance.text.split() for utterance in split.data.utterances]
    ids = {word: SUBWORDS.index(f"▁{word}") for word in WORDS}
    strings = dict(enumerate(SUBWORDS))
    embeddings = rng.standard_normal((len(SUBWORDS), 8)).astype(np.float32)
    content = [{ids[word] for word in caption} for caption in captions]
    counts = count_utterances(content) + Counter(range(SPECIAL, len(SUBWORDS)))  # each is in a training caption
    gold = KeywordGold(
        Subwords(embeddings, np.arange(len(SUBWORDS)), frozenset(range(SPECIAL)), stop_word_ids(strings)),
        content, [{*found, *range(SPECIAL)} for found in content],
        [[Word(word, (ids[word],)) for word in caption] for caption in captions], dict(counts), strings,
        lambda text: [ids[text]],
    )  # fmt: skip
    named = np.array([[ids[word] for word in rng.choice(caption, KEYWORDS)] for caption in captions])
    vectors = (embeddings[named] + rng.standard_normal((*named.shape, 8))).astype(np.float32)
    attention = [rng.dirichlet(np.ones(10 + at % 5), KEYWORDS).astype(np.float32) for at in range(len(captions))]
    found = KeywordTable(vectors, np.ones(named.shape, dtype=bool), attention, None)
    alignments = load_alignments(split.data.path / "ctm", split.ids)
    texts = [utterance.text for utterance in split.data.utterances]
    scored = score_keywords(found, gold, split, texts, alignments, EvalConfig(bootstrap=20))
    origin = {"command": "score_keywords", "seed": seed, "commit": "0123456789ab", "settings": "s" * 16}
    images = [split.image_ids[row] for row in split.utterance_image]
    report = {**scored.report, "provenance": origin}
    write_keywords(scores, report, scored.records, split.ids, images, scored.contributions, found.attention)
