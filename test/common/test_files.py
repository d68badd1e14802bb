"""Folders that commands replace: earlier results only, never trained weights."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from speechclip.bin.convert_checkpoint import main as convert_checkpoint
from speechclip.bin.convert_encoder import main as convert_encoder
from speechclip.bin.pack import main as pack
from speechclip.common.errors import UserError
from speechclip.common.files import (
    SUMS,
    check_replaceable,
    damaged_file,
    make_folder,
    only_one,
    replace_file,
    replace_folder,
)
from speechclip.search.build import check_target


def _commands(source: Path, out: Path) -> dict[str, Callable[[], None]]:
    return {
        "pack": lambda: pack(["--checkpoint", "nothing", "--scores", "nothing", "--out", str(out)]),
        "convert_checkpoint": lambda: convert_checkpoint(["--checkpoint", str(source), "--out", str(out)]),
        "convert_encoder": lambda: convert_encoder(["--kind", "clip", "--file", str(source), "--out", str(out)]),
    }


@pytest.mark.parametrize("name", ["pack", "convert_checkpoint", "convert_encoder"])
def test_commands_do_not_replace_trained_weights(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    out, source = tmp_path / "exp" / "tiny_parallel", tmp_path / "file.ckpt"
    (out / "best").mkdir(parents=True)
    (out / "best" / "model.safetensors").write_bytes(b"weights")
    (out / "provenance.json").write_text("{}")
    source.write_bytes(b"")
    with pytest.raises(SystemExit) as ended:
        _commands(source, out)[name]()
    assert ended.value.code == 1
    problem = "exists and is not an earlier result of this command. Give a new folder."
    assert capsys.readouterr().err == f"error: {out}: {problem}\n"
    assert (out / "best" / "model.safetensors").read_bytes() == b"weights"


def test_writers_keep_devices_folders_and_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"work")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")  # like a device: a rename would replace it by a file
    before = {path.name: path.lstat().st_mode for path in tmp_path.iterdir()}
    not_file, not_folder = "is not a regular file. Give the path", "is not a directory. Give the path"
    cases: list[tuple[Callable[[Path], object], str, str, str]] = [
        (lambda path: replace_file(path, b"new"), "pipe", "pipe", not_file),
        (lambda path: replace_file(path, b"new"), "folder", "folder", not_file),
        (lambda path: replace_file(path, b"new"), "file/new", "file", not_folder),
        (lambda path: replace_folder(path, lambda part: None), "file", "file", not_folder),
        (lambda path: replace_folder(path, lambda part: None), "pipe", "pipe", not_folder),
        (lambda path: replace_folder(path, lambda part: None), "file/a/b", "file", not_folder),
        (make_folder, "file", "file", not_folder),
        (make_folder, "file/a/b", "file", not_folder),
        (lambda path: check_replaceable(path, lambda folder: True), "file/new", "file", not_folder),
        (check_target, "file/a/b", "file", not_folder),
        (lambda path: only_one(path).__enter__(), "file", "file", not_folder),
    ]
    for write, target, named, problem in cases:
        with pytest.raises(UserError, match=f"^{tmp_path / named}: {problem}"):
            write(tmp_path / target)
    assert {path.name: path.lstat().st_mode for path in tmp_path.iterdir()} == before
    assert (tmp_path / "file").read_bytes() == b"work"


@pytest.mark.parametrize("name", ["score_retrieval", "score_keywords", "extract_clip_embeddings"])
def test_a_wrong_output_is_reported_before_the_work(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    out = str(tmp_path / "file" / "scores")
    options = ["--checkpoint", "nothing", "--data_dir", "nothing", "--dump_dir", "nothing", "--out", out]
    if name == "score_keywords":
        options += ["--train_data", "nothing"]
    if name == "extract_clip_embeddings":
        options = ["--data_dirs", "[nothing]", "--dump_root", out, "--model.clip.path", "nothing"]
    monkeypatch.setattr("sys.argv", [name, *options])
    with pytest.raises(SystemExit):
        importlib.import_module(f"speechclip.bin.{name}").main()
    problem = "is not a directory. Give the path of a folder to write."
    assert capsys.readouterr().err == f"error: {tmp_path / 'file'}: {problem}\n"


def test_check_replaceable_accepts_new_empty_and_earlier_folders(tmp_path: Path) -> None:
    check_replaceable(tmp_path / "new", lambda folder: False)
    (tmp_path / "empty").mkdir()
    check_replaceable(tmp_path / "empty", lambda folder: False)
    (tmp_path / "earlier").mkdir()
    (tmp_path / "earlier" / "mark").touch()
    check_replaceable(tmp_path / "earlier", lambda folder: (folder / "mark").is_file())
    for target in (tmp_path / "earlier", tmp_path / "earlier" / "mark"):
        with pytest.raises(UserError, match=f"^{target}: exists and is not an earlier result"):
            check_replaceable(target, lambda folder: False)


def test_replace_folder_lists_every_file_but_the_sums(tmp_path: Path) -> None:
    def write(part: Path) -> None:
        (part / "a.json").write_text("{}")
        (part / SUMS).write_text("of a copied folder")

    replace_folder(tmp_path / "out", write)
    sums = (tmp_path / "out" / SUMS).read_text()
    assert [line.split()[1] for line in sums.splitlines()] == ["a.json"]
    assert damaged_file(tmp_path / "out", all_files=True) == ""
