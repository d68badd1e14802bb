"""Function words, and subwords that are function words."""

from __future__ import annotations

from speechclip.eval.stopwords import STOP_WORDS, stop_word_ids


def test_list_has_function_words_only():
    assert {"a", "the", "in", "of", "and", "is", "with", "he", "not", "while"} <= STOP_WORDS
    assert not {"dog", "red", "two", "man", "running", "left", "round", "top"} & STOP_WORDS
    assert all(word == word.lower().strip() for word in STOP_WORDS)


def test_marks_case_and_punctuation_are_ignored():
    subwords = {
        1: "a</w>",
        2: "▁the",
        3: "In</w>",
        4: "dog</w>",
        5: "▁red",
        6: "▁",
        7: ".</w>",
        8: "'s</w>",
        9: "’s",
        10: "2</w>",
    }
    assert stop_word_ids(subwords) == {1, 2, 3, 6, 7, 8, 9}
    assert stop_word_ids({1: "", 2: "é", 3: "</w>", 4: "ing</w>"}) == {1, 3}
    assert stop_word_ids({}) == frozenset()
