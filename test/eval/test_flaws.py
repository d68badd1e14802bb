"""The flaws of the published code, one at a time, on a circle of subwords."""

from __future__ import annotations

import numpy as np
import pytest
from circle import EOT, PAD, SOT, circle_table, on_circle, padded

from speechclip.eval.flaws import COMBINATIONS, DUMP_BATCH, flaw_name, flaw_report
from speechclip.eval.keywords import Settings, find_neighbours

COUNTS = {11: 9, 13: 8, 12: 7, 18: 6, 17: 5, 10: 4}


def report_of(degrees: list[float], golds: list[set[int]], bootstrap: int = 0, images: list[int] | None = None) -> dict:
    z = on_circle(*degrees)[:, None, :]
    settings = Settings(bootstrap=bootstrap)
    ones = np.ones((len(z), 1))
    reference = [padded(*gold) for gold in golds]
    return flaw_report(find_neighbours(z, ones, circle_table(), golds, reference, COUNTS, images, settings))


def rates(report: dict) -> list[float]:
    return [report[flaw_name(flaws)]["avg"] for flaws in COMBINATIONS]


def test_flaw_names() -> None:
    assert [flaw_name(flaws) for flaws in COMBINATIONS] == [
        "clean", "special_tokens", "quantised", "misaligned", "special_tokens+quantised",
        "special_tokens+quantised+misaligned",
    ]  # fmt: skip


def test_special_tokens_hit_any_caption() -> None:
    # at 1 degree the nearest are SOT, EOT, 10, PAD and 11. They hit any padded caption
    report = report_of([1.0], [{16}])
    assert rates(report) == [0, 100, 0, 0, 100, 100]
    assert report["special_tokens"]["only_special"] == 100.0
    assert report["clean"]["only_special"] == report["quantised"]["only_special"] == 0.0
    assert report["special_tokens"]["difference"]["avg"] == 100.0
    assert "difference" not in report["clean"]
    # this one hits without special tokens: 10 is a neighbour and in the caption
    assert report_of([1.0], [{10}])["special_tokens"]["only_special"] == 0.0


def test_special_tokens_displace_neighbours() -> None:
    # nearest to 12 degrees: 11, 12, 10, 13, 14. With special tokens: 11, 12, PAD, EOT, SOT, which hit instead of 13
    report = report_of([12.0], [{13}])
    assert (report["clean"]["avg"], report["special_tokens"]["avg"]) == (100.0, 100.0)
    assert report["special_tokens"]["only_special"] == 100.0


def test_quantised_vector_has_other_neighbours() -> None:
    # nearest to -131 degrees: 10, 11, 18, 12, 17. It is quantised to 10, with the nearest 10, 11, 12, 13, 14
    report = report_of([-131.0], [{18}])
    assert rates(report) == [100, 100, 0, 100, 100, 100]
    assert report["quantised"]["difference"]["avg"] == -100.0
    assert report["special_tokens"]["only_special"] == 100.0  # the nearest are now 10, SOT, EOT, PAD, 11, without 18
    assert rates(report_of([-131.0], [{13}]))[:3] == [0, 100, 100]


def test_misaligned_captions_of_a_batch() -> None:
    # all keywords are near 10 to 14. The first captions of the two batches contain 10 and 16, all others 16
    assert DUMP_BATCH == 8
    report = report_of([0.0] * 10, [{10}, *[{16}] * 9], bootstrap=50)
    assert report["clean"]["avg"] == pytest.approx(10.0)
    assert report["misaligned"]["avg"] == pytest.approx(80.0)  # eight are scored against the first caption
    assert report["misaligned"]["difference"]["avg"] == pytest.approx(70.0)
    assert report["misaligned"]["frequency_prior"]["avg"] == 0.0  # 11 13 12 18 17 hit no caption


def test_differences_are_resampled_in_pairs() -> None:
    # two of four utterances hit without flaws; with special tokens one more hits
    report = report_of([0.0, 0.0, 1.0, 80.0], [{10}, {10}, {16}, {10}], bootstrap=300)
    difference = report["special_tokens"]["difference"]
    assert report["clean"]["avg"] == 50.0
    assert difference["avg"] == 25.0
    assert difference["ci95"][0] == 0.0  # a resample without that utterance. Unpaired resamples would go below 0
    assert 50.0 <= difference["ci95"][1] <= 75.0
    assert report["clean"]["ci95"]["avg"][0] == 0.0


def test_shuffled_speech_of_each_flaw_by_hand() -> None:
    # two images with one batch each: the keywords of each are scored against the captions of the other
    golds = [{10}, *[{16}] * 7, {14}, *[{10}] * 7]
    report = report_of([0.0] * 8 + [80.0] * 8, golds, images=[0] * 8 + [1] * 8)
    shuffled = {name: row["shuffled_speech"]["avg"] for name, row in report.items()}
    assert shuffled["clean"] == pytest.approx(100 * (8 + 7) / 16)
    assert shuffled["quantised"] == shuffled["clean"]
    assert shuffled["special_tokens"] == shuffled["clean"]  # 0 degrees hits special tokens, 80 degrees hits as before
    # all eight are scored against the first caption of the other batch: 14 hits for one half, 10 misses for the other
    assert shuffled["misaligned"] == 50.0
    assert shuffled["special_tokens+quantised+misaligned"] == 50.0
    assert report["misaligned"]["avg"] == pytest.approx(100.0)  # 10 hits for the first batch, 14 for the second


def test_all_flaws_together_always_hit() -> None:
    # quantised to 10 with the neighbours 10, SOT, EOT, PAD, 11. All captions are padded, so all hit
    report = report_of([-131.0] * 9, [{16}] * 9)
    assert report["special_tokens+quantised+misaligned"]["avg"] == 100.0
    assert report["special_tokens+quantised+misaligned"]["only_special"] == 100.0
    assert {SOT, EOT, PAD} == circle_table().special_ids
