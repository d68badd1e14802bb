"""Indexes: built from folders, data directories and embeddings; reopened, moved, damaged, of another model."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures import JOINT, make_data, save_clip, whole_model
from PIL import Image

from speechclip.api import SpeechCLIP
from speechclip.bin.index import main
from speechclip.checkpoint.folder import save_checkpoint
from speechclip.common.devices import cpu_count
from speechclip.common.errors import UserError
from speechclip.data.embeddings import save_embeddings
from speechclip.search import embed, write
from speechclip.search.embed import BATCH, embed_files
from speechclip.search.index import ImageIndex, joint_space
from speechclip.search.journal import Journal
from speechclip.search.query import open_with_model
from speechclip.search.sources import Sources, find_images, find_other_files, image_suffixes
from speechclip.search.windows import DEFAULT_WINDOWS

ORIGIN = {"seed": 0, "trained": 1}


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SpeechCLIP:
    """Return a parallel model, saved as ``best``. Six images are in ``pictures``, next to a text file."""
    made, config = whole_model(tmp_path, "parallel")
    monkeypatch.chdir(tmp_path)
    save_checkpoint(Path("best"), made, made.trained_state(), config, ORIGIN)
    rng = np.random.default_rng(0)
    for name in ("b.png", "a.JPG", "deep/c.webp", "deep/d.bmp", "e.gif", "f.tiff"):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (50, 700, 3), dtype=np.uint8)).save(path)
    (tmp_path / "pictures" / "notes.txt").write_text("no image")
    return SpeechCLIP(made)


def run(*words: str) -> None:
    main([*words, "--device", "cpu"])


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return the line that a command prints for a mistake of the user."""
    with pytest.raises(SystemExit) as ended:
        run(*words)
    assert ended.value.code in (1, 2)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


def test_index_embeds_a_folder_of_images(model: SpeechCLIP, capsys: pytest.CaptureFixture[str]) -> None:
    run("--model", "best", "--images", "pictures", "--out", "idx")
    assert capsys.readouterr().out.splitlines() == [
        "not indexed: 1 .txt. The files and reasons are listed in idx/not_indexed.tsv.",
        f"idx: 6 images of {JOINT} dimensions (exact), 1 files not indexed",
    ]
    index = ImageIndex.open("idx")
    assert index.ids == ["a.JPG", "b.png", "deep/c.webp", "deep/d.bmp", "e.gif", "f.tiff"]
    assert [Path(file) for file in index.files] == [Path("pictures", item).resolve() for item in index.ids]
    embedded = model.encode_image(index.files).numpy()
    np.testing.assert_array_equal(index.vectors, embedded)
    rows, cosines = index.search(embedded, 1)
    assert rows[:, 0].tolist() == list(range(6))
    np.testing.assert_allclose(cosines, 1, atol=1e-6)
    for row in range(6):
        thumbnail = index.thumbnail(row)
        assert thumbnail is not None
        with Image.open(thumbnail) as image:
            assert (image.format, image.size) == ("JPEG", (320, 23))
    assert index.thumbnail(6) is None and index.thumbnail(-1) is None


def test_index_needs_only_img_scp_of_a_data_directory(model: SpeechCLIP) -> None:
    data = make_data(Path("data/test"), images=4, each=1)
    for item in Path("data/test").iterdir():
        if item.name != "img.scp":
            item.unlink()
    run("--model", "best", "--images", "data/test", "--out", "idx")
    assert ImageIndex.open("idx").ids == list(data.images)


def test_index_lists_files_that_are_not_indexed(model: SpeechCLIP, capsys: pytest.CaptureFixture[str]) -> None:
    whole = Path("pictures/b.png").read_bytes()
    Path("pictures/b.png").write_bytes(whole[: len(whole) // 2])
    Path("pictures/e.gif").write_bytes(b"")
    run("--model", "best", "--images", "pictures", "--out", "idx")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("left out: pictures/b.png: truncated or corrupt image")
    assert lines[1].startswith("left out: pictures/e.gif: empty image file (0 bytes)")
    assert lines[2].startswith("not indexed: ") and all(f"1 {kind}" in lines[2] for kind in (".txt", ".png", ".gif"))
    assert lines[3] == f"idx: 4 images of {JOINT} dimensions (exact), 3 files not indexed"
    listed = [line.split("\t") for line in Path("idx/not_indexed.tsv").read_text().splitlines()]
    assert [file for file, _ in listed] == ["pictures/b.png", "pictures/e.gif", "pictures/notes.txt"]
    assert listed[2][1] == "not an image format that Pillow reads" and "empty image file" in listed[1][1]
    index = ImageIndex.open("idx")
    assert index.info.not_indexed == 3
    assert index.ids == ["a.JPG", "deep/c.webp", "deep/d.bmp", "f.tiff"]
    np.testing.assert_array_equal(index.vectors, model.encode_image(index.files).numpy())  # no row has moved


def test_find_images_ignores_hidden_files_and_indexes(tmp_path: Path) -> None:
    for name in (
        "a.jfif",
        "b.PPM",
        "c.heic",
        ".hidden.png",
        ".git/x.png",
        "idx.part/x.png",
        "idx.old/x.png",
        "d/e.tga",
    ):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    other = tmp_path / "pictures" / "other"  # an index that another command wrote
    (other / "thumbnails").mkdir(parents=True)
    for name in ("index.json", "items.json", "thumbnails/0.jpg"):
        (other / name).write_bytes(b"x")
    assert list(find_images(tmp_path / "pictures")) == ["a.jfif", "b.PPM", "d/e.tga"]
    assert [path.name for path in find_other_files(tmp_path / "pictures")] == ["c.heic"]


def test_image_suffixes_are_those_that_pillow_decodes() -> None:
    assert {
        ".jpg",
        ".jfif",
        ".png",
        ".webp",
        ".bmp",
        ".gif",
        ".tif",
        ".tga",
        ".ppm",
        ".ico",
        ".jp2",
    } <= image_suffixes()
    assert not {".eps", ".ps", ".mpg", ".h5", ".emf", ".pdf", ".txt", ".heic"} & image_suffixes()


def test_index_escapes_undecodable_file_names(model: SpeechCLIP, capsys: pytest.CaptureFixture[str]) -> None:
    Path("pictures/e.gif").rename(os.fsdecode(b"pictures/z\xff\n.gif"))
    run("--model", "best", "--images", "pictures", "--out", "idx")
    index = ImageIndex.open("idx")
    assert index.ids[-1] == "z\\xff\\x0a.gif"
    assert Path(index.files[-1]).is_file()  # the path itself is kept as it is


def test_index_memory_does_not_grow_with_the_images(tmp_path: Path, model: SpeechCLIP) -> None:
    """One decoded image per CPU is in memory, not a batch of them."""
    assert model.network.clip is not None
    for at in range(BATCH):
        (tmp_path / f"{at}.png").write_bytes(b"%d" % at)
    alive, most, lock = 0, 0, threading.Lock()

    class Watched:
        def __init__(self) -> None:
            nonlocal alive, most
            with lock:
                alive += 1
                most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            with lock:
                alive -= 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embed, "load_image", lambda path: Watched())
        patch.setattr(embed, "make_thumbnail", lambda image: b"")
        patch.setattr(model.network.clip, "preprocess", lambda image: torch.zeros(1))
        patch.setattr(model.network.clip, "encode_pixels", lambda pixels: torch.zeros(len(pixels), JOINT))
        images = {str(at): tmp_path / f"{at}.png" for at in range(BATCH)}
        journal = Journal(tmp_path / "idx", JOINT, {"image": "any"})
        journal.resume()
        found = embed_files(model, Sources(images=images), journal, DEFAULT_WINDOWS, None)
        journal.remove()
    assert len(found.files) == BATCH and most <= cpu_count()


def test_index_is_replaced_and_does_not_index_itself(model: SpeechCLIP) -> None:
    run("--model", "best", "--images", "pictures", "--out", "pictures/idx")
    Path("pictures/a.JPG").unlink()
    run("--model", "best", "--images", "pictures", "--out", "pictures/idx")
    assert len(ImageIndex.open("pictures/idx").ids) == 5
    assert len(list(Path("pictures/idx").rglob("*.jpg"))) == 5
    assert sorted(path.name for path in Path("pictures").iterdir() if path.is_dir()) == ["deep", "idx"]


def test_index_of_embeddings_has_thumbnails(model: SpeechCLIP) -> None:
    rng = np.random.default_rng(4)
    table = rng.standard_normal((3, JOINT))
    save_embeddings("given.npz", ["a", "deep/d.bmp", "elsewhere"], table)
    run("--model", "best", "--embeddings", "given.npz", "--images", "pictures", "--out", "idx")
    index = ImageIndex.open("idx")
    assert index.ids == ["a", "deep/d.bmp", "elsewhere"]
    assert [Path(file).name for file in index.files] == ["a.JPG", "d.bmp", ""]
    assert [index.thumbnail(row) is not None for row in range(3)] == [True, True, False]
    np.testing.assert_allclose(index.vectors, table / np.linalg.norm(table, axis=1, keepdims=True), atol=1e-6)
    run("--model", "best", "--embeddings", "given.npz", "--out", "idx")
    assert ImageIndex.open("idx").thumbnail(0) is None


def test_index_of_many_vectors_has_an_inverted_file(model: SpeechCLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss", reason="extra 'search' is not installed")
    monkeypatch.setattr(write, "EXACT_UP_TO", 400)
    rng = np.random.default_rng(4)
    for count, kind in ((400, "exact"), (401, "ivf")):
        save_embeddings("given.npz", [f"i{row}" for row in range(count)], rng.standard_normal((count, JOINT)))
        run("--model", "best", "--embeddings", "given.npz", "--out", "idx")
        assert ImageIndex.open("idx").info.kind == kind
    index = ImageIndex.open("idx")
    assert (index.info.lists, index.info.probes, index.vectors.dtype) == (40, 15, np.float16)
    query = np.asarray(index.vectors[7:8], dtype=np.float32)
    assert index.search(query, 5)[0][0, 0] == 7
    exact = index.search(query, 50, exact=True)
    index.set_probes(40)
    np.testing.assert_array_equal(index.search(query, 50)[0], exact[0])
    run("--model", "best", "--embeddings", "given.npz", "--out", "idx", "--kind", "exact")
    assert ImageIndex.open("idx").info.kind == "exact"


def test_index_and_model_can_move_together(model: SpeechCLIP, tmp_path: Path) -> None:
    run("--model", "best", "--images", "pictures", "--out", "work/idx")
    shutil.copytree("best", "moved/best")
    shutil.copytree("work", "moved/work")
    assert Path(ImageIndex.open("moved/work/idx").model_path()) == Path("moved/best")
    shutil.rmtree("moved/best")
    with pytest.raises(
        UserError, match=r"idx: its model \S*/moved/best does not exist. Give its new place with --model"
    ):
        open_with_model("moved/work/idx", "", "cpu")
    assert len(open_with_model("moved/work/idx", "best", "cpu")[0]) == 6


def test_check_model_refuses_another_clip(model: SpeechCLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("--model", "best", "--images", "pictures", "--out", "idx")
    same, config = whole_model(tmp_path, "cascaded")
    save_checkpoint(Path("cascaded"), same, same.trained_state(), config, ORIGIN)
    assert open_with_model("idx", "cascaded", "cpu")[1].network.config.head.name == "cascaded"
    save_clip(tmp_path / "other" / "models" / "clip", seed=8)  # of the same shape
    monkeypatch.chdir(tmp_path / "other")
    other, config = whole_model(tmp_path / "other", "parallel")
    save_checkpoint(Path("best"), other, other.trained_state(), config, ORIGIN)
    with pytest.raises(UserError, match=r"idx: built with another model: .*best \(clip:\w+\), best has clip:\w+"):
        open_with_model("../idx", "best", "cpu")


def test_joint_space_of_a_model_without_clip(model: SpeechCLIP) -> None:
    first = joint_space(model)
    model.network.clip = None
    alone = joint_space(model)
    assert first.startswith("clip:") and alone.startswith("weights:")
    model.network.weighted_sum.weights.data += 0.1
    assert joint_space(model) != alone


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--images", "nothing"], "nothing: no such folder"),
        (["--images", "best/config.yaml"], "best/config.yaml: is not a folder"),
        (
            ["--images", "empty"],
            "empty: no images and no img.scp. Every image format that Pillow decodes is supported.",
        ),
        (["--images", "bad"], "idx: not written. None of the 1 files can be read."),
        (["--embeddings", "nothing.npz"], "nothing.npz: is missing"),
        (["--embeddings", "narrow.npz"], f"narrow.npz: 3 dimensions, best has {JOINT}"),
        (["--embeddings", "foreign.npz"], "foreign.npz: computed by another CLIP than that of best"),
        (
            ["--embeddings", "good.npz", "--images", "pictures"],
            "good.npz: none of its ids is one of the 6 images (the first is 'zzz')",
        ),
        ([], "--images, --recordings or --embeddings is needed"),
        (["--images", "pictures", "--probes", "-1"], "--lists and --probes must not be negative"),
        (
            ["--images", "pictures", "--out", "pictures"],
            "pictures: exists and is not an index. Give another folder with --out.",
        ),
        (["--images", "pictures", "--model", "nothing"], "nothing: neither a checkpoint folder nor a published model"),
    ],
)
def test_index_command_refuses_mistakes(
    model: SpeechCLIP, capsys: pytest.CaptureFixture[str], words: list[str], reason: str
) -> None:
    Path("empty").mkdir()
    Path("bad").mkdir()
    Path("bad/x.png").write_bytes(b"not an image")
    save_embeddings("narrow.npz", ["a"], np.ones((1, 3)))
    save_embeddings("foreign.npz", ["a"], np.ones((1, JOINT)), {"weights": "0" * 16})
    save_embeddings("good.npz", ["zzz"], np.ones((1, JOINT)))
    before = sorted(Path().rglob("*"))
    defaults = {"--model": "best", "--out": "idx"}
    given = [word for name, value in defaults.items() if name not in words for word in (name, value)]
    assert refused(capsys, *given, *words).startswith(reason)
    assert sorted(Path().rglob("*")) == before  # no file was added or removed


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _set(**changes: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("index.json", Path.unlink, "idx/index.json: is missing. Create an index with: speechclip index"),
        ("index.json", _cut, "idx/index.json: not valid JSON"),
        ("index.json", lambda path: path.write_text("[]"), "idx/index.json: a JSON object is needed, this is a list"),
        ("index.json", _set(format=9), "idx/index.json: format 9, not 1. Index the files again."),
        ("index.json", _set(colour="red"), "idx/index.json: damaged: "),
        ("index.json", _set(kind="magic"), "idx/index.json: damaged: kind magic"),
        ("index.json", _set(count=7), f"idx: damaged: 6 ids and vectors of shape (6, {JOINT}), index.json has 7"),
        ("items.json", Path.unlink, "idx/items.json: is missing"),
        ("items.json", _set(ids="abcdef"), "idx/items.json: damaged: needs the lists ids and files"),
        ("vectors.npy", _cut, "idx/vectors.npy: missing, damaged or truncated"),
        ("vectors.npy", Path.unlink, "idx/vectors.npy: missing, damaged or truncated"),
        ("vectors.npy", lambda path: np.save(path, np.array(["x"])), "idx/vectors.npy: damaged: not an array of float"),
    ],
)
def test_open_names_the_damaged_file(model: SpeechCLIP, name: str, damage: Callable[[Path], None], reason: str) -> None:
    run("--model", "best", "--images", "pictures", "--out", "idx")
    damage(Path("idx", name))
    with pytest.raises(UserError) as error:
        ImageIndex.open("idx")
    assert str(error.value).startswith(reason)


def test_thumbnail_outside_the_index_is_none(model: SpeechCLIP) -> None:
    run("--model", "best", "--images", "pictures", "--out", "idx")
    index = ImageIndex.open("idx")
    inside = index.thumbnail(2)
    assert inside is not None
    inside.unlink()
    inside.symlink_to(Path("pictures/a.JPG").resolve())
    assert index.thumbnail(2) is None
