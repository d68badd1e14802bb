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

from speechclip.bin import score_keywords, score_retrieval, score_spotting
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
        script = {"retrieval": score_retrieval, "keywords": score_keywords, "spotting": score_spotting}[name]
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


def test_retrieval_is_scored_in_windows_on_request(call: Any) -> None:
    whole = call("retrieval", "--eval.bootstrap", "0")
    assert "windows" not in whole
    long = call("retrieval", "--eval.bootstrap", "0", "--eval.window_seconds", "60")
    assert long["windows"]["windows"] == 12  # one window each: the same scores
    assert long["windows"]["speech->image"] == whole["speech->image"] == long["speech->image"]
    short = call("retrieval", "--eval.bootstrap", "0", "--eval.window_seconds", "0.2", "--eval.window_hop", "0.1")
    assert short["windows"]["windows"] > 12 and set(short["windows"]["speech->image"]) == set(whole["speech->image"])


def test_spotting_ranks_utterances_by_keywords(call: Any) -> None:
    text = read_table("data/test/text")
    words = sorted({word for caption in text.values() for word in caption.split()})[:5]
    Path("words.txt").write_text("\n".join(words))
    ids = sorted(read_table("data/train/wav.scp"))
    lines = [f"{name} 1 0.{at % 3} 0.1 {words[at % 2].upper()}\n" for at, name in enumerate(ids)]
    Path("data/train/ctm").write_text("".join(lines))
    found = call("spotting", "--keywords", "words.txt", "--spoken_from", "data/train", "--eval.bootstrap", "20")
    assert set(found) == {"written", "spoken", "attention", "provenance"}
    assert set(found["written"]) == {"exact"} and found["written"]["exact"]["n_utterances"] == len(text)
    assert found["spoken"]["exact"]["n_keywords"] <= 2 and "ci95" in found["attention"]["exact"]
    chosen = sorted(text)[:4]
    table = [f"{name} {words[0]}" if at % 2 else name for at, name in enumerate(chosen)]
    Path("data/test/utt2keywords").write_text("".join(f"{line}\n" for line in table))
    found = call("spotting", "--keywords", "words.txt", "--eval.bootstrap", "0")
    semantic = found["attention"]["semantic"]
    assert list(semantic["keywords"]) == [words[0]] and semantic["n_utterances"] == 4
    assert semantic["keywords"][words[0]]["N"] == 2 and "spoken" not in found
    Path("data/test/utt2keywords").unlink()


@pytest.mark.parametrize(
    ("content", "options", "reason"),
    [
        (None, [], "data/test/utt2keywords: is missing"),
        ("", [], "data/test/utt2keywords: empty"),
        ("a x\na y\n", [], "data/test/utt2keywords: an utterance is listed twice"),
        ("other dog\n", [], "none of its utterances is in data/test"),
        (None, ["--keywords", "no.txt"], "no.txt: cannot be read as UTF-8 text"),
    ],
)
def test_spotting_reports_bad_labels(
    call: Any, content: str | None, options: list[str], reason: str, capsys: Any
) -> None:
    if content is not None:
        Path("data/test/utt2keywords").write_text(content)
    with pytest.raises(SystemExit):
        call("spotting", *options)
    Path("data/test/utt2keywords").unlink(missing_ok=True)
    said = capsys.readouterr().err
    assert said.startswith("error: ") and reason in said and said.count("\n") == 1


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
