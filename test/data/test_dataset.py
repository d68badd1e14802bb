"""Batches, crops, sources of speech, splits, the reduced vocabulary and embeddings with ids."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from fixtures import JOINT, STATES, WIDTH, make_data, store_embeddings, store_features, stored_split

from speechclip.common.errors import MissingFileError, UserError
from speechclip.data.batches import bucketed_batches, evaluation_batches
from speechclip.data.dataset import (
    Batch,
    Crop,
    Split,
    StoreSource,
    WaveSource,
    read_batches,
)
from speechclip.data.embeddings import load_embeddings, save_embeddings
from speechclip.data.features import FeatureStore
from speechclip.data.kaldi import write_table
from speechclip.data.vocabulary import Vocabulary

LENGTHS = np.random.default_rng(0).permutation(103) / 10  # seconds, all different


def _batches(**changes: Any) -> list[list[int]]:
    return bucketed_batches(LENGTHS, 8, **{"bucket_batches": 4, "seed": 1, "epoch": 2, **changes})


def test_batches_depend_on_seed_and_epoch() -> None:
    assert _batches() == _batches()
    assert _batches() != _batches(seed=2)
    assert _batches() != _batches(epoch=3)
    np.random.seed(5)  # noqa: NPY002 - the global state must not matter
    assert _batches() == _batches()


@pytest.mark.parametrize("buckets", [1, 4, 100])
def test_batches_hold_an_utterance_at_most_once(buckets: int) -> None:
    batches = _batches(bucket_batches=buckets)
    assert [len(batch) for batch in batches] == [8] * 12
    used = [index for batch in batches for index in batch]
    assert len(set(used)) == 96  # 7 do not fill a batch
    left_out = [set(range(103)) - {i for b in _batches(epoch=epoch) for i in b} for epoch in range(40)]
    assert len(set.union(*left_out)) > 80  # other utterances in every epoch


def test_batches_hold_similar_lengths() -> None:
    batches = _batches()
    spans = [(LENGTHS[batch].min(), LENGTHS[batch].max()) for batch in batches]
    assert all(list(LENGTHS[batch]) == sorted(LENGTHS[batch]) for batch in batches)
    # twelve batches are three pools of four; in each, the batches' ranges of length do not overlap
    order = np.random.default_rng((1, 2)).permutation(103)[:96]
    for pool in order.reshape(3, 32):
        inside = sorted(span for batch, span in zip(batches, spans, strict=True) if set(batch) <= set(pool.tolist()))
        assert len(inside) == 4
        assert all(this[1] < following[0] for this, following in zip(inside, inside[1:], strict=False))
    firsts = [LENGTHS[batch[0]] for batch in batches]
    assert firsts != sorted(firsts)  # not short to long
    unsorted = _batches(bucket_batches=1)
    assert any(list(LENGTHS[batch]) != sorted(LENGTHS[batch]) for batch in unsorted)


def test_batches_refuse_a_batch_above_the_corpus() -> None:
    with pytest.raises(UserError, match="data.batch_size: 8 is more than the 7 training utterances"):
        bucketed_batches(LENGTHS[:7], 8, bucket_batches=1, seed=0, epoch=0)


def test_evaluation_batches_are_complete_and_sorted() -> None:
    batches = evaluation_batches(LENGTHS, 10)
    flat = [index for batch in batches for index in batch]
    assert sorted(flat) == list(range(103))
    assert list(LENGTHS[flat]) == sorted(LENGTHS, reverse=True)
    assert [len(batch) for batch in batches] == [10] * 10 + [3]


def test_crop_depends_on_seed_epoch_and_utterance() -> None:
    starts = [Crop(6.4, 0, 0).start(index, 1000, 320) for index in range(200)]
    assert starts == [Crop(6.4, 0, 0).start(index, 1000, 320) for index in range(200)]
    assert len(set(starts)) > 100
    assert min(starts) >= 0
    assert max(starts) <= 680
    for other in (Crop(6.4, 1, 0), Crop(6.4, 0, 1)):
        assert [other.start(index, 1000, 320) for index in range(200)] != starts
    assert {Crop(6.4, 0, epoch).start(3, 321, 320) for epoch in range(40)} == {0, 1}
    assert Crop(6.4, 0, 0).start(0, 320, 320) == 0
    assert Crop(0, 0, 0).start(0, 10**6, 0) == 0


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stored")
    stored_split(folder, "train", images=3, each=2, seed=0, dtype="float16")
    return folder


def test_store_source_pads_and_crops_frames(stored: Path) -> None:
    split = Split.load(stored / "data" / "train", stored / "dump" / "train")
    source = StoreSource(stored / "dump" / "train", split.ids)
    store = FeatureStore(stored / "dump" / "train")
    assert source.lengths.tolist() == [store.num_frames[item] / 50 for item in split.ids]
    batch = source.batch([4, 1])
    assert batch.indices.tolist() == [4, 1]
    assert batch.waves is None
    assert batch.states.dtype == torch.float16
    assert batch.frames.tolist() == [store.num_frames[split.ids[at]] for at in (4, 1)]
    assert batch.states.shape == (2, STATES, int(batch.frames.max()), WIDTH)
    for row, at in enumerate((4, 1)):
        count = int(batch.frames[row])
        assert torch.equal(batch.states[row, :, :count], store.read(split.ids[at]))
        assert (batch.states[row, :, count:] == 0).all()
    crop = Crop(0.1, 3, 1)  # 5 frames
    cropped = source.batch([4, 1], crop)
    assert cropped.frames.tolist() == [5, 5]
    for row, at in enumerate((4, 1)):
        start = crop.start(at, store.num_frames[split.ids[at]], 5)
        assert torch.equal(cropped.states[row], store.read(split.ids[at])[:, start : start + 5])
    assert torch.equal(source.batch([4, 1], crop).states, cropped.states)


def test_store_source_reads_requested_layers(stored: Path) -> None:
    ids = list(FeatureStore(stored / "dump" / "train").ids)
    every, some = StoreSource(stored / "dump" / "train", ids), StoreSource(stored / "dump" / "train", ids, [2, 0])
    assert (every.num_states, some.num_states, some.dim) == (3, 2, WIDTH)
    assert torch.equal(some.batch([1]).states, every.batch([1]).states[:, [2, 0]])
    with pytest.raises(UserError, match=r"feats.scp: layer 7 is not stored, only \[0, 1, 2\]$"):
        StoreSource(stored / "dump" / "train", ids, [0, 7])
    with pytest.raises(UserError, match="feats.scp: no features of utterance 'other'$"):
        StoreSource(stored / "dump" / "train", [*ids, "other"])


def test_wave_source_reads_and_crops_samples(stored: Path) -> None:
    data = Split.load(stored / "data" / "train", stored / "dump" / "train").data
    source = WaveSource(data)
    whole = [torch.from_numpy(soundfile.read(u.wav, dtype="float32")[0]) for u in data.utterances]
    assert source.lengths.tolist() == [len(wave) / 16000 for wave in whole]
    batch = source.batch([5, 0])
    assert batch.states is None
    assert batch.frames is None
    assert [len(wave) for wave in batch.waves] == [len(whole[5]), len(whole[0])]
    assert torch.equal(batch.waves[0], whole[5])
    crop = Crop(0.31, 0, 0)
    cropped = source.batch([5, 0], crop).waves
    assert [len(wave) for wave in cropped] == [4960, 4800]  # the second is shorter than the limit
    start = crop.start(5, len(whole[5]), 4960)
    assert start > 0
    assert torch.equal(cropped[0], whole[5][start : start + 4960])
    assert torch.equal(cropped[1], whole[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_read_batches_keeps_the_order(stored: Path, workers: int) -> None:
    source = StoreSource(stored / "dump" / "train", FeatureStore(stored / "dump" / "train").ids)
    batches = [[0, 3], [5, 1], [2, 4]]
    read = list(read_batches(source, batches, crop=Crop(0.2, 0, 0), workers=workers))
    assert [batch.indices.tolist() for batch in read] == batches
    for batch in read:
        assert torch.equal(batch.states, source.batch(batch.indices.tolist(), Crop(0.2, 0, 0)).states)


class _MaskSource:
    """A source whose batch holds 1 if SIGTERM is blocked in the process that reads it."""

    def batch(self, indices: Sequence[int], crop: Crop | None = None) -> Batch:
        blocked = signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ())
        return Batch(torch.tensor([int(blocked)]), None, None, None)


@pytest.mark.parametrize(("workers", "blocked"), [(0, 0), (2, 1)])
def test_sigterm_is_blocked_in_workers_alone(workers: int, blocked: int) -> None:
    read = list(read_batches(_MaskSource(), [[0], [1], [2]], workers=workers))  # type: ignore[arg-type]
    assert [int(batch.indices) for batch in read] == [blocked] * 3
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_split_aligns_images_and_captions(stored: Path) -> None:
    split = Split.load(stored / "data" / "train", stored / "dump" / "train")
    assert split.ids == sorted(split.ids)
    assert len(split.ids) == 6
    assert [split.image_ids[at] for at in split.utterance_image] == [u.image_id for u in split.data.utterances]
    ids, images = load_embeddings(stored / "dump" / "train" / "image_embeddings.npz")
    for image, row in zip(ids, images, strict=True):
        assert np.array_equal(split.images[split.image_ids.index(image)], row)
    assert np.allclose(np.linalg.norm(split.images, axis=1), 1, atol=1e-6)
    assert split.text_utterance.tolist() == list(range(6))
    assert split.texts.shape == (6, JOINT)


def test_split_accepts_some_captions_in_any_order(tmp_path: Path) -> None:
    data = make_data(tmp_path / "d", images=2, each=2)
    store_embeddings(data, tmp_path)
    ids = [u.id for u in data.utterances]
    save_embeddings(tmp_path / "text_embeddings.npz", [ids[3], ids[0]], np.eye(2, JOINT))
    split = Split.load(tmp_path / "d", tmp_path)
    assert split.text_utterance.tolist() == [3, 0]
    assert split.texts[:, :2].tolist() == [[1, 0], [0, 1]]
    (tmp_path / "text_embeddings.npz").unlink()
    assert Split.load(tmp_path / "d", tmp_path).texts is None


def test_split_selects_languages(tmp_path: Path) -> None:
    data = make_data(tmp_path / "d", images=3, each=2)
    store_embeddings(data, tmp_path)
    whole = Split.load(tmp_path / "d", tmp_path)
    first = data.utterances[0].image_id
    languages = {u.id: "de" if u.image_id == first and u.id.startswith("s0") else "en" for u in data.utterances}
    write_table(tmp_path / "d" / "utt2lang", languages)
    split = Split.load(tmp_path / "d", tmp_path, ["de"])
    assert split.ids == [data.utterances[0].id] and split.image_ids == (first,)
    np.testing.assert_array_equal(split.images, whole.images[[whole.image_ids.index(first)]])
    assert split.utterance_image.tolist() == split.text_utterance.tolist() == [0]
    np.testing.assert_array_equal(split.texts, whole.texts[:1])
    english = Split.load(tmp_path / "d", tmp_path, ["en"])
    assert len(english.ids) == len(english.texts) == 5 and len(english.image_ids) == 3
    assert Split.load(tmp_path / "d", tmp_path, ["en", "de"]).ids == whole.ids
    with pytest.raises(UserError, match="no utterance in the language 'fr'"):
        Split.load(tmp_path / "d", tmp_path, ["fr"])


def test_split_errors_name_the_file(tmp_path: Path) -> None:
    data = make_data(tmp_path / "d", images=2, each=1)
    with pytest.raises(UserError, match="image_embeddings.npz: is missing$"):
        Split.load(tmp_path / "d", tmp_path)
    save_embeddings(tmp_path / "image_embeddings.npz", list(data.images)[:1], np.eye(1, JOINT))
    with pytest.raises(UserError, match=f"image_embeddings.npz: no embedding for {list(data.images)[1]}"):
        Split.load(tmp_path / "d", tmp_path)
    store_embeddings(data, tmp_path)
    save_embeddings(tmp_path / "text_embeddings.npz", ["stranger"], np.eye(1, JOINT))
    with pytest.raises(UserError, match="text_embeddings.npz: 'stranger' is not an utterance of"):
        Split.load(tmp_path / "d", tmp_path)
    save_embeddings(tmp_path / "text_embeddings.npz", [data.utterances[0].id], np.eye(1, JOINT + 1))
    with pytest.raises(UserError, match=f"text embeddings of {JOINT + 1} dimensions, images of {JOINT}"):
        Split.load(tmp_path / "d", tmp_path)


def test_store_has_the_layers_of_the_fixture(tmp_path: Path) -> None:
    data = make_data(tmp_path / "d", images=2, each=1)
    store_features(data, tmp_path / "f")
    assert FeatureStore(tmp_path / "f").layers == tuple(range(STATES))


# -- the reduced vocabulary ------


def test_vocabulary_is_ordered_and_round_trips(tmp_path: Path) -> None:
    names = {3: "\u2581dog", 5: "!</w>", 7: "\ufffd", 9: "a b"}
    vocabulary = Vocabulary.from_rows([[5, 3, 9], [9, 7, 3], [9]], names.__getitem__)
    assert vocabulary.ids == (9, 3, 5, 7)
    assert vocabulary.counts == (3, 2, 1, 1)
    assert vocabulary.subwords == ("a b", "\u2581dog", "!</w>", "\ufffd")
    vocabulary.save(tmp_path / "deep" / "v.tsv")
    assert Vocabulary.load(tmp_path / "deep" / "v.tsv") == vocabulary
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["v.tsv"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"1\t2\ta\n1 2 b\n", "line 2: expected id, count and subword"),
        (b"1\t2\n", "line 1: expected"),
        (b"-1\t2\ta\n", "line 1: expected"),
        (b"1\tx\ta\n", "line 1: expected"),
        ("\u00b2\t2\ta\n".encode(), "line 1: expected"),  # a digit that int() refuses
        (b"1\t2\ta\tb\n", "line 1: expected"),
        (b"1\t" + b"9" * 5000 + b"\ta\n", "line 1: expected"),  # more digits than int() accepts
        (b"1\t2\ta\n1\t1\tb\n", "an id occurs twice"),
        (b"1\t2\t\xff\n", "not UTF-8"),
    ],
)
def test_vocabulary_load_reports_a_bad_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "v.tsv").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        Vocabulary.load(tmp_path / "v.tsv")
    assert str(caught.value).startswith(str(tmp_path / "v.tsv"))


def test_vocabulary_load_reports_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"v\.tsv: is missing$"):
        Vocabulary.load(tmp_path / "v.tsv")


# -- embeddings with ids ------


def test_embeddings_are_normalised_and_reordered(tmp_path: Path) -> None:
    save_embeddings(tmp_path / "new" / "e.npz", ["b", "a"], np.array([[3.0, 4.0], [0.0, 2.0]]))
    ids, rows = load_embeddings(tmp_path / "new" / "e.npz")
    assert ids == ["b", "a"]
    assert rows.dtype == np.float32
    assert rows.tolist() == [pytest.approx([0.6, 0.8]), [0.0, 1.0]]
    assert load_embeddings(tmp_path / "new" / "e.npz", ["a"])[1].tolist() == [[0.0, 1.0]]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["e.npz"]


def _npz(**arrays: Any) -> Callable[[Path], Any]:
    return lambda path: np.savez(path, **{key: np.asarray(value) for key, value in arrays.items()})


def _cut(path: Path) -> None:
    save_embeddings(path, ["a", "b"], np.eye(2))
    path.write_bytes(path.read_bytes()[:-60])


def _flipped(path: Path) -> None:
    np.savez_compressed(path, ids=np.array(["a"]), embeddings=np.random.default_rng(0).random((1, 500)))
    raw = bytearray(path.read_bytes())
    for at in range(len(raw) // 2, len(raw) // 2 + 60):
        raw[at] ^= 0xFF
    path.write_bytes(raw)


def _array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.eye(2))


def _pickled(path: Path) -> None:
    np.savez(path, ids=np.array(["a"], dtype=object), embeddings=np.eye(1))


TWO = np.eye(2)
BAD: list[tuple[str, Callable[[Path], Any], str]] = [
    ("missing", lambda path: None, "is missing$"),
    ("no_ids", _npz(embeddings=TWO), "needs the arrays ids and embeddings"),
    ("no_embeddings", _npz(ids=["a"]), "needs the arrays ids and embeddings"),
    ("text", lambda path: path.write_text("hello"), "not a readable .npz file"),
    ("empty", lambda path: path.write_bytes(b""), "not a readable .npz file"),
    ("cut", _cut, "not a readable .npz file"),
    ("flipped", _flipped, "not a readable .npz file"),
    ("npy", _array, "not a readable .npz file"),
    ("pickled", _pickled, "not a readable .npz file"),
    ("counts", _npz(ids=["a"], embeddings=TWO), r"1 ids for embeddings of shape \(2, 2\)"),
    ("flat", _npz(ids=["a", "b"], embeddings=[1.0, 2.0]), r"2 ids for embeddings of shape \(2,\)"),
    ("one_id", _npz(ids="a", embeddings=TWO), "the ids are not a list"),
    ("words", _npz(ids=["a", "b"], embeddings=[["x"], ["y"]]), "not numbers"),
    ("twice", _npz(ids=["a", "a"], embeddings=TWO), "duplicate ids"),
    ("absent", _npz(ids=["a", "c"], embeddings=TWO), "no embedding for b"),
    ("nan", _npz(ids=["a", "b"], embeddings=[[1.0, 0], [np.nan, 1]]), "the embedding of b is zero or not finite"),
    ("zero", _npz(ids=["b", "a"], embeddings=[[0.0, 0], [1, 1]]), "the embedding of b is zero or not finite"),
]


@pytest.mark.parametrize(("name", "write", "message"), BAD, ids=[row[0] for row in BAD])
def test_load_embeddings_reports_a_bad_file(
    tmp_path: Path, name: str, write: Callable[[Path], Any], message: str
) -> None:
    path = tmp_path / "e.npz"
    write(path)
    with pytest.raises(UserError, match=message) as caught:
        load_embeddings(path, ["a", "b"])
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_load_embeddings_counts_missing_ids(tmp_path: Path) -> None:
    save_embeddings(tmp_path / "e.npz", ["a"], np.eye(1))
    with pytest.raises(UserError, match="no embedding for b and 2 more"):
        load_embeddings(tmp_path / "e.npz", ["b", "a", "c", "d"])
