"""The benchmark of large indexes and the load test of the server."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asking import World

from speechclip.data.embeddings import save_embeddings

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tools" / "bench" / "search_at_scale.py"


@pytest.fixture(scope="module")
def bench() -> Any:
    spec = importlib.util.spec_from_file_location("search_at_scale", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_mix_stays_in_the_span_of_the_real_vectors(bench: Any) -> None:
    real = np.linalg.qr(np.random.default_rng(0).standard_normal((12, 5)))[0].T.astype(np.float32)  # 5 in 12 dimensions
    made = bench.mix(real, 300, 1)
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(made @ real.T @ real, made, atol=1e-6)  # noise would leave the span
    assert len(np.unique(made, axis=0)) == 300
    np.testing.assert_array_equal(made, bench.mix(real, 300, 1))
    assert not np.array_equal(made, bench.mix(real, 300, 2))
    assert (np.sort(made @ real.T, axis=1)[:, -1] > 0.5).all()  # near one of the real ones


def test_bench_prints_memory_latency_and_recall(tmp_path: Path) -> None:
    save_embeddings(
        tmp_path / "real.npz", [str(i) for i in range(60)], np.random.default_rng(0).standard_normal((60, 16))
    )
    words = ["--embeddings", "real.npz", "--queries", "real.npz", "--count", "500", "--number", "20", "--threads", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, SCRIPT, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=250
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert re.search(
        r"500 vectors of 16 dimensions, exact, 0 lists\nbuild: \d+ s \(\d+ s of processor time\)", ended.stdout
    )
    rows = [line.strip("| ").split(" | ") for line in ended.stdout.splitlines() if line.startswith("| 0 ")]
    assert [row[1:4] for row in rows] == [["held-out images", "20", "1.000"], ["real", "20", "1.000"]]
    assert all(float(cell) >= 0 for row in rows for cell in row[4:6])  # milliseconds, rounded
    assert list(tmp_path.iterdir()) == [tmp_path / "real.npz"]


@pytest.mark.slow
def test_load_test_passes(world: World) -> None:
    pytest.importorskip("uvicorn", reason="extra 'search' is not installed")
    words = ["--index", world.folder / "idx", "--query", world.query, "--number", "60"]
    ended = subprocess.run(
        [sys.executable, SCRIPT.with_name("search_load.py"), *words, "--idle", "30", "--unfinished", "4"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    assert "good queries: 40 of 40 answered" in ended.stdout
    assert "malformed requests: 20, wrong answers: 0" in ended.stdout and "0 tracebacks, 1 lines" in ended.stdout
