"""The preparation of YFACC: layouts, English captions, alignments, and every kind of bad copy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from corpus_files import archive, photograph, recording

from speechclip.common.errors import UserError
from speechclip.data.alignments import read_ctm
from speechclip.data.corpora.preparation import Limits, Summary
from speechclip.data.corpora.yfacc import prepare_yfacc
from speechclip.data.kaldi import DataDir, find_problems, read_table

LOOSE = Limits(max_bad=0.9)
SPLIT = {"train": range(6), "dev": range(6, 8), "test": range(8, 10)}
WHOLE = {"train": 6, "dev": 2, "test": 2}
GRID = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 0.6
tiers? <exists>
size = 1
item []:
    item [1]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 0.6
        intervals: size = 2
        intervals [1]:
            xmin = 0
            xmax = 0.2
            text = ""
        intervals [2]:
            xmin = 0.2
            xmax = 0.6
            text = "Ajá dúdú"
"""


def stem(number: int) -> str:
    return f"{1000 + number}_ab{number}"


def make_corpus(folder: Path, *, root: str = "yfacc_v6", audio: str = "", english: bool = True) -> Path:
    place = folder / root
    for split, numbers in SPLIT.items():
        lines = []
        for number in numbers:
            photograph(folder / "Flicker8k_Dataset" / f"{stem(number)}.jpg", number)
            recording(place / f"flickr_audio_yoruba_{split}" / audio / f"S001_{stem(number)}_{number % 5}.wav", number)
            lines.append(f"{stem(number)}.jpg#{number % 5}\tAjá {number} ń sáré\n")
        (place / "Flickr8k_text").mkdir(exist_ok=True)
        (place / f"Flickr8k_text/Flickr8k.token.{split}_yoruba.txt").write_text("".join(lines), encoding="utf-8")
    (place / "Flickr8k_alignment").mkdir(parents=True)
    (place / f"Flickr8k_alignment/{stem(8)}_3.TextGrid").write_text(GRID, encoding="utf-8")
    if english:
        (folder / "Flickr8k_text").mkdir(exist_ok=True)
        lines = [f"{stem(number)}.jpg#{take}\tDog {number} runs .\n" for number in range(10) for take in range(5)]
        (folder / "Flickr8k_text/Flickr8k.token.txt").write_text("".join(lines))
    return folder


def counts(summary: Summary) -> dict[str, int]:
    return {name: size.utterances for name, size in summary.splits.items()}


@pytest.mark.parametrize("root", ["yfacc_v6", "yfacc_v6/yfacc_v6", "Flickr8k_Yoruba_v6", ""])
@pytest.mark.parametrize("audio", ["", "16k"])
@pytest.mark.parametrize("english", [True, False])
def test_prepare_yfacc_reads_every_layout(tmp_path: Path, root: str, audio: str, english: bool) -> None:
    corpus = make_corpus(tmp_path / "corpus", root=root, audio=audio, english=english)
    assert counts(prepare_yfacc(corpus, tmp_path / "data")) == WHOLE
    first = DataDir.load(tmp_path / "data/test").utterances[0]
    assert (first.id, first.speaker, first.image_id) == (f"S001-{stem(8)}_3", "S001", stem(8))
    assert first.text == "Ajá 8 ń sáré" and first.clip_text == ("Dog 8 runs" if english else first.text)
    assert set(read_table(tmp_path / "data/train/utt2lang").values()) == {"yo"}
    assert [word.text for word in read_ctm(tmp_path / "data/test/ctm")[first.id]] == ["ajá", "dúdú"]
    for split in SPLIT:
        assert find_problems(tmp_path / "data" / split) == []


def test_prepare_yfacc_ignores_a_damaged_alignment(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    (corpus / f"yfacc_v6/Flickr8k_alignment/{stem(8)}_3.TextGrid").write_text("x")
    assert counts(prepare_yfacc(corpus, tmp_path / "data")) == WHOLE
    assert not (tmp_path / "data/test/ctm").exists()


WAV = f"yfacc_v6/flickr_audio_yoruba_train/S001_{stem(0)}_0.wav"
JPG = f"Flicker8k_Dataset/{stem(0)}.jpg"
TEXT = "yfacc_v6/Flickr8k_text/Flickr8k.token.train_yoruba.txt"


def line(new: str) -> Callable[[Path], object]:
    def damage(corpus: Path) -> None:
        lines = (corpus / TEXT).read_text(encoding="utf-8").splitlines()
        (corpus / TEXT).write_text("\n".join([new, *lines[1:]]), encoding="utf-8")

    return damage


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no recording": (lambda c: (c / WAV).unlink(), "missing audio file"),
    "empty recording": (lambda c: (c / WAV).write_bytes(b""), "empty audio file"),
    "cut recording": (lambda c: (c / WAV).write_bytes((c / WAV).read_bytes()[:100]), "truncated"),
    "short recording": (lambda c: recording(c / WAV, 0, 0.1), "too short"),
    "no photograph": (lambda c: (c / JPG).unlink(), "missing photograph"),
    "cut photograph": (lambda c: (c / JPG).write_bytes((c / JPG).read_bytes()[:99]), "truncated or corrupt image"),
    "empty caption": (line(f"{stem(0)}.jpg#0\t "), "empty caption"),
    "listed twice": (line(f"{stem(1)}.jpg#1\tx"), "listed twice"),
}


@pytest.mark.parametrize(("damage", "reason"), BAD.values(), ids=BAD)
def test_prepare_yfacc_skips_and_lists_bad_items(tmp_path: Path, damage: Callable[[Path], object], reason: str) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    damage(corpus)
    with pytest.raises(UserError, match="1 of 10 utterances cannot be used"):
        prepare_yfacc(corpus, tmp_path / "data")
    assert not (tmp_path / "data").exists()
    assert counts(prepare_yfacc(corpus, tmp_path / "data", LOOSE)) == {**WHOLE, "train": 5}
    rows = (tmp_path / "data/skipped.tsv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 2 and reason in rows[1].split("\t")[2]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: (c / TEXT).unlink(), "no train captions: Flickr8k.token.train_yoruba.txt is missing"),
        (lambda c: (c / "yfacc_v6/flickr_audio_yoruba_dev").rename(c / "x"), "no dev recordings: flickr_audio_yoruba"),
        (lambda c: (c / "Flicker8k_Dataset").rename(c / "x"), "no images: Flicker8k_Dataset or"),
        (lambda c: (c / TEXT).write_bytes(b"\xff"), "train_yoruba.txt: not UTF-8"),
        (line("1000.jpg x"), "train_yoruba.txt:1: not <image>#<number> <caption>"),
    ],
)
def test_prepare_yfacc_reports_a_bad_corpus(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    damage(corpus)
    with pytest.raises(UserError) as caught:
        prepare_yfacc(corpus, tmp_path / "data")
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "data").exists()


def publish(published: Path, corpus: Path) -> list[str]:
    """Recordings and captions in an archive; Flickr8k is on disk, as its checksums are those of the real files."""
    made = make_corpus(published / "made")
    (published / "yfacc_v6.tar.gz").write_bytes(archive({"yfacc_v6": made / "yfacc_v6"}))
    for name in ("Flicker8k_Dataset", "Flickr8k_text"):
        shutil.move(made / name, corpus / name)
    (corpus / "Flickr8k_text/Flickr_8k.trainImages.txt").write_text(f"{stem(0)}.jpg\n")  # part of the same archive
    return []


def check_scores(recipe: Path, scores: Path) -> None:
    """The head is scored on Yorùbá, and keywords have the times of the words that are aligned."""
    assert set(read_table(recipe / "data/test/utt2lang").values()) == {"yo"}
    assert {"segmentation", "overlap"} <= set(json.loads((scores / "keywords.json").read_text()))
