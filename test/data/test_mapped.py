"""Memory-mapped columns, embeddings and indices: equal to those in memory, rebuilt when their source changes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import speechclip.data.mapped as mapped
from speechclip.common.errors import UserError
from speechclip.data.batches import bucketed_batches
from speechclip.data.dataset import Crop, Split, StoreSource
from speechclip.data.embeddings import load_embeddings, load_mapped, save_embedding_blocks, save_embeddings
from speechclip.data.features import FeatureStore, FeatureWriter
from speechclip.data.kaldi import DataDir, Utterance, find_problems, write_data_dir
from speechclip.data.lengths import recording_lengths
from speechclip.data.mapped import Column, Lookup, StringSet, gathered

LANGUAGES = ("de", "en", "yo")


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write ``data/train`` with 60 utterances of 7 speakers, 12 images, three languages and captions for CLIP."""
    monkeypatch.chdir(tmp_path)
    for name in ("a b.wav", "ç.wav", "x.png"):
        (tmp_path / name).touch()
    utterances = [
        Utterance(
            f"s{n % 7}-ü{n:03d}", Path("ç.wav" if n % 3 else "a b.wav"), f"文 caption {n}\tand a tab", f"s{n % 7}",
            f"i{n % 12:02d}", clip_text=f"caption {n}", language=LANGUAGES[n % 3],
        )
        for n in range(60)
    ]  # fmt: skip
    write_data_dir("data/train", utterances, {f"i{n:02d}": "x.png" for n in range(12)})
    return tmp_path


@pytest.fixture
def everything_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "MAP_BYTES", 1)


def _map_all(monkeypatch: pytest.MonkeyPatch, act: Callable[[], Any]) -> Any:
    with monkeypatch.context() as patch:
        patch.setattr(mapped, "MAP_BYTES", 1)
        return act()


def _is_mapped(array: np.ndarray) -> bool:
    base: Any = array
    while base is not None:
        if isinstance(base, np.memmap):
            return True
        base = getattr(base, "base", None)
    return False


@pytest.mark.parametrize("languages", [(), ("yo", "de")])
def test_mapped_data_dir_equals_one_in_memory(
    languages: tuple[str, ...], recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = DataDir.load("data/train").only(languages)
    assert not list(Path("data/train").glob(".columns*"))
    for _ in range(2):  # built, and then only opened
        found = _map_all(monkeypatch, lambda: DataDir.load("data/train").only(languages))
        assert _is_mapped(found.ids.data) and _is_mapped(found.utterances.images)
        assert found == plain and len(plain.ids) == (40 if languages else 60)
        assert dict(found.images) == dict(plain.images) and list(found.images.items()) == list(plain.images.items())
        assert (found.speakers, found.languages) == (plain.speakers, plain.languages)
        np.testing.assert_array_equal(found.utterances.images, plain.utterances.images)
    assert len(list(Path("data/train").glob(".columns-*"))) == 1


def test_mapped_data_dir_is_built_again_after_a_change(recipe: Path, everything_mapped: None) -> None:
    first = DataDir.load("data/train")
    (folder,) = Path("data/train").glob(".columns-*")
    text = Path("data/train/text").read_text()
    Path("data/train/text").write_text(text.replace("caption 0", "another 0"))
    second = DataDir.load("data/train")
    assert (
        second.utterances[0].text == "文 another 0\tand a tab" and first.utterances[0].text == "文 caption 0\tand a tab"
    )
    assert [path.name for path in Path("data/train").glob(".columns-*")] != [folder.name]
    assert len(list(Path("data/train").glob(".columns*"))) == 2  # the new columns and the lock


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("wav.scp", "s0-ü000 a b.wav", "s0-ü000 missing.wav"),
        ("wav.scp", "s0-ü000 a b.wav", "s0-ü000 sox a.wav |"),
        ("wav.scp", "s0-ü007", "s9-ü007"),
        ("text", "s0-ü007 ", "s0-ü007"),
        ("text", "caption 14", "caption \r14"),
        ("utt2img", "i07", "i99"),
        ("utt2img", "s0-ü007 i07", "s0-ü007 i08"),  # i07 stays with another utterance: valid
        ("utt2spk", "s0-ü007 s0", "s0-ü007 s1"),
        ("spk2utt", "s0-ü007 ", ""),
        ("spk2utt", "s0-ü000 s0-ü007", "s0-ü007 s0-ü000"),  # another order: valid
        ("img.scp", "i00 x.png", "i00 x.png\ni00a x.png"),
        ("utt2lang", "s0-ü007 en", "s0-ü007 e\u00a0n"),
        ("text_clip", "s0-ü007", "s0-ü007\u2003"),
        ("text", "s0-ü000 文 caption 0\tand a tab", "s0-ü000 \u2003"),
        ("text", "s0-ü000 ", "s0-ü000 \t  "),  # more blanks: valid
    ],
)
def test_mapped_data_dir_has_the_problems_of_plain_one(
    name: str, old: str, new: str, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path("data/train", name)
    content = path.read_text()
    assert old in content
    path.write_bytes(content.replace(old, new, 1).encode())
    problems = find_problems("data/train")
    if not problems:
        assert _map_all(monkeypatch, lambda: DataDir.load("data/train")) == DataDir.load("data/train")
        return
    for size in (1, 1 << 30):
        monkeypatch.setattr(mapped, "MAP_BYTES", size)
        with pytest.raises(UserError) as error:
            DataDir.load("data/train")
        assert str(error.value).startswith(problems[0])
    assert not list(Path("data/train").glob(".columns-*"))


def test_several_processes_build_a_map_once(recipe: Path) -> None:
    code = (
        "import speechclip.data.mapped as m, speechclip.data.kaldi as k; m.MAP_BYTES = 1\n"
        "plain = k.write_columns\n"
        "def write(*a):\n    print('built', flush=True)\n    __import__('time').sleep(0.5)\n    return plain(*a)\n"
        "k.write_columns = write\n"
        "print(len(k.DataDir.load('data/train').ids))"
    )
    command = [sys.executable, "-c", code]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    lines = [line for process in running for line in process.communicate(timeout=120)[0].split()]
    assert sorted(lines) == ["60", "60", "60", "built"]


def test_read_only_folder_gets_a_private_map(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, everything_mapped: None
) -> None:
    plain = Path.open

    def refuse(path: Path, *words: Any, **options: Any) -> Any:  # the tests may run as root
        if path.name.endswith(".lock"):
            raise PermissionError(path)
        return plain(path, *words, **options)

    monkeypatch.setattr(Path, "open", refuse)
    data = DataDir.load("data/train")
    assert len(data.ids) == 60 and data.ids[59] == "s6-ü055" and _is_mapped(data.ids.data)
    assert not list(Path("data/train").glob(".columns*"))


def test_column_lookup_and_gather_find_rows(everything_mapped: None) -> None:
    words = sorted(["a", "ab", "b", "ü", "zz", "文"])
    column = Column.of(words)
    assert list(column) == words and column[1:3] == ["ab", "b"] and column == words and column != words[:-1]
    assert [column.find(item) for item in ("ab", "c", "文")] == [1, -1, 5]
    asked = Column.of(["zz", "abc", "", "a", "文", "文x", "文"])
    assert Lookup(column).rows(asked).tolist() == [3, -1, -1, 0, 5, -1, 5]
    assert Lookup(Column.of(["a", "z" * 300])).rows(Column.of(["z" * 300, "zz", "a"])).tolist() == [1, -1, 0]
    rows = np.array([5, 0, 0, 3])
    assert list(column.take(rows)) == ["文", "a", "a", "zz"]
    assert column.take(rows).same(Column.of(["文", "a", "a", "zz"])) and not column.same(asked)
    matrix = np.arange(12.0).reshape(6, 2)
    np.testing.assert_array_equal(gathered(matrix, rows), matrix[rows])


def test_string_set_holds_what_was_added() -> None:
    found = StringSet()
    assert "a" not in found and not found
    every = {f"utterance {number}" for number in range(70_000)}
    found.update(sorted(every))
    found.update(["utterance 3", "b"])
    assert found == every | {"b"} and len(found) == 70_001
    assert "utterance 69999" in found and "b" in found and "c" not in found and 3 not in found


def _plain_batches(lengths: np.ndarray, size: int, pools: int, seed: int, epoch: int) -> list[list[int]]:
    """Return the batches by the definition, with lists: pools of shuffled positions, sorted, cut and shuffled."""
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(lengths))[: len(lengths) // size * size]
    batches: list[list[int]] = []
    for start in range(0, len(order), size * pools):
        pool = order[start : start + size * pools]
        pool = pool[np.argsort(lengths[pool], kind="stable")] if pools > 1 else pool
        batches += [pool[at : at + size].tolist() for at in range(0, len(pool), size)]
    return [batches[at] for at in rng.permutation(len(batches))]


@pytest.mark.parametrize(("count", "size", "pools"), [(1000, 8, 4), (1003, 16, 1), (70_000, 256, 100), (64, 64, 2)])
def test_batches_equal_the_definition(count: int, size: int, pools: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = np.random.default_rng(7).integers(1, 50, count) / 50
    expected = _plain_batches(lengths, size, pools, 3, 4)
    for limit in (1, 1 << 30):
        monkeypatch.setattr(mapped, "MAP_BYTES", limit)
        batches = bucketed_batches(lengths, size, bucket_batches=pools, seed=3, epoch=4)
        assert list(batches) == expected
        assert list(batches[2:].share(1, 3)) == [batch[1::3] for batch in expected[2:]]


def test_mapped_embeddings_equal_those_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, everything_mapped: None
) -> None:
    rng = np.random.default_rng(0)
    ids, path = [f"i{n:03d}" for n in range(300)], tmp_path / "e.npz"
    for dtype in (np.float32, np.float64, np.float16):
        np.savez(path, ids=np.array(ids), embeddings=rng.standard_normal((300, 48)).astype(dtype))
        for wanted in (None, ids, Column.of(ids), ids[::-1][:70]):
            stored, rows = load_embeddings(path, wanted)
            found, matrix = load_mapped(path, wanted)
            assert list(found) == stored and _is_mapped(matrix) and matrix.dtype == np.float32
            assert matrix.tobytes() == rows.tobytes()
    assert len(list(tmp_path.glob(".e-*"))) == 1  # earlier maps are removed


@pytest.mark.parametrize(
    "change",
    [
        {"ids": ["a", "b", "a"]},
        {"embeddings": np.array([[1.0, 0], [0, 0], [1, 1]])},
        {"embeddings": np.array([[1.0, 0], [np.nan, 0], [1, 1]])},
        {"embeddings": np.ones((2, 2))},
        {"embeddings": np.array([["a"]] * 3)},
    ],
)
def test_mapped_embeddings_have_the_problems_of_plain(
    change: dict[str, Any], tmp_path: Path, everything_mapped: None
) -> None:
    np.savez(tmp_path / "e.npz", **{"ids": ["a", "b", "c"], "embeddings": np.ones((3, 2)), **change})
    with pytest.raises(UserError) as plain:
        load_embeddings(tmp_path / "e.npz")
    with pytest.raises(UserError) as error:
        load_mapped(tmp_path / "e.npz")
    assert str(error.value) == str(plain.value)


def test_embedding_blocks_write_the_file_of_numpy(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32)
    ids = ["a", "bcd", "e", "f", "g", "h", "ü"]
    save_embedding_blocks(tmp_path / "blocks.npz", ids, iter([rows[:2], rows[2:]]), 3, {"k": "v"})
    save_embeddings(tmp_path / "whole.npz", ids, rows, {"k": "v"})
    assert (tmp_path / "blocks.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    np.savez(tmp_path / "numpy.npz", ids=np.array(ids), embeddings=rows, source=np.array('{"k": "v"}'))
    with np.load(tmp_path / "blocks.npz") as ours, np.load(tmp_path / "numpy.npz") as theirs:
        for name in theirs.files:
            assert ours[name].dtype == theirs[name].dtype and ours[name].tobytes() == theirs[name].tobytes()


def _store(folder: Path, ids: list[str]) -> None:
    rng = np.random.default_rng(0)
    with FeatureWriter(folder, encoder={"name": "x"}, layers=[0, 3], shard_bytes=3000) as writer:
        for number in rng.permutation(len(ids)).tolist():
            writer.add(ids[number], rng.standard_normal((2, 3 + number % 5, 8)).astype(np.float32))


def test_mapped_feature_index_equals_one_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [f"u{n:03d}" for n in range(80)]
    _store(tmp_path, ids)
    plain = FeatureStore(tmp_path)
    store = _map_all(monkeypatch, lambda: FeatureStore(tmp_path))
    assert _is_mapped(store.frames) and store.ids == ids == plain.ids
    assert dict(store.num_frames) == dict(plain.num_frames)
    assert (store.dtype, store.layers, store.dim, store.encoder) == (
        plain.dtype, plain.layers, plain.dim, plain.encoder,
    )  # fmt: skip
    monkeypatch.setattr("speechclip.data.features._OPEN_SHARDS", 2)
    assert all(bool((store.read(item) == plain.read(item)).all()) for item in ids)
    assert len(store._open) == 2
    for wanted in (ids, Column.of(ids), ids[5:60:3]):
        one, other = (StoreSource(tmp_path, wanted, [3]) for _ in range(2))
        np.testing.assert_array_equal(one.lengths, [plain.num_frames[item] / 50 for item in wanted])
        crop = Crop(0.06, 1, 2)
        assert bool((one.batch([3, 1], crop).states == other.batch([3, 1], crop).states).all())
    with pytest.raises(UserError, match="no features of utterance 'u0x'"):
        StoreSource(tmp_path, ["u001", "u0x"])


@pytest.mark.parametrize("damage", ["truncate", "remove", "frames", "line"])
def test_mapped_feature_index_finds_a_damaged_store(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _store(tmp_path, [f"u{n:03d}" for n in range(40)])
    _map_all(monkeypatch, lambda: FeatureStore(tmp_path))  # the map of the intact store is not used any more
    shard, index = tmp_path / "feats.0001.safetensors", tmp_path / "feats.scp"
    if damage == "truncate":
        os.truncate(shard, shard.stat().st_size - 8)
    elif damage == "remove":
        shard.unlink()
    elif damage == "frames":
        index.write_text(index.read_text().replace(" 3\n", " 4\n", 1))
    else:
        index.write_text(index.read_text().replace(".safetensors 3\n", ".safetensors x\n", 1))
    with pytest.raises(UserError) as plain:
        FeatureStore(tmp_path)
    with pytest.raises(UserError) as error:
        _map_all(monkeypatch, lambda: FeatureStore(tmp_path))
    assert str(error.value) == str(plain.value)


def test_recording_lengths_are_read_once(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def count(path: Path) -> int:
        read.append(str(path))
        return 16000 + 1000 * len(path.name)

    monkeypatch.setattr("speechclip.data.lengths.num_samples", count)
    data = DataDir.load("data/train")
    samples, seconds = recording_lengths(data)
    assert len(read) == 60
    for directory, rows in ((data, np.arange(60)), (data.only(["yo"]), data.only(["yo"]).rows)):
        found = _map_all(monkeypatch, lambda directory=directory: recording_lengths(directory))
        np.testing.assert_array_equal(found[0], samples[rows])
        np.testing.assert_array_equal(found[1], seconds[rows])
    assert len(read) == 120  # once more for the map


def test_mapped_split_equals_one_in_memory(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, rng = DataDir.load("data/train"), np.random.default_rng(0)
    save_embeddings("image_embeddings.npz", data.images.ids, rng.standard_normal((12, 8)))
    for texts in (list(data.ids), list(data.ids)[::-1][:40]):
        save_embeddings("text_embeddings.npz", texts, rng.standard_normal((len(texts), 8)))
        for languages in ((), ("en",)):
            plain = Split.load("data/train", ".", languages)
            split = _map_all(monkeypatch, lambda languages=languages: Split.load("data/train", ".", languages))
            assert _is_mapped(split.images) and split.ids == plain.ids and split.image_ids == plain.image_ids
            for name in ("images", "utterance_image", "texts", "text_utterance"):
                np.testing.assert_array_equal(getattr(split, name), getattr(plain, name))
    shutil.rmtree("data/train")
