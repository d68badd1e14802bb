"""The captions that the reduced vocabulary counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fixtures import make_data

from speechclip.common.compat import prepare
from speechclip.common.errors import UserError
from speechclip.data.corpora.flickr8k import clip_caption
from speechclip.data.mapped import Column
from speechclip.data.vocabulary import Vocabulary
from speechclip.features.clip import count_vocabulary, vocabulary_texts
from speechclip.model.encoders.tokenizers import BpeTokenizer


class Tower:
    """The parts of CLIP that counting needs: OpenAI's BPE and the context length."""

    context_length = 77

    def __init__(self) -> None:
        prepare()
        from open_clip.tokenizer import SimpleTokenizer

        self.tokenizer = BpeTokenizer(SimpleTokenizer())


def test_count_vocabulary_orders_ids_by_count(tmp_path: Path) -> None:
    texts = ["A dog and a dog .", "a cat", ""]
    vocabulary = count_vocabulary(texts, Tower())  # type: ignore[arg-type]
    vocabulary.save(tmp_path / "v.tsv")
    rows = [line.split("\t") for line in (tmp_path / "v.tsv").read_text().splitlines()]
    # three rows of 77: one SOT and one EOT each, the rest padding; "!" is what padding's id 0 spells
    padding = 3 * 77 - 2 * 3 - 6 - 2
    assert rows == [
        ["0", str(padding), "!"],
        ["320", "3", "a</w>"],
        ["49406", "3", "<start_of_text>"],
        ["49407", "3", "<end_of_text>"],
        ["1929", "2", "dog</w>"],
        ["269", "1", ".</w>"],
        ["537", "1", "and</w>"],
        ["2368", "1", "cat</w>"],
    ]
    assert Vocabulary.load(tmp_path / "v.tsv") == vocabulary


def test_vocabulary_texts_selects_captions(tmp_path: Path) -> None:
    parts = [make_data(tmp_path / "data" / name, images=1, each=1, prefix=name) for name in ("train", "dev")]
    own = [part.utterances[0].text for part in parts]
    missing = tmp_path / "captions.tsv"
    assert vocabulary_texts(parts, missing, only_train=False) == own
    assert vocabulary_texts(parts, missing, only_train=True) == own[:1]
    missing.write_text("train\tone\n-\ttwo\ndev\tthree\ntrain\t\n")
    assert vocabulary_texts(parts, missing, only_train=False) == ["one", "two", "three", ""]
    assert vocabulary_texts(parts, missing, only_train=True) == ["one", ""]
    missing.write_text("train one\n")
    with pytest.raises(UserError, match="line 1: expected split and caption"):
        vocabulary_texts(parts, missing, only_train=True)


CAPTIONS = ["A dog runs .", "A dog . A cat .", "Two dogs play . .", "A boy swims.", "A girl ... jumps", "Ph.D ."]


def test_vocabulary_counts_the_captions_as_clip_reads_them() -> None:
    """The final full stop, id 269, is removed once; the others count."""
    tower: Any = Tower()
    published, clip = (
        dict(zip(found.ids, found.counts))
        for found in (count_vocabulary(texts, tower) for texts in (CAPTIONS, map(clip_caption, CAPTIONS)))
    )
    assert (published[269], clip[269]) == (8, 3)  # clip: "dog .", "play .", "Ph.D"
    others = published.keys() - {0, 269}
    assert {key: published[key] for key in others} == {key: clip[key] for key in others}
    assert clip[0] - published[0] == 8 - 3  # padding takes the place


def test_vocabulary_texts_uses_captions_for_clip(tmp_path: Path) -> None:
    data = make_data(tmp_path / "train", images=1, each=2)
    second = data.utterances[1]
    part = replace(data, utterances=replace(data.utterances, clip_texts=Column.of(["a dog", second.text])))
    assert vocabulary_texts([part], tmp_path / "captions.tsv", only_train=True) == ["a dog", second.text]


def test_vocabulary_texts_reports_bad_utf8(tmp_path: Path) -> None:
    (tmp_path / "captions.tsv").write_bytes(b"train\t\xff\n")
    with pytest.raises(UserError, match=r"captions\.tsv: not UTF-8\. Prepare the data again\.$"):
        vocabulary_texts([], tmp_path / "captions.tsv", only_train=True)
