"""The commands in tools/ that measure and count."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[1] / "tools"


def output_of(
    name: str, options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    monkeypatch.setattr(sys, "argv", [name, *options])
    runpy.run_path(str(TOOLS / name), run_name="__main__")
    return capsys.readouterr().out


def test_parameters_are_the_papers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = output_of("count_parameters.py", [], monkeypatch, capsys).splitlines()[1:]
    found = {}
    for line in lines:
        name, quoted = line[:39].split(maxsplit=1), line[78:].strip()
        found[tuple(part.strip() for part in name)] = ([int(n.replace(",", "")) for n in line[39:78].split()], quoted)
    assert {name: numbers[0] for name, (numbers, _) in found.items()} == {
        ("base", "parallel"): 7_483_917,
        ("base", "cascaded"): 2_771_981,
        ("large", "parallel"): 13_386_521 + 1,
        ("large", "cascaded"): 5_008_153 + 1,
        ("large", "cascaded, two-layer projection"): 6_057_753 + 1,
    }
    for numbers, quoted in found.values():
        if quoted != "-":  # trained to one decimal, the total cut to whole millions
            assert quoted == f"{numbers[0] / 1e6:.1f} of {numbers[2] // 1_000_000}"


@pytest.mark.parametrize("sizes", [("300", "40"), ("40", "300")])
def test_scoring_is_measured_and_checked(
    sizes: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--queries", sizes[0], "--gallery", sizes[1], "--dim", "6", "--only", "35"]
    out = output_of("measure_scoring.py", options, monkeypatch, capsys)
    assert "35 queries in" in out and "s for all; peak memory" in out
    assert "35 of 35 ranks equal those counted in integers" in out
