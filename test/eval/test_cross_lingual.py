"""Speech in one language to speech in another, on embeddings solved by hand."""

from __future__ import annotations

import numpy as np
import pytest

from speechclip.eval.cross_lingual import cross_lingual_report


def test_cross_lingual_report_scores_every_pair() -> None:
    angles = np.deg2rad([0, 90, 10, 80, 200, 5])
    speech = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    # images 0, 1 in both languages, 2 in English only; image 0 has two Hindi captions
    report = cross_lingual_report(speech, ["en", "en", "hi", "hi", "en", "hi"], [0, 1, 1, 0, 2, 0], 0)
    there, back = report["en->hi"], report["hi->en"]
    assert (there["n_queries"], there["n_gallery"]) == (2, 3)  # image 2 has no Hindi caption
    # en 0 (0 deg) finds hi at 5 (image 0) first; en 1 (90 deg) finds hi at 80 (image 0) before 10 (image 1)
    assert there["R@1"] == 50 and there["R@5"] == 100 and there["MRR"] == 75
    assert (back["n_queries"], back["n_gallery"]) == (3, 3)
    # hi at 10 (image 1) finds en 0; hi at 80 (image 0) finds en 1; hi at 5 (image 0) finds en 0
    assert back["R@1"] == pytest.approx(100 / 3)
    assert report["random"]["hi->en"]["R@1"] == pytest.approx(100 / 3)
    assert report["random"]["en->hi"]["R@1"] == pytest.approx(50.0)  # (2/3 + 1/3) / 2
    assert report["mean"]["R@1"] == pytest.approx((50 + 100 / 3) / 2)


def test_cross_lingual_report_covers_three_languages() -> None:
    report = cross_lingual_report(np.eye(6, 3), ["en", "hi", "ja"] * 2, [0, 0, 0, 1, 1, 1], 10)
    assert {name for name in report if "->" in name} == {"en->hi", "en->ja", "hi->en", "hi->ja", "ja->en", "ja->hi"}
    assert set(report["en->hi"]["ci95"]) == {"R@1", "R@5", "R@10", "MRR"}


def test_cross_lingual_report_needs_a_shared_image() -> None:
    with pytest.raises(ValueError, match="no image has speech in two languages"):
        cross_lingual_report(np.eye(2), ["en", "hi"], [0, 1])
    with pytest.raises(ValueError, match="do not fit"):
        cross_lingual_report(np.eye(2), ["en"], [0, 1])
