"""Gold sets, caption words, frequent subwords and shuffled captions, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from circle import circle_table

from speechclip.eval.gold import (
    CaptionWords,
    IdSets,
    Word,
    by_frequency,
    count_utterances,
    draws_expected,
    most_frequent,
    other_images,
)
from speechclip.eval.neighbours import Subwords


def test_most_frequent_subwords_by_hand():
    counts = count_utterances([[1, 1, 2], [2, 3], {2, 1}, [99]])
    assert counts == {1: 2, 2: 3, 3: 1, 99: 1}
    subwords = Subwords(np.eye(4), np.array([3, 2, 1, 0]), frozenset({0}), frozenset({2}))
    assert most_frequent(counts, subwords, 2, {0}) == [2, 1]  # 99 is not in the table
    assert most_frequent(counts, subwords, 2, {0, 2}) == [1, 3]
    assert most_frequent({1: 4, 3: 4}, subwords, 1, set()) == [1]
    with pytest.raises(ValueError, match="contain 3 of the table"):
        most_frequent(counts, subwords, 4, {0})


def test_by_frequency_ranks_all_subwords():
    subwords = Subwords(np.eye(3), np.array([7, 5, 9]), frozenset(), frozenset())
    assert by_frequency({5: 2, 7: 2, 9: 8, 11: 99}, subwords, {9}) == [5, 7]


def test_id_sets_by_hand():
    sets = IdSets.of([{4, 2}, [], [7, 7, 2]])
    assert sets.size.tolist() == [2, 0, 2]
    assert sets.contain([[0], [1], [2]], [2, 4, 7]).tolist() == [
        [True, True, False],
        [False, False, False],
        [True, False, True],
    ]
    assert sets.contain([0, 2], [10**6, 7]).tolist() == [False, True]  # an id above all ids of the sets
    assert sets.intersects(np.array([0, 2, 1]), [[9, 4], [4, 4], [2, 2]]).tolist() == [True, False, False]
    less = sets.without({2})
    assert (less.owner.tolist(), less.ids.tolist(), less.size.tolist()) == ([0, 2], [4, 7], [1, 0, 1])
    assert not IdSets.of([set(), set()]).contain([0, 1], [3, 3]).any()


def test_id_sets_become_rows_of_the_table():
    table = circle_table()
    rows = IdSets.of([{10, 12}, {55, 18, 13}, {55}, set()]).rows(table)  # 55 is not in the table
    assert [sorted(table.ids[row[row >= 0]].tolist()) for row in rows] == [[10, 12], [13, 18], [], []]
    assert rows.shape == (4, 2)


def test_caption_words_by_hand():
    captions = [
        [Word("a", (1,)), Word("snowman", (5, 6)), Word("the", (2,)), Word("a", (1,))],
        [],
        [Word("inside", (3, 7)), Word("box", (8, 8))],
    ]
    words = CaptionWords.of(captions)
    assert words.texts == ("a", "snowman", "the", "inside", "box")
    assert words.owner.tolist() == [0, 0, 0, 2, 2]
    assert (words.word.tolist(), words.ids.tolist()) == ([0, 1, 1, 2, 3, 3, 4], [1, 5, 6, 2, 3, 7, 8])
    # words without an id left are dropped. "inside" is a stop word although 7 is not
    content = CaptionWords.of(captions, left_out={1, 2, 6}, stop_words=False)
    assert (content.texts, content.ids.tolist()) == (("snowman", "box"), [5, 8])


@pytest.mark.parametrize("sizes", [[1, 1], [5] * 6, [3, 1, 2, 3, 1, 2], [4, 1, 1, 1, 1], [1] * 50])
def test_other_images_gives_another_image(sizes):
    images = np.random.default_rng(1).permutation(np.repeat(np.arange(len(sizes)) + 100, sizes))
    shuffled = [other_images(images, seed) for seed in range(5)]
    for shuffled_index in shuffled:
        assert sorted(shuffled_index.tolist()) == list(range(len(images)))
        assert (images[shuffled_index] != images).all()
    assert np.array_equal(shuffled[0], other_images(images, 0))
    if len(images) > 10:
        assert any(not np.array_equal(shuffled[0], shuffled_index) for shuffled_index in shuffled[1:])


def test_other_images_needs_a_second_image():
    assert other_images([3, 3, 3]) is None
    assert other_images([3, 3, 3, 4, 5]) is None


def test_draws_expected_by_hand():
    # shares 3/4 and 1/4: an id is missed in n draws with probability (1/4)^n and (3/4)^n. 9 never occurs, 5 is unknown
    expected = draws_expected({1: 3, 2: 1, 5: 7}, [1, 2, 9], np.array([0, 1, 2]))
    assert expected == pytest.approx([0, 1, 2 - 1 / 16 - 9 / 16])
