"""Spoken queries, from Python and from the command line. The model's own methods give the same results."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from asking import World
from fixtures import wave, whole_model

from speechclip.api import SpeechCLIP
from speechclip.bin.search import main
from speechclip.common.errors import UserError
from speechclip.search import query
from speechclip.search.query import ask, open_with_model, plain_subword


def test_ask_agrees_with_the_model(world: World) -> None:
    answer = ask(world.model, world.index, world.query, top_k=4, neighbours=2)
    speech = world.model.encode_speech(world.query).numpy()[0]
    cosines = world.model.encode_image(world.index.files).numpy() @ speech
    order = np.argsort(-cosines)[:4]
    assert [hit.id for hit in answer.hits] == [world.index.ids[row] for row in order]
    assert [hit.rank for hit in answer.hits] == [1, 2, 3, 4]
    np.testing.assert_allclose([hit.cosine for hit in answer.hits], cosines[order], atol=1e-5)
    assert [Path(hit.file).name for hit in answer.hits] == [hit.id.split("/")[-1] for hit in answer.hits]
    assert answer.keywords is not None
    for heard, wanted in zip(answer.keywords, world.model.keywords(world.query, top_k=2)[0], strict=True):
        assert (heard.subwords, heard.span) == (wanted.subwords, wanted.span)
        assert 0 <= heard.span[0] < heard.span[1] <= answer.seconds + 0.02
        np.testing.assert_allclose(heard.cosines, wanted.cosines, atol=1e-5)
    assert answer.seconds == pytest.approx(soundfile.info(str(world.query)).duration)


def test_ask_without_keywords_and_with_each_branch(tmp_path: Path, world: World) -> None:
    parallel = SpeechCLIP(whole_model(world.folder, "parallel")[0])
    assert ask(parallel, world.index, world.query).keywords is None
    hybrid = SpeechCLIP(whole_model(world.folder, "hybrid")[0])
    answers = [ask(hybrid, world.index, world.query, branch=name) for name in (None, "parallel", "cascaded")]
    cosines = [[hit.cosine for hit in answer.hits] for answer in answers]
    assert cosines[0] == cosines[1] != cosines[2]
    with pytest.raises(UserError, match="branch: a parallel head has the branch parallel, not cascaded"):
        ask(parallel, world.index, world.query, branch="cascaded")


def test_search_command_prints_images_and_keywords(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--index", str(world.folder / "idx"), "--top_k", "3", "--neighbours", "1", "--device", "cpu"]
    main([str(world.query), *options])
    answer = ask(world.model, world.index, world.query, top_k=3, neighbours=1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{world.query} ({answer.seconds:.2f} s)"
    for line, hit in zip(lines[2:5], answer.hits):
        assert line.split() == [str(hit.rank), f"{hit.cosine:.3f}", hit.id]
    assert lines[5] == "keywords"
    assert answer.keywords is not None and len(lines) == 6 + len(answer.keywords)
    for line, word in zip(lines[6:], answer.keywords):
        start, dash, end, unit, subword, cosine = line.split()
        assert (start, end, cosine) == (f"{word.span[0]:.2f}", f"{word.span[1]:.2f}", f"{word.cosines[0]:.2f}")
        assert (dash, unit, subword) == ("-", "s", plain_subword(word.subwords[0]))


def test_search_command_prints_json_lines(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    second = world.folder / "second.wav"
    soundfile.write(second, wave(20000, 3), 16000)
    main([str(world.query), str(second), "--index", str(world.folder / "idx"), "--json", "--device", "cpu", "--exact"])
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["query"] for record in records] == [str(world.query), str(second)]
    assert records[1]["seconds"] == 1.25
    for record, file in zip(records, (world.query, second)):
        wanted = ask(world.model, world.index, file).as_dict()
        assert [entry["id"] for entry in record["results"]] == [entry["id"] for entry in wanted["results"]]
        assert set(record["results"][0]) == {
            "rank", "id", "cosine", "file", "kind", "span", "duplicates", "duplicate_files",
        }  # fmt: skip
        assert record["keywords"] == wanted["keywords"]
        assert set(record["keywords"][0]) == {"start", "end", "subwords", "cosines"}


def _recordings(folder: Path) -> None:
    good = wave(16000, 1)
    soundfile.write(folder / "good.wav", good, 16000)
    whole = (folder / "good.wav").read_bytes()
    (folder / "cut.wav").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.wav").write_text("not audio at all")
    good[100] = np.nan
    soundfile.write(folder / "nan.wav", good, 16000, subtype="FLOAT")
    soundfile.write(folder / "none.wav", np.zeros(0), 16000)
    soundfile.write(folder / "one.wav", wave(1, 1), 16000)
    soundfile.write(folder / "short.wav", wave(960, 1), 16000)
    soundfile.write(folder / "silence.wav", np.zeros(16000), 16000)
    soundfile.write(folder / "long.wav", wave(4 * 16000, 1), 16000)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing.wav", "missing audio file"),
        ("cut.wav", "truncated audio: "),
        ("empty.wav", "empty audio file (0 bytes)"),
        ("text.wav", "not readable as audio"),
        ("nan.wav", "NaN or infinite samples"),
        ("none.wav", "zero-length audio"),
        ("one.wav", "0.000 s long. A query has at least 0.2 s."),
        ("short.wav", "0.060 s long. A query has at least 0.2 s."),
        ("silence.wav", "silence: every sample is zero"),
        ("long.wav", "4.0 s long. A query has at most 3 s."),
    ],
)
def test_search_command_refuses_bad_audio(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, reason: str
) -> None:
    _recordings(tmp_path)
    file = tmp_path / name
    with pytest.raises(SystemExit) as ended:
        main([str(file), "--index", str(world.folder / "idx"), "--max_seconds", "3", "--device", "cpu"])
    assert ended.value.code == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"error: {file}: {reason}") and said.err.count("\n") == 1


def test_search_command_continues_after_a_bad_query(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.wav"
    bad.write_text("not audio")
    with pytest.raises(SystemExit) as ended:
        main([str(world.query), str(bad), str(world.query), "--index", str(world.folder / "idx"), "--json"])
    printed = capsys.readouterr()
    assert ended.value.code == 1
    assert [json.loads(line)["query"] for line in printed.out.splitlines()] == [str(world.query)] * 2
    assert printed.err.startswith(f"error: {bad}: not readable as audio") and printed.err.count("\n") == 1


def test_open_with_model_refuses_a_branch_the_model_lacks(world: World) -> None:
    with pytest.raises(
        UserError, match=r"^--branch parallel: \S*best has only the branch cascaded\. Choose this one\.$"
    ):
        open_with_model(world.folder / "idx", branch="parallel", device="cpu")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["x.wav"], "either --index or --demo is needed"),
        (["x.wav", "--index", "idx", "--demo"], "either --index or --demo is needed"),
        (["--index", "idx"], "QUERY.wav, --text, --image or --like is needed"),
        (["x.wav", "--index", "idx", "--top_k", "0"], "--top_k and --neighbours must be at least 1"),
        (["x.wav", "--index", "idx", "--max_seconds", "nan"], "--max_seconds must be above 0"),
    ],
)
def test_search_command_refuses_mistakes(capsys: pytest.CaptureFixture[str], words: list[str], reason: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {reason}\n"


def test_demo_uses_the_mini_model_and_its_files(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("speechclip.checkpoint.pretrained.mini_folder", lambda: tmp_path / "hybrid", raising=False)
    with pytest.raises(SystemExit):
        main(["--demo"])
    assert capsys.readouterr().err == f"error: {tmp_path}/demo/index/index.json: is missing\n"
    shutil.copytree(world.folder / "idx", tmp_path / "demo" / "index")
    (tmp_path / "demo" / "queries").mkdir()
    shutil.copy(world.query, tmp_path / "demo" / "queries" / "one.flac")
    loaded: list[str] = []
    monkeypatch.setattr(query, "load_for_search", lambda path, device: loaded.append(path) or world.model)
    main(["--demo", "--json", "--top_k", "2"])
    (answer,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert loaded == ["mini"]
    assert answer["query"] == str(tmp_path / "demo" / "queries" / "one.flac")
    assert len(answer["results"]) == 2


def test_search_command_opens_the_index_before_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["x.wav", "--index", "nowhere", "--model", "nowhere"])
    assert capsys.readouterr().err == (
        "error: nowhere/index.json: is missing. Create an index with: speechclip index\n"
    )


def test_plain_subword_has_no_marks() -> None:
    assert [plain_subword(word) for word in ("dog</w>", "\u2581dog", "do", "\u2581", "</w>")] == [
        "dog", "dog", "do", "\u2581", "</w>",
    ]  # fmt: skip
