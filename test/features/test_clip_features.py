"""Stage 2's CLIP embeddings: equal to single items, and kept if a run is interrupted."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures import make_data, save_clip

import speechclip.features.clip as embeddings
from speechclip.common.errors import MissingFileError, Stopped, UserError
from speechclip.config import ClipConfig
from speechclip.data.embeddings import embeddings_source, load_embeddings, read_arrays
from speechclip.data.images import load_image
from speechclip.data.kaldi import DataDir
from speechclip.data.mapped import Column
from speechclip.features.clip import Job, embed_images, embed_texts
from speechclip.model.encoders.clip import OpenClip, load_clip

EMBED = {"image": embed_images, "text": embed_texts}
COUNTS = {"image": 10, "text": 20}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory ``d`` of 10 images with two captions each, and ``clip``."""
    folder = tmp_path_factory.mktemp("corpus")
    make_data(folder / "d", images=10, each=2)
    save_clip(folder / "clip")
    return folder


@pytest.fixture
def directory(corpus: Path) -> DataDir:
    return DataDir.load(corpus / "d")


@pytest.fixture
def clip(corpus: Path) -> OpenClip:
    return load_clip(ClipConfig(path=str(corpus / "clip")))


@pytest.fixture(autouse=True)
def several_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "BATCH", 3)


def _bytes(folder: Path, kind: str) -> bytes:
    return read_arrays(folder / f"{kind}_embeddings.npz")["embeddings"].tobytes()


def _count(clip: OpenClip, monkeypatch: pytest.MonkeyPatch, fail_at: int | None = None) -> list[int]:
    """Return a list that gets the size of each batch that a tower encodes. Batch ``fail_at`` raises an interrupt."""
    seen: list[int] = []

    def counted(plain: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def call(batch: Any) -> Any:
            if len(seen) == fail_at:
                raise KeyboardInterrupt
            seen.append(len(batch))
            return plain(batch)

        return call

    for name in ("encode_pixels", "encode_texts"):
        monkeypatch.setattr(clip, name, counted(getattr(OpenClip, name).__get__(clip)))
    return seen


def _with_caption(directory: DataDir, text: str) -> DataDir:
    """Return the data directory with another caption of its first utterance for CLIP."""
    table = directory.utterances
    captions = Column.of([text, *table.clip_texts[1:]])
    return dataclasses.replace(directory, utterances=dataclasses.replace(table, clip_texts=captions))


def test_embeddings_equal_those_of_single_items(directory: DataDir, clip: OpenClip, tmp_path: Path) -> None:
    directory = _with_caption(directory, "a dog")
    assert embed_images(directory, tmp_path, clip, None) == 10 and embed_texts(directory, tmp_path, clip, None) == 20
    ids, rows = load_embeddings(tmp_path / "image_embeddings.npz")
    assert ids == list(directory.images)
    for path, row in zip(directory.images.values(), rows):
        np.testing.assert_allclose(row, clip.encode_images([load_image(path)])[0].numpy(), atol=1e-5)
    ids, rows = load_embeddings(tmp_path / "text_embeddings.npz")
    assert ids == [utterance.id for utterance in directory.utterances]
    for utterance, row in zip(directory.utterances, rows):
        np.testing.assert_allclose(row, clip.encode_texts([utterance.clip_text])[0].numpy(), atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image_embeddings.npz", "text_embeddings.npz"]


@pytest.mark.parametrize("kind", EMBED)
def test_embeddings_are_kept_until_an_input_changes(
    kind: str, directory: DataDir, clip: OpenClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed, count = EMBED[kind], COUNTS[kind]
    embed(directory, tmp_path, clip, None)
    before = _bytes(tmp_path, kind)
    seen = _count(clip, monkeypatch)
    assert embed(directory, tmp_path, clip, None) == count and not seen
    file = tmp_path / f"{kind}_embeddings.npz"
    file.write_bytes(file.read_bytes()[:-50])  # truncated
    embed(directory, tmp_path, clip, None)
    assert sum(seen) == count and _bytes(tmp_path, kind) == before
    monkeypatch.setitem(clip.description, "weights", "others")
    embed(directory, tmp_path, clip, None)
    assert sum(seen) == 2 * count
    if kind == "image":  # another photograph under the same name
        path = Path(next(iter(directory.images.values())))
        content, status = path.read_bytes(), path.stat()
        try:
            path.write_bytes(Path(list(directory.images.values())[1]).read_bytes())
            embed(directory, tmp_path, clip, None)
        finally:
            path.write_bytes(content)
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    else:
        directory = _with_caption(directory, "a dog")
        embed(directory, tmp_path, clip, None)
    assert sum(seen) == 3 * count and _bytes(tmp_path, kind) != before


def test_another_preprocessing_embeds_images_again(corpus: Path, directory: DataDir, tmp_path: Path) -> None:
    shutil.copytree(corpus / "clip", tmp_path / "clip")
    settings = tmp_path / "clip" / "open_clip_config.json"
    stored = []
    for mean in (None, [0.5, 0.5, 0.5], None):
        content = json.loads((corpus / "clip" / settings.name).read_text())
        if mean is not None:
            content["preprocess_cfg"] = {**content.get("preprocess_cfg", {}), "mean": mean}
        settings.write_text(json.dumps(content))
        clip = load_clip(ClipConfig(path=str(tmp_path / "clip")))
        embed_images(directory, tmp_path, clip, None)
        embed_texts(directory, tmp_path, clip, None)
        sources = [embeddings_source(tmp_path / f"{kind}_embeddings.npz") for kind in EMBED]
        assert sources[0]["weights"] == sources[1]["weights"] == clip.description["weights"]
        assert sources[0]["preprocess"] == clip.preprocess.fingerprint and "preprocess" not in sources[1]
        files = [tmp_path / f"{kind}_embeddings.npz" for kind in EMBED]
        stored.append([_bytes(tmp_path, "image"), files[0].stat().st_mtime_ns, files[1].stat().st_mtime_ns])
    assert stored[0][0] == stored[2][0] != stored[1][0]
    assert stored[0][2] == stored[1][2] == stored[2][2]  # captions do not depend on it


@pytest.mark.parametrize("kind", EMBED)
@pytest.mark.parametrize("at", [1, 3])
def test_embedding_resumes_an_interrupted_run(
    kind: str, at: int, directory: DataDir, clip: OpenClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed, count = EMBED[kind], COUNTS[kind]
    embed(directory, tmp_path / "whole", clip, None)
    monkeypatch.setattr(embeddings, "KEEP_SECONDS", -1.0)  # after every batch
    seen = _count(clip, monkeypatch, fail_at=at)
    with pytest.raises(KeyboardInterrupt):
        embed(directory, tmp_path / "cut", clip, None)
    assert seen == [3] * at and not (tmp_path / "cut" / f"{kind}_embeddings.npz").exists()
    parts = sorted((tmp_path / "cut" / f".{kind}_embeddings.parts").iterdir())
    assert [path.name for path in parts] == [f"{3 * number:09d}.npz" for number in range(at)]
    parts[-1].write_bytes(parts[-1].read_bytes()[:-40])  # the last part is damaged, the others are used
    seen = _count(clip, monkeypatch)
    embed(directory, tmp_path / "cut", clip, None)
    assert sum(seen) == count - 3 * (at - 1)
    assert _bytes(tmp_path / "cut", kind) == _bytes(tmp_path / "whole", kind)
    assert [path.name for path in (tmp_path / "cut").iterdir()] == [f"{kind}_embeddings.npz"]


@pytest.mark.parametrize("kind", EMBED)
@pytest.mark.parametrize("jobs", [2, 3, 30])  # 30: more jobs than batches
def test_jobs_write_the_file_of_one_job(
    kind: str, jobs: int, directory: DataDir, clip: OpenClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed, count = EMBED[kind], COUNTS[kind]
    assert embed(directory, tmp_path / "one", clip, None) == count
    seen = _count(clip, monkeypatch)
    shares = [embed(directory, tmp_path / "many", clip, None, job=Job(number, jobs)) for number in range(jobs, 0, -1)]
    assert sum(shares) == sum(seen) == count and max(shares) - min(shares) <= 3
    assert not (tmp_path / "many" / f"{kind}_embeddings.npz").exists()
    assert embed(directory, tmp_path / "many", clip, None, job=Job(0, jobs)) == count
    files = [tmp_path / name / f"{kind}_embeddings.npz" for name in ("one", "many")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert [path.name for path in (tmp_path / "many").iterdir()] == [files[1].name]


@pytest.mark.parametrize("kind", EMBED)
def test_jobs_resume_with_another_number_of_jobs(
    kind: str, directory: DataDir, clip: OpenClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed, count = EMBED[kind], COUNTS[kind]
    embed(directory, tmp_path / "one", clip, None)
    with pytest.raises(Stopped, match="stopped after 3 of"):
        embed(directory, tmp_path, clip, None, job=Job(2, 2), stop=lambda: True)
    with pytest.raises(MissingFileError, match="npz: no embedding of '.*': a job is not finished"):
        embed(directory, tmp_path, clip, None, job=Job(0, 2))
    seen = _count(clip, monkeypatch)
    for number in (1, 2, 3, 0):
        embed(directory, tmp_path, clip, None, job=Job(number, 3))
    assert sum(seen) == count - 3  # the batch of the stopped job is not encoded again
    assert _bytes(tmp_path, kind) == _bytes(tmp_path / "one", kind)


@pytest.mark.parametrize("kind", EMBED)
def test_embedding_ignores_parts_of_other_weights(
    kind: str, directory: DataDir, clip: OpenClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Stopped, match=r"stopped after 3 of \d+, which are stored"):
        EMBED[kind](directory, tmp_path, clip, None, stop=lambda: True)
    torch.manual_seed(0)
    for weight in clip.parameters():
        weight.data.add_(0.1 * torch.randn_like(weight))
    monkeypatch.setitem(clip.description, "weights", "others")
    seen = _count(clip, monkeypatch)
    EMBED[kind](directory, tmp_path, clip, None)
    assert sum(seen) == COUNTS[kind]
    assert [path.name for path in tmp_path.iterdir()] == [f"{kind}_embeddings.npz"]


def test_embed_images_names_a_file_that_is_not_an_image(corpus: Path, clip: OpenClip, tmp_path: Path) -> None:
    directory = make_data(tmp_path / "d", images=8, each=1)
    path = Path(list(directory.images.values())[6])
    path.write_bytes(b"none")
    with pytest.raises(UserError, match=f"{path}: not an image"):
        embed_images(directory, tmp_path / "out", clip, None)
    assert not (tmp_path / "out" / "image_embeddings.npz").exists()


STOPPED = """
import os, signal
import speechclip.features.clip as embeddings
from speechclip.model.encoders.clip import OpenClip
from speechclip.bin.extract_clip_embeddings import main

embeddings.BATCH = 3
plain, seen = OpenClip.encode_pixels, []

def encode_pixels(self, pixels):
    seen.append(len(pixels))
    if len(seen) == 2:
        os.kill(os.getpid(), signal.SIGTERM)
    return plain(self, pixels)

OpenClip.encode_pixels = encode_pixels
main()
"""


def test_script_stores_its_batch_on_sigterm_and_resumes(corpus: Path, tmp_path: Path) -> None:
    words = ["--data_dirs", f"[{corpus / 'd'}]", "--dump_root", str(tmp_path)]
    words += ["--model.clip.path", str(corpus / "clip"), "--vocabulary", str(tmp_path / "vocabulary.tsv")]
    done = [
        subprocess.run([sys.executable, *how, *words], capture_output=True, text=True, check=False, timeout=120)
        for how in (["-c", STOPPED], ["-m", "speechclip.bin.extract_clip_embeddings"])
    ]
    target = tmp_path / "d" / "image_embeddings.npz"
    assert (done[0].returncode, done[0].stdout) == (75, f"{target}: stopped after 6 of 10, which are stored\n")
    assert done[1].returncode == 0, done[1].stderr
    assert f"{tmp_path / 'd'}: 10 images, 20 captions embedded" in done[1].stdout
    assert (tmp_path / "vocabulary.tsv").is_file() and not list((tmp_path / "d").glob(".*"))


@pytest.mark.parametrize(("ids", "first"), [(["x", "y"], " The first id is 'x'."), ([], "")])
def test_given_texts_of_other_utterances_change_nothing(
    ids: list[str], first: str, corpus: Path, directory: DataDir, clip: OpenClip, tmp_path: Path
) -> None:
    embed_texts(directory, tmp_path / "dump" / "d", clip, None)
    before = (tmp_path / "dump" / "d" / "text_embeddings.npz").read_bytes()
    np.savez(tmp_path / "own.npz", ids=np.array(ids, dtype=str), embeddings=np.ones((len(ids), 4), np.float32))
    command = [
        sys.executable, "-m", "speechclip.bin.extract_clip_embeddings", "--data_dirs", f"[{corpus / 'd'}]",
        "--dump_root", str(tmp_path / "dump"), "--text_embeddings", str(tmp_path / "own.npz"),
        "--vocabulary", str(tmp_path / "vocabulary.tsv"), "--model.clip.path", str(corpus / "clip"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        f"error: {tmp_path / 'own.npz'}: none of its {len(ids)} ids is an utterance of {corpus / 'd'}."
        f"{first} Use the ids of the file 'text'.\n"
    )
    assert (tmp_path / "dump" / "d" / "text_embeddings.npz").read_bytes() == before
