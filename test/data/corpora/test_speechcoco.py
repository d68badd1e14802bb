"""The preparation of SPEECH-COCO: JSON files and databases, both splits, timecodes by hand, every kind of bad copy."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from corpus_files import archive, photograph, recording

from speechclip.common.errors import UserError
from speechclip.data.alignments import AlignedWord, read_ctm
from speechclip.data.corpora.preparation import Limits, Summary
from speechclip.data.corpora.speechcoco import VOICES, parse_timecode, prepare_speechcoco, timecode_problem
from speechclip.data.kaldi import DataDir, find_problems

LOOSE = Limits(max_bad=0.9, check_samples=False)
IMAGES = {"train2014": (9, 25, 30), "val2014": (42, 73)}  # two captions each: ten in all

#: "a white dog." with a silence at the end; the middle is the example of the publisher's README
TIMECODE = [
    [0.0, "SYL", ""], [0.0, "SEPR", " "], [0.0, "WORD", "a"], [0.0, "PHO", "@"],
    [100.0, "SYL", ""], [100.0, "SEPR", " "], [100.0, "WORD", "white"], [100.0, "PHO", "w"], [200.0, "PHO", "ai"],
    [300.0, "PHO", "t"],
    [400.0, "SYL", ""], [400.0, "SEPR", " "], [400.0, "WORD", "dog."], [400.0, "PHO", "d"], [450.0, "PHO", "Q"],
    [500.0, "PHO", "g"], [550.0, "PHO", "_"], [600.0, "SIL", ""],
]  # fmt: skip


def entry(image: int, number: int) -> dict[str, Any]:
    caption = 10 * image + number
    voice = VOICES[(image + number) % 8]
    return {
        "duration": 0.6, "speaker": voice, "synthesisedCaption": "A white, um,  dog.", "timecode": TIMECODE,
        "wavFilename": f"{image}_{caption}_{voice}_Middle_1-0.wav", "captionID": caption, "imgID": image,
        "disfluency": ["Middle", "um"], "speed": 1.0,
    }  # fmt: skip


def write_database(file: Path, entries: list[dict[str, Any]]) -> None:
    database = sqlite3.connect(file)
    database.execute("CREATE TABLE speakers (name TEXT PRIMARY KEY, gender TEXT, nationality TEXT)")
    database.execute(
        "CREATE TABLE captions (captionID INTEGER PRIMARY KEY, imageID INTEGER, wavFilename TEXT, duration FLOAT, "
        "timecode TEXT, disfluencyPos TEXT, disfluencyVal TEXT, speed FLOAT, text TEXT, speaker TEXT)"
    )
    for item in entries:
        database.execute(
            "INSERT INTO captions VALUES (?,?,?,?,?,?,?,?,?,?)",
            (item["captionID"], item["imgID"], item["wavFilename"], item["duration"], json.dumps(item["timecode"]),
             *item["disfluency"], item["speed"], item["synthesisedCaption"], item["speaker"]),
        )  # fmt: skip
    database.commit()
    database.close()


def make_corpus(folder: Path, *, form: str = "json", root: str = "CORPUS-MSCOCO", images: str = "") -> Path:
    """Write five photographs with two captions each."""
    for name, numbers in IMAGES.items():
        place = folder / root / name / (name if form == "nested" else "")
        (place / "json").mkdir(parents=True)
        entries = [entry(image, number) for image in numbers for number in range(2)]
        for image in numbers:
            photograph(folder / images / name / f"COCO_{name}_{image:012d}.jpg", image)
        for item in entries:
            recording(place / "wav" / item["wavFilename"], item["captionID"])
            if form != "database":
                (place / "json" / item["wavFilename"].replace(".wav", ".json")).write_text(json.dumps(item))
        if form == "database":
            (place / "json").rmdir()
            write_database(place / f"{name.removesuffix('2014')}_2014.sqlite3", entries)
    return folder


def counts(summary: Summary) -> dict[str, tuple[int, int]]:
    return {name: (size.images, size.utterances) for name, size in summary.splits.items()}


WHOLE = {"train": (3, 6), "dev": (1, 2), "test": (1, 2)}


@pytest.mark.parametrize("root", ["CORPUS-MSCOCO", "", "speechcoco"])
@pytest.mark.parametrize("form", ["json", "database", "nested"])
@pytest.mark.parametrize("images", ["mscoco_img", ""])
def test_prepare_speechcoco_reads_every_layout(tmp_path: Path, form: str, root: str, images: str) -> None:
    corpus = make_corpus(tmp_path / "corpus", form=form, root=root, images=images)
    assert counts(prepare_speechcoco(corpus, tmp_path / "data")) == WHOLE
    for split in WHOLE:
        assert find_problems(tmp_path / "data" / split) == []
    first = DataDir.load(tmp_path / "data/test").utterances[0]
    assert (first.id, first.speaker, first.image_id) == ("Bruce-42_420", "Bruce", "COCO_val2014_000000000042")
    assert first.text == "A white, um, dog." == first.clip_text
    folder = tmp_path / "data/test"
    assert [word.text for word in read_ctm(folder / "ctm")[first.id]] == ["a", "white", "dog"]
    assert [item.text for item in read_ctm(folder / "syllables.ctm")[first.id]] == ["@", "wait", "dQg"]
    phones = read_ctm(folder / "phones.ctm")[first.id]
    assert [item.text for item in phones] == ["@", "w", "ai", "t", "d", "Q", "g"]
    assert phones[-1] == AlignedWord("g", 0.5, 0.55)


def test_prepare_speechcoco_uses_karpathys_split(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    split = {9: "train", 25: "val", 30: "restval", 42: "test", 73: "test"}
    images = [{"cocoid": image, "split": name, "filename": "x"} for image, name in split.items()]
    (corpus / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    assert counts(prepare_speechcoco(corpus, tmp_path / "data")) == {"train": (2, 4), "dev": (1, 2), "test": (2, 4)}
    (corpus / "dataset_coco.json").write_text(json.dumps({"images": images[:-1]}))
    summary = prepare_speechcoco(corpus, tmp_path / "data", LOOSE)
    assert summary.skipped == {"image is not in dataset_coco.json": 2}
    for bad in ('{"images": 3}', '{"images": [{}]}', '{"images": [{"cocoid": 1, "split": "dev"}]}'):
        (corpus / "dataset_coco.json").write_text(bad)
        with pytest.raises(UserError, match="not Karpathy's split"):
            prepare_speechcoco(corpus, tmp_path / "data")


def test_parse_timecode_finds_the_times() -> None:
    found = parse_timecode(TIMECODE)
    assert found.words == [AlignedWord("a", 0, 0.1), AlignedWord("white", 0.1, 0.4), AlignedWord("dog", 0.4, 0.55)]
    assert found.syllables == [AlignedWord("@", 0, 0.1), AlignedWord("wait", 0.1, 0.4), AlignedWord("dQg", 0.4, 0.55)]


def test_parse_timecode_divides_words_into_syllables() -> None:
    """A silence after an empty syllable begins and ends there; the last word ends at the last, empty syllable."""
    timecode = [
        [0, "SYL", ""], [0, "WORD", "water"], [0, "PHO", "w"], [100, "PHO", "O:"], [200, "SYL", ""], [200, "PHO", "t"],
        [300, "PHO", "@"], [400, "SYL", ""], [400, "SIL", ""], [500, "SYL", ""], [500, "WORD", "is"], [500, "PHO", "I"],
        [600, "PHO", "z"], [700, "SYL", ""], [700, "SEPR", "."],
    ]  # fmt: skip
    found = parse_timecode(timecode)
    assert found.words == [AlignedWord("water", 0, 0.4), AlignedWord("is", 0.5, 0.7)]
    assert [item.text for item in found.syllables] == ["wO:", "t@", "Iz"]
    assert [(item.text, item.end) for item in found.phonemes][-1] == ("z", 0.7)


@pytest.mark.parametrize(
    ("timecode", "problem"),
    [
        (TIMECODE, None),
        (None, "timecode is not a list"),
        ([], "timecode is not a list"),
        ([[0, "WORD"]], "timecode: not [milliseconds, kind, value]"),
        ([[0, "WORD", 3]], "timecode: not [milliseconds, kind, value]"),
        ([[5, "SYL", ""], [4, "SYL", ""]], "timecode: times are not in order"),
        ([["0", "SYL", ""]], "timecode: times are not in order"),
        ([[float("nan"), "SYL", ""]], "timecode: times are not in order"),
    ],
)
def test_timecode_problem_names_the_reason(timecode: Any, problem: str | None) -> None:
    assert timecode_problem(timecode) == problem


NAME = entry(9, 0)["wavFilename"]
WAV, JSON = f"CORPUS-MSCOCO/train2014/wav/{NAME}", f"CORPUS-MSCOCO/train2014/json/{NAME[:-4]}.json"
JPG = "train2014/COCO_train2014_000000000009.jpg"


def change(key: str, new: Any) -> Callable[[Path], object]:
    return lambda corpus: (corpus / JSON).write_text(json.dumps({**entry(9, 0), key: new}))


#: damage, reason, number of utterances that are lost
BAD: dict[str, tuple[Callable[[Path], object], str, int]] = {
    "no recording": (lambda c: (c / WAV).unlink(), "missing audio file", 1),
    "empty recording": (lambda c: (c / WAV).write_bytes(b""), "empty audio file", 1),
    "cut recording": (lambda c: (c / WAV).write_bytes((c / WAV).read_bytes()[:100]), "truncated", 1),
    "short recording": (lambda c: recording(c / WAV, 0, 0.1), "too short", 1),
    "no photograph": (lambda c: (c / JPG).unlink(), "missing photograph", 2),
    "cut photograph": (lambda c: (c / JPG).write_bytes((c / JPG).read_bytes()[:99]), "truncated or corrupt image", 2),
    "cut JSON": (lambda c: (c / JSON).write_text("{"), "not valid JSON", 1),
    "JSON list": (lambda c: (c / JSON).write_text("[]"), "a JSON object is needed", 1),
    "no image number": (change("imgID", None), "caption without numbers of image and caption", 1),
    "text as number": (change("captionID", "7"), "caption without numbers of image and caption", 1),
    "unknown voice": (change("speaker", "William"), "unknown voice", 1),
    "no voice": (change("speaker", None), "unknown voice", 1),
    "no wavFilename": (change("wavFilename", ""), "caption without wavFilename", 1),
    "path as wavFilename": (change("wavFilename", "../x.wav"), "caption without wavFilename", 1),
    "no caption": (change("synthesisedCaption", None), "caption is not a text", 1),
    "empty caption": (change("synthesisedCaption", " "), "empty caption", 1),
    "bad Unicode": (change("synthesisedCaption", "\ud800"), "caption is not valid Unicode", 1),
    "no timecode": (change("timecode", None), "timecode is not a list", 1),
    "unsorted timecode": (change("timecode", TIMECODE[::-1]), "timecode: times are not in order", 1),
}


@pytest.mark.parametrize(("damage", "reason", "lost"), BAD.values(), ids=BAD)
def test_prepare_speechcoco_skips_and_lists_bad_items(
    tmp_path: Path, damage: Callable[[Path], object], reason: str, lost: int
) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    damage(corpus)
    with pytest.raises(UserError, match=f"{lost} of 10 utterances cannot be used"):
        prepare_speechcoco(corpus, tmp_path / "data")
    assert not (tmp_path / "data").exists()
    summary = prepare_speechcoco(corpus, tmp_path / "data", LOOSE)
    assert summary.splits["train"].utterances == 6 - lost
    rows = (tmp_path / "data/skipped.tsv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 1 + lost and reason in rows[1].split("\t")[2]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: (c / "val2014").rename(c / "x"), "no photographs: no val2014/*.jpg"),
        (lambda c: (c / "CORPUS-MSCOCO/train2014/wav").rename(c / "x"), "no recordings: no train2014/wav/"),
        (lambda c: (c / "CORPUS-MSCOCO/val2014/json").rename(c / "x"), "val2014: neither val_2014.sqlite3 nor json/"),
        (lambda c: (c / "CORPUS-MSCOCO/val2014/val_2014.sqlite3").write_text("x" * 200), "not SPEECH-COCO's database"),
        (lambda c: sqlite3.connect(c / "CORPUS-MSCOCO/val2014/val_2014.sqlite3").execute("CREATE TABLE a (b)"),
         "not SPEECH-COCO's database (no such table: captions)"),
    ],
)  # fmt: skip
def test_prepare_speechcoco_reports_a_bad_corpus(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    damage(corpus)
    with pytest.raises(UserError) as caught:
        prepare_speechcoco(corpus, tmp_path / "data")
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "data").exists()


def test_prepare_speechcoco_skips_a_bad_row_of_a_database(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", form="database")
    database = sqlite3.connect(corpus / "CORPUS-MSCOCO/val2014/val_2014.sqlite3")
    database.execute("UPDATE captions SET timecode = '[[' WHERE captionID = 420")
    database.commit()
    assert prepare_speechcoco(corpus, tmp_path / "data", LOOSE).skipped == {"timecode is not a list": 1}


def publish(published: Path, corpus: Path) -> list[str]:
    """Recordings in an archive; COCO's photographs on disk, as their checksums are those of the real files."""
    made = make_corpus(published / "made", form="database")
    (published / "CORPUS-MSCOCO.tar.gz").write_bytes(archive({"CORPUS-MSCOCO": made / "CORPUS-MSCOCO"}))
    for name in ("train2014", "val2014"):
        shutil.move(made / name, corpus / name)
    return []


def check_scores(recipe: Path, scores: Path) -> None:
    """Each image has two captions, and keywords have times."""
    scored = json.loads((scores / "retrieval.json").read_text())["speech->image"]
    assert scored["n_queries"] == 2 * scored["n_gallery"]
    assert {"segmentation", "overlap"} <= set(json.loads((scores / "keywords.json").read_text()))
