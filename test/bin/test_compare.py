"""speechclip.bin.compare: two systems over their seeds in one test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from speechclip.bin.compare import main
from speechclip.eval.coarse_to_fine import REORDERED
from speechclip.eval.score_files import write_contributions, write_ranks

IMAGES = np.array([0, 0, 1, 1])


def _run(folder: Path, coarse: list[int], fine: list[int]) -> str:
    (folder / "scores").mkdir(parents=True)
    ranks = {name: (np.array(row), IMAGES) for name, row in (("a->b", coarse), (f"a->b{REORDERED}", fine))}
    write_ranks(folder / "scores" / "ranks.npz", ranks, {"test": "x"})
    rows = {"clean": np.stack([np.array(coarse) == 1, np.ones(4)], axis=1)}
    write_contributions(folder / "scores" / "keywords.npz", list("stuv"), ["x", "x", "y", "y"], rows)
    return str(folder)


def test_two_systems_and_two_stages_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = [_run(tmp_path / "a", [1, 1, 1, 9], [1, 1, 1, 1]), _run(tmp_path / "a_seed1", [1, 1, 9, 9], [1, 1, 1, 9])]
    second = [_run(tmp_path / "b", [9, 9, 9, 9], [1, 1, 1, 1]), _run(tmp_path / "b_seed1", [1, 9, 9, 9], [1, 1, 1, 9])]
    main(["--first", *first, "--second", *second, "--permutations", "50"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:5] == ["a->b", "R@1", "62.50", "12.50", "50.00"]
    assert lines[-1].split()[:4] == ["clean", "62.50", "12.50", "50.00"]
    main(["--first", *first, "--permutations", "50"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:5] == ["a->b", "R@1", "87.50", "62.50", "25.00"]
    assert [line.split()[0] for line in lines[1:]] == ["a->b"] * 4 + ["mean"]
    assert max(map(len, lines)) <= 80


def test_compare_needs_as_many_runs_of_both_systems(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--first", "a", "b", "--second", "c"])
    assert "--second: has 1 runs and --first has 2. Give as many" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--first", "a", "--permutations", "0"])
    assert "--permutations: 0 is not at least 1" in capsys.readouterr().err
