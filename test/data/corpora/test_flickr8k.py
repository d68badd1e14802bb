"""The preparation of Flickr8k: all layouts, exact counts, captions as CLIP reads them, and every kind of bad input."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from speechclip.bin.prepare_corpus import main
from speechclip.common.errors import UserError
from speechclip.data.alignments import read_ctm
from speechclip.data.corpora.flickr8k import clip_caption, prepare_flickr8k
from speechclip.data.corpora.preparation import Limits, Summary
from speechclip.data.kaldi import DataDir, find_problems, read_table

SPLIT = {"train": ["10_aa", "11_bb", "12_cc"], "dev": ["20_dd"], "test": ["30_ee"]}
STEMS = [stem for stems in SPLIT.values() for stem in stems]
NOT_RECORDED = "40_ff"  # an image in no split, with captions only
SECONDS = 0.5


def caption(stem: str, number: int) -> str:
    return f'A "{stem}" dog , number {number} , runs .'


def make_corpus(folder: Path, *, text: str = "Flickr8k_text", images: str = "Flicker8k_Dataset") -> Path:
    """Write five images with two captions each, read by speakers 7 and 12, and one image without recordings."""
    for name in (images, text, "flickr_audio/wavs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    tokens, captions, speakers = [], [], []
    for index, stem in enumerate([*STEMS, NOT_RECORDED]):
        Image.new("RGB", (40, 30), (index * 20, 90, 30)).save(folder / images / f"{stem}.jpg")
        for number in range(2):
            tokens.append(f"{stem}.jpg#{number}\t{caption(stem, number)}  ")
            if stem == NOT_RECORDED:
                continue
            wave = 0.1 * np.sin(np.arange(round(16000 * SECONDS)) * (0.02 + 0.01 * index))
            soundfile.write(folder / "flickr_audio" / "wavs" / f"{stem}_{number}.wav", wave, 16000, subtype="PCM_16")
            captions.append(f"{stem}_{number}.wav {stem}.jpg #{number}")
            speakers.append(f"{stem}_{number}.wav {7 + 5 * number}")
    (folder / text / "Flickr8k.token.txt").write_text("\n".join(tokens) + "\n")
    (folder / "flickr_audio" / "wav2capt.txt").write_text("\n".join(captions) + "\n")
    (folder / "flickr_audio" / "wav2spk.txt").write_text("\n".join(speakers) + "\n")
    for split, stems in SPLIT.items():
        (folder / text / f"Flickr_8k.{split}Images.txt").write_text("".join(f"{stem}.jpg\n" for stem in stems))
    return folder


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make_corpus(tmp_path / "corpus")
    return Path("corpus")


def counts(summary: Summary) -> dict[str, tuple[int, int, int]]:
    return {name: (size.images, size.utterances, size.speakers) for name, size in summary.splits.items()}


WHOLE = {"train": (3, 6, 2), "dev": (1, 2, 2), "test": (1, 2, 2)}


def test_prepare_flickr8k_reads_the_published_layout(corpus: Path) -> None:
    summary = prepare_flickr8k(corpus, "data")
    assert counts(summary) == WHOLE
    assert summary.skipped == {}
    assert summary.splits["train"].hours == pytest.approx(6 * SECONDS / 3600)
    train = DataDir.load("data/train")
    assert [item.id for item in train.utterances] == sorted(
        f"spk{speaker}-{stem}_{number}" for stem in SPLIT["train"] for number, speaker in ((0, "0007"), (1, "0012"))
    )
    first = train.utterances[0]
    assert (first.id, first.text, first.speaker, first.image_id) == (
        "spk0007-10_aa_0",
        'A "10_aa" dog , number 0 , runs .',
        "spk0007",
        "10_aa",
    )
    assert first.wav == Path("corpus/flickr_audio/wavs/10_aa_0.wav")
    assert train.images["10_aa"] == Path("corpus/Flicker8k_Dataset/10_aa.jpg")
    assert find_problems("data/dev") == find_problems("data/test") == []
    speakers = list(read_table("data/train/utt2spk").values())
    assert speakers == sorted(speakers)  # Kaldi needs utt2spk sorted by speaker too
    assert Path("data/skipped.tsv").read_text() == "id\tfile\treason\n"
    assert sorted(path.name for path in Path().iterdir()) == ["corpus", "data"]


@pytest.mark.parametrize("images", ["Flicker8k_Dataset", "Flickr8k_Dataset", "Images"])
@pytest.mark.parametrize("text", ["Flickr8k_text", ""])
@pytest.mark.parametrize("nested", ["", "archive"])
def test_prepare_flickr8k_finds_parts_in_any_layout(tmp_path: Path, images: str, text: str, nested: str) -> None:
    make_corpus(tmp_path / "corpus" / nested, text=text, images=images)
    assert counts(prepare_flickr8k(tmp_path / "corpus", tmp_path / "data")) == WHOLE


def test_prepare_flickr8k_finds_parts_in_own_folders(tmp_path: Path) -> None:
    folder = make_corpus(tmp_path / "corpus")
    for name in ("Flickr8k_text", "flickr_audio"):
        (folder / f"zip of {name}").mkdir()
        (folder / name).rename(folder / f"zip of {name}" / name)
    (folder / "Flickr8k_Dataset").mkdir()  # unzipped into a folder with the name of the archive
    (folder / "Flicker8k_Dataset").rename(folder / "Flickr8k_Dataset" / "Flicker8k_Dataset")
    assert counts(prepare_flickr8k(folder, tmp_path / "data")) == WHOLE
    assert DataDir.load(tmp_path / "data" / "dev").images["20_dd"].is_file()


def write_kaggle(corpus: Path, content: str) -> None:
    """Replace the token file by Kaggle's captions."""
    (corpus / "Flickr8k_text" / "Flickr8k.token.txt").unlink(missing_ok=True)
    (corpus / "captions.txt").write_bytes(content.encode())


def test_prepare_flickr8k_reads_kaggle_captions(corpus: Path) -> None:
    prepare_flickr8k(corpus, "from_token")
    rows = ["image,caption"]
    for stem in [*STEMS, NOT_RECORDED]:
        for number in range(2):
            quoted = caption(stem, number).replace('"', '""')
            rows.append(f'{stem}.jpg,"{quoted}"')
    write_kaggle(corpus, "\r\n".join(rows) + "\r\n")
    assert counts(prepare_flickr8k(corpus, "data")) == WHOLE
    for split in SPLIT:
        assert Path("data", split, "text").read_text() == Path("from_token", split, "text").read_text()
        clip = read_table(Path("from_token", split, "text_clip"))
        assert read_table(Path("data", split, "text_clip")) == {key: text.lower() for key, text in clip.items()}


def test_prepare_flickr8k_reads_quotes_as_csv(corpus: Path) -> None:
    rows = ["image,caption"] + [f"{stem}.jpg,a {word} , b" for stem in STEMS for word in ('"open', "plain")]
    rows[3] = f'{STEMS[1]}.jpg,"a dog runs ,\n on ""two"" lines ."'
    write_kaggle(corpus, "\n".join(rows))
    prepare_flickr8k(corpus, "data")
    text = read_table("data/train/text")
    assert text["spk0007-10_aa_0"] == 'a "open , b'
    assert text["spk0012-10_aa_1"] == "a plain , b"
    assert text["spk0007-11_bb_0"] == 'a dog runs , on "two" lines .'
    assert text["spk0012-11_bb_1"] == "a plain , b"


@pytest.mark.parametrize(
    ("row", "last", "message"),
    [
        ('11_bb.jpg,"open , b', "the end", "captions.txt:4: not a CSV row (unexpected end of data)"),
        ('11_bb.jpg,"open , b', '"the end"', "captions.txt:4: not a CSV row (',' expected"),
        ('11_bb.jpg,"open , b', 'the end"', "captions.txt:4: a quote is not closed. Close it or double it."),
        ('11_bb.jpg,"a "quoted" dog"', "the end", "captions.txt:4: not a CSV row (',' expected"),
        ("11_bb.jpg", "the end", "captions.txt:4: not <image>,<caption>"),
        (",a dog", "the end", "captions.txt:4: not <image>,<caption>"),
    ],
)
def test_prepare_flickr8k_reports_a_bad_kaggle_row(corpus: Path, row: str, last: str, message: str) -> None:
    rows = ["image,caption"] + [f"{stem}.jpg,a dog , {number}" for stem in STEMS for number in range(2)]
    rows[3], rows[-1] = row, f"30_ee.jpg,{last}"
    write_kaggle(corpus, "\n".join(rows))
    with pytest.raises(UserError) as caught:
        prepare_flickr8k(corpus, "data")
    assert str(caught.value).startswith(f"corpus/{message}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A dog runs .", "A dog runs"),
        ("A dog runs.", "A dog runs"),
        ("  A dog runs .  ", "A dog runs"),
        ("A dog runs . .", "A dog runs ."),
        ("A dog runs ..", "A dog runs ."),
        ("A dog . A cat .", "A dog . A cat"),
        ("A dog runs", "A dog runs"),
        ("A dog runs !", "A dog runs !"),
        (".", ""),
    ],
)
def test_clip_caption_removes_one_final_full_stop(text: str, expected: str) -> None:
    assert clip_caption(text) == expected
    assert clip_caption(text, lower=True) == expected.lower()


def test_prepare_flickr8k_keeps_both_forms_of_captions(corpus: Path) -> None:
    prepare_flickr8k(corpus, "data")
    first = DataDir.load("data/train").utterances[0]
    assert first.text == 'A "10_aa" dog , number 0 , runs .'
    assert first.clip_text == 'A "10_aa" dog , number 0 , runs'
    lines = Path("data/captions.tsv").read_text().splitlines()
    assert len(lines) == 12 and lines[0] == 'train\tA "10_aa" dog , number 0 , runs'
    assert lines[-1] == '-\tA "40_ff" dog , number 1 , runs'


def test_prepare_flickr8k_removes_a_stale_clip_table(corpus: Path) -> None:
    prepare_flickr8k(corpus, "data")
    assert Path("data/train/text_clip").is_file()
    token = corpus / TOKEN
    token.write_text(token.read_text().replace(" .", ""))
    prepare_flickr8k(corpus, "data")
    assert not Path("data/train/text_clip").exists()
    first = DataDir.load("data/train").utterances[0]
    assert first.clip_text == first.text == 'A "10_aa" dog , number 0 , runs'


def test_prepare_flickr8k_tells_apart_equal_stems(corpus: Path) -> None:
    """``10_aa.png`` is another photograph than ``10_aa.jpg``."""
    folder = corpus / "Flicker8k_Dataset"
    Image.new("RGB", (40, 30), (1, 2, 3)).save(folder / "10_aa.png")
    (corpus / "flickr_audio/wavs/other.wav").write_bytes((corpus / WAV).read_bytes())
    for name, line in [
        (TOKEN, "10_aa.png#0\tA cat .\n"),
        (W2C, "other.wav 10_aa.png #0\n"),
        (W2S, "other.wav 7\n"),
        ("Flickr8k_text/Flickr_8k.trainImages.txt", "10_aa.png\n"),
    ]:
        with (corpus / name).open("a") as file:
            file.write(line)
    assert counts(prepare_flickr8k(corpus, "data"))["train"] == (4, 7, 2)
    data = DataDir.load("data/train")
    assert data.images["10_aa.png"] == folder / "10_aa.png" and data.images["10_aa.jpg"] == folder / "10_aa.jpg"
    found = {u.id: (u.image_id, u.clip_text) for u in data.utterances}
    assert found["spk0007-10_aa.png_0"] == ("10_aa.png", "A cat")
    assert found["spk0007-10_aa.jpg_0"][0] == "10_aa.jpg"


def rewrite(path: Path, old: str, new: str) -> None:
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new, 1))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


WAV = "flickr_audio/wavs/10_aa_0.wav"
TOKEN = "Flickr8k_text/Flickr8k.token.txt"
W2C = "flickr_audio/wav2capt.txt"
W2S = "flickr_audio/wav2spk.txt"
IMAGE = "Flicker8k_Dataset/11_bb.jpg"


def write_wave(path: Path, wave: np.ndarray, **options: Any) -> None:
    soundfile.write(path, wave, 16000, format="WAV", **options)


BAD: list[tuple[str, Callable[[Path], object], list[str]]] = [
    (
        "missing audio",
        lambda c: (c / WAV).unlink(),
        ["spk0007-10_aa_0\t{c}/" + WAV + "\tmissing audio file. Check the path."],
    ),
    (
        "truncated audio",
        lambda c: truncate(c / WAV),
        ["spk0007-10_aa_0\t{c}/" + WAV + "\ttruncated audio: 7978 of 16000 bytes of samples. Copy the file again."],
    ),
    (
        "empty file",
        lambda c: (c / WAV).write_bytes(b""),
        ["spk0007-10_aa_0\t{c}/" + WAV + "\tempty audio file (0 bytes). Copy the file again."],
    ),
    (
        "zero length",
        lambda c: write_wave(c / WAV, np.zeros(0)),
        ["spk0007-10_aa_0\t{c}/" + WAV + "\tzero-length audio. Record it again."],
    ),
    (
        "NaN",
        lambda c: write_wave(c / WAV, np.full(16000, np.nan, np.float32), subtype="FLOAT"),
        ["spk0007-10_aa_0\t{c}/" + WAV + "\tNaN or infinite samples. Write the file again."],
    ),
    (
        "silence",
        lambda c: write_wave(c / WAV, np.zeros(16000)),
        ["spk0007-10_aa_0\t{c}/" + WAV + "\tsilence: every sample is zero. Record it again."],
    ),
    (
        "too short",
        lambda c: write_wave(c / WAV, np.sin(np.arange(1600))),
        ["spk0007-10_aa_0\t{c}/" + WAV + "\ttoo short: 0.10 s"],
    ),
    (
        "too long",
        lambda c: write_wave(c / WAV, np.sin(np.arange(16000 * 61))),
        ["spk0007-10_aa_0\t{c}/" + WAV + "\ttoo long: 61.00 s"],
    ),
    (
        "captions of a missing image",
        lambda c: rewrite(c / TOKEN, "10_aa.jpg#0", "2258277193_586949ec62.jpg.1#0"),
        [
            "10_aa_0\t{c}/" + WAV + "\tno caption in Flickr8k.token.txt",
            "2258277193_586949ec62.jpg.1#0\t{c}/Flicker8k_Dataset/2258277193_586949ec62.jpg.1\tmissing image file",
        ],
    ),
    (
        "missing image",
        lambda c: (c / IMAGE).unlink(),
        [f"11_bb.jpg#{number}\t{{c}}/{IMAGE}\tmissing image file" for number in range(2)],
    ),
    (
        "corrupt image",
        lambda c: (c / IMAGE).write_text("<html>"),
        [
            f"spk{speaker}-11_bb_{number}\t{{c}}/{IMAGE}\tnot an image. Save it as JPEG or PNG."
            for number, speaker in ((0, "0007"), (1, "0012"))
        ],
    ),
    (
        "no recording",
        lambda c: rewrite(c / W2C, "10_aa_0.wav 10_aa.jpg #0\n", ""),
        [
            "10_aa.jpg#0\t{c}/" + TOKEN + "\tno recording in wav2capt.txt",
            "10_aa_0\t{c}/" + WAV + "\tnot in wav2capt.txt",
        ],
    ),
    (
        "no speaker",
        lambda c: rewrite(c / W2S, "10_aa_0.wav 7\n", ""),
        ["10_aa_0\t{c}/" + WAV + "\tno speaker in wav2spk.txt"],
    ),
    (
        "empty caption",
        lambda c: rewrite(c / TOKEN, caption("10_aa", 0), ""),
        ["10_aa_0\t{c}/" + TOKEN + "\tempty caption"],
    ),
    (
        "caption of one full stop",
        lambda c: rewrite(c / TOKEN, caption("10_aa", 0), " . "),
        ["10_aa_0\t{c}/" + TOKEN + "\tempty caption"],
    ),
    (
        "split image without caption",
        lambda c: rewrite(c / "Flickr8k_text/Flickr_8k.trainImages.txt", "10_aa", "99_zz.jpg\n10_aa"),
        ["99_zz\t{c}/Flickr8k_text/Flickr_8k.trainImages.txt\timage without caption"],
    ),
    (
        "recording listed twice",
        lambda c: rewrite(
            c / W2C, "10_aa_0.wav 10_aa.jpg #0\n", "10_aa_0.wav 10_aa.jpg #0\n10_aa_0.wav 11_bb.jpg #0\n"
        ),
        ["10_aa_0\t{c}/" + W2C + "\tlisted twice (line 2)"],
    ),
]


@pytest.mark.parametrize(("damage", "rows"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_prepare_flickr8k_skips_and_lists_bad_files(
    corpus: Path, damage: Callable[[Path], object], rows: list[str]
) -> None:
    damage(corpus)
    expected = [row.replace("{c}", str(corpus)) for row in rows]
    with pytest.raises(UserError) as caught:
        prepare_flickr8k(corpus, "data")
    _, file, reason = expected[0].split("\t")
    message = str(caught.value)
    assert message.startswith(f"corpus: {len(rows)} of ")
    assert message.endswith(f" utterances cannot be used, more than max_bad 0.01 allows; the first: {file}: {reason}")
    assert not Path("data").exists()

    summary = prepare_flickr8k(corpus, "data", Limits(max_bad=0.5))
    assert Path("data/skipped.tsv").read_text().splitlines()[1:] == expected
    assert sum(summary.skipped.values()) == len(rows)
    assert sum(size.utterances for size in summary.splits.values()) in (10, 9, 8)
    for split in SPLIT:
        assert find_problems(Path("data", split)) == []


def test_prepare_flickr8k_runs_in_several_processes(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("speechclip.data.corpora.file_checks._CHUNK", 1)
    pixels = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(corpus / IMAGE)
    truncate(corpus / IMAGE)
    truncate(corpus / WAV)
    summary = prepare_flickr8k(corpus, "data", Limits(max_bad=0.5, nj=2))
    assert summary.skipped == {"truncated or corrupt image": 2, "truncated audio": 1}
    one = Path("data/train/wav.scp").read_text()
    assert prepare_flickr8k(corpus, "again", Limits(max_bad=0.5, nj=1)) == summary
    assert Path("again/train/wav.scp").read_text() == one


def test_prepare_flickr8k_can_skip_the_check_of_samples(corpus: Path) -> None:
    write_wave(corpus / WAV, np.full(16000, np.nan, np.float32), subtype="FLOAT")
    assert prepare_flickr8k(corpus, "data", Limits(check_samples=False)).skipped == {}
    with pytest.raises(UserError, match="NaN or infinite samples"):
        prepare_flickr8k(corpus, "data")


def test_prepare_flickr8k_replaces_an_earlier_result(corpus: Path) -> None:
    prepare_flickr8k(corpus, "data")
    Path("data/clip_vocabulary.tsv").write_text("mine")
    (corpus / WAV).unlink()
    prepare_flickr8k(corpus, "data", Limits(max_bad=0.2))
    assert len(DataDir.load("data/train").utterances) == 5
    assert Path("data/clip_vocabulary.tsv").read_text() == "mine"


@pytest.mark.parametrize(
    ("damage", "fragment"),
    [
        (
            lambda c: (c / TOKEN).unlink(),
            "corpus: no captions: neither Flickr8k_text/Flickr8k.token.txt nor captions.txt",
        ),
        (
            lambda c: (c / "Flickr8k_text/Flickr_8k.devImages.txt").unlink(),
            "corpus: Flickr8k_text/Flickr_8k.devImages.txt is missing",
        ),
        (lambda c: (c / W2C).unlink(), "corpus: flickr_audio/wav2capt.txt is missing"),
        (lambda c: (c / "flickr_audio/wavs").rename(c / "wave"), "corpus: flickr_audio/wavs is missing"),
        (
            lambda c: (c / "Flicker8k_Dataset").rename(c / "pictures"),
            "corpus: no photographs: none of Flicker8k_Dataset/",
        ),
        (lambda c: rewrite(c / TOKEN, "#0\t", "\t"), f"corpus/{TOKEN}:1: not <image>#<number><tab><caption>"),
        (lambda c: rewrite(c / W2C, "#0", "0"), f"corpus/{W2C}:1: not <recording> <image> #<number>"),
        (lambda c: rewrite(c / W2S, " 7", " seven"), f"corpus/{W2S}:1: not <recording> <speaker number>"),
        (lambda c: rewrite(c / W2S, " 7", " " + "7" * 5000), f"corpus/{W2S}:1: not <recording> <speaker number>"),
        (lambda c: rewrite(c / W2S, "10_aa_1.wav", "10_aa_0.wav"), f"corpus/{W2S}:2: 10_aa_0.wav has two speakers"),
        (lambda c: rewrite(c / TOKEN, "aa.jpg#1", "aa.jpg#0"), f"corpus/{TOKEN}:2: another caption 10_aa.jpg#0"),
        (
            lambda c: (c / TOKEN).write_bytes((c / TOKEN).read_bytes().replace(b"dog", b"chi\xe9n", 1)),
            f"corpus/{TOKEN}:1: not UTF-8 (byte 0xe9)",
        ),
        (
            lambda c: rewrite(c / "Flickr8k_text/Flickr_8k.testImages.txt", "30_ee", "10_aa"),
            "corpus/Flickr8k_text/Flickr_8k.testImages.txt:1: 10_aa.jpg is in train as well",
        ),
        (
            lambda c: rewrite(c / "Flickr8k_text/Flickr_8k.devImages.txt", "20_dd.jpg\n", ""),
            "corpus: no usable utterance for dev",
        ),
    ],
)
def test_prepare_flickr8k_reports_a_bad_corpus(corpus: Path, damage: Callable[[Path], object], fragment: str) -> None:
    damage(corpus)
    with pytest.raises(UserError) as caught:
        prepare_flickr8k(corpus, "data")
    assert str(caught.value).startswith(fragment)
    assert sorted(path.name for path in Path().iterdir()) == ["corpus"]


def test_limits_are_checked(corpus: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such corpus folder"):
        prepare_flickr8k("nowhere", "data")
    for options, fragment in [
        ({"max_bad": 2.0}, "max_bad 2: not a fraction"),
        ({"min_seconds": 9.0, "max_seconds": 3.0}, "no length fits"),
        ({"nj": 0}, "at least one process"),
    ]:
        with pytest.raises(UserError, match=fragment):
            Limits(**options)  # type: ignore[arg-type]


def test_script_prints_the_summary(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--name", "flickr8k", "--corpus", "corpus", "--out", "data", "--nj", "1"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["split", "images", "utterances", "hours", "speakers"]
    assert lines[1] == ["train", "3", "6", "0.00", "2"]
    assert lines[-1] == ["skipped", "0"]
    (corpus / WAV).unlink()
    with pytest.raises(SystemExit) as caught:
        main(["--name", "flickr8k", "--corpus", "corpus", "--out", "other"])
    assert caught.value.code == 1
    message = capsys.readouterr().err
    assert message.startswith("error: corpus: 1 of 10 utterances cannot be used")
    assert message.count("\n") == 1
    main(["--name", "flickr8k", "--corpus", "corpus", "--out", "other", "--max_bad", "0.2"])
    assert capsys.readouterr().out.splitlines()[-1].split() == ["1", "missing", "audio", "file"]


@pytest.mark.parametrize(
    "options", [["--corpu", "x"], ["--name", "flickr8k", "--corpus", "corpus", "--njobs", "3"], ["--nj", "many"], []]
)
def test_script_refuses_bad_options(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(options)
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1


def test_script_help_is_fast() -> None:
    command = [sys.executable, "-m", "speechclip.bin.prepare_corpus", "--help"]
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, env={"PYTHONPATH": ":".join(sys.path)})
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.5


EXTRAS = {
    "flickr_audio/flickr_8k.ctm": "10_aa.jpg_#0 1 0.10 0.20 A\n10_aa.jpg_#0 1 0.30 0.10 DOG\n30_ee.jpg#1 1 0 0.2 SIL\n"
    "99_zz.jpg_#0 1 0 0.2 CAT\n30_ee.jpg#1 1 0.2 0.2 RUNS\n",
    "semantic_flickraudio/data/semantic_flickraudio_labels.csv": '30_ee_0,"a dog , runs","dogs|running"\n'
    '30_ee_1,"x",""\n',
    "rosetta/flickr_labels/align_10_aa_0.txt": "SIL 0.0 0.1\nDH 0.1 0.15\n+NOISE+ 0.15 0.2\nAH 0.2 0.3\n",
}


def write_extras(corpus: Path, **changes: str) -> None:
    for name, content in {**EXTRAS, **changes}.items():
        (corpus / name).parent.mkdir(parents=True, exist_ok=True)
        (corpus / name).write_text(content)


@pytest.mark.parametrize("form", ["folder", "file"])
def test_prepare_flickr8k_reads_labels_of_others(corpus: Path, form: str) -> None:
    write_extras(corpus)
    if form == "file":
        folder = corpus / "rosetta/flickr_labels"
        content = (folder / "align_10_aa_0.txt").read_text()
        (corpus / "flickr_labels.txt").write_text(f"align_10_aa_0.txt\n{content}")
        (folder / "align_10_aa_0.txt").unlink()
        folder.rmdir()
    prepare_flickr8k(corpus, "data")
    train = DataDir.load("data/train").utterances[0]
    words = read_ctm("data/train/ctm")
    assert list(words) == [train.id]
    assert [(word.text, word.start, round(word.end, 3)) for word in words[train.id]] == [
        ("a", 0.1, 0.3),
        ("dog", 0.3, 0.4),
    ]
    assert [item.text for item in read_ctm("data/train/phones.ctm")[train.id]] == ["DH", "AH"]
    first, second = DataDir.load("data/test").utterances
    assert [item.text for item in read_ctm("data/test/ctm")[second.id]] == ["runs"]
    assert Path("data/test/utt2keywords").read_text() == f"{first.id} dogs running\n{second.id}\n"
    assert not Path("data/train/utt2keywords").exists() and not Path("data/test/phones.ctm").exists()
    assert not Path("data/dev/ctm").exists()
    for name in EXTRAS:
        (corpus / name).unlink(missing_ok=True)
    (corpus / "flickr_labels.txt").unlink(missing_ok=True)
    prepare_flickr8k(corpus, "data")  # old labels do not stay next to new utterances
    assert not Path("data/train/utt2keywords").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("flickr_audio/flickr_8k.ctm", "10_aa 1 0 1 A\n", "flickr_8k.ctm:1: not <image>.jpg_#<number> <channel>"),
        ("flickr_audio/flickr_8k.ctm", "10_aa.jpg#0 1 0 nan A\n", "flickr_8k.ctm:1: not <image>.jpg_#<number> <chan"),
        ("flickr_audio/flickr_8k.ctm", "10_aa.jpg#0 1 0 1\n", "flickr_8k.ctm:1: not <image>.jpg_#<number> <channel>"),
        ("rosetta/flickr_labels/align_10_aa_0.txt", "DH 0.1\n", "align_10_aa_0.txt:1: not <phoneme> <start> <end>"),
        ("rosetta/flickr_labels/align_10_aa_0.txt", "DH 0.2 0.1\n", "align_10_aa_0.txt:1: not <phoneme> <start> <end>"),
        ("semantic_flickraudio/data/semantic_flickraudio_labels.csv", "30_ee_0,a\n", "labels.csv:1: not <recording>,"),
        ("semantic_flickraudio/data/semantic_flickraudio_labels.csv", '30_ee_0,"a\n', "labels.csv:1: not a CSV row"),
        (
            "semantic_flickraudio/data/semantic_flickraudio_labels.csv",
            "a_0,x,y\na_0,x,y\n",
            "csv:2: another row of a_0",
        ),
    ],
)
def test_prepare_flickr8k_reports_bad_labels(corpus: Path, name: str, content: str, message: str) -> None:
    write_extras(corpus, **{name: content})
    with pytest.raises(UserError) as caught:
        prepare_flickr8k(corpus, "data")
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not Path("data").exists()
