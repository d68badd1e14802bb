"""Subwords joined to words, and padding that is decoded and encoded again."""

from __future__ import annotations

from pathlib import Path

import pytest

from speechclip.common.compat import prepare
from speechclip.model.encoders.tokenizers import BpeTokenizer, SentencePieceTokenizer, add_special_tokens, join_subwords

SPM = Path(__file__).resolve().parents[3] / "egs/mini/models/clip/spm.model"


@pytest.fixture(scope="module")
def bpe() -> BpeTokenizer:
    prepare()
    from open_clip.tokenizer import SimpleTokenizer

    return BpeTokenizer(SimpleTokenizer())


@pytest.mark.parametrize(
    ("subwords", "words"),
    [
        (["a</w>", "snow", "man</w>"], [("a", [0]), ("snowman", [1, 2])]),
        (["\u2581a", "\u2581snow", "man"], [("a", [0]), ("snowman", [1, 2])]),
        (["\u2581", "snow", "man"], [("snowman", [0, 1, 2])]),
        (["snow", "man"], [("snowman", [0, 1])]),  # without marks: one word
        ([], []),
        (["\u2581"], []),
    ],
)
def test_join_subwords_by_hand(subwords: list[str], words: list[tuple[str, list[int]]]) -> None:
    assert join_subwords(subwords) == words


def test_join_subwords_with_clips_vocabulary(bpe: BpeTokenizer) -> None:
    ids = bpe.encode("A grandmotherly woman, isn't it?")
    words = join_subwords([bpe.subword(token) for token in ids])
    assert [text for text, _ in words] == ["a", "grandmotherly", "woman", ",", "isn", "'t", "it", "?"]
    assert sorted(place for _, places in words for place in places) == list(range(len(ids)))
    assert len(words[1][1]) > 1


def test_join_subwords_with_the_mini_vocabulary() -> None:
    tokenizer = SentencePieceTokenizer(SPM)
    ids = tokenizer.encode("A turquoise zeppelin")
    words = join_subwords([tokenizer.subword(token) for token in ids])
    assert [text for text, _ in words][:2] == ["a", "turquoise"]
    assert len(words) == 3
    assert sum(len(places) for _, places in words) == len(ids) > 3


def test_retokenize_changes_padding(bpe: BpeTokenizer) -> None:
    ids = bpe.encode("a dog runs")
    row = add_special_tokens(bpe, ids, 77)
    again = bpe.retokenize(row)
    assert again[: len(ids) + 2] == [bpe.sot, *ids, bpe.eot]
    padding = again[len(ids) + 2 :]
    assert padding and bpe.pad not in padding  # 72 single "!" have become a few long runs of it
    assert "".join(bpe.subword(token) for token in padding) == "!" * 72 + "</w>"
    mini = SentencePieceTokenizer(SPM)
    padded = add_special_tokens(mini, mini.encode("a cup"), 16)
    assert mini.retokenize(padded) == padded
