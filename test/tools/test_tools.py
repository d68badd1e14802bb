"""The commands in tools/ that measure and count."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"


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
        numbers = [int(n.replace(",", "")) for n in line[39:78].split() if n != "-"]
        found[tuple(part.strip() for part in name)] = (numbers, quoted)
    # by the layers' sizes; Large and SpeechCLIP+ learn a temperature, save COCO's Large Hybrid
    hybrid = 6_057_753 + 1024  # one more [CLS], and the way from it to the embedding
    fire = 4 * 1025 * 1024 + 2 * 1024 + 1025 * (1024 + 768) + 2 * 768 + 1025 + 25  # all but the convolutions
    assert {name: numbers[0] for name, (numbers, _) in found.items()} == {
        ("base", "parallel"): 7_483_917,
        ("base", "cascaded"): 2_771_981,
        ("base", "hybrid"): 2_771_981 + 768 + 769 * 512 + 1,
        ("base", "cascaded_plus"): 4_529_678 + 1,
        ("base", "hybrid_plus"): 4_529_678 + 768 + 769 * 512 + 1,
        ("large", "parallel"): 13_386_521 + 1,
        ("large", "cascaded"): 5_008_153 + 1,
        ("large", "cascaded, two-layer projection"): 6_057_753 + 1,
        ("large", "hybrid, flickr8k"): hybrid + 1025 * 1024 + 1025 * 768 + 1,
        ("large", "hybrid, spokencoco"): hybrid + 1025 * 768,
        ("large", "cascaded_plus, flickr8k"): fire + (3 * 1024 + 1) * 1024 + 1,
        ("large", "cascaded_plus, spokencoco"): fire + 2 * (5 * 1024 + 1) * 1024 + 1,
        ("large", "hybrid_plus"): fire + (3 * 1024 + 1) * 1024 + 1024 + 1025 * 768 + 1,
    }
    assert [name for name, (_, quoted) in found.items() if quoted != "-"] == [
        ("base", "parallel"), ("base", "cascaded"), ("large", "parallel"), ("large", "cascaded, two-layer projection")
    ]  # fmt: skip
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


@pytest.mark.slow
def test_the_dry_run_of_flickr8k_gets_through_every_step(tmp_path: Path) -> None:
    """On a few photographs, with encoders of the real size, in a copy of the recipe that lacks nothing."""
    command = [sys.executable, TOOLS / "dry_run_flickr8k.py", "--out", tmp_path / "dry", "--images", "24"]
    ended = subprocess.run(
        [*map(str, command), "--steps=2", "--batch_size=8", "--embeddings=random", "--seed=1"],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    steps = [line[:34].strip() for line in lines[2:] if not line.startswith(" ")]
    assert steps == [
        "generate", "0, 1 download and prepare", "2 features: CLIP",
        *(f"2 features: HuBERT, {split}" for split in ("train", "dev", "test")),
        "3 train, dump, and score dev", "3 train, online, and score dev",
    ]  # fmt: skip
    assert sum("2 steps of 8 utterances" in line for line in lines) == 2
    states = 0.4 * 50 * 13 * 768 * 2 * 5 * 18 / 1e9  # GB of the training recordings, 0.4 s each in the mean
    assert float(next(line for line in lines if "HuBERT, train" in line).split()[-1]) == pytest.approx(states, rel=0.5)
