"""Scores of each language and across languages, solved by hand."""

from __future__ import annotations

import numpy as np
import pytest

from speechclip.eval.languages import language_report

IMAGES = np.eye(3)
#: Two images have speech in both languages, the last one in German only.
LANGUAGES = ["de", "de", "de", "en", "en"]
OWNER = [0, 1, 2, 0, 1]
SPEECH = np.array([[1, 0, 0], [0, 1, 0.0], [0, 0, 1], [0.6, 0.8, 0], [0, 1, 0]])  # the first English one is wrong


def test_language_report_scores_each_language_alone() -> None:
    report = language_report(SPEECH, OWNER, IMAGES, LANGUAGES, n_bootstrap=0)
    german, english = report["languages"]["de"], report["languages"]["en"]
    assert german["speech->image"]["R@1"] == german["image->speech"]["R@1"] == 100.0
    assert (german["speech->image"]["n_queries"], english["speech->image"]["n_queries"]) == (3, 2)
    assert english["speech->image"]["R@1"] == 50.0
    assert english["speech->image"]["n_gallery"] == 3  # all images
    assert english["image->speech"]["n_queries"] == 2  # those with English speech
    assert english["random"]["speech->image"]["R@1"] == pytest.approx(100 / 3)
    assert "text->image" not in german


def test_language_report_scores_across_languages() -> None:
    across = language_report(SPEECH, OWNER, IMAGES, LANGUAGES, n_bootstrap=20)["across_languages"]
    assert set(across) == {"de->en", "en->de"}
    # the German utterance of image 2 has no English counterpart
    assert (across["de->en"]["n_queries"], across["de->en"]["n_gallery"]) == (2, 2)
    # 0 -> cosines 0.6 and 0 with the English ones; 1 -> 0.8 and 1
    assert across["de->en"]["R@1"] == 100.0
    # 3 -> cosines 0.6 and 0.8 with the German ones: image 1 comes first; 4 -> 0 and 1
    assert across["en->de"]["R@1"] == 50.0 and across["en->de"]["MRR"] == 75.0
    assert across["en->de"]["random"]["R@1"] == pytest.approx(100 / 3)
    assert across["en->de"]["ci95"]["R@1"][0] <= 50.0 <= across["en->de"]["ci95"]["R@1"][1]


def test_language_report_scores_captions_of_a_language() -> None:
    captions = ["hund", "katze", "haus", "dog", "cat"]
    order = np.array([3, 4, 0, 1, 2])  # the captions are stored in another order than the utterances
    texts = np.array([[1, 0, 0], [0, 1, 0.0], [0, 0, 1], [1, 0, 0], [0, 1, 0]])[order]
    report = language_report(
        SPEECH, OWNER, IMAGES, LANGUAGES, texts, [captions[at] for at in order], order, n_bootstrap=0
    )["languages"]
    assert report["de"]["speech->text"]["R@1"] == 100.0 and report["de"]["speech->text"]["n_gallery"] == 3
    assert report["en"]["speech->text"]["R@1"] == 50.0 and report["en"]["speech->text"]["n_gallery"] == 2
    assert report["en"]["text->image"]["R@1"] == 100.0


@pytest.mark.parametrize("languages", [["en"] * 5, [""] * 5])
def test_language_report_of_one_language_is_empty(languages: list[str]) -> None:
    assert language_report(SPEECH, OWNER, IMAGES, languages, n_bootstrap=0) == {}


def test_language_report_leaves_out_pairs_without_image() -> None:
    report = language_report(SPEECH[:3], OWNER[:3], IMAGES, ["de", "en", "ja"], n_bootstrap=0)
    assert report["across_languages"] == {} and set(report["languages"]) == {"de", "en", "ja"}
    with pytest.raises(ValueError, match="2 languages do not fit 3 utterances"):
        language_report(SPEECH[:3], OWNER[:3], IMAGES, ["de", "en"], n_bootstrap=0)
