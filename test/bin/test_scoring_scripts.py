"""The scripts of stages 4 and 5, with a model with random weights."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures import make_data, store_embeddings, whole_model

from speechclip.bin import score_keywords, score_retrieval
from speechclip.checkpoint.folder import save_checkpoint
from speechclip.data.kaldi import read_table, write_table


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a recipe folder with a cascaded checkpoint, ``best``, and the data and embeddings of train and test."""
    folder = tmp_path_factory.mktemp("scoring")
    model, config = whole_model(folder, "cascaded", eval__bootstrap=20, data__feats="online")
    for name, seed in (("train", 0), ("test", 1)):
        data = make_data(folder / "data" / name, images=6, each=2, seed=seed)
        store_embeddings(data, folder / "dump" / name, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # the checkpoint names its encoders relative to it
        save_checkpoint(Path("best"), model, model.trained_state(), config, {"seed": 0, "trained": 1, "commit": "abc"})
    return folder


@pytest.fixture
def call(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call a script in the recipe folder, as a stage does, and return the scores of that name."""
    monkeypatch.chdir(recipe)

    def run(name: str, *words: str) -> dict[str, Any]:
        options = ["--checkpoint", "best", "--data_dir", "data/test", "--dump_dir", "dump/test", "--out", "scores"]
        script = {"retrieval": score_retrieval, "keywords": score_keywords}[name]
        options += ["--train_data", "data/train"] if name == "keywords" else []
        monkeypatch.setattr(sys, "argv", [f"score_{name}", *options, *words])
        script.main()
        scores: dict[str, Any] = json.loads(Path(f"scores/{name}.json").read_text())
        return scores

    return run


def test_eval_options_override_the_checkpoint(call: Any) -> None:
    own = call("keywords")
    assert list(own["sweep"]["all"]) == ["1", "3", "5", "10"]  # the table has fewer than 20 subwords
    assert "ci95" in own["sweep"]["all"]["1"]
    given = call("keywords", "--eval.sweep", "[1,2,7]", "--eval.bootstrap=0")
    assert list(given["sweep"]["all"]) == ["1", "2", "7"] and "ci95" not in given["sweep"]["all"]["1"]
    assert given["clean"] == own["clean"]
    assert given["settings"] == {**own["settings"], "sweep": [1, 2, 7], "bootstrap": 0}
    assert shlex.split(given["provenance"]["command"])[-3:] == ["--eval.sweep", "[1,2,7]", "--eval.bootstrap=0"]
    assert "ci95" in call("retrieval")["speech->image"]
    assert "ci95" not in call("retrieval", "--eval.bootstrap", "0")["speech->image"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--optim.lr", "1"], "unknown option: --optim.lr (known: "),
        (["--evaluate"], "unknown option: --evaluate"),
        (["--eval.swep", "[1]"], "unknown configuration key 'eval.swep'; did you mean 'eval.sweep'?"),
        (["--eval.sweep", "[0]"], "eval.sweep: [0] is not at least 1"),
        (["--eval.bootstrap"], "eval.bootstrap"),
    ],
)
@pytest.mark.parametrize("name", ["retrieval", "keywords"])
def test_wrong_options_give_one_line(call: Any, name: str, words: list[str], reason: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as end:
        call(name, *words)
    said = capsys.readouterr().err
    assert end.value.code in (1, 2) and said.startswith("error: ") and reason in said and said.count("\n") == 1


def test_help_lists_the_eval_settings(call: Any, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        call("keywords", "--help")
    assert "--eval.sweep" in capsys.readouterr().out


def test_scripts_score_languages(call: Any, recipe: Path, capsys: Any) -> None:
    """With two languages there is a table for each one and across them; ``eval.languages`` selects utterances."""
    ids = list(read_table(recipe / "data/test/text"))
    assert "languages" not in call("retrieval", "--eval.languages=[]")
    for split in ("train", "test"):
        written = dict(zip(read_table(recipe / "data" / split / "text"), ["de"] * 4 + ["en"] * 8, strict=True))
        write_table(recipe / "data" / split / "utt2lang", written)
    try:
        both = call("retrieval")
        assert "de: speech->image" in (said := capsys.readouterr().out) and "speech->speech de->en" in said
        assert both["speech->image"]["n_queries"] == 12 and "languages" not in both["provenance"]
        assert both["languages"]["de"]["speech->image"]["n_queries"] == 4
        assert both["languages"]["en"]["speech->text"]["n_gallery"] == 8
        assert set(both["across_languages"]) == {"de->en", "en->de"}
        german = call("retrieval", "--eval.languages", "[de]")
        assert german["speech->image"]["n_queries"] == 4 and "across_languages" not in german
        assert german["provenance"]["languages"] == ["de"]
        with np.load(recipe / "scores/speech_embeddings.npz") as stored:
            assert stored["ids"].tolist() == ids[:4]
        keywords = call("keywords", "--eval.languages", "[de]")
        assert keywords["n_utterances"]["clean"] == 4
        with pytest.raises(SystemExit):
            call("retrieval", "--eval.languages", "[fr]")
        assert "no utterance in the language 'fr'. Its languages: de en." in capsys.readouterr().err
    finally:
        for split in ("train", "test"):
            (recipe / "data" / split / "utt2lang").unlink()


def test_scripts_use_captions_for_clip(call: Any, recipe: Path) -> None:
    """With ``text_clip`` all captions are equal: records, gold sets and own-caption retrieval follow it."""
    text = read_table(recipe / "data/test/text")
    caption = next(iter(text.values()))
    assert call("retrieval")["random"]["speech->text"]["R@1"] < 50 and len(set(text.values())) > 1
    write_table(recipe / "data/test/text_clip", dict.fromkeys(text, caption))
    try:
        assert call("retrieval")["random"]["speech->text"]["R@1"] == 100
        call("keywords")
        records = [json.loads(line) for line in (recipe / "scores/keywords.jsonl").read_text().splitlines()]
        assert {record["caption"] for record in records} == {caption}
    finally:
        (recipe / "data/test/text_clip").unlink()
