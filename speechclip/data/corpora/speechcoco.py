"""SPEECH-COCO: the 616,767 captions of COCO 2014, spoken by eight synthetic voices, with times of words and phonemes.

Havard, Besacier and Rosec 2017, github.com/William-N-Havard/SpeechCoco. The parts are in one folder::

    [CORPUS-MSCOCO/]{train,val}2014/wav/                            recordings
    [CORPUS-MSCOCO/]{train,val}2014/json/                           one JSON file for each recording, or
    [CORPUS-MSCOCO/]{train,val}2014/{train,val}_2014.sqlite3        the same content in one database, read first
    train2014/ val2014/ | mscoco_img/ | images/                     photographs of COCO 2014
    dataset_coco.json                                               Karpathy's split (optional)

A JSON file has ``{"duration", "speaker", "synthesisedCaption", "timecode", "speed", "wavFilename", "captionID",
"imgID", "disfluency"}``. ``timecode`` is a list of ``[milliseconds, kind, value]`` with the kinds WORD, SYL, PHO, SIL
and SEPR. Some copies have the folders of recordings one level deeper (``val2014/val2014/wav``).
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speechclip.common.errors import UserError
from speechclip.common.files import read_json
from speechclip.data.alignments import AlignedWord, LabelSpool, timed_words
from speechclip.data.corpora.download import RemoteFile
from speechclip.data.corpora.preparation import (
    Candidate,
    Limits,
    Skipped,
    Summary,
    caption_problem,
    id_problem,
    without_repeats,
    write_corpus,
)
from speechclip.data.corpora.spokencoco import MTEB_TASKS as COCO_TASKS
from speechclip.data.corpora.spokencoco import SOURCES as SPOKENCOCO
from speechclip.data.kaldi import StrPath, Utterance

LIMITS = Limits(check_samples=False)  # only the headers of the 616,767 recordings are read
LICENCE = (
    "SPEECH-COCO (Havard et al. 2017): CC BY 4.0; COCO 2014 (Lin et al. 2014): annotations CC BY 4.0, photographs "
    "under their Flickr licences"
)
PAGE = "https://zenodo.org/record/4282267"
MTEB_TASKS = COCO_TASKS  # the same photographs, in other splits
VOICES = ("Amanda", "Bronwen", "Bruce", "Elizabeth", "Jenny", "Judith", "Paul", "Phil")

#: COCO's photographs are those of SpokenCOCO. The publisher's README has the size of the corpus, the abstract of the
#: paper (arXiv 1707.08435) the Zenodo record. No source was found for the names of the files there, so no address of a
#: file is stated. A mirror may have the folder in one archive.
SOURCES = (
    *(item for item in SPOKENCOCO if item.name in ("train2014.zip", "val2014.zip")),
    RemoteFile(
        "CORPUS-MSCOCO.tar.gz", (), 75_000_000_000, ("CORPUS-MSCOCO",), unpacked=75_000_000_000, into="",
        about="SPEECH-COCO, Havard et al. 2017, at zenodo.org/record/4282267",
    ),
)  # fmt: skip

_SETS = ("train2014", "val2014")
_COLUMNS = ("captionID", "imageID", "wavFilename", "timecode", "text", "speaker")
_IMAGE_FOLDERS = ("", "mscoco_img", "images")


@dataclass(frozen=True)
class _Set:
    """The files of one of the two sets: its name, recordings, and JSON files or database."""

    name: str
    wavs: Path
    jsons: Path | None
    database: Path | None


@dataclass
class Timecode:
    """The times of one caption.

    Attributes:
        words: without silence.
        syllables: named by their phonemes.
        phonemes: without silence.
    """

    words: list[AlignedWord] = field(default_factory=list)
    syllables: list[AlignedWord] = field(default_factory=list)
    phonemes: list[AlignedWord] = field(default_factory=list)


def prepare_speechcoco(corpus_dir: StrPath, data_dir: StrPath, limits: Limits = LIMITS) -> Summary:
    """Write ``data_dir/{train,dev,test}`` and ``skipped.tsv``.

    Each directory has the times of words in ``ctm``, of syllables in ``syllables.ctm`` and of phonemes in
    ``phones.ctm``. With Karpathy's ``dataset_coco.json``, the splits are his, and restval belongs to train. Without it,
    train2014 is ``train``, and the images of val2014 with an even number are ``test``, the others ``dev``.

    Utterance ids are ``<voice>-<image number>_<caption number>``. The caption is the spoken one, with its disfluencies.

    Args:
        corpus_dir: the folder with the parts.
        data_dir: folder of the data directories. All files are written, or none.
        limits: the limits.

    Raises:
        UserError: a part is missing or has another format, or too much would be skipped.
    """
    corpus = Path(corpus_dir)
    sets, images = find_parts(corpus)
    splits = _karpathy(corpus / "dataset_coco.json")
    captions: list[tuple[str, str]] = []
    labelled: set[str] = set()  # a repeated utterance adds no labels
    with LabelSpool() as words, LabelSpool() as syllables, LabelSpool() as phonemes:

        def items() -> Iterator[Candidate | Skipped]:
            for part in sets:
                for source, entry in _entries(part):
                    item = _candidate(part, source, entry, images, splits)
                    if isinstance(item, Candidate):
                        if item.utterance.id not in labelled:
                            times = parse_timecode(entry["timecode"])
                            words.add(item.utterance.id, times.words)
                            syllables.add(item.utterance.id, times.syllables)
                            phonemes.add(item.utterance.id, times.phonemes)
                            labelled.add(item.utterance.id)
                        captions.append((item.split, item.utterance.clip_text))
                    yield item

        unique = without_repeats(items(), "listed twice")
        labels = {"ctm": words, "syllables.ctm": syllables, "phones.ctm": phonemes}
        return write_corpus(corpus, Path(data_dir), unique, limits=limits, captions=captions, labels=labels)


def find_parts(corpus: Path) -> tuple[list[_Set], Path]:
    """Find the parts of a corpus.

    Returns:
        The two sets, and the folder that holds the photographs' train2014/ and val2014/.

    Raises:
        UserError: a part is missing.
    """
    if not corpus.is_dir():
        raise UserError(f"{corpus}: no such corpus folder. Check the path.")
    sets = [_find_set(corpus, name) for name in _SETS]
    for folder in _IMAGE_FOLDERS:
        place = corpus / folder / "val2014"
        if place.is_dir() and any(name.endswith(".jpg") for name in os.listdir(place)):
            return sets, corpus / folder
    raise UserError(f"{corpus}: no photographs: no val2014/*.jpg in it or in mscoco_img/, images/. Add it.")


def _find_set(corpus: Path, name: str) -> _Set:
    """Return the files of a set."""
    for root in (corpus, corpus / "CORPUS-MSCOCO", corpus / "SPEECH-COCO", corpus / "speechcoco"):
        for folder in (root / name, root / name / name):
            if not (folder / "wav").is_dir():
                continue
            databases = [folder / f"{name.removesuffix('2014')}_2014.sqlite3", folder.parent / f"{name}.sqlite3"]
            database = next((file for file in databases if file.is_file()), None)
            jsons = folder / "json" if (folder / "json").is_dir() else None
            if database is None and jsons is None:
                raise UserError(f"{folder}: neither {databases[0].name} nor json/. Add it.")
            return _Set(name, folder / "wav", jsons, database)
    raise UserError(f"{corpus}: no recordings: no {name}/wav/ or CORPUS-MSCOCO/{name}/wav/. Add it.")


def _entries(part: _Set) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place and the content of every caption, with the names of the database."""
    if part.database is not None:
        yield from _database_entries(part.database)
        return
    assert part.jsons is not None
    for name in sorted(name for name in os.listdir(part.jsons) if name.endswith(".json")):
        file = part.jsons / name
        try:
            content: dict[str, Any] = read_json(file)
        except UserError as error:
            yield str(file), {"problem": str(error).removeprefix(f"{file}: ")}
            continue
        yield str(file), {
            "captionID": content.get("captionID"), "imageID": content.get("imgID"),
            "wavFilename": content.get("wavFilename"), "timecode": content.get("timecode"),
            "text": content.get("synthesisedCaption"), "speaker": content.get("speaker"),
        }  # fmt: skip


def _database_entries(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of a database. UserError if it is not one."""
    try:
        with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as database:
            for row in database.execute(f"SELECT {', '.join(_COLUMNS)} FROM captions ORDER BY captionID"):
                entry = dict(zip(_COLUMNS, row, strict=True))
                try:
                    entry["timecode"] = json.loads(entry["timecode"])
                except (TypeError, ValueError):
                    entry["timecode"] = None
                yield str(file), entry
    except sqlite3.Error as error:
        raise UserError(f"{file}: not SPEECH-COCO's database ({error}). Copy the file again.") from error


def _karpathy(file: Path) -> dict[int, str] | None:
    """Return the split of each image number of ``dataset_coco.json``, None if the file is missing."""
    if not file.exists():
        return None
    images = read_json(file).get("images")
    if not isinstance(images, list):
        raise UserError(f"{file}: not Karpathy's split: no list under 'images'. Use the original file.")
    names = {"train": "train", "restval": "train", "val": "dev", "test": "test"}
    splits = {}
    for number, item in enumerate(images):
        key, split = (item.get("cocoid"), item.get("split")) if isinstance(item, dict) else (None, None)
        if not isinstance(key, int) or split not in names:
            raise UserError(
                f"{file}: not Karpathy's split: image {number} needs 'cocoid' and 'split'. Use the original file."
            )
        splits[key] = names[split]
    return splits


def _candidate(
    part: _Set, source: str, entry: Mapping[str, Any], images: Path, splits: Mapping[int, str] | None
) -> Candidate | Skipped:
    """Return the utterance of a caption, or the reason why it cannot be used."""
    wav, voice = entry.get("wavFilename"), entry.get("speaker")
    if "problem" in entry:
        return Skipped(Path(source).stem, source, str(entry["problem"]))
    numbers = [entry.get(key) for key in ("imageID", "captionID")]
    if not all(isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**12 for value in numbers):
        return Skipped(str(wav or Path(source).stem), source, "caption without numbers of image and caption")
    image, caption = (int(str(value)) for value in numbers)
    key = f"{voice}-{image}_{caption}"
    if voice not in VOICES:
        return Skipped(key, source, f"unknown voice: {voice}")
    if not isinstance(wav, str) or not wav.strip() or "/" in wav:
        return Skipped(key, source, "caption without wavFilename")
    if problem := caption_problem(entry.get("text")) or timecode_problem(entry.get("timecode")):
        return Skipped(key, source, problem)
    if problem := id_problem(key):
        return Skipped(key, source, problem)
    split = _split_of(part.name, image, splits)
    if split is None:
        return Skipped(key, str(source), "image is not in dataset_coco.json")
    path = images / part.name / f"COCO_{part.name}_{image:012d}.jpg"
    if not path.exists():
        return Skipped(key, str(path), "missing photograph")
    text = " ".join(entry["text"].split())
    utterance = Utterance(key, part.wavs / wav.strip(), text, str(voice), path.stem)
    return Candidate(utterance, path, split)


def _split_of(part: str, image: int, splits: Mapping[int, str] | None) -> str | None:
    if splits is not None:
        return splits.get(image)
    return "train" if part == "train2014" else "dev" if image % 2 else "test"


def timecode_problem(timecode: Any) -> str | None:
    """Return the reason why a timecode cannot be used, or None."""
    if not isinstance(timecode, list) or not timecode:
        return "timecode is not a list"
    last = 0.0
    for item in timecode:
        if not isinstance(item, list) or len(item) != 3 or not all(isinstance(value, str) for value in item[1:]):
            return "timecode: not [milliseconds, kind, value]"
        if isinstance(item[0], bool) or not isinstance(item[0], int | float) or not last <= item[0] < 1e7:
            return "timecode: times are not in order"
        last = float(item[0])
    return None


def parse_timecode(timecode: list[Any]) -> Timecode:
    """Return the words, syllables and phonemes of a timecode, in seconds.

    An entry is the start of a unit. A phoneme ends at the next phoneme, syllable or silence, a syllable at the next
    syllable or silence. A word ends at the last syllable before the next word. The entry of a silence is its end: the
    last phoneme before it is the silence, unless a new syllable has begun.

    Args:
        timecode: valid according to :func:`timecode_problem`.
    """
    found = Timecode()
    word: tuple[str, float] | None = None  # value and start of the open unit
    syllable: tuple[str, float] | None = None
    phoneme: tuple[str, float] | None = None

    def close(units: list[AlignedWord], unit: tuple[str, float] | None, end: float) -> None:
        if unit is not None and unit[0].strip() and end > unit[1]:
            units.append(AlignedWord("".join(unit[0].split()), unit[1], end))

    def close_word(end: float) -> None:
        if word is not None and end > word[1]:
            found.words.extend(timed_words(word[0], word[1], end))

    for milliseconds, kind, value in timecode:
        time = milliseconds / 1000
        if kind == "SYL":
            close(found.phonemes, phoneme, time)
            close(found.syllables, syllable, time)
            syllable, phoneme = ("", time), None
        elif kind == "WORD":
            close_word(syllable[1] if syllable is not None else time)
            word = value, time
        elif kind == "PHO":
            close(found.phonemes, phoneme, time)
            phoneme = value, time
            if syllable is not None:
                syllable = syllable[0] + value, syllable[1]
        elif kind == "SIL":
            silent = phoneme[1] if phoneme is not None else time
            close_word(silent)
            if syllable is not None and phoneme is not None:
                syllable = syllable[0][: len(syllable[0]) - len(phoneme[0])], syllable[1]
            close(found.syllables, syllable, silent)
            word, syllable, phoneme = None, None, None
    end = timecode[-1][0] / 1000
    close(found.phonemes, phoneme, end)
    close_word(syllable[1] if syllable is not None and not syllable[0] else end)
    close(found.syllables, syllable, end)
    return found
