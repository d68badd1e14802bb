"""The feature store: round trips, resume after a kill, and one line for every kind of damage."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from speechclip.common.errors import UserError
from speechclip.data.features import FeatureStore, FeatureWriter

ENCODER = {"name": "tiny hubert", "fingerprint": "0123abcd", "frame_rate": "50"}
LAYERS = (0, 2, 5)
DIM = 8


def features(number: int) -> torch.Tensor:
    """Return features [3, 5 + number, 8] that differ for every number."""
    return torch.randn(len(LAYERS), 5 + number, DIM, generator=torch.Generator().manual_seed(number))


def fill(directory: Path, count: int = 10, **options: Any) -> None:
    options = {"encoder": ENCODER, "layers": LAYERS, "shard_bytes": 2000, **options}
    with FeatureWriter(directory, **options) as writer:
        for number in reversed(range(count)):
            if f"utt{number}" not in writer.finished:
                writer.add(f"utt{number}", features(number))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_store_returns_what_was_written(tmp_path: Path, dtype: str) -> None:
    fill(tmp_path, dtype=dtype)
    store = FeatureStore(tmp_path)
    assert store.ids == tuple(f"utt{number}" for number in range(10))
    assert store.encoder == ENCODER
    assert (store.layers, store.dim, len(store)) == (LAYERS, DIM, 10)
    assert store.dtype == getattr(torch, dtype)
    assert "utt3" in store
    assert "utt10" not in store
    for number in range(10):
        expected = features(number).to(store.dtype)
        assert store.num_frames[f"utt{number}"] == 5 + number
        assert torch.equal(store.read(f"utt{number}"), expected)
        assert torch.equal(store.read(f"utt{number}", 2, 4), expected[:, 2:4])
        assert torch.equal(store.read(f"utt{number}", 3), expected[:, 3:])
    assert len(list(tmp_path.glob("feats.*.safetensors"))) == (2 if dtype == "float16" else 4)
    assert not list(tmp_path.glob(".*"))


def test_store_read_returns_a_new_tensor(tmp_path: Path) -> None:
    fill(tmp_path)
    store = FeatureStore(tmp_path)
    before = store.read("utt1", 1, 3)
    assert before.is_contiguous()
    store.read("utt1").zero_()
    assert torch.equal(store.read("utt1", 1, 3), before)


def test_writer_accepts_numpy_arrays(tmp_path: Path) -> None:
    with FeatureWriter(tmp_path, encoder={}, layers=[4], dtype="float32") as writer:
        writer.add("a", np.arange(6, dtype=np.float64).reshape(1, 3, 2))
    assert FeatureStore(tmp_path).read("a").tolist() == [[[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]]


KILLED = textwrap.dedent(
    """
    import os, signal, sys
    from pathlib import Path
    sys.path[:0] = {folders!r}
    from test_features import ENCODER, LAYERS, FeatureWriter, features
    with FeatureWriter(sys.argv[1], encoder=ENCODER, layers=LAYERS, shard_bytes=2000) as writer:
        for number in reversed(range(10)):
            if number == 3:
                Path(sys.argv[1], ".feats.0009.safetensors.part").write_bytes(b"half")
                os.kill(os.getpid(), signal.SIGKILL)
            writer.add(f"utt{{number}}", features(number))
    """
)


def test_writer_resumes_after_a_kill(tmp_path: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED.format(folders=[str(Path(__file__).parent), *sys.path]))
    store = tmp_path / "store"
    result = subprocess.run([sys.executable, str(script), str(store)], capture_output=True, check=False)
    assert result.returncode == -signal.SIGKILL, result.stderr.decode()
    with pytest.raises(UserError, match=r"feats\.scp: is missing"):
        FeatureStore(store)
    kept = {path.name: path.stat().st_mtime_ns for path in store.glob("feats.*.safetensors")}
    assert kept
    writer = FeatureWriter(store, encoder=ENCODER, layers=LAYERS)
    assert writer.finished == {f"utt{number}" for number in range(6, 10)}  # one shard; 4 and 5 were pending
    fill(store)
    assert {name: (store / name).stat().st_mtime_ns for name in kept} == kept
    assert not list(store.glob(".*"))
    whole = FeatureStore(store)
    for number in range(10):
        assert torch.equal(whole.read(f"utt{number}"), features(number).half())


def test_writer_syncs_a_shard_before_renaming_it(tmp_path: Path, synced: list[Path]) -> None:
    fill(tmp_path, count=3, shard_bytes=10**9)
    assert synced[:2] == [tmp_path / ".feats.0000.safetensors.part", tmp_path]


def test_writer_keeps_complete_shards_after_an_error(tmp_path: Path) -> None:
    def fail() -> None:
        with FeatureWriter(tmp_path, encoder=ENCODER, layers=LAYERS, shard_bytes=1) as writer:
            writer.add("utt1", features(1))
            raise RuntimeError("the encoder failed")

    with pytest.raises(RuntimeError, match="the encoder failed"):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["feats.0000.safetensors"]


def test_writer_leaves_a_complete_store_unchanged(tmp_path: Path) -> None:
    fill(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    writer = FeatureWriter(tmp_path, encoder=ENCODER, layers=LAYERS)
    assert len(writer.finished) == 10
    writer.close()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        ({"encoder": {**ENCODER, "fingerprint": "ffff"}}, "made with encoder.fingerprint '0123abcd', not 'ffff'"),
        ({"layers": (0, 1, 2)}, "made with layers '[0, 2, 5]', not '[0, 1, 2]'"),
        ({"dtype": "float32"}, "made with dtype torch.float16, not torch.float32"),
    ],
)
def test_writer_refuses_a_store_of_other_settings(tmp_path: Path, options: dict[str, Any], fragment: str) -> None:
    fill(tmp_path)
    with pytest.raises(UserError) as caught:
        fill(tmp_path, **options)
    assert fragment in str(caught.value)


@pytest.mark.parametrize("end", [0, 5, 100, -300, -1])
def test_store_refuses_a_truncated_shard(tmp_path: Path, end: int) -> None:
    fill(tmp_path)
    shard = tmp_path / "feats.0001.safetensors"
    shard.write_bytes(shard.read_bytes()[:end])
    with pytest.raises(UserError) as caught:
        FeatureStore(tmp_path)
    assert str(caught.value).startswith(f"{shard}: truncated or corrupt features (")
    assert "\n" not in str(caught.value)
    fill(tmp_path)  # a second extraction replaces it
    assert len(FeatureStore(tmp_path)) == 10


def test_store_reports_damage(tmp_path: Path) -> None:
    fill(tmp_path)
    index = (tmp_path / "feats.scp").read_text()
    for change, fragment in [
        (("utt0 ", "utt ", 1), "utterance 'utt' is missing (see feats.scp)"),
        ((" 5\n", " 6\n", 1), "utterance 'utt0' has shape [3, 5, 8], not [3, 6, 8]"),
        ((" 5\n", " x\n", 1), "feats.scp: 'utt0': not a shard and a number of frames"),
    ]:
        (tmp_path / "feats.scp").write_text(index.replace(*change))
        with pytest.raises(UserError) as caught:
            FeatureStore(tmp_path)
        assert fragment in str(caught.value)
    (tmp_path / "feats.scp").write_text(index)
    with pytest.raises(UserError, match=r"feats\.scp: no features of utterance 'other'"):
        FeatureStore(tmp_path).read("other")
    (tmp_path / "feats.0001.safetensors").unlink()
    with pytest.raises(UserError, match=r"feats\.0001\.safetensors: is missing"):
        FeatureStore(tmp_path)


def test_store_refuses_shards_of_two_encoders(tmp_path: Path) -> None:
    fill(tmp_path / "a")
    fill(tmp_path / "b", encoder={**ENCODER, "name": "other"})
    os.replace(tmp_path / "b" / "feats.0001.safetensors", tmp_path / "a" / "feats.0001.safetensors")
    with pytest.raises(
        UserError, match=r"feats\.0001\.safetensors: made with encoder\.name 'other', not 'tiny hubert'"
    ):
        FeatureStore(tmp_path / "a")


@pytest.mark.parametrize(
    ("job", "names"),
    [(None, ["feats.0002.safetensors", "feats.0003.safetensors", "feats.scp"]),
     (2, ["feats.002.0000.safetensors", "feats.002.0001.safetensors"])],
)  # fmt: skip
@pytest.mark.parametrize(
    "change", [{"encoder": {**ENCODER, "name": "other"}}, {"layers": (0, 2, 6)}, {"dtype": "float32"}]
)
def test_old_store_stays_until_a_new_shard(
    tmp_path: Path, change: dict[str, Any], job: int | None, names: list[str]
) -> None:
    fill(tmp_path)
    with pytest.raises(UserError, match="made with"):
        fill(tmp_path, **change)
    writer = FeatureWriter(tmp_path, **{"encoder": ENCODER, "layers": LAYERS, **change}, replace=True)
    assert "made with" in writer.stale and not writer.finished
    writer.add("utt0", features(0))
    with pytest.raises(UserError, match="of width 9"):  # it fails before its first shard
        writer.add("utt1", torch.zeros(3, 4, DIM + 1))
    assert len(FeatureStore(tmp_path)) == 10 and FeatureStore(tmp_path).encoder == ENCODER
    fill(tmp_path, **change, shard_bytes=4000 if "dtype" in change else 2000, job=job, replace=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == names


@pytest.mark.parametrize(
    ("array", "fragment"),
    [
        (torch.zeros(2, 4, DIM), "features of shape (2, 4, 8), not [3, frames, width]"),
        (torch.zeros(3, 0, DIM), "features of shape (3, 0, 8)"),
        (torch.zeros(3, 4, DIM + 1), "features of width 9 in a store of width 8"),
        (torch.full((3, 4, DIM), 1e6), "NaN or beyond the range of float16"),
        (torch.full((3, 4, DIM), torch.nan), "NaN or beyond the range of float16"),
    ],
)
def test_writer_refuses_bad_features(tmp_path: Path, array: torch.Tensor, fragment: str) -> None:
    writer = FeatureWriter(tmp_path, encoder=ENCODER, layers=LAYERS)
    writer.add("utt0", features(0))
    with pytest.raises(UserError) as caught:
        writer.add("bad", array)
    assert f"utterance 'bad': {fragment}" in str(caught.value).replace("features are ", "")


def test_writer_refuses_bad_use(tmp_path: Path) -> None:
    writer = FeatureWriter(tmp_path, encoder=ENCODER, layers=LAYERS)
    with pytest.raises(UserError, match="no features to store"):
        writer.close()
    writer.add("utt0", features(0))
    with pytest.raises(UserError, match="'utt0': features were added before"):
        writer.add("utt0", features(0))
    with pytest.raises(UserError, match=r"dtype 'float8' is not known \(known: float16, float32\)"):
        FeatureWriter(tmp_path, encoder=ENCODER, layers=LAYERS, dtype="float8")


def test_writer_reports_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"some")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    fill(tmp_path, count=4)
    monkeypatch.setattr("speechclip.data.features.save_file", full)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(UserError, match=r"/feats\.\d{4}\.safetensors: disk full while writing"):
        fill(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def _read_all(store: FeatureStore, queue: Any) -> None:
    queue.put(sum(float(store.read(utt_id).float().sum()) for utt_id in store.ids))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_store_reads_in_other_processes(tmp_path: Path, method: str) -> None:
    fill(tmp_path)
    store = FeatureStore(tmp_path)
    store.read("utt0")
    store.read("utt9")
    context = multiprocessing.get_context(method)
    queue: Any = context.Queue()
    workers = [context.Process(target=_read_all, args=(store, queue)) for _ in range(2)]  # type: ignore[attr-defined]
    for worker in workers:
        worker.start()
    sums = [queue.get(timeout=200) for _ in workers]
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert sums[0] == sums[1] == sum(float(store.read(utt_id).float().sum()) for utt_id in store.ids)


def test_store_can_be_pickled(tmp_path: Path) -> None:
    fill(tmp_path)
    store = FeatureStore(tmp_path)
    store.read("utt0")
    copy = pickle.loads(pickle.dumps(store))
    assert torch.equal(copy.read("utt0"), store.read("utt0"))
