"""Queries by text, picture and item, mixed hits, exports, embeddings of files, and keywords of recordings."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from asking import World
from fixtures import wave

from speechclip.api import Keyword, SpeechCLIP
from speechclip.bin import embed, keywords, search
from speechclip.common.errors import UserError
from speechclip.data.alignments import read_textgrid
from speechclip.data.embeddings import embeddings_source, load_embeddings
from speechclip.search.build import index_files
from speechclip.search.export import keywords_as_textgrid
from speechclip.search.index import ImageIndex
from speechclip.search.query import ask, ask_image, ask_like, ask_text, find
from speechclip.search.sources import Sources
from speechclip.search.windows import WindowSettings, cut_windows


@pytest.fixture(scope="module")
def mixed(world: World) -> Path:
    """Return an index of the pictures of the world and of two recordings, one of which is long."""
    folder = world.folder / "recordings"
    folder.mkdir()
    soundfile.write(folder / "long.wav", wave(20 * 16000, 3), 16000)
    soundfile.write(folder / "short.wav", wave(2 * 16000, 4), 16000)
    images = dict(zip(world.index.ids, map(Path, world.index.files), strict=True))
    recordings = {path.name: path for path in sorted(folder.iterdir())}
    index_files(world.model, world.folder / "best", Sources(images, recordings), world.folder / "mixed")
    return world.folder / "mixed"


def test_each_query_agrees_with_the_model(world: World) -> None:
    picture = world.index.files[2]
    embedded = {
        "text": world.model.encode_text("a red dog").numpy(),
        "image": world.model.encode_image(picture).numpy(),
        "like": world.model.encode_image(picture).numpy(),
    }
    answers = {
        "text": ask_text(world.model, world.index, "a red dog", top_k=4),
        "image": ask_image(world.model, world.index, Path(picture).read_bytes(), top_k=4),
        "like": ask_like(world.index, world.index.ids[2], top_k=4),
    }
    for how, answer in answers.items():
        cosines = world.index.vectors @ embedded[how][0]
        order = [row for row in np.argsort(-cosines) if how != "like" or row != 2][:4]
        assert [hit.row for hit in answer.hits] == order
        np.testing.assert_allclose([hit.cosine for hit in answer.hits], cosines[order], atol=1e-5)
        assert (answer.seconds, answer.keywords) == (None, None)
    assert answers["image"].hits[0].row == 2


def test_mixed_index_ranks_each_kind(world: World, mixed: Path) -> None:
    index = ImageIndex.open(mixed)
    answer = ask(world.model, index, world.query, top_k=3)
    ranks = [(hit.kind, hit.rank) for hit in answer.hits]
    assert ranks[:4] == [("image", 1), ("image", 2), ("image", 3), ("recording", 1)]
    assert all((hit.span is None) == (hit.kind == "image") for hit in answer.hits)
    spans = [hit.span for hit in answer.hits if hit.id.startswith("long.wav")]
    for number, one in enumerate(spans):
        assert not any(one[0] < two[1] and two[0] < one[1] for two in spans[number + 1 :])  # type: ignore[index]
    for kind in index.kinds:
        only = ask(world.model, index, world.query, top_k=3, kinds=(kind,))
        assert only.hits == tuple(hit for hit in answer.hits if hit.kind == kind)
    query = np.asarray(index.vectors[index.recordings[0]])[None]
    assert find(index, query, top_k=1, kinds=("recording",))[0].id == index.ids[index.recordings[0]]


def test_like_leaves_out_overlapping_windows(world: World, mixed: Path) -> None:
    index = ImageIndex.open(mixed)
    window = index.ids[index.recordings[1]]
    start, end = index.span(index.recordings[1])  # type: ignore[misc]
    for hit in ask_like(index, window, top_k=10, kinds=("recording",)).hits:
        assert hit.id != window
        assert hit.id == "short.wav" or hit.span[0] >= end or hit.span[1] <= start  # type: ignore[index]


def test_queries_refuse_mistakes(world: World) -> None:
    with pytest.raises(UserError, match="the text is empty"):
        ask_text(world.model, world.index, "  ")
    with pytest.raises(UserError, match="idx: no item 'nothing'. Give an id that a search prints."):
        ask_like(world.index, "nothing")
    with pytest.raises(UserError, match="missing image file"):
        ask_image(world.model, world.index, "nothing.png")


def test_search_command_exports_every_kind_of_query(
    world: World, mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = world.index.files[0]
    words = ["--index", str(mixed), "--text", "a dog", "--image", picture, "--like", world.index.ids[1]]
    options = ["--top_k", "2", "--device", "cpu"]
    search.main([*words, *options, "--export", str(tmp_path / "hits.csv")])
    assert "rank  cosine  recording" in capsys.readouterr().out
    search.main([str(world.query), *words, *options, "--json", "--export", str(tmp_path / "hits.json")])
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["query"] for record in printed] == [str(world.query), "a dog", picture, world.index.ids[1]]
    saved = json.loads((tmp_path / "hits.json").read_text())
    assert [record["results"] for record in saved] == [record["results"] for record in printed]
    with (tmp_path / "hits.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    wanted = [(record["query"], hit["id"], hit["file"]) for record in printed[1:] for hit in record["results"]]
    assert [(row["query"], row["id"], row["file"]) for row in rows] == wanted
    assert all(bool(row["start"]) == (row["kind"] == "recording") for row in rows)
    search.main([*words[:2], "--like", "short.wav", "--only", "image", "--top_k", "1", "--device", "cpu"])
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--index", "idx"], "QUERY.wav, --text, --image or --like is needed"),
        (
            ["--index", "idx", "--text", "x", "--export", "hits.txt"],
            "hits.txt: unknown format. Give a file that ends in",
        ),
    ],
)
def test_search_refuses_options(capsys: pytest.CaptureFixture[str], words: list[str], reason: str) -> None:
    with pytest.raises(SystemExit):
        search.main(words)
    assert capsys.readouterr().err.startswith(f"error: {reason}")


def test_embed_command_writes_what_index_reads(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", str(world.folder / "best"), "--device", "cpu"]
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"x")
    out = tmp_path / "speech.npz"
    with pytest.raises(SystemExit):
        embed.main(["--recordings", str(world.query), str(bad), "--out", str(out), *model])
    assert capsys.readouterr().err.startswith(f"error: {bad}: not readable as audio")
    ids, table = load_embeddings(out)
    assert ids == [str(world.query)]
    np.testing.assert_allclose(table, world.model.encode_speech(world.query).numpy(), atol=1e-5)
    folder = Path(world.index.files[0]).parent
    embed.main(["--images", str(folder), "--out", str(tmp_path / "images.npz"), *model])
    ids, table = load_embeddings(tmp_path / "images.npz", [Path(item).name for item in world.index.files])
    np.testing.assert_allclose(table, world.index.vectors, atol=1e-5)
    assert world.index.info.space == "clip:" + embeddings_source(tmp_path / "images.npz")["weights"]
    (tmp_path / "text").write_text("one a dog\ntwo a red house\n")
    embed.main(["--texts", str(tmp_path / "text"), "--out", str(tmp_path / "texts.npz"), *model])
    ids, table = load_embeddings(tmp_path / "texts.npz")
    assert ids == ["one", "two"]
    np.testing.assert_allclose(table, world.model.encode_text(["a dog", "a red house"]).numpy(), atol=1e-5)


@pytest.mark.parametrize("kind", ["text", "json", "csv", "textgrid"])
def test_keywords_command(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    pytest.importorskip("praatio")
    out = ["--out", str(tmp_path)] if kind == "textgrid" else []
    model = ["--model", str(world.folder / "best"), "--device", "cpu"]
    keywords.main([str(world.query.name), "--format", kind, "--neighbours", "2", *out, *model])
    printed = capsys.readouterr().out
    wanted = world.model.keywords(world.query, top_k=2)[0]
    if kind == "text":
        assert len(printed.splitlines()) == 1 + len(wanted)
    elif kind == "json":
        found = json.loads(printed)
        assert [(word["start"], word["end"]) for word in found["keywords"]] == [word.span for word in wanted]
    elif kind == "csv":
        rows = list(csv.DictReader(printed.splitlines()))
        assert len(rows) == 2 * len(wanted)
        assert [float(row["cosine"]) for row in rows] == pytest.approx([c for w in wanted for c in w.cosines], abs=1e-4)
    else:
        assert (tmp_path / "query.flac.TextGrid").read_text().startswith('File type = "ooTextFile"')


@pytest.fixture(autouse=True)
def _in_the_world(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world.folder)


def test_textgrid_has_the_keywords_in_tiers(tmp_path: Path) -> None:
    pytest.importorskip("praatio")
    words = [
        Keyword((text,), (0.5,), span) for text, span in [('a"b', (0.5, 1.0)), ("cat", (0.8, 1.5)), ("d", (1.2, 9.0))]
    ]
    file = tmp_path / "x.TextGrid"
    file.write_text(keywords_as_textgrid(words, 2.0))
    from praatio import textgrid

    grid = textgrid.openTextgrid(str(file), includeEmptyIntervals=True)
    assert grid.maxTimestamp == 2.0
    tiers = {tier.name: [(entry.start, entry.end, entry.label) for entry in tier.entries] for tier in grid.tiers}
    assert tiers == {
        "keywords": [(0, 0.5, ""), (0.5, 1.0, 'a"b'), (1.0, 1.2, ""), (1.2, 2.0, "d")],
        "keywords 2": [(0, 0.8, ""), (0.8, 1.5, "cat"), (1.5, 2.0, "")],
    }
    one = tmp_path / "one.TextGrid"
    one.write_text(keywords_as_textgrid(words[:1], 2.0))
    assert [(word.text, word.start, word.end) for word in read_textgrid(one)] == [('a"b', 0.5, 1.0)]


def test_keywords_command_refuses_a_head_without(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SpeechCLIP, "has_keywords", False)
    with pytest.raises(SystemExit):
        keywords.main([str(world.query), "--model", "best", "--device", "cpu"])
    assert capsys.readouterr().err.startswith("error: best: its head finds no keywords.")


def test_windows_end_in_pauses_and_overlap() -> None:
    rate = 16000
    levels = [(1, 0), (4, 1), (1.5, 0), (5, 1), (20, 1), (10, 0), (3, 1), (2, 0)]
    parts = [wave(int(seconds * rate), n) * (1 if loud else 0.001) for n, (seconds, loud) in enumerate(levels)]
    spans = cut_windows(np.concatenate(parts))
    assert spans[0][0] == pytest.approx(0.9, abs=0.1)  # silence at the start is left out
    assert 5 < spans[0][1] < 6.5 and spans[1][0] == pytest.approx(6.4, abs=0.15)  # no overlap across a pause
    assert spans[-1] == pytest.approx((41.4, 44.6), abs=0.2)  # the long silence is in no window
    speech = [span for span in spans[1:] if span[1] < 32]
    assert all(2 < end - start < 8 for start, end in speech)
    overlaps = [one[1] - two[0] for one, two in zip(speech, speech[1:])]
    assert overlaps and all(1 <= overlap <= 3 for overlap in overlaps)
    assert cut_windows(wave(7 * rate, 0)) == [(0.0, 7.0)]
    with pytest.raises(UserError, match=r"--overlap: 4 s. Give 0 to 3, half of --window."):
        WindowSettings(6, 4)
