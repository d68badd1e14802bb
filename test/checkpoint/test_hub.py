"""Tests of packs: complete, without paths of the machine, loadable elsewhere, pushed only on request."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import wave, whole_model

from speechclip.api import SpeechCLIP
from speechclip.bin.pack import main
from speechclip.checkpoint.folder import save_checkpoint
from speechclip.checkpoint.hub import pack, push
from speechclip.common.errors import UserError

WAVES = [wave(9000, 1), wave(5000, 2)]
ROW = {"R@1": 12.5, "R@5": 50.0, "R@10": 62.25, "MRR": 20.0, "n_queries": 5000, "n_gallery": 1000}


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, SpeechCLIP]:
    """Return a recipe folder with a scored cascaded run. It is the working directory."""
    folder = tmp_path / "somewhere" / "flickr8k"
    model, config = whole_model(folder, "cascaded")
    monkeypatch.chdir(folder)
    origin = {
        "seed": 0,
        "trained": 4321,
        "recipe_command": f"./run.sh --corpus {tmp_path}/secret/corpus",
        "commit": "abc",
    }
    save_checkpoint(Path("exp/x/best"), model, model.trained_state(), config, origin)
    Path("exp/x/scores").mkdir()
    report = {"speech->image": ROW, "provenance": {"command": f"python -m x --data {tmp_path}/secret/data/test"}}
    Path("exp/x/scores/retrieval.json").write_text(json.dumps(report))
    Path("exp/x/scores/keywords.json").write_text(json.dumps({"clean": {"avg": 22.7}, "reference": {"avg": 30.0}}))
    return folder, SpeechCLIP(model)


def test_pack_loads_on_another_machine(recipe: tuple[Path, SpeechCLIP], tmp_path: Path, monkeypatch: Any) -> None:
    folder, model = recipe
    main(["--checkpoint", "exp/x/best", "--scores", "exp/x/scores", "--out", "exp/x/pack"])
    shutil.move(folder / "exp/x/pack", tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(folder)  # no file of the first machine remains
    again = SpeechCLIP.from_pretrained("elsewhere")
    assert torch.equal(again.encode_speech(WAVES), model.encode_speech(WAVES))
    assert again.keywords(WAVES) == model.keywords(WAVES)
    names = {path.name for path in (tmp_path / "elsewhere").iterdir()}
    assert names == {
        "SHA256SUMS",
        "README.md",
        "model.safetensors",
        "config.yaml",
        "provenance.json",
        "vocabulary.tsv",
        "retrieval.json",
        "keywords.json",
        "modules.json",
        "config_sentence_transformers.json",
        "speech_encoder",
        "clip",
    }


def test_card_holds_licences_scores_and_command(recipe: tuple[Path, SpeechCLIP], tmp_path: Path) -> None:
    main(["--checkpoint", "exp/x/best", "--scores", "exp/x/scores", "--out", "exp/x/pack"])
    card = Path("exp/x/pack/README.md").read_text()
    assert card.startswith("---\nlicense: ")
    for text in (
        "Hodosh et al. 2013",
        "Harwath and Glass 2015",
        "HuBERT: ",
        "CLIP: MIT",
        "| speech->image | 12.50 | 50.00 | 62.25 | 5,000 | 1,000 |",
        "clean 22.7",
        "its utterances.",
        "recipe command: `./run.sh --corpus corpus`",
        "4321 trained",
    ):
        assert text in card, text
    for path in Path("exp/x/pack").iterdir():
        if path.is_file() and path.suffix in (".md", ".json", ".yaml"):
            assert str(tmp_path) not in path.read_text(), path
            assert os.sep + "secret" not in path.read_text()


def test_pack_needs_scores(recipe: tuple[Path, SpeechCLIP]) -> None:
    shutil.move("exp/x/scores/retrieval.json", "kept")
    with pytest.raises(UserError, match=r"retrieval.json: is missing"):
        pack("exp/x/best", Path("exp/x/scores"), Path("exp/x/pack"))
    shutil.move("kept", "exp/x/scores/retrieval.json")
    pack("exp/x/best", Path("exp/x/scores"), Path("exp/x/pack"))
    assert "Hodosh" not in Path("exp/x/pack/README.md").read_text()  # no corpus was named


def test_push_reports_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    calls: list[tuple[str, Any]] = []

    class Hub:
        def create_repo(self, name: str, **settings: Any) -> None:
            calls.append((name, settings))
            if name == "someone/else":
                raise RuntimeError("401 Unauthorized\nmore")

        def upload_folder(self, **settings: Any) -> None:
            calls.append(("upload", settings))

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert push(tmp_path, "me/model") == "https://huggingface.co/me/model"
    assert calls == [
        ("me/model", {"private": True, "exist_ok": True}),
        ("upload", {"repo_id": "me/model", "folder_path": str(tmp_path)}),
    ]
    with pytest.raises(UserError, match="someone/else: cannot be pushed to the hub: 401 Unauthorized$"):
        push(tmp_path, "someone/else")
    with pytest.raises(UserError, match="model: not the name of a model on the hub"):
        push(tmp_path, "model")
