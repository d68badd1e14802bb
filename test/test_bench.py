"""The benchmarks: baselines that give equal results, and an arithmetic that can be trusted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures import JOINT, STATES, WIDTH, save_clip, settings

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools" / "bench"))

import check  # noqa: E402
import document  # noqa: E402
import measure  # noqa: E402
import mini  # noqa: E402
import parts  # noqa: E402
import scoring  # noqa: E402
import startup  # noqa: E402
import steps  # noqa: E402
import store  # noqa: E402

from speechclip.data.dataset import Batch  # noqa: E402
from speechclip.data.vocabulary import Vocabulary  # noqa: E402
from speechclip.encoders.clip import load_clip  # noqa: E402
from speechclip.model import Dimensions, build  # noqa: E402


@pytest.mark.parametrize("head", parts.HEADS)
def test_plain_and_own_steps_have_equal_losses_and_gradients(head: str, tmp_path: Path) -> None:
    config = settings(model__head__name=head, model__head__dropout=0.0, model__head__cif__dropout=0.0)
    clip = load_clip(type(config.model.clip)(str(save_clip(tmp_path / "clip"))))
    ids = tuple(range(clip.tokenizer.eot + 1))
    words = Vocabulary(ids, (1,) * len(ids), tuple(map(str, ids)))
    torch.manual_seed(1)
    model = build(config.model, Dimensions(WIDTH, STATES, JOINT), clip=clip, vocabulary=words).train()
    states, frames = torch.randn(6, STATES, 60, WIDTH), torch.tensor([60, 44, 52, 60, 39, 21])
    images, groups = torch.randn(6, 3, 32, 32), torch.tensor([0, 1, 0, 2, 3, 4])
    cached = torch.nn.functional.normalize(clip.model.encode_image(images), dim=-1)
    found = []
    for loss in (
        steps.plain_loss(model, clip.model, states, frames, images, groups),
        steps.our_loss(model, config, Batch(groups, states, frames, None), cached)(),
    ):
        model.zero_grad()
        loss.backward()
        gradients = {n: p.grad for part in model.trained_modules().values() for n, p in part.named_parameters()}
        assert all(gradient is not None for name, gradient in gradients.items() if name != "log_scale")
        found.append((loss.item(), torch.cat([g.flatten() for g in gradients.values() if g is not None])))
    (plain, one), (ours, other) = found
    assert plain == pytest.approx(ours, rel=1e-5) and plain > 0.1
    assert float(torch.nn.functional.cosine_similarity(one, other, dim=0)) > 0.9999
    assert float(one.norm() / other.norm()) == pytest.approx(1, rel=1e-3)


def test_sorting_and_counting_give_equal_recall() -> None:
    rows = scoring.run(60, 5, 1)
    assert [row["case"] for row in rows] == ["scores", "embeddings"]
    assert all(row["recall_off"] < 1e-4 for row in rows)
    assert {row["utterances"] for row in rows} == {300}


def test_extraction_through_s3prl_is_equal_on_equal_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3prl", reason="extra 's3prl' is not installed")
    import extraction

    tiny = parts.Shape("tiny", {"num_hidden_layers": 1}, "", 2, 768)
    monkeypatch.setitem(parts.SHAPES, "tiny", tiny)
    plain = extraction.plain_encoder("tiny", tmp_path / "encoder")
    ours = parts.speech_encoder("tiny", tmp_path / "encoder")
    waves = parts.waves(np.array([17000, 9000]))
    expected, found = plain(waves), ours(waves)
    assert expected.frames.tolist() == found.frames.tolist() and expected.states.shape == found.states.shape
    for row, count in enumerate(found.frames.tolist()):
        assert (expected.states[row, :, :count] - found.states[row, :, :count]).abs().max() < 3e-5


def test_operations_of_hubert_base() -> None:
    import extraction

    second = extraction.operations("base", np.array([16000 * 10])) / 10
    # by hand: 499 frames; convolutions 5.1e9, 12 layers of 12 d^2, attention of 499 keys, positions and projection
    layers = 49.9 * 2 * (12 * 12 * 768**2 + 768 * 48 * 128 + 512 * 768)
    assert second == pytest.approx(5.1e9 + layers + 0.92e9, rel=0.02)
    assert extraction.padding(np.array([10, 5, 20]), [[0, 1], [2]]) == pytest.approx(5 / 40)
    orders = extraction.orders(parts.lengths(40))
    assert all(sorted(at for batch in batches for at in batch) == list(range(40)) for batches in orders.values())


def test_lengths_are_a_corpus_s() -> None:
    seconds = parts.lengths(4000) / 16000
    assert seconds.mean() == pytest.approx(4, abs=0.1) and seconds.min() >= 1 and seconds.max() <= 15
    assert (parts.lengths(4000) == parts.lengths(4000)).all()


def test_power_laws() -> None:
    fit = measure.fit_power([1, 2, 4, 8], [3, 12, 48, 192])
    assert fit["exponent"] == pytest.approx(2) and fit["r2"] == pytest.approx(1)
    assert measure.predict(fit, 16) == pytest.approx(768)
    for sizes, costs in (([1, 1], [2, 3]), ([1, 2], [0, 1]), ([1, 2, 3], [1, 2])):
        with pytest.raises(ValueError, match="two different positive sizes"):
            measure.fit_power(sizes, costs)


def test_a_fitted_row_says_so() -> None:
    rows: list[dict[str, Any]] = [
        {"time": {"plain": 2.0 * n, "ours": 0.5}, "peak": {"plain": n, "ours": 1}, "batch": n} for n in (4, 8, 16)
    ]
    rows[0] |= {"shape": "base", "head": "x"}
    row = steps.fitted(rows, 256)
    assert row["time"]["plain"] == pytest.approx(512) and row["time"]["ratio"] == pytest.approx(1024)
    assert row["peak"]["plain"] == pytest.approx(256) and row["fit"]["time ours"] == pytest.approx(0)


def test_rounds_take_turns_and_give_ratios() -> None:
    order: list[str] = []
    works = {kind: lambda kind=kind: order.append(kind) for kind in ("plain", "ours")}
    times = measure.interleaved(works, 2)
    assert order == ["plain", "ours"] * 3 and len(times["ours"]) == 2  # one round to warm up
    found = measure.compare({"plain": [9.0, 4.0, 6.0], "ours": [3.0, 2.0, 1.0]})
    assert (found["ratio"], found["low"], found["high"], found["plain"], found["ours"]) == (3.0, 2.0, 6.0, 6.0, 2.0)


def test_peak_memory_is_that_of_the_work_alone() -> None:
    ballast = np.ones(8_000_000)
    del ballast  # a peak before the work
    assert 38e6 < measure.peak_of(lambda: np.ones(5_000_000)) < 60e6
    assert measure.peak_of(lambda: None) < 5e6


def test_a_child_that_fails_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="unknown work"):
        measure.memory_in_child("no such work", {})


def test_the_store_is_read_beside_plain_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(parts.SHAPES, "tiny", parts.Shape("tiny", {}, "", 2, 8))
    (row,) = store.run("tiny", 5, 1)
    assert row["utterances"] == 5 and row["megabytes"]["plain"] > 1.5 * row["megabytes"]["ours"]


def test_every_script_is_started() -> None:
    found = startup.commands()
    scripts = {path.stem for path in (ROOT / "speechclip" / "bin").glob("*.py")} - {"__init__"}
    assert {f"speechclip.bin.{name}" for name in scripts} <= found.keys()
    assert {"speechclip.upstream", "tools/doctor", "egs/mini/run.sh", "tools/count_parameters.py"} <= found.keys()
    with pytest.raises(RuntimeError, match="status"):
        startup.spent([sys.executable, "-c", "raise SystemExit(3)"])


def test_tools_wait_for_nothing_heavy_either() -> None:
    for name, command in startup.commands().items():
        if name.startswith(("tools/", "egs/")) and name.endswith(".py"):
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            listing = [command[0], "-X", "importtime", command[1], "--help"]
            ended = subprocess.run(listing, env=environment, capture_output=True, text=True, timeout=60)
            imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in ended.stderr.splitlines()}
            assert ended.returncode == 0, (name, ended.stderr[-500:])
            assert "argparse" in imported and not imported & {"torch", "transformers", "matplotlib"}, name


def test_a_log_of_the_mini_recipe() -> None:
    log = "stage 0 (obtain): done in 60 s\n\x1b[1mstage 2 (features): tiny: done in 40 s\x1b[0m\n"
    found = mini.read_log(log + "dump: 100 utterances, 0.50 h of speech, in 20 s\n")
    assert [(row["stage"], row["name"], row["run"], row["share"]) for row in found["stages"]] == [
        (0, "obtain", "", 0.6), (2, "features", "tiny", 0.4),
    ]  # fmt: skip
    assert found["extraction"]["real_time"] == pytest.approx(90)
    with pytest.raises(ValueError, match="no line"):
        mini.read_log("nothing")


def test_a_ratio_below_its_floor_is_told() -> None:
    assert check.judge({"a": 2.0, "b": 1.0}, {"a": 2, "b": 1.5}) == ["b: 1.00, at least 1.5 is wanted"]
    assert check.judge({"a": 2.0}, {"a": 2}) == []
    with pytest.raises(ValueError, match="floors"):
        check.judge({"a": 2.0}, {"b": 2})
    assert json.loads(check.FLOORS.read_text()).keys() == check.CHECKS.keys()


def test_the_check_tries_again_and_then_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    floors: dict[str, float] = json.loads(check.FLOORS.read_text())
    calls: dict[str, int] = dict.fromkeys(floors, 0)

    def measured(name: str, first: float) -> Any:
        def work() -> float:
            calls[name] += 1
            return first if calls[name] == 1 else floors[name] * 2

        return work

    slow = next(iter(floors))
    monkeypatch.setattr(check, "CHECKS", {name: measured(name, 0.1 if name == slow else 1e3) for name in floors})
    assert check.main() == 0 and calls[slow] == 2 and sum(calls.values()) == len(floors) + 1
    monkeypatch.setattr(check, "CHECKS", {name: (lambda: 0.1) for name in floors})
    assert check.main() == 1
    assert capsys.readouterr().out.count("FAILED") == len(floors)


def test_the_page_is_what_the_results_say(tmp_path: Path) -> None:
    results = json.loads((ROOT / "tools" / "bench" / "results.json").read_text())
    document.write(results, tmp_path / "page.md", tmp_path / "growth.svg")
    assert (tmp_path / "page.md").read_text() == (ROOT / "BENCHMARKS.md").read_text()
    assert set(results) <= set(document.PAGES)
