"""The preparation of Places Audio Captions: lists of 2020, older lists, three languages, and every kind of bad copy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from corpus_files import archive, photograph, recording

from speechclip.common.errors import UserError
from speechclip.data.corpora.places import prepare_places
from speechclip.data.corpora.preparation import Limits, Summary
from speechclip.data.kaldi import DataDir, find_problems, read_table
from speechclip.report.results.document import render
from speechclip.report.results.rows import rows_of_run
from speechclip.report.runs import load_run

#: image numbers of the lists of 2020, ten in all
LISTS = {"train": (0, 1, 2, 3), "dev_seen": (4,), "dev_unseen": (5,), "test_seen": (6, 7), "test_unseen": (8, 9)}
WHOLE = {"train": (4, 4), "dev": (1, 1), "test": (2, 2), "dev_unseen": (1, 1), "test_unseen": (2, 2)}
WAVS = "PlacesAudio_400k_distro/wavs"
LOOSE = Limits(max_bad=0.9, check_samples=False)


def image_name(number: int) -> str:
    return f"{'abcdefghij'[number]}/abbey/gsun_{number:032x}.jpg"


def entry(number: int) -> dict[str, Any]:
    speaker = f"A{number % 3}XYZ"
    return {
        "uttid": f"{speaker}-GSUN_{number:032X}",
        "speaker": speaker,
        "asr_text": f"a large room with {number} chairs",
        "wav": f"wavs/{number % 2}/utterance_{number}.wav",
        "image": image_name(number),
    }


def make_corpus(folder: Path, *, form: str = "2020", images: str = "images", lists: str = "metadata") -> Path:
    """Write ten photographs with one English caption each."""
    distro = folder / "PlacesAudio_400k_distro"
    for number in range(10):
        photograph(folder / images / image_name(number), number)
        recording(distro / entry(number)["wav"], number)
    place = {"metadata": distro / "metadata", "own": folder / "placesaudio_2020_splits", "top": folder}[lists]
    place.mkdir(exist_ok=True)
    base = {"audio_base_path": "/data/sls/PlacesAudio_400k_distro/", "image_base_path": "/data/sls/images/"}
    wanted = {f"{name}_2020": numbers for name, numbers in LISTS.items()}
    if form == "older":
        wanted = {"train": tuple(range(8)), "val": (8, 9)}
    for name, numbers in wanted.items():
        (place / f"{name}.json").write_text(json.dumps({**base, "data": [entry(number) for number in numbers]}))
    return folder


def add_hindi(folder: Path, form: str = "PlacesHindi100k") -> None:
    """Write Hindi captions of the images 1, 2 (train), 3 (dev) and 0 (test)."""
    place = folder / ("PlacesHindi100k" if form == "PlacesHindi100k" else "hindi_places_100k")
    place.mkdir()
    for split, numbers in {"train": (1, 2, 6), "dev": (3,), "test": (0,)}.items():
        entries = []
        for number in numbers:
            wav = f"{number}.wav" if form == "hindi_english_100k" else f"wavs/{number}.wav"
            recording(place / ("hindi_wavs" if form == "hindi_english_100k" else "") / wav, number)
            key = "hindi_wav" if form == "hindi_english_100k" else "wav"
            entries.append({"image": "/" + image_name(number), key: wav, "asr_text": f"कमरा {number}"})
        (place / f"{form}_{split}.json").write_text(json.dumps({"data": entries}))


def add_japanese(folder: Path) -> None:
    place = folder / "PlacesAudioJpn_100k"
    for split, numbers in {"train": (1,), "val": (3,), "test": (0,)}.items():
        for number in numbers:
            recording(place / f"wav/{number}.wav", number)
        lines = [f"/{image_name(number)} /wav/{number}.wav\n" for number in numbers]
        (place / f"PlacesAudioJpn_100k_image2audio_{split}.txt").write_text("".join(lines))


def counts(summary: Summary) -> dict[str, tuple[int, int]]:
    return {name: (size.images, size.utterances) for name, size in summary.splits.items()}


@pytest.mark.parametrize("images", ["images", "imagesPlaces205_resize/data/vision/torralba/deeplearning/images256", ""])
@pytest.mark.parametrize("lists", ["metadata", "own", "top"])
def test_prepare_places_reads_every_layout(tmp_path: Path, images: str, lists: str) -> None:
    corpus = make_corpus(tmp_path / "corpus", images=images, lists=lists)
    assert counts(prepare_places(corpus, tmp_path / "data")) == WHOLE
    test = DataDir.load(tmp_path / "data/test")
    first = test.utterances[0]
    assert (first.id, first.speaker, first.language) == (f"A0XYZ-GSUN_{6:032X}", "A0XYZ", "en")
    assert first.text == "a large room with 6 chairs" == first.clip_text
    assert first.image_id == f"gsun_{6:032x}" and test.images[first.image_id] == corpus / images / image_name(6)
    assert first.wav == corpus / WAVS / "0/utterance_6.wav"
    for split in WHOLE:
        assert find_problems(tmp_path / "data" / split) == []
    captions = (tmp_path / "data/captions.tsv").read_text().splitlines()
    assert len(captions) == 10 and "test_unseen\ta large room with 9 chairs" in captions


def test_prepare_places_reads_the_older_lists(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", form="older")
    assert counts(prepare_places(corpus, tmp_path / "data")) == {"train": (4, 4), "dev": (4, 4), "test": (2, 2)}
    dev = {u.image_id for u in DataDir.load(tmp_path / "data/dev").utterances}
    assert dev == {f"gsun_{number:032x}" for number in (4, 5, 6, 7)}  # at most half of a list of this size


def test_prepare_places_prefers_the_lists_of_2020(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    make_corpus(corpus, form="older")
    assert counts(prepare_places(corpus, tmp_path / "data")) == WHOLE


def test_prepare_places_uses_base_paths_that_exist(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    (corpus / "images").rename(tmp_path / "pictures")
    (corpus / "PlacesAudio_400k_distro/wavs").rename(tmp_path / "wavs")
    for file in (corpus / "PlacesAudio_400k_distro/metadata").iterdir():
        base = {"audio_base_path": str(tmp_path), "image_base_path": str(tmp_path / "pictures")}
        file.write_text(json.dumps(json.loads(file.read_text()) | base))
    assert counts(prepare_places(corpus, tmp_path / "data")) == WHOLE


@pytest.mark.parametrize("form", ["PlacesHindi100k", "PlacesHindi", "hindi_english_100k"])
def test_prepare_places_adds_languages(tmp_path: Path, form: str) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    add_hindi(corpus, form)
    add_japanese(corpus)
    found = counts(prepare_places(corpus, tmp_path / "data"))
    # images 0 and 3 left train with their English captions; the Hindi caption of image 6 is not used: 6 is in test
    assert found == {**WHOLE, "train": (2, 5), "dev_multilingual": (1, 3), "test_multilingual": (1, 3)}
    assert sorted(read_table(tmp_path / "data/train/utt2lang").values()) == ["en", "en", "hi", "hi", "ja"]
    several = {u.language: u for u in DataDir.load(tmp_path / "data/test_multilingual").utterances}
    assert {u.image_id for u in several.values()} == {f"gsun_{0:032x}"}
    assert several["hi"].text == "कमरा 0" == several["hi"].clip_text
    assert (several["ja"].text, several["ja"].clip_text) == ("<unk>", "a large room with 0 chairs")
    assert several["ja"].id == several["ja"].speaker == "ja_0"
    captions = (tmp_path / "data/captions.tsv").read_text()
    assert "<unk>" not in captions
    for split in found:
        assert find_problems(tmp_path / "data" / split) == []


def test_prepare_places_copies_english_of_shared_test_images(tmp_path: Path) -> None:
    """An image of the seen test set may be in the multilingual one, too."""
    corpus = make_corpus(tmp_path / "corpus")
    add_hindi(corpus)
    file = corpus / "PlacesHindi100k/PlacesHindi100k_test.json"
    data = json.loads(file.read_text())
    data["data"][0]["image"] = image_name(6)
    file.write_text(json.dumps(data))
    found = counts(prepare_places(corpus, tmp_path / "data"))
    assert found["test"] == (2, 2) and found["test_multilingual"] == (1, 2)
    ids = [u.id for u in DataDir.load(tmp_path / "data/test_multilingual").utterances]
    assert ids == [f"A0XYZ-multi_GSUN_{6:032X}", "hi_0"]


def test_prepare_places_removes_splits_of_an_earlier_run(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    prepare_places(corpus, tmp_path / "data")
    prepare_places(make_corpus(tmp_path / "old", form="older"), tmp_path / "data")
    assert not (tmp_path / "data/test_unseen").exists() and (tmp_path / "data/test/wav.scp").exists()


def edit(corpus: Path, name: str, change: Callable[[list[Any]], object]) -> None:
    file = corpus / f"PlacesAudio_400k_distro/metadata/{name}_2020.json"
    data = json.loads(file.read_text())
    change(data["data"])
    file.write_text(json.dumps(data))


def value(key: str, new: Any) -> Callable[[Path], None]:
    return lambda corpus: edit(corpus, "train", lambda entries: entries[0].__setitem__(key, new))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


#: damage, reason, utterances that are left in train
BAD: dict[str, tuple[Callable[[Path], Any], str, int]] = {
    "no recording": (lambda c: (c / WAVS / "0/utterance_0.wav").unlink(), "missing audio file", 3),
    "empty recording": (lambda c: (c / WAVS / "0/utterance_0.wav").write_bytes(b""), "empty audio file", 3),
    "cut recording": (lambda c: cut(c / WAVS / "0/utterance_0.wav"), "truncated", 3),
    "short recording": (lambda c: recording(c / WAVS / "0/utterance_0.wav", 0, 0.1), "too short", 3),
    "no photograph": (lambda c: (c / "images" / image_name(0)).unlink(), "missing photograph", 3),
    "cut photograph": (lambda c: cut(c / "images" / image_name(0)), "truncated or corrupt image", 3),
    "text as photograph": (lambda c: (c / "images" / image_name(0)).write_text("<html>"), "not an image", 3),
    "no wav": (value("wav", None), "entry without wav", 3),
    "wav is a number": (value("wav", 7), "entry without wav", 3),
    "NUL in wav": (value("wav", "wavs/\0.wav"), "missing audio file", 3),
    "no transcript": (value("asr_text", None), "empty caption", 3),
    "blank transcript": (value("asr_text", " \n"), "empty caption", 3),
    "transcript is a list": (value("asr_text", ["a"]), "caption is not a text", 3),
    "bad Unicode": (value("asr_text", "\ud800"), "caption is not valid Unicode", 3),
    "white space in speaker": (value("speaker", "A B"), "unusable id", 3),
    "image is elsewhere": (value("image", "z/zoo/1.jpg"), "missing photograph", 3),
    "NUL in image": (value("image", "a\0.jpg"), "missing photograph", 3),
    "listed twice": (lambda c: edit(c, "train", lambda e: e.append(e[0])), "listed twice", 4),
}


@pytest.mark.parametrize(("damage", "reason", "left"), BAD.values(), ids=BAD)
def test_prepare_places_skips_and_lists_bad_items(
    tmp_path: Path, damage: Callable[[Path], Any], reason: str, left: int
) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    damage(corpus)
    with pytest.raises(UserError, match="1 of 1[01] utterances cannot be used, more than max_bad 0.01"):
        prepare_places(corpus, tmp_path / "data")
    assert not (tmp_path / "data").exists()
    summary = prepare_places(corpus, tmp_path / "data", LOOSE)
    assert counts(summary) == {**WHOLE, "train": (left, left)}
    rows = (tmp_path / "data/skipped.tsv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 2 and reason in rows[1].split("\t")[2]


def metadata(name: str) -> str:
    return f"PlacesAudio_400k_distro/metadata/{name}"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: (c / metadata("dev_unseen_2020.json")).unlink(), "metadata/dev_unseen_2020.json is missing"),
        (lambda c: [file.unlink() for file in (c / metadata("")).iterdir()], "no lists: neither metadata/train_2020"),
        (lambda c: (c / "images").rename(c.parent / "x"), "no photographs of test_seen_2020.json: no images/"),
        (lambda c: (c / WAVS).rename(c.parent / "x"), "no recordings of test_seen_2020.json: no wavs/"),
        (lambda c: (c / metadata("train_2020.json")).write_text("{"), "train_2020.json: not valid JSON"),
        (lambda c: (c / metadata("train_2020.json")).write_text("[]"), "a JSON object is needed"),
        (lambda c: (c / metadata("train_2020.json")).write_text("{}"), "train_2020.json: no list under 'data'"),
        (lambda c: (c / metadata("train_2020.json")).write_text('{"data": [3]}'), "entry 0: needs 'image'"),
        (lambda c: (c / metadata("train_2020.json")).write_bytes(b'{"data": "\xff"}'), "not valid JSON"),
        (value("image", ""), "entry 0: needs 'image'"),
    ],
)
def test_prepare_places_reports_a_bad_corpus(tmp_path: Path, damage: Callable[[Path], Any], message: str) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    damage(corpus)
    with pytest.raises(UserError) as caught:
        prepare_places(corpus, tmp_path / "data")
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"a/1.jpg\n", "test.txt:1: not <image> <recording>"), (b"\xff 1.wav\n", "test.txt: not UTF-8"),
     (b"", "test.txt: no list")],
)  # fmt: skip
def test_prepare_places_reports_a_bad_japanese_list(tmp_path: Path, content: bytes, message: str) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    add_japanese(corpus)
    (corpus / "PlacesAudioJpn_100k/PlacesAudioJpn_100k_image2audio_test.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        prepare_places(corpus, tmp_path / "data")


def test_prepare_places_reports_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such corpus folder"):
        prepare_places(tmp_path / "none", tmp_path / "data")


HEAD = "parallel"  # of the test of the recipe, see test_corpus_recipes.py


def publish(published: Path, corpus: Path) -> list[str]:
    """English in an archive; the photographs, Hindi and Japanese are on disk."""
    made = make_corpus(published / "made")
    add_hindi(made)
    add_japanese(made)
    content = archive({"PlacesAudio_400k_distro": made / "PlacesAudio_400k_distro"})
    (published / "placesaudio_2020_splits.tar.gz").write_bytes(content)
    for name in ("images", "PlacesHindi100k", "PlacesAudioJpn_100k"):
        shutil.move(made / name, corpus / name)
    return []


def check_scores(recipe: Path, scores: Path) -> None:
    """The seen and the unseen test set, and the captions in several languages, are scored and shown."""
    for split in ("test_unseen", "test_multilingual"):
        assert "speech->image" in json.loads((scores / split / "retrieval.json").read_text())
    across = json.loads((scores / "test_multilingual/retrieval.json").read_text())["across_languages"]
    assert set(across) == {"en->hi", "en->ja", "hi->en", "hi->ja", "ja->en", "ja->hi"}
    assert across["en->hi"]["random"]["R@1"] == 100  # one image
    assert "across_languages" not in json.loads((scores / "retrieval.json").read_text())  # the seen set is English
    rows = rows_of_run(load_run(scores.parent), "places")
    committed = render(rows, "places", (recipe / "RESULTS.template.md").read_text(), "template")
    for text in ((recipe / "exp/RESULTS.md").read_text(), committed):  # seen, then unseen, both directions
        seen, unseen = (text.index(f"### Speech and images{name}\n") for name in ("", ": test_unseen"))
        assert seen < unseen
        for start in (seen, unseen):
            line = next(line for line in text[start:].splitlines() if line.startswith("| model"))
            names = [f"{way} R@{cutoff}" for way in ("S→I", "I→S") for cutoff in (1, 5, 10)]
            assert [cell.strip() for cell in line.split("|")[4:10]] == names
        assert "### Speech to speech in another language: test_multilingual" in text
    assert {path.parent.name for path in recipe.glob("data/*/wav.scp")} == {
        "train", "dev", "test", "dev_unseen", "test_unseen", "dev_multilingual", "test_multilingual"
    }  # fmt: skip
