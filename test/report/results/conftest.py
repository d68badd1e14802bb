"""The fixture of the tests of tables: scored runs with round numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from result_runs import Make, write_run

from speechclip.report.runs import Run


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write a run into exp/ and load it: see :func:`result_runs.write_run`."""

    def make_run(name: str, r1: float, seed: int | None = 0, **options: Any) -> Run:
        return write_run(tmp_path / "exp" / name, r1, seed, **options)

    return make_run
