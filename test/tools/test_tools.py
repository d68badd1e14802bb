"""The scripts of tools/ that count, measure, check and draw."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from browser import find_chromium

TOOLS = Path(__file__).resolve().parents[2] / "tools"


def output_of(
    name: str, options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    monkeypatch.setattr(sys, "argv", [name, *options])
    runpy.run_path(str(TOOLS / name), run_name="__main__")
    return capsys.readouterr().out


def test_count_parameters_prints_the_numbers_of_the_papers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = output_of("measure/count_parameters.py", [], monkeypatch, capsys).splitlines()[1:]
    found = {}
    for line in lines:
        name, quoted = line[:39].split(maxsplit=1), line[78:].strip()
        numbers = [int(n.replace(",", "")) for n in line[39:78].split() if n != "-"]
        found[tuple(part.strip() for part in name)] = (numbers, quoted)
    # computed from the sizes of the layers; Large and SpeechCLIP+ learn a temperature, COCO's Large Hybrid does not
    hybrid = 6_057_753 + 1024  # one more [CLS]; the layers from it to the embedding follow
    layer = 1025 * 4096 + 4097 * 1024 + 2 * 2 * 1024  # feed-forward and two LayerNorms of its transformer layer
    fire = 4 * 1025 * 1024 + 2 * 1024 + 1025 * (1024 + 768) + 2 * 768 + 1025 + 25  # without the convolutions
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
        ("large", "hybrid, spokencoco"): hybrid + 1025 * 768 + layer,
        ("large", "cascaded_plus, flickr8k"): fire + (3 * 1024 + 1) * 1024 + 1,
        ("large", "cascaded_plus, spokencoco"): fire + 2 * (5 * 1024 + 1) * 1024 + 1,
        ("large", "hybrid_plus"): fire + (3 * 1024 + 1) * 1024 + 1024 + 1025 * 768 + 1,
    }
    assert [name for name, (_, quoted) in found.items() if quoted != "-"] == [
        ("base", "parallel"), ("base", "cascaded"), ("large", "parallel"), ("large", "cascaded, two-layer projection")
    ]  # fmt: skip
    for numbers, quoted in found.values():
        if quoted != "-":  # trained: one decimal; total: truncated to whole millions
            assert quoted == f"{numbers[0] / 1e6:.1f} of {numbers[2] // 1_000_000}"


@pytest.mark.parametrize("sizes", [("300", "40"), ("40", "300")])
def test_measure_scoring_checks_its_ranks(
    sizes: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--queries", sizes[0], "--gallery", sizes[1], "--dim", "6", "--only", "35"]
    out = output_of("measure/measure_scoring.py", options, monkeypatch, capsys)
    assert "35 queries in" in out and "s for all; peak memory" in out
    assert "35 of 35 ranks equal those counted in integers" in out


@pytest.mark.slow
def test_dry_run_flickr8k_completes_every_step(tmp_path: Path) -> None:
    """A few photographs, encoders of the real size, and a complete copy of the recipe are used."""
    command = [sys.executable, TOOLS / "measure" / "dry_run_flickr8k.py", "--out", tmp_path / "dry", "--images", "24"]
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
    states = 0.4 * 50 * 13 * 768 * 2 * 5 * 18 / 1e9  # GB of the training recordings, 0.4 s each on average
    assert float(next(line for line in lines if "HuBERT, train" in line).split()[-1]) == pytest.approx(states, rel=0.5)


def test_screenshots_draws_a_valid_architecture(tmp_path: Path) -> None:
    command = [sys.executable, str(TOOLS / "screenshots.py"), "--only", "architecture", "--out", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    drawn = (tmp_path / "architecture.svg").read_bytes()
    assert drawn == (TOOLS.parent / "egs" / "mini" / "figures" / "architecture.svg").read_bytes()
    texts = ["".join(node.itertext()) for node in ElementTree.fromstring(drawn).iter() if node.tag.endswith("text")]
    assert {"HuBERT", "weighted sum", "quantizer", "parallel branch", "cascaded branch", "contrastive"} <= set(texts)


@pytest.mark.slow
@pytest.mark.browser
def test_screenshots_draws_every_picture(tmp_path: Path) -> None:
    from PIL import Image

    find_chromium()  # skips without a browser
    command = [sys.executable, str(TOOLS / "screenshots.py"), "--out", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert ended.returncode == 0, ended.stderr
    assert {path.name for path in tmp_path.iterdir()} == {
        "architecture.svg", "retrieval.png", "keywords.png", "search_page.png"
    }  # fmt: skip
    for name in ("retrieval", "keywords", "search_page"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.width >= 1000
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 500  # not an empty page


def test_doctor_finds_a_missing_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    doctor = runpy.run_path(str(TOOLS / "doctor.py"), run_name="doctor")
    shutil.copytree(TOOLS.parent / "egs" / "mini" / "models", tmp_path / "egs" / "mini" / "models")
    (tmp_path / "egs" / "mini" / "models" / "hybrid" / "config.yaml").unlink()
    monkeypatch.setitem(doctor["check_files"].__globals__, "ROOT", tmp_path)
    doctor["check_files"]()
    assert doctor["problems"] == ["egs/mini/models/hybrid/config.yaml"]


WRONG = {
    "page.md": ("The disk has no room and nobody is told.\n", ["1: 'nobody'", "1: 'is told'"]),  # language: ok
    "module.py": ('"""What a module does."""\n', ["1: a docstring starts with 'What'"]),
    "test_x.py": (f"def test_{'x' * 60}() -> None: ...\n", ["1: test_xxx"]),
    "right.md": ("The index stores a fingerprint.\n", []),
    "quoted.md": ("An example: nobody.  <!-- language: ok -->\n", []),
}


@pytest.mark.parametrize("name", WRONG)
def test_check_language_finds_what_breaks_the_rules(name: str, tmp_path: Path) -> None:
    text, expected = WRONG[name]
    (tmp_path / name).write_text(text, encoding="utf-8")
    command = [sys.executable, str(TOOLS / "check_language.py"), str(tmp_path / name)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == bool(expected)
    lines = ended.stdout.splitlines()[:-1]
    assert sorted(
        line.split(f"{name}:")[1][: len(start)] for line, start in zip(lines, sorted(expected), strict=True)
    ) == (sorted(expected))
