"""Tests of checkpoint folders: equal after loading, one line for each problem, safe against kills."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import JOINT, STATES, WIDTH, make_data, save_hubert, wave, whole_model
from safetensors.torch import load_file, save_file

from speechclip.api import SpeechCLIP
from speechclip.checkpoint.folder import (
    PROVENANCE,
    SETTINGS,
    VOCABULARY,
    WEIGHTS,
    find_checkpoint,
    load_model,
    read_checkpoint,
    save_checkpoint,
)
from speechclip.common import provenance as provenance_module
from speechclip.common.errors import UserError
from speechclip.common.files import SUMS, replace_folder
from speechclip.common.provenance import fingerprint, provenance

HEADS = ("parallel", "cascaded", "hybrid_plus")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, SpeechCLIP]]:
    """Return a recipe folder with a checkpoint of each head, exp/<head>/best, with relative encoder paths."""
    folder = tmp_path_factory.mktemp("recipe")
    models, before = {}, Path.cwd()
    for head in HEADS:
        model, config = whole_model(folder, head)
        os.chdir(folder)
        try:
            save_checkpoint(Path("exp") / head / "best", model, model.trained_state(), config, {"seed": 0})
        finally:
            os.chdir(before)
        models[head] = SpeechCLIP(model)
    return folder, models


WAVES = [wave(9000, 1), wave(5000, 2)]


@pytest.mark.parametrize("head", HEADS)
def test_loaded_model_equals_saved_after_move(
    recipe: tuple[Path, dict[str, SpeechCLIP]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    folder, models = recipe
    expected = models[head].encode_speech(WAVES)
    monkeypatch.chdir(folder)
    assert torch.equal(SpeechCLIP.from_pretrained(f"exp/{head}/best").encode_speech(WAVES), expected)
    monkeypatch.chdir(tmp_path)
    elsewhere = SpeechCLIP.from_pretrained(folder / "exp" / head / "best")
    assert torch.equal(elsewhere.encode_speech(WAVES), expected)
    assert not elsewhere.network.training
    assert torch.equal(elsewhere.encode_text(["red dog"]), models[head].encode_text(["red dog"]))
    shutil.copytree(folder, tmp_path / "moved")  # the recipe moves with its encoders
    monkeypatch.chdir(tmp_path / "moved" / "exp")
    assert torch.equal(SpeechCLIP.from_pretrained(f"{head}/best").encode_speech(WAVES), expected)
    if head != "parallel":
        assert elsewhere.keywords(WAVES) == models[head].keywords(WAVES)
        assert elsewhere.network.vocabulary == models[head].network.vocabulary


def test_checkpoint_holds_weights_and_provenance(
    recipe: tuple[Path, dict[str, SpeechCLIP]],
) -> None:
    folder, models = recipe
    for head in HEADS:
        names = {path.name for path in (folder / "exp" / head / "best").iterdir()}
        assert names == {WEIGHTS, SETTINGS, PROVENANCE, SUMS} | ({VOCABULARY} if head != "parallel" else set())
        stored = load_file(folder / "exp" / head / "best" / WEIGHTS)
        assert {name.split(".")[0] for name in stored} == {"weighted_sum", "head", "loss"}
        assert stored.keys() == models[head].network.trained_state().keys()
        _, config, origin = read_checkpoint(folder / "exp" / head / "best")
        assert config.model.head.name == head
        assert config.model.speech_encoder.path == "models/hubert0"
        assert origin["dimensions"] == {"speech": WIDTH, "states": STATES, "joint": JOINT}
        assert origin["seed"] == 0
        assert set(origin["encoders"]) == {"speech_encoder", "clip"}
        assert origin["recipe"] == os.path.relpath(folder, folder / "exp" / head / "best")


def test_load_model_can_omit_frozen_parts(recipe: tuple[Path, dict[str, SpeechCLIP]]) -> None:
    folder, _ = recipe
    model = load_model(folder / "exp" / "parallel" / "best", with_speech_encoder=False, with_clip=False)
    assert model.speech_encoder is None
    assert model.clip is None
    with pytest.raises(UserError, match="needs the speech encoder, which is not loaded"):
        SpeechCLIP(model).encode_speech(WAVES)
    with pytest.raises(UserError, match="needs CLIP itself"):
        SpeechCLIP(model).encode_text("dog")
    cascaded = load_model(folder / "exp" / "cascaded" / "best", with_speech_encoder=False, with_clip=False)
    assert cascaded.clip is not None  # a head with keywords needs it


def _edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    origin = json.loads((folder / PROVENANCE).read_text())
    change(origin)
    (folder / PROVENANCE).write_text(json.dumps(origin))


def _weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    (folder / SUMS).unlink()  # so that the checksum is not the first error
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _replace(path: Path, old: str, new: str) -> None:
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def _last_line(folder: Path) -> None:
    """Cut the vocabulary at the end of a line. Every remaining line is valid."""
    lines = (folder / VOCABULARY).read_text().splitlines(keepends=True)
    (folder / VOCABULARY).write_text("".join(lines[:-1]))


def _other_encoder(folder: Path) -> None:
    shutil.rmtree(folder.parents[2] / "models" / "hubert0")
    save_hubert(folder.parents[2] / "models" / "hubert0", seed=99)


def _wider_encoder(folder: Path) -> None:
    shutil.rmtree(folder.parents[2] / "models" / "hubert0")
    save_hubert(folder.parents[2] / "models" / "hubert0", width=48)
    _edit(folder, lambda origin: origin.pop("encoders"))  # so that the fingerprint is not the first error


DAMAGE: list[tuple[str, str, Callable[[Path], Any], str]] = [
    ("nothing", "parallel", lambda f: shutil.rmtree(f), f"best/{WEIGHTS}: is missing"),
    ("cut_weights", "parallel", lambda f: _cut(f / WEIGHTS), f"{WEIGHTS}: damaged or truncated"),
    ("no_provenance", "parallel", lambda f: (f / PROVENANCE).unlink(), f"{PROVENANCE}: is missing"),
    ("cut_provenance", "parallel", lambda f: _cut(f / PROVENANCE), f"{PROVENANCE}: not valid JSON"),
    ("list_provenance", "parallel", lambda f: (f / PROVENANCE).write_text("[]"), f"{PROVENANCE}: a JSON object is"),
    ("empty_provenance", "parallel", lambda f: (f / PROVENANCE).write_text("{}"), f"{PROVENANCE}: damaged: dimensions"),
    (
        "odd_dimensions", "parallel", lambda f: _edit(f, lambda o: o["dimensions"].update(depth=3)),
        f"{PROVENANCE}: damaged: dimensions",
    ),
    ("no_settings", "parallel", lambda f: (f / SETTINGS).unlink(), f"{SETTINGS}: is missing"),
    ("settings", "parallel", lambda f: _replace(f / SETTINGS, "dropout", "dropuot"), "unknown configuration key"),
    ("cut_vocabulary", "cascaded", _last_line, f"{VOCABULARY}: "),
    ("no_vocabulary", "cascaded", lambda f: (f / VOCABULARY).unlink(), f"best/{VOCABULARY}: is missing"),
    (
        "dimension", "parallel", lambda f: _edit(f, lambda o: o["dimensions"].update(joint=JOINT + 1)),
        f"projection.weight is [{JOINT}, {WIDTH}], but this model needs [{JOINT + 1}, {WIDTH}]: a checkpoint for",
    ),
    ("head", "parallel", lambda f: _replace(f / SETTINGS, "name: parallel", "name: cascaded"), VOCABULARY),
    ("other", "cascaded", lambda f: _replace(f / SETTINGS, "name: cascaded", "name: parallel"), "head.cls is [3, "),
    ("missing_tensor", "parallel", lambda f: _weights(f, lambda t: t.pop("head.cls")), "tensor head.cls is missing"),
    (
        "unknown_tensor", "parallel", lambda f: _weights(f, lambda t: t.update({"head.extra": torch.ones(1)})),
        "the tensor head.extra is unknown: a checkpoint of another head",
    ),
    ("encoder", "parallel", _other_encoder, "trained with another speech_encoder than"),
    ("wider", "parallel", _wider_encoder, f"needs speech features of {WIDTH} dimensions"),
    (
        "no_encoder", "parallel", lambda f: shutil.rmtree(f.parents[2] / "models" / "hubert0"),
        "models/hubert0: the folder is missing, and as a hub id it is not readable",
    ),
    ("no_clip", "cascaded", lambda f: shutil.rmtree(f.parents[2] / "models" / "clip"), "models/clip: no such folder"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "head", "damage", "message"), DAMAGE, ids=[row[0] for row in DAMAGE])
def test_load_model_names_problem_in_one_line(
    recipe: tuple[Path, dict[str, SpeechCLIP]],
    tmp_path: Path, name: str, head: str, damage: Callable[[Path], Any], message: str,
) -> None:  # fmt: skip
    shutil.copytree(recipe[0], tmp_path / "recipe")
    folder = tmp_path / "recipe" / "exp" / head / "best"
    damage(folder)
    with pytest.raises(UserError) as caught:
        load_model(folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def _text(folder: Path, text: str) -> Callable[[Path], Any]:
    return lambda part: (part / WEIGHTS).write_text(text)


def test_replace_folder_keeps_old_one_on_full_disk(tmp_path: Path) -> None:
    target = tmp_path / "last"
    replace_folder(target, _text(target, "old"))

    def full(part: Path) -> None:
        (part / WEIGHTS).write_text("half of the n")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UserError, match=f"^{target}: disk full while writing"):
        replace_folder(target, full)
    assert (target / WEIGHTS).read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["last"]
    replace_folder(target, _text(target, "new"))
    assert (target / WEIGHTS).read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_replace_folder_syncs_before_rename(tmp_path: Path, synced: list[Path]) -> None:
    def write(part: Path) -> None:
        (part / "inside").mkdir()
        (part / "inside" / "a").write_text("a")
        (part / WEIGHTS).write_text("b")

    replace_folder(tmp_path / "last", write)
    part = tmp_path / "last.part"  # its name at that time
    assert set(synced[:-2]) == {part / WEIGHTS, part / SUMS, part / "inside", part / "inside" / "a"}
    assert synced.index(part / "inside" / "a") < synced.index(part / "inside")
    assert synced[-2:] == [part, tmp_path]


@pytest.mark.parametrize("at", [0, 1])
def test_replace_folder_survives_kill_at_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    target = tmp_path / "last"
    replace_folder(target, _text(target, "old"))
    plain, seen = Path.rename, []

    def rename(self: Path, other: Path) -> Path:
        seen.append(other)
        if len(seen) == at + 1:
            raise KeyboardInterrupt
        return plain(self, other)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            replace_folder(target, _text(target, "new"))
    found = find_checkpoint(target)
    assert found is not None
    assert found.name == ("last", "last.old")[at]
    assert (found / WEIGHTS).read_text() == "old"
    replace_folder(target, _text(target, "newer"))
    assert find_checkpoint(target) == target
    assert (target / WEIGHTS).read_text() == "newer"
    assert [path.name for path in tmp_path.iterdir()] == ["last"]
    assert find_checkpoint(tmp_path / "none") is None


def test_provenance_holds_origin_of_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_data(tmp_path / "train", images=2, each=1)
    monkeypatch.setenv("SPEECHCLIP_RECIPE_COMMAND", "./run.sh --head parallel")
    facts = provenance(command=["python", "-m", "x"], seed=4, data=[tmp_path / "train"])
    assert (facts["command"], facts["recipe_command"], facts["seed"]) == ("python -m x", "./run.sh --head parallel", 4)
    assert {"torch", "transformers", "open-clip-torch", "lightning-fabric", "python"} <= set(facts["versions"])
    assert facts["data"] == {"train": fingerprint(tmp_path / "train")}
    before = fingerprint(tmp_path / "train")
    text = tmp_path / "train" / "text"
    text.write_text(text.read_text() + "\n")
    assert fingerprint(tmp_path / "train") != before


def test_commit_ignores_changed_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "clone"
    (root / "speechclip" / "common").mkdir(parents=True)
    (root / "egs" / "mini").mkdir(parents=True)
    for name in ("speechclip/common/provenance.py", "egs/mini/RESULTS.md", "egs/mini/run.sh"):
        (root / name).write_text("one")
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.setattr(provenance_module, "__file__", str(root / "speechclip" / "common" / "provenance.py"))
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert provenance_module.commit() == head[:12]
    (root / "egs/mini/RESULTS.md").write_text("two")
    (root / "new").write_text("untracked")
    assert provenance_module.commit() == head[:12]
    (root / "egs/mini/run.sh").write_text("two")
    assert provenance_module.commit() == f"{head[:12]}-dirty"
