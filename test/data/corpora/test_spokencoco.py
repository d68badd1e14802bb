"""Preparing SpokenCOCO: every published form of its split, exact counts, what is wrong with a copy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from speechclip.bin.prepare_corpus import main
from speechclip.common.errors import UserError
from speechclip.data.corpora.preparation import Summary
from speechclip.data.corpora.spokencoco import prepare_spokencoco
from speechclip.data.kaldi import DataDir

IMAGES = {
    "train": ["train2014/COCO_train2014_000000000009.jpg", "val2014/COCO_val2014_000000000042.jpg"],
    "val": ["val2014/COCO_val2014_000000000073.jpg"],
    "test": ["val2014/COCO_val2014_000000000074.jpg"],
}


def entry(image: str, number: int) -> dict[str, Any]:
    """An image with two captions, as the published JSON has it."""
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
def test_every_published_form(tmp_path: Path, form: str, images: str) -> None:
    corpus = make_corpus(tmp_path / "corpus", form=form, images=images)
    assert counts(prepare_spokencoco(corpus, tmp_path / "data")) == WHOLE
    test = DataDir.load(tmp_path / "data" / "test")
    assert [u.id for u in test.utterances] == ["m0abc-74_400", "m1abc-74_401"]
    first = test.utterances[0]
    assert (first.text, first.speaker, first.image_id) == ("A DOG NUMBER 74 RUNS", "m0abc", "COCO_val2014_000000000074")
    assert first.wav == corpus / "SpokenCOCO" / "wavs/0/m0abc-3LUY3GC63Z0R_74_400.wav"
    lines = (tmp_path / "data" / "captions.tsv").read_text().splitlines()
    assert len(lines) == 8 and lines[0] == "train\tA DOG NUMBER 9 RUNS"


def test_the_plain_form_is_taken_where_there_are_two(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    for split in IMAGES:
        (corpus / "SpokenCOCO" / f"SpokenCOCO_ksplit_reassign_id_{split}.json").write_text("{}")
    assert counts(prepare_spokencoco(corpus, tmp_path / "data")) == WHOLE


def test_cocos_own_captions_are_kept_for_the_vocabulary(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    (corpus / "annotations").mkdir()
    for part, items in (("train2014", [(9, "A dog.")]), ("val2014", [(42, "Two\ndogs"), (5, "elsewhere")])):
        annotations = [{"image_id": image, "caption": text, "id": 1} for image, text in items]
        (corpus / "annotations" / f"captions_{part}.json").write_text(json.dumps({"annotations": annotations}))
    prepare_spokencoco(corpus, tmp_path / "data")
    lines = (tmp_path / "data" / "captions.tsv").read_text().splitlines()
    assert lines == ["train\tA dog.", "train\tTwo dogs", "-\telsewhere"]
    (corpus / "annotations" / "captions_val2014.json").write_text('{"annotations": [{}]}')
    with pytest.raises(UserError, match="not COCO's captions"):
        prepare_spokencoco(corpus, tmp_path / "data")


def test_what_cannot_be_used_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    wavs = sorted((corpus / "SpokenCOCO" / "wavs" / "0").glob("*_9_*.wav"))
    soundfile.write(wavs[0], np.sin(np.arange(160)), 16000, subtype="PCM_16")
    wavs[1].unlink()
    main(["--name", "spokencoco", "--corpus", str(corpus), "--out", str(tmp_path / "data"), "--max_bad", "0.5", "--nj", "1"])
    out = capsys.readouterr().out
    assert "skipped 2" in out and "too short" in out and "missing audio file" in out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "no list under 'data'"),
        ('{"data": [{"image": "a"}]}', "entry 0: needs 'image' and 'captions' or 'caption'"),
        ('{"data": [{"image": "a", "captions": ["x"]}]}', "entry 0: a caption is no mapping"),
        ('{"data": [{"image": "a", "captions": [{"text": "x"}]}]}', "a: a caption without speaker, uttid or wav"),
    ],
)
def test_a_broken_split_file_is_one_line(tmp_path: Path, content: str, message: str) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    (corpus / "SpokenCOCO" / "SpokenCOCO_ksplit_val.json").write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        prepare_spokencoco(corpus, tmp_path / "data")
    assert "SpokenCOCO_ksplit_val.json" in str(caught.value) and not (tmp_path / "data").exists()


def test_missing_parts_and_overlapping_splits(tmp_path: Path) -> None:
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
