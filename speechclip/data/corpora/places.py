"""Places Audio Captions: photographs of Places205 with spoken descriptions in English, Hindi and Japanese.

English: Harwath, Torralba and Glass 2016; Harwath et al. 2018. Hindi: Harwath, Chuang and Glass 2018. Japanese: Ohishi
et al. 2020. The parts are in one folder, each at most two folders deeper. The names are those of the publisher's
archives and of public code that reads them (dharwath/DAVEnet-pytorch, FaST-VGS, M-SpeechCLIP, ESPnet)::

    metadata/{train,dev_seen,dev_unseen,test_seen,test_unseen}_2020.json    lists of 2020
    metadata/{train,val}.json                                               the older lists
    wavs/...                                                                recordings
    images/ | images256/ | imagesPlaces205_resize/                          photographs
    PlacesHindi100k_{train,dev,test}.json | hindi_english_100k_*.json       Hindi (optional)
    PlacesAudioJpn_100k_image2audio_{train,val,test}.txt                    Japanese (optional)

A JSON list has ``{"audio_base_path", "image_base_path", "data": [{"uttid", "speaker", "asr_text", "wav", "image"}]}``.
Its base paths are used if they exist on this machine. The captions of all languages are automatic transcripts, if any.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from speechclip.common.errors import UserError
from speechclip.common.files import read_json
from speechclip.data.corpora.download import RemoteFile
from speechclip.data.corpora.preparation import (
    Candidate,
    Limits,
    Skipped,
    Summary,
    caption_problem,
    id_problem,
    make_image_ids,
    without_repeats,
    write_corpus,
)
from speechclip.data.kaldi import StrPath, Utterance

LIMITS = Limits(check_samples=False)  # only the headers of the 400,000 recordings are read
LICENCE = "Places Audio Captions (Harwath et al. 2018) and Places205 (Zhou et al. 2014): under the terms on their pages"
PAGE = "https://groups.csail.mit.edu/sls/downloads/placesaudio/"
#: Splits next to train, dev and test: rooms of the unseen categories, and images with speech in several languages.
EXTRA_SPLITS = ("dev_unseen", "test_unseen", "dev_multilingual", "test_multilingual")
NO_TRANSCRIPT = "<unk>"  # text of an utterance without transcript

_CSAIL = "https://data.csail.mit.edu/placesaudio"
#: The address and the size are those of the READMEs of FaST-VGS and VG-HuBERT (jasonppy); the unpacked size is assumed
#: to be the same, as recordings hardly shrink. No checksum and no second host are known. Places205 has to be
#: requested from places.csail.mit.edu. Hindi is ``PlacesHindi100k.tar.gz`` of the same host, in an ESPnet recipe.
SOURCES = (
    RemoteFile(
        "placesaudio_2020_splits.tar.gz", (f"{_CSAIL}/placesaudio_2020_splits.tar.gz",), 85_000_000_000,
        ("placesaudio_2020_splits",), unpacked=85_000_000_000, into="placesaudio_2020_splits",
        about="English recordings and lists, groups.csail.mit.edu/sls/downloads/placesaudio; the photographs of "
        "Places205, places.csail.mit.edu/downloadData.html, belong into images/",
    ),
)  # fmt: skip

_NEW = {
    "train": "train", "dev": "dev_seen", "dev_unseen": "dev_unseen", "test": "test_seen", "test_unseen": "test_unseen"
}  # fmt: skip
_OLD = {"train": "train.json", "test": "val.json"}  # the older lists have no third set
_HELD_OUT = 1000  # images at the end of the older train.json, for dev
_PROBED = 20  # entries of a list that are tried to find a folder
_IMAGE_FOLDERS = ("images", "images256", "imagesPlaces205_resize")
_NESTED = "data/vision/torralba/deeplearning/images256"  # inside of Places205's archive
_WAV_KEYS = {"en": ("wav",), "hi": ("hindi_wav", "wav"), "ja": ("japanese_wav", "wav")}
_WAV_FOLDERS = {"en": ("",), "hi": ("", "hindi_wavs"), "ja": ("",)}
_MULTILINGUAL = ("dev_multilingual", "test_multilingual")
_SPLIT_WORDS = {"train": "train", "dev": _MULTILINGUAL[0], "val": _MULTILINGUAL[0], "test": _MULTILINGUAL[1]}
_FOREIGN = {
    "hi": re.compile(r"(PlacesHindi(?:100k)?|hindi_english_100k)_(train|dev|val|test)\.json"),
    "ja": re.compile(r"(PlacesJpn|PlacesAudioJpn_100k_image2audio)_(train|dev|val|test)\.(json|txt)"),
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _List:
    """A list of utterances: its language, split, entries, and the folders of its recordings and photographs."""

    file: Path
    language: str
    split: str
    entries: list[Any]
    audio: Path
    images: Path


def prepare_places(corpus_dir: StrPath, data_dir: StrPath, limits: Limits = LIMITS) -> Summary:
    """Write ``data_dir/{train,dev,test}``, the directories of ``EXTRA_SPLITS``, ``captions.tsv`` and ``skipped.tsv``.

    ``dev`` and ``test`` are the seen sets of 2020, ``dev_unseen`` and ``test_unseen`` the unseen ones. With the older
    lists ``test`` is val.json, and ``dev`` is the last 1,000 images of train.json.

    ``dev_multilingual`` and ``test_multilingual`` have the evaluation lists of Hindi and Japanese and the English
    captions of the same images. ``train`` has the training lists of all languages without the images of any evaluation
    set.

    Utterance ids are ``<speaker>-<uttid>``. An utterance without a published speaker is its own speaker. ``text`` is
    the transcript, or ``<unk>`` if none is published. Then CLIP reads the English caption of the same image.

    Args:
        corpus_dir: the folder with the parts.
        data_dir: folder of the data directories. All files are written, or none.
        limits: the limits.

    Raises:
        UserError: a part is missing or has another format, or too much would be skipped.
    """
    corpus = Path(corpus_dir)
    lists = [_read(corpus, *found) for found in find_parts(corpus)]
    if not any(item.split == "dev" for item in lists):
        lists = _hold_out(lists)
    splits = _splits_of_images(lists)
    image_ids = make_image_ids(splits)
    english = {
        _image(entry): entry["asr_text"]
        for item in lists if item.language == "en"
        for entry in item.entries if caption_problem(entry.get("asr_text")) is None
    }  # fmt: skip
    items, left_out = _items(lists, splits, image_ids, english)
    if left_out:
        logger.info("%d training utterances left out: their images are in an evaluation set", left_out)
    captions = [(item.split, item.utterance.clip_text) for item in items if isinstance(item, Candidate)]
    return write_corpus(
        corpus, Path(data_dir), without_repeats(items, "listed twice"), limits=limits, extra_splits=EXTRA_SPLITS,
        captions=[item for item in captions if item[1] != NO_TRANSCRIPT],
    )  # fmt: skip


def find_parts(corpus: Path) -> list[tuple[Path, str, str]]:
    """Find the lists of a corpus.

    Returns:
        File, language and split of each list. The lists of 2020 are preferred to the older ones.

    Raises:
        UserError: a list is missing, or the recordings or photographs of the smallest list.
    """
    if not corpus.is_dir():
        raise UserError(f"{corpus}: no such corpus folder. Check the path.")
    folders = [place for root in _roots(corpus) for place in (root / "metadata", root)]
    new = {split: _find(folders, f"{name}_2020.json") for split, name in _NEW.items()}
    old = {split: _find(folders, name) for split, name in _OLD.items()}
    lists = new if any(new.values()) else old
    if not any(lists.values()):
        raise UserError(
            f"{corpus}: no lists: neither metadata/train_2020.json and its four others nor train.json. Add it."
        )
    for split, name in ({key: f"{name}_2020.json" for key, name in _NEW.items()} if lists is new else _OLD).items():
        if lists[split] is None:
            raise UserError(f"{corpus}: metadata/{name} is missing. Add it.")
    found = [(file, "en", split) for split, file in lists.items() if file is not None]
    for folder in dict.fromkeys(folders):
        for name in sorted(os.listdir(folder)) if folder.is_dir() else []:
            for language, pattern in _FOREIGN.items():
                if match := pattern.fullmatch(name):
                    found.append((folder / name, language, _SPLIT_WORDS[match.group(2)]))
    _read(corpus, *next(item for item in found if item[2] == "test"))
    return found


def _roots(corpus: Path) -> list[Path]:
    """Return the corpus folder, its folders and their folders, without those of many recordings and photographs."""
    first = sorted(item for item in corpus.iterdir() if item.is_dir())
    large = {"wavs", "hindi_wavs", *_IMAGE_FOLDERS}
    return [corpus, *first, *(item for folder in first if folder.name not in large
                              for item in sorted(folder.iterdir()) if item.is_dir())]  # fmt: skip


def _find(folders: Iterable[Path], name: str) -> Path | None:
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def _read(corpus: Path, file: Path, language: str, split: str) -> _List:
    """Read a list and find the folders that its paths are relative to."""
    content: Mapping[str, Any] = {"data": list(_text_entries(file))} if file.suffix == ".txt" else read_json(file)
    entries = content.get("data")
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{file}: no list under 'data'. Use the original file.")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("image"), str) or not _image(entry):
            raise UserError(f"{file}: entry {number}: needs 'image'. Use the original file.")
    roots = [file.parent, file.parent.parent, *_roots(corpus)]
    audio = [root / name for root in roots for name in _WAV_FOLDERS[language]]
    pictures = [root / name / nested for root in roots for name in (*_IMAGE_FOLDERS, "") for nested in ("", _NESTED)]
    for key, places in (("audio_base_path", audio), ("image_base_path", pictures)):
        if isinstance(content.get(key), str) and content[key]:
            places.insert(0, Path(content[key]))
    waves = (_wav(entry, language) for entry in entries[:_PROBED])
    return _List(
        file, language, split, entries,
        _folder_of(corpus, audio, [wav for wav in waves if wav], f"recordings of {file.name}: no wavs/"),
        _folder_of(corpus, pictures, [_image(entry) for entry in entries[:_PROBED]],
                   f"photographs of {file.name}: no images/ of Places205"),
    )  # fmt: skip


def _text_entries(file: Path) -> Iterator[dict[str, str]]:
    """Yield the entries of a Japanese list. Its lines are ``<image> <recording>``."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8. Save it as UTF-8.") from error
    for number, line in enumerate(lines, 1):
        fields = line.split()
        if fields and len(fields) != 2:
            raise UserError(f"{file}:{number}: not <image> <recording>. Correct the line.")
        if fields:
            yield {"image": fields[0], "wav": fields[1].lstrip("/")}


def _folder_of(corpus: Path, places: Iterable[Path], names: list[str], problem: str) -> Path:
    """Return the first folder that has one of the files."""
    for place in dict.fromkeys(places):
        if any(_exists(place / name) for name in names):
            return place
    raise UserError(f"{corpus}: no {problem}. Add it.")


def _exists(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _image(entry: Mapping[str, Any]) -> str:
    """Return the path of the photograph; some lists begin it with "/"."""
    return str(entry["image"]).strip().lstrip("/")


def _wav(entry: Mapping[str, Any], language: str) -> str:
    """Return the path of the recording, or ""."""
    value = next((entry[key] for key in _WAV_KEYS[language] if key in entry), None)
    return value.strip().lstrip("/") if isinstance(value, str) else ""


def _hold_out(lists: list[_List]) -> list[_List]:
    """Move the last images of the older train.json to dev."""
    changed = []
    for item in lists:
        if item.language != "en" or item.split != "train":
            changed.append(item)
            continue
        images = list(dict.fromkeys(_image(entry) for entry in item.entries))
        dev = set(images[-min(_HELD_OUT, len(images) // 2) :])
        for split, inside in (("train", False), ("dev", True)):
            entries = [entry for entry in item.entries if (_image(entry) in dev) is inside]
            changed.append(_List(item.file, "en", split, entries, item.audio, item.images))
    return changed


def _splits_of_images(lists: list[_List]) -> dict[str, set[str]]:
    """Return the splits whose lists have an image, by image."""
    splits: dict[str, set[str]] = {}
    for item in lists:
        for entry in item.entries:
            splits.setdefault(_image(entry), set()).add(item.split)
    return splits


def _items(
    lists: list[_List], splits: Mapping[str, set[str]], image_ids: Mapping[str, str], english: Mapping[str, str]
) -> tuple[list[Candidate | Skipped], int]:
    """Return the utterances of all lists and the number of training utterances that are left out."""
    items: list[Candidate | Skipped] = []
    left_out = 0
    for item in lists:
        for entry in item.entries:
            image = _image(entry)
            found, wanted = splits[image], [item.split]
            if item.language == "en":  # the English side of the multilingual sets
                wanted += [split for split in found if split in _MULTILINGUAL]
            if item.split == "train" and len(found) > 1:
                wanted.remove("train")
                left_out += not wanted
            for split in wanted:
                # an id names one utterance: a copy for a multilingual set has another one
                prefix = "multi_" if split != wanted[0] else ""
                items.append(_candidate(item, entry, image_ids[image], split, english.get(image), prefix))
    return items, left_out


def _candidate(
    item: _List, entry: Mapping[str, Any], image_id: str, split: str, english: str | None, prefix: str
) -> Candidate | Skipped:
    """Return the utterance of an entry, or the reason why it cannot be used."""
    wav = _wav(entry, item.language)
    name = entry.get("uttid")
    if not wav:
        return Skipped(str(name or _image(entry)), str(item.file), "entry without wav")
    if not isinstance(name, str) or not name.strip():
        name = PurePosixPath(wav).stem
    name, speaker = name.strip(), entry.get("speaker")
    text = entry.get("asr_text")
    if text is None or text == "":
        text, clip = NO_TRANSCRIPT, english or NO_TRANSCRIPT
        if item.language == "en":
            return Skipped(name, str(item.file), "empty caption")
    elif problem := caption_problem(text):
        return Skipped(name, str(item.file), problem)
    else:
        clip = text
    speaker = speaker.strip() if isinstance(speaker, str) else ""
    language = "" if item.language == "en" else f"{item.language}_"
    key = f"{language}{prefix}{name.removeprefix(f'{speaker}-')}"
    speaker, key = (speaker, f"{speaker}-{key}") if speaker else (key, key)
    if problem := id_problem(key, speaker, image_id):
        return Skipped(key, str(item.file), problem)
    path = item.images / _image(entry)
    if not _exists(path):
        return Skipped(key, str(path), "missing photograph")
    text, clip = " ".join(text.split()), " ".join(clip.split())
    return Candidate(Utterance(key, item.audio / wav, text, speaker, image_id, clip, item.language), path, split)
