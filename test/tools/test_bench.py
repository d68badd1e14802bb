"""The benchmarks: the baselines give equal results, and the arithmetic of the measurements is right."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures import JOINT, STATES, WIDTH, save_clip, settings

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools" / "bench"))

import check  # noqa: E402
import document  # noqa: E402
import fine_scores  # noqa: E402
import live_memory  # noqa: E402
import measure  # noqa: E402
import mini  # noqa: E402
import parts  # noqa: E402
import rerank  # noqa: E402
import run  # noqa: E402
import scoring  # noqa: E402
import startup  # noqa: E402
import steps  # noqa: E402
import store  # noqa: E402

from speechclip.config import FastVgsConfig  # noqa: E402
from speechclip.data.dataset import Batch  # noqa: E402
from speechclip.data.vocabulary import Vocabulary  # noqa: E402
from speechclip.model.encoders.clip import load_clip  # noqa: E402
from speechclip.model.network import Dimensions, build_network  # noqa: E402


@pytest.mark.parametrize("head", run.HEADS)
def test_steps_plain_and_ours_have_equal_gradients(head: str, tmp_path: Path) -> None:
    config = settings(model__head__name=head, model__head__dropout=0.0, model__head__cif__dropout=0.0)
    clip = load_clip(type(config.model.clip)(str(save_clip(tmp_path / "clip"))))
    ids = tuple(range(clip.tokenizer.eot + 1))
    words = Vocabulary(ids, (1,) * len(ids), tuple(map(str, ids)))
    torch.manual_seed(1)
    model = build_network(config.model, Dimensions(WIDTH, STATES, JOINT), clip=clip, vocabulary=words).train()
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


def test_recall_by_sorting_equals_ours() -> None:
    rows = scoring.run(60, 5, 1)
    assert [row["case"] for row in rows] == ["scores", "embeddings"]
    assert all(row["recall_off"] < 1e-4 for row in rows)
    assert {row["utterances"] for row in rows} == {300}


def test_extraction_equals_s3prl_on_equal_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_operations_of_hubert_base_by_hand() -> None:
    import extraction

    second = extraction.operations("base", np.array([16000 * 10])) / 10
    # by hand: 499 frames; convolutions 5.1e9, 12 layers of 12 d^2, attention of 499 keys, positions and projection
    layers = 49.9 * 2 * (12 * 12 * 768**2 + 768 * 48 * 128 + 512 * 768)
    assert second == pytest.approx(5.1e9 + layers + 0.92e9, rel=0.02)
    assert extraction.padding(np.array([10, 5, 20]), [[0, 1], [2]]) == pytest.approx(5 / 40)
    orders = extraction.orders(parts.lengths(40))
    assert all(sorted(at for batch in batches for at in batch) == list(range(40)) for batches in orders.values())


def test_lengths_have_the_stated_distribution() -> None:
    seconds = parts.lengths(4000) / 16000
    assert seconds.mean() == pytest.approx(4, abs=0.1) and seconds.min() >= 1 and seconds.max() <= 15
    assert (parts.lengths(4000) == parts.lengths(4000)).all()


def test_fit_power_finds_the_exponent() -> None:
    fit = measure.fit_power([1, 2, 4, 8], [3, 12, 48, 192])
    assert fit["exponent"] == pytest.approx(2) and fit["r2"] == pytest.approx(1)
    assert measure.predict(fit, 16) == pytest.approx(768)
    for sizes, costs in (([1, 1], [2, 3]), ([1, 2], [0, 1]), ([1, 2, 3], [1, 2])):
        with pytest.raises(ValueError, match="two different positive sizes"):
            measure.fit_power(sizes, costs)


def test_fitted_row_holds_its_lines() -> None:
    rows: list[dict[str, Any]] = [
        # with a part that does not grow: a power law through these gives 334 s and 13 s at 256
        {"time": {"plain": 10 + 2.0 * n, "ours": 1 + n / 8}, "peak": {"plain": n, "ours": 1}, "batch": n}
        for n in (4, 8, 16)
    ]
    rows[0] |= {"shape": "base", "head": "x"}
    row = steps.fitted(rows, 256, {"time": 2.0, "peak": 64})
    assert row["time"]["plain"] == pytest.approx(522) and row["time"]["ratio"] == pytest.approx(261)
    assert row["peak"] == {"plain": pytest.approx(256), "ours": 64}
    assert row["fit"].keys() == {"time plain", "peak plain"}
    page = document.PAGES["heads"][2]
    assert "| 256 (plain by fit) |" in page([row])
    both = steps.fitted(rows, 256)
    assert both["time"]["ours"] == pytest.approx(33) and "| 256 (both by fit) |" in page([both])


def test_step_without_enough_memory_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "free_memory", lambda: 1_000_000_000)
    rows = steps.run("large", "cascaded", (4, 16), 1)
    assert [(row["batch"], row["left_out"].split("about ")[1]) for row in rows] == [
        (4, "6 GB, 1 GB were free"), (16, "14 GB, 1 GB were free"),
    ]  # fmt: skip
    said = document.PAGES["heads"][2](rows)
    assert "| large | cascaded | 16 | skipped |" in said
    assert "Skipped: large cascaded, batch 16; the plain step" in said


def test_keys_of_sizes_and_heads_are_separate() -> None:
    options = run.arguments(["--only", "store", "heads", "--shapes", "large", "--heads", "hybrid", "cascaded_plus"])
    assert run.keys(options) == ["store", "heads_large_hybrid", "heads_large_cascaded_plus"]
    assert run.shown_words(["--only", "store", "--out", "there", "--repeats", "2"]) == [
        "--only",
        "store",
        "--repeats",
        "2",
    ]
    every = run.keys(run.arguments([]))
    assert every[:2] == ["heads_base_parallel", "heads_base_cascaded"] and every.index("epoch") == 10
    assert run.keys(run.arguments(["--document", "x"])) == []  # the page uses the existing results
    assert run.keys(run.arguments(["--document", "x", "--only=startup"])) == ["startup"]


def test_epoch_crops_and_may_end_in_a_smaller_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    import extraction

    seen: list[int] = []
    sizes: list[tuple[int, int]] = []

    class Encoder:
        num_states = 2

        def __call__(self, waves: list[torch.Tensor]) -> Any:
            seen.extend(len(wave) for wave in waves)
            frames = torch.tensor([len(wave) // 320 for wave in waves])
            return torch.randn(len(waves), 2, int(frames.max()), 8), frames

    def loss(model: Any, clip: Any, states: Any, frames: Any, images: Any, groups: Any) -> torch.Tensor:
        sizes.append((len(images), len(groups)))
        return torch.zeros((), requires_grad=True)

    monkeypatch.setattr(extraction, "plain_encoder", lambda *given: Encoder())
    monkeypatch.setattr(parts, "speech_encoder", lambda *given: Encoder())
    monkeypatch.setattr(parts, "lengths", lambda count, seed=0: np.full(count, 15 * 16000))
    monkeypatch.setattr(parts, "model", lambda *given: torch.nn.Linear(1, 1))
    monkeypatch.setattr(parts, "plain_clip", lambda *given: None)
    monkeypatch.setattr(parts, "pixels", lambda shape, batch: torch.zeros(batch, 3, 2, 2))
    monkeypatch.setattr(steps, "updater", lambda model, kind: lambda loss: 0.0)
    monkeypatch.setattr(steps, "plain_loss", loss)
    monkeypatch.setattr(steps, "_our_epoch", lambda *given: lambda: sum(range(100_000)))
    (row,) = steps.epoch("base", ("parallel",), 5, 2, 1)
    assert set(seen) == {102_400} and sizes == [(2, 2), (2, 2), (1, 1)] and row["utterances"] == 5


def test_document_shows_whether_targets_are_met() -> None:
    cases = ([("a", 10.0)], [("a", 9.9)], [("a", 9.0), ("b", 12.3)])
    said = [document._target("x faster", 10, found) for found in cases]
    assert [line.split("**")[1] for line in said] == ["met", "not met", "met for b, not for a"]
    scoring_rows = [
        {"case": case, "images": 9, "utterances": 45, "time": {"plain": n, "ours": 1, "ratio": n, "low": n, "high": n}}
        for case, n in (("scores", 40), ("embeddings", 5))
    ]
    assert "Measured: from scores 40; **met**" in document.PAGES["scoring"][2](scoring_rows)
    started = [{"command": "c", "clock": clock, "processor": 0.1, "ratio": 9.0} for clock in (0.0, 0.4, 0.6)]
    assert "**not met by `c` 0.60 s**" in document.PAGES["startup"][2](started)
    assert "**met by all**" in document.PAGES["startup"][2](started[:2])


def test_document_shows_threads_and_compiling() -> None:
    time = measure.compare({"plain": [1.5], "ours": [2.0]})
    rows: list[dict[str, Any]] = [
        {"case": "threads", "threads": 2, "clock": {"plain": 6.0, "ours": 3.0}},
        {"case": "compiled", "layers": "ours", "failed": "InductorError: no C++ | compiler"},
        {"case": "compiled", "layers": "plain", "build": 33.2, "time": time},
    ]
    said = document.PAGES["extraction"][2](rows)
    assert "| 2 | 6 | 3 | **2** |" in said and "| transformers' | 1.5 | 2 | **0.75** | 33 |" in said
    assert "| ours: not compiled, InductorError: no C++ / compiler |" in said


def test_compiled_records_the_reason_of_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    import extraction

    monkeypatch.setitem(parts.SHAPES, "tiny", parts.Shape("tiny", {"num_hidden_layers": 1}, "", 2, 768))

    def refuse(work: Any, dynamic: bool) -> Any:
        def built() -> None:
            raise RuntimeError("no compiler\nand more")

        return built

    monkeypatch.setattr(torch, "compile", refuse)
    assert [row["failed"] for row in extraction.compiled("tiny", 1)] == ["RuntimeError: no compiler"] * 2


def test_interleaved_rounds_take_turns() -> None:
    order: list[str] = []
    works = {kind: lambda kind=kind: order.append(kind) for kind in ("plain", "ours")}
    times = measure.interleaved(works, 2)
    assert order == ["plain", "ours"] * 3 and len(times["ours"]) == 2  # one round to warm up
    found = measure.compare({"plain": [9.0, 4.0, 6.0], "ours": [3.0, 2.0, 1.0]})
    assert (found["ratio"], found["low"], found["high"], found["plain"], found["ours"]) == (3.0, 2.0, 6.0, 6.0, 2.0)


def test_peak_memory_excludes_earlier_peaks() -> None:
    ballast = np.ones(8_000_000)
    del ballast  # a peak before the function
    assert 38e6 < measure.peak_of(lambda: np.ones(5_000_000)) < 60e6
    assert measure.peak_of(lambda: None) < 5e6


def test_memory_in_child_uses_the_same_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = []

    def started(command: list[str], **options: Any) -> Any:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, '{"peak": 7}', "")

    monkeypatch.setattr(subprocess, "run", started)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert measure.memory_in_child("step", {}) == 7
    assert run.arguments(commands[0][2:]).threads == 3


def test_memory_in_child_raises_for_a_failure() -> None:
    with pytest.raises(RuntimeError, match="unknown function"):
        measure.memory_in_child("no such work", {})


def test_store_compares_with_plain_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(parts.SHAPES, "tiny", parts.Shape("tiny", {}, "", 2, 8))
    (row,) = store.run("tiny", 5, 1)
    assert row["utterances"] == 5 and row["megabytes"]["plain"] > 1.5 * row["megabytes"]["ours"]


def test_startup_runs_every_command() -> None:
    found = startup.commands()
    scripts = {path.stem for path in (ROOT / "speechclip" / "bin").glob("*.py")} - {"__init__"}
    assert {f"speechclip.bin.{name}" for name in scripts} <= found.keys()
    assert {"speechclip.upstream", "tools/doctor", "egs/mini/run.sh"} <= found.keys()
    assert {"tools/measure/count_parameters.py", "tools/measure/kill_runs.py"} <= found.keys()
    assert {f"speechclip {name}" for name in ("report", "index", "search", "serve")} | {"speechclip"} <= found.keys()
    assert {"tools/bench/bench.sh", "tools/bench/search_at_scale.py", "tools/install.sh"} <= found.keys()
    clock, used = startup.spent(["echo", "usage"])
    assert clock > 0 and used >= startup.LEAST  # finer than a tick of os.times, and never zero
    _, busy = startup.spent([sys.executable, "-c", "print('usage'); sum(range(10**7))"])
    assert busy > 0.05
    with pytest.raises(RuntimeError, match="status"):
        startup.spent([sys.executable, "-c", "raise SystemExit(3)"])


def test_tools_help_imports_nothing_heavy() -> None:
    for name, command in startup.commands().items():
        if name.startswith(("tools/", "egs/")) and name.endswith(".py"):
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            listing = [command[0], "-X", "importtime", command[1], "--help"]
            ended = subprocess.run(listing, env=environment, capture_output=True, text=True, timeout=60)
            imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in ended.stderr.splitlines()}
            assert ended.returncode == 0, (name, ended.stderr[-500:])
            assert "argparse" in imported and not imported & {"torch", "transformers", "matplotlib"}, name


def test_mini_reads_the_log_of_the_recipe() -> None:
    log = "stage 0 (download): done in 60 s\n\x1b[1mstage 2 (features): tiny: done in 40 s\x1b[0m\n"
    found = mini.read_log(log + "dump: 100 utterances, 0.50 h of speech, in 20 s\n")
    assert [(row["stage"], row["name"], row["run"], row["share"]) for row in found["stages"]] == [
        (0, "download", "", 0.6), (2, "features", "tiny", 0.4),
    ]  # fmt: skip
    assert found["extraction"]["real_time"] == pytest.approx(90)
    with pytest.raises(ValueError, match="no line"):
        mini.read_log("nothing")
    jobs = "job 1 of 2: dump/tiny/test: 309 utterances, 0.25 h of speech, in 4 s\n"
    assert mini.read_log(jobs + "stage 1 (prepare): done in 1 s\n")["extraction"] is None


def test_judge_names_ratios_below_their_floor() -> None:
    assert check.judge({"a": 2.0, "b": 1.0}, {"a": 2, "b": 1.5}) == ["b: 1.00, at least 1.5 is required"]
    assert check.judge({"a": 2.0}, {"a": 2}) == []
    with pytest.raises(ValueError, match="floors"):
        check.judge({"a": 2.0}, {"b": 2})
    assert json.loads(check.FLOORS.read_text()).keys() == check.CHECKS.keys()


def test_check_tries_again_and_then_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_run_keeps_results_if_a_later_section_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(shape: str, head: str, batches: tuple[int, ...], repeats: int) -> list[dict[str, Any]]:
        if head == "hybrid":
            raise RuntimeError("no memory")
        return [{"shape": shape, "head": head, "batch": batch} for batch in batches]

    monkeypatch.setattr(steps, "run", measured)
    out = tmp_path / "results.json"
    out.write_text(json.dumps({"heads_base_hybrid": {"rows": []}}))
    threads = torch.get_num_threads()
    try:
        with pytest.raises(RuntimeError, match="no memory"):
            run.main(["--only", "heads", "--shapes", "base", "--heads", "cascaded", "hybrid", "--out", str(out)])
    finally:
        torch.set_num_threads(threads)
    held = json.loads(out.read_text())
    assert held["heads_base_hybrid"] == {"rows": []}
    assert [row["batch"] for row in held["heads_base_cascaded"]["rows"]] == [4, 8, 16]
    command = held["heads_base_cascaded"]["command"]
    assert command == "tools/bench/bench.sh --only heads --shapes base --heads cascaded hybrid"


def test_document_shows_an_origin_once() -> None:
    machine = {"processor": "P", "gpu": "", "threads": 1, "cores": 2, "memory_gib": 24, "torch": "2", "python": "3"}
    held = [{"command": c, "commit": "0", "machine": machine | {"load": load}} for c, load in (
        ("a", [0.5, 9, 9]), ("b", []), ("a", [0.25, 9, 9]), ("c", [1.0, 9, 9]),
    )]  # fmt: skip
    one, two, three = document._origins(held)
    assert one == "`a`, commit 0, P, 1 of 2 cores, 24 GiB, torch 2, Python 3, load 0.25 to 0.5 at the start."
    assert two.startswith("`b`") and two.endswith("Python 3.") and three.endswith("load 1.0 at the start.")


def test_benchmarks_page_is_rendered_from_the_results(tmp_path: Path) -> None:
    results = json.loads((ROOT / "tools" / "bench" / "results.json").read_text())
    document.write(results, tmp_path / "page.md", tmp_path / "growth.svg")
    assert (tmp_path / "page.md").read_text() == (ROOT / "BENCHMARKS.md").read_text()
    known = {key for name in document.PAGES for key in document.KEYS.get(name, (name,))}
    assert set(results) <= known
    linked = re.findall(r"!\[[^]]*\]\(([^)]+)\)", (ROOT / "BENCHMARKS.md").read_text())
    assert [name for name in linked if not (ROOT / name).is_file()] == []
    assert bool(linked) == ("growth" in results)


@pytest.mark.slow
def test_a_reranker_is_measured_at_the_size_of_mini() -> None:
    (row,) = rerank.run(images=6, top_k=3, repeats=1)
    assert row["total"] >= row["encode"] + row["fine"] > 0
    count, works = fine_scores._reranker_works(images=3)
    assert count == 6
    torch.testing.assert_close(works["ours"](), works["plain"](), atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_live_memory_of_fake_tensors_is_that_of_real_ones() -> None:
    settings = FastVgsConfig(
        dim=24, heads=2, feed_forward=24, speech_layers=1, speech_layer=1, speech_heads=2, speech_feed_forward=24,
        position_kernel=4, position_groups=2, widths=[8, 8, 24], image_layers=1, cross_layers=1, region_features=8,
    )  # fmt: skip
    step = functools.partial(fine_scores.step, settings, 4, 3, 4)
    fake, real = (live_memory.peak(step, fake=fake) for fake in (True, False))
    assert fake == real
    assert live_memory.peak(functools.partial(fine_scores.step, settings, 8, 3, 4))["peak"] > 1.9 * fake["peak"]

    def known() -> Any:
        held = torch.zeros(1000)

        def work() -> None:
            first = held + 1
            del first
            assert (held * 2 + held).shape == held.shape

        return work

    assert live_memory.peak(known) == {"held": 4000, "peak": 12000}
