"""Records of keywords, by hand."""

from __future__ import annotations

import json

from circle import STRINGS, circle_table, on_circle, padded

from speechclip.data.alignments import AlignedWord
from speechclip.eval.gold import Word
from speechclip.eval.keywords import Settings, find_neighbours
from speechclip.eval.records import keyword_records

COUNTS = {12: 3, 18: 2, 16: 1, 10: 1, 17: 1}


def records(spoken=None, overlap=None, golds=({10, 18}, {16}), words=None):
    z = on_circle(1.0, 80.0, 40.0, 0.0).reshape(2, 2, 2)
    mask = [[True, True], [True, False]]
    case = find_neighbours(
        z, mask, circle_table(), list(golds), [padded(*gold) for gold in golds], COUNTS, None, Settings(bootstrap=0)
    )
    words = words or [[Word("red", (10,)), Word("dog", (18,))], [Word("cat", (16,))]]
    spans = [(0.02, 0.04), (0.04, 0.06), (0.0, 0.123456)]
    captions = ["red dog", "cat"]
    return list(keyword_records(["u1", "u2"], captions, case, spans, STRINGS, words, spoken, overlap, k=2))


def test_records_by_hand():
    found = records()
    assert [(r["utterance"], r["keyword"], r["caption"]) for r in found] == [
        ("u1", 1, "red dog"), ("u1", 2, "red dog"), ("u2", 1, "cat")
    ]  # fmt: skip
    assert found[0]["neighbours"] == [
        {"subword": "w10</w>", "id": 10, "cosine": 0.9998},
        {"subword": "w11</w>", "id": 11, "cosine": 0.9877},
    ]
    assert [r["span"] for r in found] == [[0.02, 0.04], [0.04, 0.06], [0.0, 0.1235]]
    # the five nearest to 40 degrees are 12 to 16; the nearest content subword is 14
    assert [r["hit"] for r in found] == [True, True, True]
    assert [r["word"] for r in found] == ["red", "dog", None]
    assert found[2]["gold"] == {"subword": "w16</w>", "id": 16, "cosine": 0.9397}
    assert all(r["overlap"] is None and r["spoken"] is None for r in found)
    assert json.loads(json.dumps(found)) == found


def test_records_name_the_spoken_words():
    said = {"u1": [AlignedWord("red", 0.0, 0.03), AlignedWord("dog", 0.03, 0.05)]}
    found = records(said, [True, False, None])
    assert [r["overlap"] for r in found] == [True, False, None]
    assert [r["spoken"] for r in found] == [["red", "dog"], ["dog"], None]


def test_unknown_values_are_null():
    found = records(golds=({10, 18}, {55}), words=[[Word("red", (10,))], [Word("odd", (55,))]])
    assert [r["hit"] for r in found] == [True, True, False]
    assert found[1]["word"] is None
    assert found[2]["gold"] is None
