"""The captions that the reduced vocabulary counts."""

from __future__ import annotations

from pathlib import Path

import pytest
from fixtures import make_data

from speechclip.common.compat import prepare
from speechclip.common.errors import UserError
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
