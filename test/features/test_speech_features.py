"""Stage 2's features: equal for one and several jobs, after interruptions, and after a full disk."""

from __future__ import annotations

import functools
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures import make_data, save_hubert

from speechclip.common.errors import UserError
from speechclip.config import Config, load
from speechclip.data.audio import num_samples
from speechclip.data.features import INDEX, FeatureStore, FeatureWriter, write_index
from speechclip.features.speech import batches_by_seconds, extract_features
from speechclip.model.encoders.factory import load_speech_encoder

SECONDS = 4.0  # of speech in a batch, so that there are several


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory ``d`` of 24 utterances, ``hubert``, and its undisturbed store ``whole``."""
    folder = tmp_path_factory.mktemp("corpus")
    make_data(folder / "d", images=12, each=2)
    save_hubert(folder / "hubert")
    _extract(folder, folder / "whole")
    return folder


def _config(corpus: Path, *words: str) -> Config:
    return load([], [f"--model.speech_encoder.path={corpus / 'hubert'}", "--data.store_dtype=float32", *words])


@functools.cache
def _encoder(corpus: Path) -> Any:
    return load_speech_encoder(_config(corpus).model.speech_encoder)


def _extract(corpus: Path, out: Path, *words: str, batch_seconds: float = SECONDS, **options: Any) -> int:
    return extract_features(
        _config(corpus, *words), str(corpus / "d"), str(out), batch_seconds=batch_seconds, encoder=_encoder(corpus),
        **options,
    )[0]  # fmt: skip


def _ids(corpus: Path) -> list[str]:
    return [line.split()[0] for line in (corpus / "d" / "wav.scp").read_text().splitlines()]


def _samples(corpus: Path) -> Any:
    return np.array([num_samples(line.split()[1]) for line in (corpus / "d" / "wav.scp").read_text().splitlines()])


def _words(corpus: Path, root: Path) -> list[str]:
    """Return the arguments of the script ``extract_features`` for the same store in ``root``."""
    words = ["--model.speech_encoder.path", corpus / "hubert", "--data.store_dtype", "float32"]
    words += ["--data_dirs", f"[{corpus / 'd'}]", "--dump_root", root, "--batch_seconds", SECONDS]
    return [str(word) for word in words]


def _as_whole(corpus: Path, out: Path) -> None:
    one, other = FeatureStore(corpus / "whole"), FeatureStore(out)
    assert one.ids == other.ids == tuple(_ids(corpus))
    assert all(torch.equal(one.read(utterance), other.read(utterance)) for utterance in one.ids)


def test_features_depend_on_the_batches(corpus: Path, tmp_path: Path) -> None:
    _extract(corpus, tmp_path / "other", batch_seconds=2 * SECONDS)
    one, other = FeatureStore(corpus / "whole"), FeatureStore(tmp_path / "other")
    assert any(not torch.equal(one.read(utterance), other.read(utterance)) for utterance in one.ids)


@pytest.mark.parametrize("jobs", [2, 3, 20])  # more than there are batches
def test_several_jobs_store_the_same_as_one(corpus: Path, tmp_path: Path, jobs: int) -> None:
    counts = [_extract(corpus, tmp_path, job=job, jobs=jobs) for job in range(jobs, 0, -1)]
    assert sum(counts) == 24 and (0 in counts) == (jobs == 20)
    assert not (tmp_path / INDEX).exists()
    write_index(tmp_path, _ids(corpus))
    _as_whole(corpus, tmp_path)
    assert [_extract(corpus, tmp_path, job=job, jobs=jobs) for job in (1, 2)] == [0, 0]


def test_a_failed_job_is_reported_and_repeated(corpus: Path, tmp_path: Path) -> None:
    first = _extract(corpus, tmp_path, job=1, jobs=2)
    with pytest.raises(UserError, match=rf"feats.scp: no features of utterance .* and {24 - first - 1} more$"):
        write_index(tmp_path, _ids(corpus))
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("feats.*")}
    rest = [_extract(corpus, tmp_path, job=job, jobs=3) for job in (1, 2, 3)]  # another number of jobs
    assert sum(rest) == 24 - first
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    write_index(tmp_path, _ids(corpus))
    _as_whole(corpus, tmp_path)


@pytest.mark.parametrize("at", [1, 7, 17])
def test_extraction_resumes_with_the_same_batches(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Shards hold about two utterances, so that batches are split."""
    defaults = {**(FeatureWriter.__init__.__kwdefaults__ or {}), "shard_bytes": 20_000}
    monkeypatch.setattr(FeatureWriter.__init__, "__kwdefaults__", defaults)
    plain, added = FeatureWriter.add, []

    def add(self: FeatureWriter, utterance: str, array: Any) -> None:
        if len(added) == at:
            raise KeyboardInterrupt
        added.append(utterance)
        plain(self, utterance, array)

    with monkeypatch.context() as patch:
        patch.setattr(FeatureWriter, "add", add)
        with pytest.raises(KeyboardInterrupt):
            _extract(corpus, tmp_path)
    assert list(tmp_path.glob("feats.*")) and not (tmp_path / INDEX).exists()
    _extract(corpus, tmp_path)
    _as_whole(corpus, tmp_path)


STOPPED = """
import os, signal
import speechclip.features.speech as extract
from speechclip.bin.extract_features import main

plain, read = extract.load_audio, []

def load_audio(path):
    read.append(path)
    if len(read) == 3:
        os.kill(os.getpid(), signal.SIGTERM)
    return plain(path)

extract.load_audio = load_audio
main()
"""


@pytest.mark.parametrize("jobs", [1, 2])
def test_script_stores_its_batch_on_sigterm_and_resumes(corpus: Path, tmp_path: Path, jobs: int) -> None:
    words = [*_words(corpus, tmp_path), "--jobs", str(jobs)]
    ended = subprocess.run(
        [sys.executable, "-c", STOPPED, *words], capture_output=True, text=True, check=False, timeout=120
    )
    assert ended.returncode == 75, ended.stderr
    said = re.fullmatch(rf"{tmp_path / 'd'}: stopped after (\d) of (\d+) batches, which are stored\n", ended.stdout)
    assert said is not None and 0 < int(said[1]) < int(said[2])
    assert not (tmp_path / "d" / INDEX).exists()
    sizes = [len(batch) for batch in batches_by_seconds(_samples(corpus), SECONDS)][::jobs][: int(said[1])]
    rest = [_extract(corpus, tmp_path / "d", job=job, jobs=jobs) for job in range(1, jobs + 1)]
    assert sum(rest) == 24 - sum(sizes)
    if jobs > 1:
        write_index(tmp_path / "d", _ids(corpus))
    _as_whole(corpus, tmp_path / "d")


def test_stale_and_damaged_shards_are_replaced(corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "speechclip")
    shutil.copytree(corpus / "whole", tmp_path / "store")
    half = _extract(corpus, tmp_path / "store", "--model.speech_encoder.layers=[0]", job=1, jobs=2)
    assert half and "made with layers" in caplog.text
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["feats.001.0000.safetensors"]
    shard = tmp_path / "store" / "feats.001.0000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    for job in (2, 1):
        _extract(corpus, tmp_path / "store", job=job, jobs=2)
    write_index(tmp_path / "store", _ids(corpus))
    _as_whole(corpus, tmp_path / "store")


def test_batches_by_seconds_hold_every_utterance_once() -> None:
    samples = np.random.default_rng(0).integers(1, 160_000, 300)
    batches = list(batches_by_seconds(samples, 30.0))
    assert sorted(sum(batches, [])) == list(range(300))
    assert all(len(batch) == 1 or samples[batch].max() * len(batch) <= 480_000 for batch in batches)


SMALL_DISK = """
set -e
mount -t tmpfs -o size=$2 small "$1"
shift 2
status=0
"$@" || status=$?
find "$DISK" -type f >&2
cp -r "$DISK/." "$KEEP"
exit $status
"""


def _on_a_small_disk(tmp_path: Path, kilobytes: int, command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command with ``disk`` on a file system of that size. Copy the files of ``disk`` to ``kept`` afterwards."""
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    for folder in (disk, kept):
        folder.mkdir()
    inside = ["unshare", "-Urm", "bash", "-c", SMALL_DISK, "bash", str(disk), f"{kilobytes}k"]
    return subprocess.run(
        [*inside, *command], env={**os.environ, "DISK": str(disk), "KEEP": str(kept)}, capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip


def test_extraction_reports_a_full_disk(corpus: Path, tmp_path: Path) -> None:
    if shutil.which("unshare") is None or _on_a_small_disk(tmp_path, 100, ["true"]).returncode:
        pytest.skip("no small file system can be mounted here")
    for folder in ("disk", "kept"):
        shutil.rmtree(tmp_path / folder)
    command = [sys.executable, "-m", "speechclip.bin.extract_features", *_words(corpus, tmp_path / "disk")]
    ended = _on_a_small_disk(tmp_path, 100, command)
    assert ended.returncode == 1, ended.stderr
    shard = tmp_path / "disk" / "d" / "feats.0000.safetensors"
    line = f"error: {shard}: disk full while writing. Free some space and run the command again."
    assert ended.stderr.splitlines()[0] == line
    assert not list((tmp_path / "kept" / "d").iterdir())  # no incomplete file remains
    _extract(corpus, tmp_path / "kept" / "d")
    _as_whole(corpus, tmp_path / "kept" / "d")
