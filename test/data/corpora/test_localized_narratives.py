"""The preparation of Localized Narratives: four parts, padded ids, times of the words, and every kind of bad copy."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from corpus_files import photograph, recording

from speechclip.common.errors import UserError
from speechclip.data.alignments import AlignedWord, read_ctm, timed_words
from speechclip.data.corpora import localized_narratives
from speechclip.data.corpora.localized_narratives import prepare_localized_narratives, read_annotations
from speechclip.data.corpora.preparation import Limits, Summary
from speechclip.data.corpora.registry import find_corpus
from speechclip.data.kaldi import DataDir, find_problems

LOOSE = Limits(max_bad=0.9, check_samples=False)
IDS = {"coco": "137{}", "flickr30k": "9000{}", "ade20k": "ADE_{split}_0000012{}", "open_images": "00a0c1fdf5ce0f1{}"}
DATASETS = {"coco": "mscoco_{}2017", "flickr30k": "Flick30k_{}", "ade20k": "ADE20k_{}", "open_images": "open_images_{}"}
FILES = {
    ("coco", "train"): "coco_train_localized_narratives-00000-of-00004.jsonl",
    ("open_images", "train"): "open_images_train_v6_localized_narratives-00000-of-00010.jsonl",
    ("open_images", "val"): "open_images_validation_localized_narratives.jsonl",
    ("ade20k", "val"): "ade20k_validation_localized_narratives.jsonl",
}


def entry(part: str, split: str, number: int) -> dict[str, Any]:
    image = IDS[part].format(number, split=split)
    folder = f"{part}_{'validation' if part == 'ade20k' and split == 'val' else split}"
    return {
        "dataset_id": DATASETS[part].format(split),
        "image_id": image,
        "annotator_id": 90 + number % 2,
        "caption": f'In this image there is a "cow" number {number}.',
        "timed_caption": [
            {"utterance": "In this", "start_time": 0.0, "end_time": 0.12},
            {"utterance": "image,", "start_time": 0.15, "end_time": 0.3},
            {"utterance": "-", "start_time": 0.3, "end_time": 0.31},
        ],
        "traces": [[{"x": 0.2086, "y": -0.0533, "t": 0.022}], [{"x": 1.1, "y": 0.5, "t": 0.3}]],
        "voice_recording": f"{folder}/{folder}_{image.rpartition('_')[2]}_{90 + number % 2}.ogg",
    }


def photo(part: str, split: str, image: str) -> str:
    digits = image.rpartition("_")[2]
    if part == "coco":
        return f"{split}2017/{image.zfill(12)}.jpg"
    if part == "flickr30k":
        return f"flickr30k-images/{image}.jpg"
    if part == "ade20k":
        folder = {"train": "training", "val": "validation"}[split]
        return f"ADEChallengeData2016/images/{folder}/ADE_{split}_{digits.zfill(8)}.jpg"
    return f"open_images/{ {'val': 'validation'}.get(split, split) }/{image}.jpg".replace(" ", "")


def ogg(item: dict[str, Any], part: str) -> str:
    folder = item["voice_recording"].split("/")[0]
    if part in ("flickr30k", "ade20k"):
        digits = item["image_id"].rpartition("_")[2].zfill(16)
        return f"{folder}/{folder}_{digits}_{item['annotator_id']}.ogg"
    return str(item["voice_recording"])


LISTS = {"train": (0, 1, 2, 3, 4), "val": (5, 6, 7), "test": (8, 9)}


def make_corpus(folder: Path, *parts: str, annotations: str = "annotations") -> Path:
    """Write ten photographs with one narrative each, for every part; COCO and ADE20k have no test list."""
    (folder / annotations).mkdir(parents=True, exist_ok=True)
    for part in parts:
        for split, numbers in LISTS.items():
            if split == "test" and part in ("coco", "ade20k"):
                continue
            lines = [entry(part, split, number) for number in numbers]
            for item, number in zip(lines, numbers):
                photograph(folder / photo(part, split, item["image_id"]), number)
                recording(folder / "voice-recordings" / ogg(item, part), number)
            name = FILES.get((part, split), f"{part}_{split}_localized_narratives.jsonl")
            (folder / annotations / name).write_text("".join(json.dumps(item) + "\n" for item in lines))
    return folder


def counts(summary: Summary) -> dict[str, int]:
    return {name: size.utterances for name, size in summary.splits.items()}


@pytest.mark.parametrize("annotations", ["annotations", ""])
@pytest.mark.parametrize(
    ("parts", "found"),
    [
        (["coco"], {"train": 5, "dev": 2, "test": 1}),
        (["ade20k"], {"train": 5, "dev": 2, "test": 1}),
        (["flickr30k"], {"train": 5, "dev": 3, "test": 2}),
        (["open_images"], {"train": 5, "dev": 3, "test": 2}),
        (["coco", "flickr30k", "ade20k", "open_images"], {"train": 20, "dev": 10, "test": 6}),
    ],
)
def test_prepare_narratives_reads_every_part(
    tmp_path: Path, parts: list[str], found: dict[str, int], annotations: str
) -> None:
    corpus = make_corpus(tmp_path / "corpus", *parts, annotations=annotations)
    assert counts(prepare_localized_narratives(corpus, tmp_path / "data")) == found
    for split in found:
        assert find_problems(tmp_path / "data" / split) == []
        data = DataDir.load(tmp_path / "data" / split)
        words = read_ctm(tmp_path / "data" / split / "ctm")
        assert set(words) == {utterance.id for utterance in data.utterances}
        assert [word.text for word in words[data.utterances[0].id]] == ["In", "this", "image"]
    assert len((tmp_path / "data/captions.tsv").read_text().splitlines()) == sum(found.values())


def test_prepare_narratives_keeps_ids_and_texts(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", "ade20k")
    prepare_localized_narratives(corpus, tmp_path / "data")
    (item,) = DataDir.load(tmp_path / "data/test").utterances
    assert (item.id, item.speaker) == ("a00090-ade20k_validation_00000126_90", "a00090")
    assert item.image_id == "ade20k_ADE_val_00000126"
    assert item.text == 'In this image there is a "cow" number 6.'
    assert item.wav == corpus / "voice-recordings/ade20k_validation/ade20k_validation_0000000000000126_90.ogg"
    dev = {utterance.image_id[-1] for utterance in DataDir.load(tmp_path / "data/dev").utterances}
    assert dev == {"5", "7"}  # even numbers are in test, as ADE20k has no test list


def test_prepare_narratives_accepts_unpadded_recordings(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", "flickr30k")
    for split, numbers in LISTS.items():
        for number in numbers:
            item = entry("flickr30k", split, number)
            padded = corpus / "voice-recordings" / ogg(item, "flickr30k")
            padded.rename(corpus / "voice-recordings" / item["voice_recording"])
    assert counts(prepare_localized_narratives(corpus, tmp_path / "data")) == {"train": 5, "dev": 3, "test": 2}


def test_prepare_narratives_reads_coco_2014(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", "coco")
    (corpus / "train2014").mkdir()
    for file in (corpus / "train2017").iterdir():
        file.rename(corpus / "train2014" / f"COCO_train2014_{file.name}")
    assert counts(prepare_localized_narratives(corpus, tmp_path / "data"))["train"] == 5


def test_timed_words_divides_the_time_of_several_words() -> None:
    assert timed_words("a dog, - runs", 1.0, 2.0) == [
        AlignedWord("a", 1.0, 1.1),
        AlignedWord("dog", 1.1, 1.5),
        AlignedWord("runs", 1.6, 2.0),
    ]
    assert timed_words(" ", 0, 1) == []


def test_read_annotations_does_not_parse_traces(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    tricky = {**entry("coco", "train", 1), "caption": 'x, "traces": [1], "voice_recording": "y"'}
    last = {key: value for key, value in tricky.items() if key != "traces"} | {"traces": tricky["traces"]}
    lines = [json.dumps(tricky), json.dumps(last), json.dumps(tricky).replace("0.2086", "broken"), ""]
    file.write_text("\n".join(lines))
    found = [item for _, item in read_annotations(file)]
    assert [item["caption"] for item in found] == [tricky["caption"]] * 3
    assert [item["voice_recording"] for item in found] == [tricky["voice_recording"]] * 3
    assert ["traces" in item for item in found] == [False, True, False]


TRAIN = "annotations/coco_train_localized_narratives-00000-of-00004.jsonl"
OGG = "voice-recordings/coco_train/coco_train_1370_90.ogg"
JPG = "train2017/000000001370.jpg"


def change(key: str, new: Any) -> Callable[[Path], object]:
    def damage(corpus: Path) -> None:
        lines = (corpus / TRAIN).read_text().splitlines()
        lines[0] = json.dumps({**json.loads(lines[0]), key: new})
        (corpus / TRAIN).write_text("\n".join(lines))

    return damage


def word(**changes: Any) -> list[dict[str, Any]]:
    return [{"utterance": "a", "start_time": 0, "end_time": 1} | changes]


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no recording": (lambda c: (c / OGG).unlink(), "missing audio file"),
    "empty recording": (lambda c: (c / OGG).write_bytes(b""), "empty audio file"),
    "web page as recording": (lambda c: (c / OGG).write_text("<html>"), "audio"),
    "cut recording": (lambda c: (c / OGG).write_bytes((c / OGG).read_bytes()[:100]), ""),
    "short recording": (lambda c: recording(c / OGG, 0, 0.1), "too short"),
    "no photograph": (lambda c: (c / JPG).unlink(), "missing photograph"),
    "cut photograph": (lambda c: (c / JPG).write_bytes((c / JPG).read_bytes()[:99]), "truncated or corrupt image"),
    "no image_id": (change("image_id", None), "annotation without image_id"),
    "path as image_id": (change("image_id", "../1"), "annotation without image_id"),
    "NUL in image_id": (change("image_id", "1\0"), "missing photograph"),
    "text as annotator": (change("annotator_id", "93"), "annotation without annotator_id"),
    "negative annotator": (change("annotator_id", -1), "annotation without annotator_id"),
    "no voice_recording": (change("voice_recording", ""), "annotation without voice_recording"),
    "recording outside": (change("voice_recording", "a/../../b.ogg"), "annotation without voice_recording"),
    "blank in recording": (change("voice_recording", "coco_train/a b.ogg"), "unusable id"),
    "no caption": (change("caption", None), "caption is not a text"),
    "empty caption": (change("caption", " "), "empty caption"),
    "bad Unicode": (change("caption", "\udc00"), "caption is not valid Unicode"),
    "no times": (change("timed_caption", None), "timed_caption is not a list"),
    "times without words": (change("timed_caption", [{}]), "timed_caption without utterance"),
    "text as time": (change("timed_caption", word(start_time="0")), "timed_caption with unusable times"),
    "end before start": (change("timed_caption", word(end_time=0, start_time=1)), "timed_caption with unusable times"),
    "infinite time": (change("timed_caption", word(end_time=float("inf"))), "timed_caption with unusable times"),
    "NaN time": (change("timed_caption", word(start_time=float("nan"))), "timed_caption with unusable times"),
    "listed twice": (change("voice_recording", "coco_train/coco_train_1372_90.ogg"), "listed twice"),
}


@pytest.mark.parametrize(("damage", "reason"), BAD.values(), ids=BAD)
def test_prepare_narratives_skips_and_lists_bad_items(
    tmp_path: Path, damage: Callable[[Path], object], reason: str
) -> None:
    corpus = make_corpus(tmp_path / "corpus", "coco")
    damage(corpus)
    with pytest.raises(UserError, match="1 of 8 utterances cannot be used"):
        prepare_localized_narratives(corpus, tmp_path / "data")
    assert not (tmp_path / "data").exists()
    summary = prepare_localized_narratives(corpus, tmp_path / "data", LOOSE)
    assert counts(summary) == {"train": 4, "dev": 2, "test": 1}
    rows = (tmp_path / "data/skipped.tsv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 2 and reason in rows[1].split("\t")[2]
    words = read_ctm(tmp_path / "data/train/ctm")
    assert len(words) == 4 and {len(found) for found in words.values()} == {3}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: (c / TRAIN).unlink(), "no annotations: no <part>_train_localized_narratives.jsonl"),
        (lambda c: (c / "annotations/coco_val_localized_narratives.jsonl").unlink(), "no annotations: no <part>_val_"),
        (lambda c: (c / "voice-recordings").rename(c.parent / "x"), "no recordings: no voice-recordings/coco_train/"),
        (lambda c: (c / TRAIN).write_bytes((c / TRAIN).read_bytes()[:-60]), "00004.jsonl:5: not valid JSON"),
        (lambda c: (c / TRAIN).write_bytes(b'{"a": "\xff"}'), "00004.jsonl:1: not valid JSON"),
        (lambda c: (c / TRAIN).write_text("[1]\n"), "00004.jsonl:1: not a JSON object"),
        (lambda c: (c / TRAIN).write_text(""), "no usable utterance for train"),
    ],
)
def test_prepare_narratives_reports_a_bad_corpus(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    corpus = make_corpus(tmp_path / "corpus", "coco")
    damage(corpus)
    with pytest.raises(UserError) as caught:
        prepare_localized_narratives(corpus, tmp_path / "data")
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "data").exists()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[str]:
    """The address of a server with the folder "published"."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=tmp_path / "published"))
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_address[1]}"
    http.shutdown()
    http.server_close()


def test_download_gets_recordings_one_by_one(tmp_path: Path, mirror: str, monkeypatch: pytest.MonkeyPatch) -> None:
    published = make_corpus(tmp_path / "published", "flickr30k", annotations="")
    monkeypatch.setattr(localized_narratives, "_GOOGLE", mirror)
    get = find_corpus("localized_narratives").download
    assert get is not None
    get(str(tmp_path / "corpus"), mirror, ["flickr30k_"])
    wanted = {path.relative_to(published) for path in published.rglob("*.ogg")}
    assert {path.relative_to(tmp_path / "corpus") for path in (tmp_path / "corpus").rglob("*.ogg")} == wanted
    assert len(wanted) == 10 and not (tmp_path / "corpus/missing_recordings.tsv").exists()
    # one recording is missing, another one was not finished
    lost, cut = sorted(wanted)[:2]
    (published / lost).unlink()
    for name in (lost, cut):
        (tmp_path / "corpus" / name).unlink()
    (tmp_path / "corpus" / cut).with_name(f"{cut.name}.part").write_bytes((published / cut).read_bytes()[:9])
    with pytest.raises(UserError, match="missing, and 1 of 10 files"):
        get(str(tmp_path / "corpus"), mirror, ["flickr30k_"])
    assert (tmp_path / "corpus" / cut).read_bytes() == (published / cut).read_bytes()
    with pytest.raises(UserError, match="no file begins with places"):
        get(str(tmp_path / "corpus"), mirror, ["places"])


PARTS = ("coco", "open_images")  # for the readers of other toolkits, see test_corpus_recipes.py


def publish(published: Path, corpus: Path) -> list[str]:
    """Annotations and recordings on the server, photographs on disk."""
    make_corpus(published, "flickr30k", annotations="")
    shutil.move(published / "flickr30k-images", corpus / "flickr30k-images")
    return ["--parts", "flickr30k_"]


def check_scores(recipe: Path, scores: Path) -> None:
    """Retrieval has scores in windows, and keywords have times."""
    windows = json.loads((scores / "retrieval.json").read_text())["windows"]
    assert (windows["seconds"], windows["windows"]) == (10, 2) and "speech->image" in windows
    assert "(in windows of 10 s)" in (recipe / "exp/RESULTS.md").read_text()
    assert {"segmentation", "overlap"} <= set(json.loads((scores / "keywords.json").read_text()))
