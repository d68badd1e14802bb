"""Indexes of pictures and recordings: windows, duplicates, updates, kills, locks, and replacement while open."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import soundfile
from asking import World
from fixtures import wave
from PIL import Image

from speechclip.bin.index import main
from speechclip.common.errors import UserError
from speechclip.common.files import only_one_writer
from speechclip.search import build, embed, write
from speechclip.search.build import index_files
from speechclip.search.index import ImageIndex
from speechclip.search.journal import Journal, Stat
from speechclip.search.sources import find_sources


@pytest.fixture
def media(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with three pictures, a long and a short recording, and a copy of a picture and of a recording."""
    folder = tmp_path / "media"
    folder.mkdir()
    for number, name in enumerate(("b.png", "c.png", "d.png")):
        save(folder / name, number)
    shutil.copy(folder / "c.png", folder / "copy.png")
    soundfile.write(folder / "short.wav", wave(32000, 1), 16000)
    shutil.copy(folder / "short.wav", folder / "again.wav")
    pause = np.zeros(16000)
    parts = [wave(5 * 16000, 2), pause, wave(5 * 16000, 3), pause, wave(48000, 6)]
    soundfile.write(folder / "long.wav", np.concatenate(parts), 16000)
    (folder / "notes.txt").write_text("neither")
    monkeypatch.chdir(tmp_path)
    return folder


def save(path: Path, seed: int) -> None:
    """Write a picture of noise."""
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(path)


def build_index(world: World, update: bool = False) -> build.Change:
    """Index the folder ``media`` as ``idx``."""
    sources = find_sources("media", "media", leave_out=Path("idx"))
    return index_files(world.model, world.folder / "best", sources, "idx", update=update)


def count_embedded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which every file that is decoded is added."""
    seen: list[str] = []
    for name in ("load_image", "load_audio"):
        real = getattr(embed, name)
        monkeypatch.setattr(embed, name, lambda path, real=real: (seen.append(Path(path).name), real(path))[1])
    return seen


def test_index_of_pictures_and_recordings(world: World, media: Path) -> None:
    change = build_index(world)
    index = ImageIndex.open("idx")
    long = [item for item in index.ids if item.startswith("long.wav")]
    assert index.ids == ["b.png", "c.png", "d.png", "again.wav", *long]
    spans = [index.span(row) for row in index.recordings[1:]]
    expected = [(0, 5.5), (5.9, 11.5), (11.9, 15)]  # the pauses are from 5 to 6 and from 11 to 12 s
    np.testing.assert_allclose(spans, expected, atol=0.6)
    assert long == [f"long.wav#t={start:g},{end:g}" for start, end in spans]
    assert (len(index.pictures), len(index.recordings), index.kinds) == (3, 4, ("image", "recording"))
    assert [one.id for one in index.duplicates(1)] == ["copy.png"]
    assert [one.id for one in index.duplicates(3)] == ["short.wav"]
    assert index.row("copy.png") == 1 and index.row("short.wav") == 3
    assert index.span(0) is None and index.span(3) == (0.0, 2.0)
    speech, _ = soundfile.read(media / "long.wav", dtype="float32")
    short, _ = soundfile.read(media / "short.wav", dtype="float32")
    windows = [short, *(speech[round(16000 * start) : round(16000 * end)] for start, end in spans)]
    np.testing.assert_allclose(index.vectors[3:], world.model.encode_speech(windows).numpy(), atol=1e-5)
    assert (change.files, change.recordings) == (7, 3)
    assert (Path("idx/not_indexed.tsv").read_text().split("\t")[0]) == "media/notes.txt"
    assert index.thumbnail(1) is not None and index.thumbnail(3) is None


def test_index_of_recordings_alone(world: World, media: Path) -> None:
    sources = find_sources("", "media")
    index_files(world.model, world.folder / "best", sources, "idx")
    assert ImageIndex.open("idx").kinds == ("recording",)
    assert {path.name for path, _ in sources.others} == {"b.png", "c.png", "d.png", "copy.png", "notes.txt"}


def test_update_embeds_only_new_and_changed_files(world: World, media: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_index(world)
    before = ImageIndex.open("idx")
    (media / "b.png").unlink()
    (media / "c.png").unlink()  # its content stays as copy.png
    save(media / "d.png", 9)
    save(media / "e.png", 10)
    os.utime(media / "long.wav", (1, 1))  # another time, the same content
    seen = count_embedded(monkeypatch)
    change = build_index(world, update=True)
    assert sorted(seen) == ["d.png", "e.png"]
    assert (change.added, change.changed, change.removed) == (1, 1, 2)
    index = ImageIndex.open("idx")
    assert index.ids[:3] == ["copy.png", "d.png", "e.png"] and index.ids[3:] == before.ids[3:]
    np.testing.assert_array_equal(index.vectors[0], before.vectors[1])
    np.testing.assert_array_equal(index.vectors[3:], before.vectors[3:])
    files = [str(media / name) for name in ("copy.png", "d.png", "e.png")]
    np.testing.assert_allclose(index.vectors[:3], world.model.encode_image(files).numpy(), atol=1e-6)
    for row in range(3):
        with Image.open(index.thumbnail(row)) as small, Image.open(files[row]) as large:  # type: ignore[arg-type]
            colours = [np.asarray(one.convert("RGB"), dtype=float).mean(axis=(0, 1)) for one in (small, large)]
        np.testing.assert_allclose(*colours, atol=3)


def test_update_without_changes_keeps_the_index(world: World, media: Path) -> None:
    build_index(world)
    inode = Path("idx").stat().st_ino
    change = build_index(world, update=True)
    assert (change.added, change.changed, change.removed) == (0, 0, 0)
    assert Path("idx").stat().st_ino == inode
    assert sorted(path.name for path in Path().iterdir()) == ["idx", "media"]


def test_update_with_another_head_embeds_recordings_again(
    world: World, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_index(world)
    before = ImageIndex.open("idx")
    monkeypatch.setattr(build, "speech_fingerprint", lambda model, branch: "another head")
    seen = count_embedded(monkeypatch)
    build_index(world, update=True)
    assert sorted(seen) == ["again.wav", "long.wav", "short.wav"]
    assert ImageIndex.open("idx").info.speech != before.info.speech


def test_update_command_remembers_folders_and_model(
    world: World, media: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--images", "media", "--recordings", "media", "--out", "idx", "--window", "3", "--overlap", "1"]
    main([*words, "--model", str(world.folder / "best"), "--device", "cpu"])
    windows = [item for item in ImageIndex.open("idx").ids if "long" in item]
    save(media / "e.png", 10)
    main(["--update", "--out", "idx", "--device", "cpu"])
    assert capsys.readouterr().out.splitlines()[-1].endswith(", 1 new, 0 changed, 0 removed")
    assert [item for item in ImageIndex.open("idx").ids if "long" in item] == windows
    assert len(windows) > 3


def test_update_refuses_what_it_cannot_update(world: World, media: Path) -> None:
    with pytest.raises(UserError, match=r"idx/index.json: is missing. Create an index"):
        build_index(world, update=True)
    build_index(world)
    table = np.load("idx/vectors.npy")
    table[0] = -table[0]
    np.save("idx/vectors.npy", table)
    for update in (True, False):
        with pytest.raises(UserError, match=r"idx/vectors.npy: damaged: "):
            build_index(world, update=True) if update else ImageIndex.open("idx")
    Path("idx/sources.json").unlink()
    with pytest.raises(UserError, match="idx: not made from files. Index them again, without --update"):
        build_index(world, update=True)


@pytest.mark.parametrize("moment", ["embedding", "writing", "renaming"])
def test_kill_leaves_the_old_index_and_resumes(
    world: World, media: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    build_index(world)
    old = ImageIndex.open("idx")
    for number in range(3):
        save(media / f"new{number}.png", 20 + number)
    (media / "broken.png").write_bytes(b"x")
    child = os.fork()
    if child == 0:  # dies as by SIGKILL, at a place that the test chooses
        try:
            die_at(moment)
            build_index(world, update=True)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    now = ImageIndex.open("idx")
    assert now.ids == old.ids and now.version == old.version
    seen = count_embedded(monkeypatch)
    change = build_index(world, update=True)
    assert seen == ["broken.png"]  # the new pictures are known, the broken one is tried again
    assert change.added == 3
    assert len(ImageIndex.open("idx").pictures) == 6
    assert sorted(path.name for path in Path().iterdir() if not path.name.startswith(".")) == ["idx", "media"]


def die_at(moment: str) -> None:
    """Kill this process at a moment of a later run."""

    def die(*args: object, **options: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if moment == "embedding":
        flush = Journal.flush

        def flush_and_die(journal: Journal) -> None:
            flush(journal)
            die()

        Journal.flush = flush_and_die  # type: ignore[method-assign]
    elif moment == "writing":
        build.write_json = die  # type: ignore[assignment]
    else:  # between the two renames
        rename = Path.rename

        def rename_and_die(path: Path, target: Path) -> Path:
            if path.name == "idx":
                rename(path, target)
                die()
            return rename(path, target)

        Path.rename = rename_and_die  # type: ignore[method-assign, assignment]


def test_journal_drops_an_incomplete_record(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    journal = Journal(tmp_path / "idx", 4, {"image": "clip:1"})
    journal.resume()
    for number in range(3):
        journal.append(
            "image", f"/{number}.png", Stat(1, number), f"{number}" * 64, rows[number : number + 1], (), b"x"
        )
    journal.flush()
    journal.close()
    records = journal.folder / "records.jsonl"
    records.write_bytes(records.read_bytes()[:-5])
    for key, known in (("clip:1", [True, True, False]), ("clip:2", [False] * 3)):
        again = Journal(tmp_path / "idx", 4, {"image": key})
        again.resume()
        assert [again.get("image", f"{number}" * 64) is not None for number in range(3)] == known
        again.close()
    assert (journal.folder / "vectors.f32").stat().st_size == 2 * 4 * 4


def test_second_run_in_the_same_folder_is_refused(world: World, media: Path) -> None:
    build_index(world)
    reason = rf"^idx: another run is at work in it \(process {os.getpid()}\)"
    with only_one_writer(Path("idx")), pytest.raises(UserError, match=reason):
        build_index(world)
    assert build_index(world).files == 7


def test_open_index_stays_the_old_one_when_replaced(world: World, media: Path) -> None:
    build_index(world)
    old = ImageIndex.open("idx")
    first = old.read_thumbnail(0)
    assert first is not None and old.is_current() and old.read_thumbnail(3) is None
    (media / "b.png").unlink()
    build_index(world, update=True)
    assert not old.is_current()
    assert old.read_thumbnail(0) is None  # and not the picture that is row 0 now
    new = ImageIndex.open("idx")
    assert new.version != old.version and new.is_current()
    assert new.read_thumbnail(0) not in (None, first)


def test_open_verifies_the_checksums(world: World, media: Path) -> None:
    build_index(world)
    items = json.loads(Path("idx/items.json").read_text())
    Path("idx/items.json").write_text(json.dumps({**items, "ids": items["ids"][::-1]}))
    with pytest.raises(UserError, match="idx/items.json: damaged: its checksum is not that of SHA256SUMS"):
        ImageIndex.open("idx")


def test_sources_refuse_an_id_of_two_kinds(tmp_path: Path) -> None:
    for folder, name in (("one", "img.scp"), ("two", "wav.scp")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text("same x\n")
    with pytest.raises(UserError, match="x: its id 'same' is also that of x. Rename one of them"):
        find_sources(str(tmp_path / "one"), str(tmp_path / "two"))


def test_update_of_a_large_index_keeps_its_lists(world: World, media: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss", reason="extra 'search' is not installed")
    monkeypatch.setattr(write, "EXACT_UP_TO", 3)
    for number in range(30):
        save(media / f"x{number:02d}.png", 100 + number)
    build_index(world)
    (media / "x03.png").unlink()
    save(media / "a.png", 99)
    monkeypatch.setattr(write, "train_inverted_file", None)  # k-means must not run again
    build_index(world, update=True)
    index = ImageIndex.open("idx")
    assert (index.info.kind, index.ids[0], len(index.pictures)) == ("ivf", "a.png", 33)
    index.set_probes(index.info.lists)
    table = np.asarray(index.vectors, dtype=np.float32)
    for kind in index.kinds:  # recordings of noise may have equal embeddings
        found, cosines = index.search(table[index.rows_of(kind)], 1, rows=index.rows_of(kind))
        assert kind == "recording" or found[:, 0].tolist() == list(index.pictures)
        assert set(found[:, 0]) <= set(index.rows_of(kind))
        np.testing.assert_allclose(cosines, 1, atol=1e-3)
