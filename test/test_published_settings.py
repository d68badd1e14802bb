"""Published settings by name, in a checkout and in an installed wheel."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from fixtures import wave, whole_model

from speechclip.api import SpeechCLIP
from speechclip.checkpoint.folder import save_checkpoint
from speechclip.common.errors import UserError
from speechclip.config import PUBLISHED_HEADS, PUBLISHED_MODELS, published_config, published_layers, to_dict

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "egs" / "mini" / "models"


def test_published_layers_are_those_of_the_recipes() -> None:
    names = [str(path.relative_to(ROOT / "egs")) for path in published_layers("large", "hybrid", "spokencoco")]
    assert names == [
        "conf/large.yaml",
        "conf/hybrid.yaml",
        "conf/large_hybrid.yaml",
        "spokencoco/conf/large_hybrid.yaml",
    ]
    assert published_config("large", "hybrid", "spokencoco").data.batch_size == 64
    assert published_config("base", "cascaded").model.head.keywords == 8


def test_published_layers_match_the_yaml_files() -> None:
    files = {path.stem for path in (ROOT / "egs" / "conf").glob("*.yaml")}
    assert {*PUBLISHED_MODELS, *PUBLISHED_HEADS} <= files
    assert files <= {
        *PUBLISHED_MODELS,
        *PUBLISHED_HEADS,
        *(f"{model}_{head}" for model in PUBLISHED_MODELS for head in PUBLISHED_HEADS),
        *("mean", "fast_vgs", "reranker"),  # of other papers and of this project
    }


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("small", "parallel"),
            r"no published settings for the model 'small' \(known: base, large\)\. Choose a known one\.$",
        ),
        (
            ("base", "serial"),
            r"no published settings for the head 'serial' \(known: parallel, .*hybrid_plus\)\. Choose a known one\.$",
        ),
        (
            ("base", "large_hybrid"),
            "no published settings for the head 'large_hybrid'",
        ),  # files, but no heads and no models
        (("base", "base"), "no published settings for the head 'base'"),
        (("parallel", "large"), "no published settings for the model 'parallel'"),
        (("large_hybrid", "hybrid"), "no published settings for the model 'large_hybrid'"),
        (("base", ""), "no published settings for the head ''"),
        (("base", "parallel", "places"), "the corpus 'places'"),
    ],
)
def test_published_layers_refuse_unknown_names(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        published_layers(*names)


SCRIPT = """
import sys
from pathlib import Path
import speechclip
from speechclip import SpeechCLIP
from speechclip.config import to_dict
from speechclip.config import published_config, published_layers

assert Path(speechclip.__file__).is_relative_to(sys.prefix), speechclip.__file__
assert all(path.is_relative_to(sys.prefix) for path in published_layers("large", "hybrid", "spokencoco"))
print(to_dict(published_config("large", "hybrid", "spokencoco")))
assert published_config("large", "hybrid", "flickr8k").model.head.parallel_layers == 2
assert published_config("large", "cascaded_plus", "spokencoco").model.head.cif.width == 5
model = SpeechCLIP.from_pretrained("pack")
print(model.encode_speech(["a.wav"]).tolist())
print(model.keywords(["a.wav"], top_k=2)[0][0].subwords)

from speechclip.common.compat import prepare
prepare()
from open_clip.tokenizer import SimpleTokenizer
print(SimpleTokenizer().encode("a dog"))
"""


def build_distributions(folder: Path) -> tuple[Path, Path]:
    """Build the source distribution, and from nothing but it the wheel. Return both files."""
    source = folder / "source"  # a build leaves its folders behind
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, source / name)
    shutil.copytree(ROOT / "speechclip", source / "speechclip", ignore=shutil.ignore_patterns("__pycache__"))
    conf = [str(path.relative_to(ROOT / "egs")) for path in (ROOT / "egs").glob("*/conf")]
    for name in ("conf", *conf, "mini/models"):
        shutil.copytree(ROOT / "egs" / name, source / "egs" / name)
    build = "from setuptools import build_meta as build; import sys; getattr(build, sys.argv[1])(sys.argv[2])"
    dist = folder / "dist"
    subprocess.run([sys.executable, "-c", build, "build_sdist", dist], check=True, capture_output=True, cwd=source)
    (archive,) = dist.glob("speechclip-*.tar.gz")
    shutil.unpack_archive(archive, folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    subprocess.run([sys.executable, "-c", build, "build_wheel", dist], check=True, capture_output=True, cwd=unpacked)
    (wheel,) = dist.glob("speechclip-*.whl")
    return archive, wheel


@pytest.mark.slow
def test_wheel_works_outside_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheel is installed into a new environment, which sees the packages of this one but not the checkout."""
    import soundfile

    files = build_distributions(tmp_path)
    with zipfile.ZipFile(files[1]) as wheel:
        names = set(wheel.namelist())
        (metadata,) = (wheel.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
    shipped = {path.relative_to(MODELS).as_posix() for path in MODELS.rglob("*") if path.is_file()}
    assert names >= {"speechclip/py.typed", *(f"speechclip/mini/{name}" for name in shipped)}
    assert all(f"{key}: " in metadata for key in ("Summary", "Keywords", "License", "Project-URL", "Classifier"))
    assert "Description-Content-Type: text/markdown" in metadata
    if importlib.util.find_spec("twine"):
        check = [sys.executable, "-m", "twine", "check", "--strict", *map(str, files)]
        checked = subprocess.run(check, capture_output=True, text=True)
        assert checked.returncode == 0, checked.stdout + checked.stderr
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True, capture_output=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = ["--python", str(python), "install", "--no-deps", "--no-index", str(files[1])]
    subprocess.run([*pip, *install], check=True, capture_output=True, cwd=tmp_path)
    site = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    (site / "packages.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")

    recipe = tmp_path / "flickr8k"
    network, config = whole_model(recipe, "cascaded")
    model = SpeechCLIP(network)
    monkeypatch.chdir(recipe)
    save_checkpoint(Path("exp/x/best"), network, network.trained_state(), config, {"seed": 0})
    Path("exp/x/scores").mkdir()
    Path("exp/x/scores/retrieval.json").write_text("{}")
    from speechclip.checkpoint.hub import pack

    elsewhere = tmp_path / "elsewhere"
    pack("exp/x/best", Path("exp/x/scores"), elsewhere / "pack")
    soundfile.write(elsewhere / "a.wav", wave(9000, 1), 16000, subtype="FLOAT")
    expected = model.encode_speech([str(elsewhere / "a.wav")])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    run = subprocess.run([python, "-c", SCRIPT], cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    settings, embedding, subwords, ids = run.stdout.splitlines()
    assert settings == str(to_dict(published_config("large", "hybrid", "spokencoco")))
    assert embedding == str(expected.tolist())
    assert subwords == str(model.keywords([str(elsewhere / "a.wav")], top_k=2)[0][0].subwords)
    assert ids == "[320, 1929]"

    site_mini = next((tmp_path / "venv" / "lib").glob("python*/site-packages/speechclip/mini"))
    search = [
        tmp_path / "venv" / "bin" / "speechclip",
        "search",
        "--index",
        site_mini / "demo" / "index",
        "--json",
        "--top_k=1",
    ]
    queries = sorted((site_mini / "demo" / "queries").iterdir())
    run = subprocess.run([*search, *queries], cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert [json.loads(line)["results"][0]["id"][:4] for line in run.stdout.splitlines()] == ["test"] * 6
