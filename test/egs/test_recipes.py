"""Rules that every recipe and every shell file follow."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted(path.parent for path in (ROOT / "egs").glob("*/run.sh"))
CORPORA = [path for path in RECIPES if "utils/driver.sh" in (path / "run.sh").read_text()]


def shell_files() -> list[Path]:
    """Return all shell files of the repository, with or without the suffix."""
    files = [
        path for folder in ("egs", "utils", "tools", ".ci") for path in (ROOT / folder).rglob("*") if path.is_file()
    ]
    kept = [
        path for path in files if "venv" not in path.parts and "corpus" not in path.parts and path.stat().st_size < 1e5
    ]
    return [path for path in kept if path.suffix == ".sh" or path.read_bytes()[:20].startswith(b"#!/usr/bin/env bash")]


def test_recipes_are_found():
    assert {"mini", "flickr8k"} <= {path.name for path in CORPORA}
    assert {path.name for path in RECIPES} - {path.name for path in CORPORA} == {"superb"}
    assert len(shell_files()) > 15


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_run_is_a_table_of_contents(recipe: Path):
    text = (recipe / "run.sh").read_text()
    assert len(text.splitlines()) <= 40
    told = re.findall(r"^#   stage (\d)  (\w+) ", text, re.MULTILINE)
    if recipe not in CORPORA:
        assert [stage for stage, _ in told] == ["0", "1", "2"]
        return
    steps: dict[str, str] = {}  # a stage is named after its first step
    for stage, step in re.findall(r"^ +.*\bstep (\d) (\w+)", (ROOT / "utils/driver.sh").read_text(), re.MULTILINE):
        steps.setdefault(stage, step)
    assert told == list(steps.items())


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_help_of_every_recipe(recipe: Path):
    result = subprocess.run(
        [f"egs/{recipe.name}/run.sh", "--help"],  # from another folder than the recipe's
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={"PATH": "/usr/bin:/bin", "SPEECHCLIP_PYTHON": sys.executable},
    )
    assert result.returncode == 0, result.stderr
    assert max(map(len, result.stdout.splitlines())) <= 80
    for name in ("stage", "stop_stage", *(("model", "head") if recipe in CORPORA else ("task", "upstream"))):
        assert f"\n  --{name} " in result.stdout


@pytest.mark.parametrize("recipe", CORPORA, ids=lambda path: path.name)
def test_every_model_and_head_has_a_configuration(recipe: Path):
    text = (recipe / "run.sh").read_text()
    for kind in ("models", "heads"):
        found = re.search(rf'^{kind}="([^"]+)"', text, re.MULTILINE)
        assert found is not None
        for name in found.group(1).split():
            files = [ROOT / "egs" / "conf" / f"{name}.yaml", recipe / "conf" / f"{name}.yaml"]
            assert any(path.is_file() for path in files), f"no conf/{name}.yaml"


PLUS = ("hybrid", "cascaded_plus", "hybrid_plus")


class Setting(NamedTuple):
    """The settings in which published models differ. projection, parallel: linear layers. cif: convolutions, width."""

    heads: int
    projection: int = 1
    state_norm: bool = False
    learned: bool = False
    batch: int = 256
    parallel: int = 1
    cif: tuple[int, int] = (1, 3)
    weights: tuple[float, float] = (1.0, 1.0)  # of the parallel and of the cascaded branch


#: Shih et al. 2022; Wang et al. 2024, as the authors' configuration files have them (ShampooWang/SpeechCLIP_plus,
#: config/speechCLIP+).
PUBLISHED = {
    ("flickr8k", "base", "parallel"): Setting(8),
    ("flickr8k", "base", "cascaded"): Setting(1),
    ("flickr8k", "large", "parallel"): Setting(8, state_norm=True, learned=True),
    ("flickr8k", "large", "cascaded"): Setting(1, state_norm=True, learned=True),
    ("spokencoco", "large", "parallel"): Setting(8, state_norm=True, learned=True),
    ("spokencoco", "large", "cascaded"): Setting(1, state_norm=True, learned=True),
    ("flickr8k", "base", "hybrid"): Setting(1, learned=True),
    ("flickr8k", "base", "cascaded_plus"): Setting(1, learned=True),
    ("flickr8k", "base", "hybrid_plus"): Setting(8, learned=True),
    ("flickr8k", "large", "hybrid"): Setting(1, 2, state_norm=True, learned=True, parallel=2),
    ("flickr8k", "large", "cascaded_plus"): Setting(8, 2, learned=True, batch=128),
    ("flickr8k", "large", "hybrid_plus"): Setting(8, 2, learned=True, batch=128, weights=(0.5, 1.5)),
    ("spokencoco", "large", "hybrid"): Setting(1, 2, state_norm=True, batch=64),
    ("spokencoco", "large", "cascaded_plus"): Setting(8, 2, learned=True, batch=128, cif=(2, 5)),
    ("spokencoco", "large", "hybrid_plus"): Setting(8, 2, learned=True, batch=128),
}


def test_the_fifteen_published_models_have_their_settings():
    assert len(PUBLISHED) == 15 and sum(head in PLUS for _, _, head in PUBLISHED) == 9


@pytest.mark.parametrize(("corpus", "model", "head"), sorted(PUBLISHED))
def test_published_settings(corpus: str, model: str, head: str):
    from speechclip.config import published_config

    config = published_config(model, head, corpus)
    settings, encoder = config.model.head, config.model.speech_encoder
    assert settings.name == head
    cif, loss = settings.cif, config.model.loss
    assert PUBLISHED[corpus, model, head] == Setting(
        settings.attention_heads, settings.projection_layers, encoder.state_norm, loss.learn_temperature,
        config.data.batch_size, settings.parallel_layers, (cif.layers, cif.width),
        (loss.parallel_weight, loss.cascaded_weight),
    )  # fmt: skip
    assert (cif.frames_per_keyword, cif.dropout, cif.scaling_steps) == (20, 0.5, 5000)
    assert (cif.tail_threshold, cif.max_keywords, loss.quantity_weight) == (0.5, 75, 0.25)
    assert encoder.normalize is (model == "large")
    assert (settings.keywords, settings.quantizer_temperature, settings.dropout) == (8, 0.1, 0.1)
    assert (loss.temperature, config.data.max_seconds) == (0.07, 6.4)
    optim = config.optim
    assert (optim.algorithm, optim.lr, optim.final_lr, optim.weight_decay) == ("adam", 1e-4, 1e-8, 1e-6)
    assert (optim.warmup_steps, optim.max_steps, optim.clip_norm, optim.ema_decay) == (5000, 50000, 4.0, 0.0)
    assert config.model.clip.path == {"base": "ViT-B-32-quickgelu:openai", "large": "ViT-L-14-quickgelu:openai"}[model]


@pytest.mark.parametrize("recipe", CORPORA, ids=lambda path: path.name)
def test_stage_0_checks_files_of_the_download(recipe: Path):
    """The stamp names small files of the download. Hashing folders of recordings would take too long."""
    from speechclip.data.corpora.registry import corpus_names, find_corpus

    found = re.search(r'^downloaded="([^"]+)"', (recipe / "run.sh").read_text(), re.MULTILINE)
    assert found is not None
    if recipe.name in corpus_names():
        leaves = {f"corpus/{leaf}" for remote in find_corpus(recipe.name).sources for leaf in remote.leaves}
        assert set(found.group(1).split()) <= {*leaves, "corpus/.complete"}
        assert not re.search("wavs|train2014|val2014/|Flicker8k_Dataset", found.group(1))


@pytest.mark.parametrize("recipe", CORPORA, ids=lambda path: path.name)
def test_every_recipe_has_the_plus_heads(recipe: Path):
    found = re.search(r'^heads="([^"]+)"', (recipe / "run.sh").read_text(), re.MULTILINE)
    assert found is not None
    assert set(PLUS) < set(found.group(1).split())


def test_no_symlinks():
    listed = subprocess.run(["git", "ls-files", "-s"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    assert [line for line in listed.splitlines() if line.startswith("120000")] == []


def test_shellcheck():
    shellcheck = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    result = subprocess.run([shellcheck, "-x", *shell_files()], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_scripts_stop_at_the_first_error():
    for path in shell_files():
        text = path.read_text()
        if text.startswith("#!"):
            assert re.search(r"^set -e?uo pipefail$", text, re.MULTILINE), path


@pytest.mark.parametrize(
    ("options", "status", "told"),
    [
        (["--help"], 0, "--extras"),
        (
            ["--extras", "everything"],
            2,
            "unknown extra 'everything' (known: s3prl fairseq search asr mteb regions dev)",
        ),
        (["--device", "tpu"], 2, "known: auto cpu cuda"),
        (
            ["--python", "no_such_python", "--venv", "/nonexistent/venv"],
            1,
            "no Python 3.10, 3.11 or 3.12 runs as: no_such_python",
        ),
        (["--pyton", "x"], 2, "did you mean --python?"),
    ],
)
def test_install_options(options: list[str], status: int, told: str):
    result = subprocess.run(
        [ROOT / "tools/install.sh", *options], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == status
    assert told in result.stdout + result.stderr
    if status:
        assert len(result.stderr.splitlines()) == 1


def test_install_keeps_a_folder_that_is_not_an_environment(tmp_path: Path):
    (tmp_path / "precious").write_text("x")
    result = subprocess.run(
        [ROOT / "tools/install.sh", "--venv", tmp_path], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 1
    assert "not a virtual environment" in result.stderr
    assert (tmp_path / "precious").read_text() == "x"


def test_path_names_the_install_command(tmp_path: Path):
    shutil.copytree(ROOT / "utils", tmp_path / "utils")
    result = subprocess.run(
        ["bash", "-c", ". utils/path.sh"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr == f"error: no Python environment found. Run {tmp_path}/tools/install.sh\n"


def test_doctor_reports_a_missing_environment(tmp_path: Path):
    shutil.copytree(ROOT / "utils", tmp_path / "utils")
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools/doctor", tmp_path / "tools/doctor")
    result = subprocess.run(
        [tmp_path / "tools/doctor"], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert result.stdout.startswith("MISSING")
    assert "tools/install.sh" in result.stdout
