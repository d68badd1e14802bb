"""The published code's flaws, one at a time, on a circle of subwords."""

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


def test_names() -> None:
    assert [flaw_name(flaws) for flaws in COMBINATIONS] == [
        "clean", "special_tokens", "quantised", "misaligned", "special_tokens+quantised",
        "special_tokens+quantised+misaligned",
    ]  # fmt: skip


def test_special_tokens_alone() -> None:
    # at 1 degree SOT, EOT, 10, PAD and 11 are nearest: a hit whatever is said
    report = report_of([1.0], [{16}])
    assert rates(report) == [0, 100, 0, 0, 100, 100]
    assert report["special_tokens"]["only_special"] == 100.0
    assert report["clean"]["only_special"] == report["quantised"]["only_special"] == 0.0
    assert report["special_tokens"]["difference"]["avg"] == 100.0
    assert "difference" not in report["clean"]
    # and one that needs no special token: 10 is among them and in the caption
    assert report_of([1.0], [{10}])["special_tokens"]["only_special"] == 0.0


def test_special_tokens_take_places() -> None:
    # of 12 degrees: 11, 12, 10, 13, 14; with special ones 11, 12, PAD, EOT, SOT, which hit in the place of 13
    report = report_of([12.0], [{13}])
    assert (report["clean"]["avg"], report["special_tokens"]["avg"]) == (100.0, 100.0)
    assert report["special_tokens"]["only_special"] == 100.0


def test_quantised_neighbours_alone() -> None:
    # of -131 degrees: 10, 11, 18, 12, 17; of 10, to which it is quantised: 10, 11, 12, 13, 14
    report = report_of([-131.0], [{18}])
    assert rates(report) == [100, 100, 0, 100, 100, 100]
    assert report["quantised"]["difference"]["avg"] == -100.0
    assert report["special_tokens"]["only_special"] == 100.0  # 18 has lost its place: 10, SOT, EOT, PAD, 11
    assert rates(report_of([-131.0], [{13}]))[:3] == [0, 100, 100]


def test_misaligned_captions_alone() -> None:
    # all keywords are near 10 to 14; the first caption of the two batches holds 10 and 16, all others 16
    assert DUMP_BATCH == 8
    report = report_of([0.0] * 10, [{10}, *[{16}] * 9], bootstrap=50)
    assert report["clean"]["avg"] == pytest.approx(10.0)
    assert report["misaligned"]["avg"] == pytest.approx(80.0)  # eight stand beside the first caption
    assert report["misaligned"]["difference"]["avg"] == pytest.approx(70.0)
    assert report["misaligned"]["frequency_prior"]["avg"] == 0.0  # 11 13 12 18 17 hit neither


def test_differences_are_paired() -> None:
    # two of four utterances are hit clean, and the same two and one more with special tokens
    report = report_of([0.0, 0.0, 1.0, 80.0], [{10}, {10}, {16}, {10}], bootstrap=300)
    difference = report["special_tokens"]["difference"]
    assert report["clean"]["avg"] == 50.0
    assert difference["avg"] == 25.0
    assert difference["ci95"][0] == 0.0  # a resample without the one; never below, as unpaired ones would be
    assert 50.0 <= difference["ci95"][1] <= 75.0
    assert report["clean"]["ci95"]["avg"][0] == 0.0


def test_shuffled_speech_of_each_flaw_by_hand() -> None:
    # two images of a batch each: keywords near 10 to 14 meet the captions of the other, those near 14 to 18 of the one
    golds = [{10}, *[{16}] * 7, {14}, *[{10}] * 7]
    report = report_of([0.0] * 8 + [80.0] * 8, golds, images=[0] * 8 + [1] * 8)
    shuffled = {name: row["shuffled_speech"]["avg"] for name, row in report.items()}
    assert shuffled["clean"] == pytest.approx(100 * (8 + 7) / 16)
    assert shuffled["quantised"] == shuffled["clean"]
    assert shuffled["special_tokens"] == shuffled["clean"]  # 0 degrees hit by the special ones now, 80 as before
    # the first caption of the other batch in the place of all eight: 14 is near the one half, 10 not near the other
    assert shuffled["misaligned"] == 50.0
    assert shuffled["special_tokens+quantised+misaligned"] == 50.0
    assert report["misaligned"]["avg"] == pytest.approx(100.0)  # 10 is near all of the first, 14 of the second


def test_all_flaws_together() -> None:
    # -131 degrees: quantised to 10 with five neighbours 10, SOT, EOT, PAD, 11, all captions are padded: always a hit
    report = report_of([-131.0] * 9, [{16}] * 9)
    assert report["special_tokens+quantised+misaligned"]["avg"] == 100.0
    assert report["special_tokens+quantised+misaligned"]["only_special"] == 100.0
    assert {SOT, EOT, PAD} == circle_table().special_ids
