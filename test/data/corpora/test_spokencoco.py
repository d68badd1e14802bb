"""The preparation of SpokenCOCO: every published form of its split, exact counts, and every kind of bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from speechclip.bin.prepare_corpus import main
from speechclip.common.errors import UserError
from speechclip.data.corpora.preparation import Limits, Summary
from speechclip.data.corpora.spokencoco import prepare_spokencoco
from speechclip.data.kaldi import DataDir

IMAGES = {
    "train": ["train2014/COCO_train2014_000000000009.jpg", "val2014/COCO_val2014_000000000042.jpg"],
    "val": ["val2014/COCO_val2014_000000000073.jpg"],
    "test": ["val2014/COCO_val2014_000000000074.jpg"],
}


def entry(image: str, number: int) -> dict[str, Any]:
    """Return an image with two captions in the form of the published JSON."""
    digits = str(int(image[-16:-4]))
    captions = [
        {
            "text": f"A DOG NUMBER {digits} RUNS",
            "speaker": f"m{take}abc",
            "uttid": f"m{take}abc-3LUY3GC63Z0R_{digits}_{100 * number + take}",
            "wav": f"wavs/0/m{take}abc-3LUY3GC63Z0R_{digits}_{100 * number + take}.wav",
        }
        for take in range(2)
    ]
    return {"image": image, "captions": captions}


def make_corpus(folder: Path, *, form: str = "plain", images: str = "") -> Path:
    audio = folder / "SpokenCOCO"
    (audio / "wavs" / "0").mkdir(parents=True)
    number = 0
    for split, names in IMAGES.items():
        entries = []
        for image in names:
            number += 1
            path = folder / images / image
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (30, 20), (number * 20, 9, 9)).save(path)
            entries.append(entry(image, number))
            for caption in entries[-1]["captions"]:
                soundfile.write(audio / caption["wav"], 0.1 * np.sin(np.arange(8000) * 0.1), 16000, subtype="PCM_16")
        name, data = f"SpokenCOCO_ksplit_{split}.json", entries
        if form == "reassign_id":
            name = f"SpokenCOCO_ksplit_reassign_id_{split}.json"
            data = [{**item, "id": at, "reassign_id": at} for at, item in enumerate(entries)]
        if form == "unrolled":
            name = f"SpokenCOCO_{split}_unrolled_karpathy.json"
            data = [{"image": item["image"], "caption": caption} for item in entries for caption in item["captions"]]
        place = audio / "ksplit" if form == "folder" else audio
        place.mkdir(exist_ok=True)
        (place / name).write_text(json.dumps({"data": data}))
    return folder


def counts(summary: Summary) -> dict[str, tuple[int, int]]:
    return {name: (size.images, size.utterances) for name, size in summary.splits.items()}


WHOLE = {"train": (2, 4), "dev": (1, 2), "test": (1, 2)}


@pytest.mark.parametrize("form", ["plain", "reassign_id", "unrolled", "folder"])
@pytest.mark.parametrize("images", ["", "mscoco_img"])
def test_prepare_spokencoco_reads_every_published_form(tmp_path: Path, form: str, images: str) -> None:
    corpus = make_corpus(tmp_path / "corpus", form=form, images=images)
    assert counts(prepare_spokencoco(corpus, tmp_path / "data")) == WHOLE
    test = DataDir.load(tmp_path / "data" / "test")
    assert [u.id for u in test.utterances] == ["m0abc-74_400", "m1abc-74_401"]
    first = test.utterances[0]
    assert (first.text, first.speaker, first.image_id) == ("A DOG NUMBER 74 RUNS", "m0abc", "COCO_val2014_000000000074")
    assert first.wav == corpus / "SpokenCOCO" / "wavs/0/m0abc-3LUY3GC63Z0R_74_400.wav"
    lines = (tmp_path / "data" / "captions.tsv").read_text().splitlines()
    assert first.clip_text == "a dog number 74 runs"
    assert len(lines) == 8 and lines[0] == "train\ta dog number 9 runs"


def test_prepare_spokencoco_prefers_the_plain_form(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    for split in IMAGES:
        (corpus / "SpokenCOCO" / f"SpokenCOCO_ksplit_reassign_id_{split}.json").write_text("{}")
    assert counts(prepare_spokencoco(corpus, tmp_path / "data")) == WHOLE


def test_prepare_spokencoco_keeps_the_written_captions(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    (corpus / "annotations").mkdir()
    for part, items in (("train2014", [(9, "A dog.")]), ("val2014", [(42, "Two\ndogs"), (5, "elsewhere")])):
        annotations = [{"image_id": image, "caption": text, "id": 1} for image, text in items]
        (corpus / "annotations" / f"captions_{part}.json").write_text(json.dumps({"annotations": annotations}))
    prepare_spokencoco(corpus, tmp_path / "data")
    lines = (tmp_path / "data" / "captions.tsv").read_text().splitlines()
    assert lines == ["train\ta dog.", "train\ttwo dogs", "-\telsewhere"]
    (corpus / "annotations" / "captions_val2014.json").write_text('{"annotations": [{}]}')
    with pytest.raises(UserError, match="not COCO's captions"):
        prepare_spokencoco(corpus, tmp_path / "data")


def test_prepare_spokencoco_counts_unusable_items(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    wavs = sorted((corpus / "SpokenCOCO" / "wavs" / "0").glob("*_9_*.wav"))
    soundfile.write(wavs[0], np.sin(np.arange(160)), 16000, subtype="PCM_16")
    wavs[1].unlink()
    main(
        [
            "--name",
            "spokencoco",
            "--corpus",
            str(corpus),
            "--out",
            str(tmp_path / "data"),
            "--max_bad",
            "0.5",
            "--nj",
            "1",
        ]
    )
    out = capsys.readouterr().out
    assert "skipped 2" in out and "too short" in out and "missing audio file" in out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "a JSON object is needed"),
        ('{"data": 3}', "no list under 'data'"),
        ('{"data": [{"image": "a"}]}', "entry 0: needs 'image' and 'captions' or 'caption'"),
        ('{"data": [{"image": "a", "captions": ["x"]}]}', "entry 0: a caption is not a JSON object"),
        (
            '{"data": [{"image": "a", "captions": [{"text": "x"}]}]}',
            "SpokenCOCO_ksplit_val.json: caption without speaker$",
        ),
    ],
)
def test_prepare_spokencoco_reports_a_bad_split_file(tmp_path: Path, content: str, message: str) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    (corpus / "SpokenCOCO" / "SpokenCOCO_ksplit_val.json").write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        prepare_spokencoco(corpus, tmp_path / "data")
    assert "SpokenCOCO_ksplit_val.json" in str(caught.value) and not (tmp_path / "data").exists()


def test_prepare_spokencoco_reports_missing_parts(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    with pytest.raises(UserError, match="no such corpus folder"):
        prepare_spokencoco(tmp_path / "none", tmp_path / "data")
    path = corpus / "SpokenCOCO" / "SpokenCOCO_ksplit_test.json"
    kept = path.read_text()
    path.write_text(json.dumps({"data": [entry(IMAGES["train"][0], 1)]}))
    with pytest.raises(UserError, match="is in the split train as well"):
        prepare_spokencoco(corpus, tmp_path / "data")
    path.unlink()
    with pytest.raises(UserError, match="no file of the Karpathy split for test"):
        prepare_spokencoco(corpus, tmp_path / "data")
    path.write_text(kept)
    (corpus / "val2014").rename(corpus / "elsewhere")
    with pytest.raises(UserError, match="no photographs: no val2014/"):
        prepare_spokencoco(corpus, tmp_path / "data")


def edit(corpus: Path, split: str, change: Callable[[list[Any]], Any]) -> None:
    """Change the list of entries of a split file."""
    path = corpus / "SpokenCOCO" / f"SpokenCOCO_ksplit_{split}.json"
    data = json.loads(path.read_text())
    change(data["data"])
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("text", None, "caption is not a text"),
        ("text", 7, "caption is not a text"),
        ("text", ["a dog"], "caption is not a text"),
        ("text", {"en": "a dog"}, "caption is not a text"),
        ("text", " \n ", "empty caption"),
        ("text", "\ud800", "caption is not valid Unicode"),
        ("speaker", None, "caption without speaker"),
        ("uttid", 12, "caption without uttid"),
        ("wav", "", "caption without wav"),
        ("speaker", "\ud800", "id is not valid Unicode"),
        ("speaker", "\ufeffm", "unusable id: starts with a byte order mark"),
        ("speaker", "m 0", "unusable id: white space in the id 'm 0-m0abc-3LUY3GC63Z0R_9_100'"),
        ("wav", "wavs/\ud800.wav", "missing audio file. Check the path."),
        ("wav", "wavs/\0.wav", "missing audio file. Check the path."),
    ],
)
def test_prepare_spokencoco_skips_bad_values(tmp_path: Path, key: str, value: Any, reason: str) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    edit(corpus, "train", lambda entries: entries[0]["captions"][0].__setitem__(key, value))
    summary = prepare_spokencoco(corpus, tmp_path / "data", Limits(max_bad=0.5))
    assert counts(summary) == {**WHOLE, "train": (2, 3)}
    assert summary.skipped == {reason.split(":")[0].removesuffix(". Check the path."): 1}
    rows = (tmp_path / "data" / "skipped.tsv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 2 and rows[1].endswith(f"\t{reason}")
    texts = [u.text for split in WHOLE for u in DataDir.load(tmp_path / "data" / split).utterances]
    assert len(texts) == 7 and "None" not in texts
    captions = (tmp_path / "data" / "captions.tsv").read_text().splitlines()
    assert len(captions) == (7 if key == "text" else 8)


def test_prepare_spokencoco_skips_bad_written_captions(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    (corpus / "annotations").mkdir()
    for part, texts in (("train2014", ["A dog.", None]), ("val2014", [["x"]])):
        annotations = [{"image_id": 9, "caption": text} for text in texts]
        (corpus / "annotations" / f"captions_{part}.json").write_text(json.dumps({"annotations": annotations}))
    summary = prepare_spokencoco(corpus, tmp_path / "data", Limits(max_bad=0.5))
    assert summary.skipped == {"caption is not a text": 2}
    assert (tmp_path / "data" / "captions.tsv").read_text() == "train\ta dog.\n"
    (corpus / "annotations" / "captions_val2014.json").write_text(
        '{"annotations": [{"image_id": Infinity, "caption": "a"}]}'
    )
    with pytest.raises(UserError, match="annotation 0 needs 'image_id' and 'caption'"):
        prepare_spokencoco(corpus, tmp_path / "data")


def move(corpus: Path, entry: dict[str, Any], image: str) -> None:
    """Give the photograph of an entry another path."""
    old, new = corpus / entry["image"], corpus / image
    new.parent.mkdir(exist_ok=True)
    old.rename(new)
    entry["image"] = image


def test_prepare_spokencoco_tells_apart_equal_file_names(tmp_path: Path) -> None:
    """Two photographs with one file name, whose captions have the same numbers."""
    corpus = make_corpus(tmp_path / "corpus")

    def change(entries: list[Any]) -> None:
        for entry, place in zip(entries, ("kitchen", "street")):
            move(corpus, entry, f"{place}/0001.jpg")
            for take, caption in enumerate(entry["captions"]):
                caption["uttid"] = f"m{take}abc-{place}_1_{take}"

    edit(corpus, "train", change)
    assert counts(prepare_spokencoco(corpus, tmp_path / "data")) == WHOLE
    data = DataDir.load(tmp_path / "data" / "train")
    assert data.images == {f"{place}_0001": corpus / place / "0001.jpg" for place in ("kitchen", "street")}
    assert {u.id: u.image_id for u in data.utterances} == {
        f"m{take}abc-m{take}abc-{place}_1_{take}": f"{place}_0001"
        for place in ("kitchen", "street")
        for take in range(2)
    }


def test_prepare_spokencoco_tells_apart_equal_uttids(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    edit(corpus, "train", lambda entries: [e["captions"][0].__setitem__("uttid", "m0abc-1_0") for e in entries])
    assert counts(prepare_spokencoco(corpus, tmp_path / "data")) == WHOLE
    found = {u.id: u.image_id for u in DataDir.load(tmp_path / "data" / "train").utterances}
    assert found["m0abc-COCO_train2014_000000000009_m0abc-1_0"] == "COCO_train2014_000000000009"
    assert found["m0abc-COCO_val2014_000000000042_m0abc-1_0"] == "COCO_val2014_000000000042"


def test_prepare_spokencoco_skips_repeats(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    edit(corpus, "train", lambda entries: entries.append(entries[0]))
    summary = prepare_spokencoco(corpus, tmp_path / "data", Limits(max_bad=0.5))
    assert counts(summary) == WHOLE and summary.skipped == {"listed twice": 2}


def test_prepare_spokencoco_accepts_blanks_in_file_names(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    edit(corpus, "val", lambda entries: move(corpus, entries[0], "val2014/my photo.jpg"))
    assert counts(prepare_spokencoco(corpus, tmp_path / "data")) == WHOLE
    assert DataDir.load(tmp_path / "data" / "dev").images == {"my_photo": corpus / "val2014/my photo.jpg"}
