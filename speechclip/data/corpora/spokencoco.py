"""SpokenCOCO: 123,000 photographs of COCO 2014 with five captions each, read aloud by 2,353 people.

Photographs: Lin et al. 2014; recordings: Hsu et al. 2021; the split: Karpathy and Fei-Fei 2015 (113,287 images for
training, 5,000 for dev, 5,000 with 25,031 utterances for test). The parts lie under one folder as they are published::

    train2014/ val2014/                                  photographs, here or in mscoco_img/ or images/
    SpokenCOCO/wavs/                                     recordings
    annotations/captions_{train,val}2014.json            COCO's captions, for the vocabulary (optional)
    SpokenCOCO/SpokenCOCO_ksplit_{train,val,test}.json   splits, there or in SpokenCOCO/ksplit/

Each JSON file has ``{"data": [{"image", "captions": [{"text", "speaker", "uttid", "wav"}]}]}``, or the unrolled form
with one ``"caption"`` an entry (``..._unrolled_karpathy.json``). Forms with ids of their own (``reassign_id``) hold the
same images and captions, and the ids follow from the file names here as there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from speechclip.common.errors import UserError
from speechclip.data.corpora.preparation import NO_SPLIT, SPLITS, Candidate, Limits, Skipped, Summary, write_corpus
from speechclip.data.kaldi import StrPath, Utterance

LIMITS = Limits(check_samples=False)  # of 605,000 recordings only the headers are read
_PUBLISHED = {"train": "train", "dev": "val", "test": "test"}
_IMAGE_FOLDERS = ("", "mscoco_img", "images")


def prepare_spokencoco(corpus_dir: StrPath, data_dir: StrPath, limits: Limits = LIMITS) -> Summary:
    """Write ``data_dir/{train,dev,test}``, ``data_dir/captions.tsv`` and ``data_dir/skipped.tsv``.

    Utterance ids are ``<speaker>-<image number>_<caption number>`` with the numbers of COCO; where an ``uttid`` does
    not tell them, its own text. Image ids are the photographs' file names without suffix.

    Args:
        corpus_dir: the folder with the parts. data_dir: where to write; all or nothing.
        limits: what is tolerated.

    Raises:
        UserError: a part is not found or not in its format, or too much is bad. Nothing is written then.
    """
    corpus = Path(corpus_dir)
    audio, images, files = find_parts(corpus)
    candidates: list[Candidate] = []
    skipped: list[Skipped] = []
    split_of: dict[str, str] = {}
    captions: list[tuple[str, str]] = []
    for split, file in files.items():
        for image, caption in _entries(file):
            if split_of.setdefault(image, split) != split:
                raise UserError(f"{file}: {image} is in the split {split_of[image]} as well")
            item = _candidate(file, audio, images, image, caption, split)
            captions.append((split, str(caption.get("text", ""))))
            if isinstance(item, Candidate):
                candidates.append(item)
            else:
                skipped.append(item)
    if not candidates:
        raise UserError(f"{corpus}: no utterance in the split files")
    written = _written_captions(corpus, {Path(image).name: split for image, split in split_of.items()})
    candidates, repeated = _without_repeats(candidates)
    return write_corpus(
        corpus, Path(data_dir), candidates, [*skipped, *repeated], limits=limits, captions=written or captions
    )  # fmt: skip


def find_parts(corpus: Path) -> tuple[Path, Path, dict[str, Path]]:
    """The folders of wavs/ and of the photographs, and the file of each split. Raises UserError: one is not there."""
    if not corpus.is_dir():
        raise UserError(f"{corpus}: no such corpus folder")
    audio = corpus / "SpokenCOCO" if (corpus / "SpokenCOCO").is_dir() else corpus
    images = _image_root(corpus)
    if not (audio / "wavs").is_dir():
        raise UserError(f"{corpus}: no recordings: no SpokenCOCO/wavs/ or wavs/")
    return audio, images, {split: _split_file(audio, _PUBLISHED[split]) for split in SPLITS}


def _split_file(folder: Path, published: str) -> Path:
    """The JSON file of a split (train, val or test), the plainest form there is. UserError where there is none."""
    found = []
    for place in (folder, folder / "ksplit"):
        for name in sorted(os.listdir(place)) if place.is_dir() else []:
            words = name.removesuffix(".json").split("_")
            if name.endswith(".json") and published in words and {"ksplit", "karpathy"} & set(words):
                found.append((len(words), place / name))
    if not found:
        raise UserError(
            f"{folder}: no file of the Karpathy split for {published}: SpokenCOCO_ksplit_{published}.json, or with "
            "karpathy, unrolled or reassign_id in its name"
        )
    return min(found)[1]


def _image_root(corpus: Path) -> Path:
    """The folder that holds train2014/ and val2014/."""
    for name in _IMAGE_FOLDERS:
        if (corpus / name / "val2014").is_dir():
            return corpus / name
    raise UserError(
        f"{corpus}: no photographs: no val2014/ in it or in {', '.join(f'{n}/' for n in _IMAGE_FOLDERS if n)}"
    )


def _entries(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Image path and caption of every utterance of a split, in the file's order."""
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise UserError(f"{file}: not valid JSON ({error})") from error
    data = content.get("data") if isinstance(content, dict) else None
    if not isinstance(data, list):
        raise UserError(f"{file}: no list under 'data'")
    for number, entry in enumerate(data):
        captions = (
            entry.get("captions", [entry["caption"]] if "caption" in entry else None)
            if isinstance(entry, dict)
            else None
        )
        if not isinstance(captions, list) or not isinstance(entry.get("image"), str):
            raise UserError(f"{file}: entry {number}: needs 'image' and 'captions' or 'caption'")
        for caption in captions:
            if not isinstance(caption, dict):
                raise UserError(f"{file}: entry {number}: a caption is no mapping")
            yield entry["image"], caption


def _written_captions(corpus: Path, split_of: Mapping[str, str]) -> list[tuple[str, str]]:
    """Split and text of COCO's own captions; none where they are not there. split_of: by the photograph's file name."""
    found: list[tuple[str, str]] = []
    for name in ("train2014", "val2014"):
        file = corpus / "annotations" / f"captions_{name}.json"
        if not file.is_file():
            return []
        try:
            for item in json.loads(file.read_bytes())["annotations"]:
                image = f"COCO_{name}_{int(item['image_id']):012d}.jpg"
                found.append((split_of.get(image, NO_SPLIT), str(item["caption"])))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file}: not COCO's captions ({type(error).__name__}: {error})") from error
    return found


def _candidate(
    file: Path, audio: Path, images: Path, image: str, caption: Mapping[str, Any], split: str
) -> Candidate | Skipped:  # fmt: skip
    """An utterance, or why the entry describes none."""
    values = [caption.get(key) for key in ("speaker", "uttid", "wav")]
    if not all(isinstance(value, str) and value.strip() for value in values):
        raise UserError(f"{file}: {image}: a caption without speaker, uttid or wav")
    speaker, uttid, wav = (str(value) for value in values)
    speaker, uttid = "".join(speaker.split()), "".join(uttid.split())
    text = " ".join(str(caption.get("text", "")).split())
    if not text:
        return Skipped(uttid, str(file), "empty caption")
    parts = uttid.rsplit("_", 2)
    numbers = "_".join(parts[1:]) if len(parts) == 3 and all(part.isdecimal() for part in parts[1:]) else uttid
    utterance = Utterance(f"{speaker}-{numbers}", audio / wav, text, speaker, Path(image).stem)
    path = images / image
    if not os.path.exists(path):
        return Skipped(utterance.id, str(path), "missing photograph")
    return Candidate(utterance, path, split)


def _without_repeats(candidates: list[Candidate]) -> tuple[list[Candidate], list[Skipped]]:
    """Leave out what would get the id of another utterance."""
    seen: set[str] = set()
    unique, repeated = [], []
    for item in candidates:
        if item.utterance.id in seen:
            repeated.append(Skipped(item.utterance.id, str(item.utterance.wav), "listed twice"))
        else:
            seen.add(item.utterance.id)
            unique.append(item)
    return unique, repeated
