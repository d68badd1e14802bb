"""Flickr8k with the Flickr Audio Caption Corpus: 8,000 photographs, five captions each, read aloud by 183 people.

Photographs and captions: Hodosh, Young and Hockenmaier 2013; recordings: Harwath and Glass 2015. The parts are
published apart, so they are looked for under one folder in any of the forms they come in::

    Flicker8k_Dataset/ | Flickr8k_Dataset/ | Images/         photographs
    Flickr8k.token.txt | captions.txt                        captions (Kaggle's the latter), here or in Flickr8k_text/
    Flickr_8k.{train,dev,test}Images.txt                     splits, here or in Flickr8k_text/
    flickr_audio/{wavs/,wav2capt.txt,wav2spk.txt}            recordings
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from speechclip.common.errors import UserError
from speechclip.data.corpora.preparation import NO_SPLIT, SPLITS, Candidate, Limits, Skipped, Summary, write_corpus
from speechclip.data.kaldi import StrPath, Utterance

LIMITS = Limits()
_IMAGE_FOLDERS = ("Flicker8k_Dataset", "Flickr8k_Dataset", "Images")
_TEXT_FOLDERS = ("Flickr8k_text", "")
_AUDIO_FOLDERS = ("flickr_audio",)

Caption = tuple[str, int]  # image file name, number of the caption


@dataclass(frozen=True)
class _Layout:
    """Where the parts of the corpus lie."""

    images: Path
    captions: Path
    splits: dict[str, Path]
    wavs: Path
    wav2capt: Path
    wav2spk: Path


def prepare_flickr8k(corpus_dir: StrPath, data_dir: StrPath, limits: Limits = LIMITS) -> Summary:
    """Write ``data_dir/{train,dev,test}``, ``captions.tsv`` and ``skipped.tsv`` from a corpus as it is published.

    Utterance ids are ``spk<speaker>-<image>_<number>``, image ids the photographs' file names without suffix; captions
    keep their case. Only images of the split lists count. Whatever cannot be used is skipped and listed: a caption,
    recording or speaker without its counterpart, a photograph that is not there, an unreadable file, an unusual length.

    Args:
        corpus_dir: the folder with the parts, themselves at most one folder deeper; paths are written as they follow
            from it, so give it relative to the recipe or absolute.
        data_dir: where to write; all or nothing.
        limits: what is tolerated.

    Raises:
        UserError: a part is not found or not in its format, or too much is bad. Nothing is written then.
    """
    corpus = Path(corpus_dir)
    layout = find_parts(corpus)
    split_of, captions = _read_splits(layout.splits), _read_captions(layout.captions)
    candidates, skipped = _match(layout, split_of, captions)
    if not candidates:
        raise UserError(f"{corpus}: no recording of {layout.wav2capt} belongs to an image of the split lists")
    every = [(split_of.get(image, NO_SPLIT), text) for (image, _), text in captions.items()]
    return write_corpus(corpus, Path(data_dir), candidates, skipped, limits=limits, captions=every)


def find_parts(corpus: Path) -> _Layout:
    """Where the parts of a corpus lie. Raises UserError: one is not there."""
    if not corpus.is_dir():
        raise UserError(f"{corpus}: no such corpus folder")
    roots = [corpus, *sorted(item for item in corpus.iterdir() if item.is_dir())]
    token = _find(roots, _TEXT_FOLDERS, "Flickr8k.token.txt") or _find(roots, _TEXT_FOLDERS, "captions.txt")
    if token is None:
        raise UserError(f"{corpus}: no captions: neither Flickr8k_text/Flickr8k.token.txt nor captions.txt")
    splits = {split: _require(corpus, roots, _TEXT_FOLDERS, f"Flickr_8k.{split}Images.txt") for split in SPLITS}
    return _Layout(
        images=_find_images(corpus, roots),
        captions=token,
        splits=splits,
        wavs=_require(corpus, roots, _AUDIO_FOLDERS, "wavs"),
        wav2capt=_require(corpus, roots, _AUDIO_FOLDERS, "wav2capt.txt"),
        wav2spk=_require(corpus, roots, _AUDIO_FOLDERS, "wav2spk.txt"),
    )


def _find(roots: list[Path], folders: tuple[str, ...], name: str) -> Path | None:
    """The first ``root/folder/name`` there is."""
    paths = (root / folder / name for root in roots for folder in folders)
    return next((path for path in paths if path.exists()), None)


def _require(corpus: Path, roots: list[Path], folders: tuple[str, ...], name: str) -> Path:
    path = _find(roots, folders, name)
    if path is None:
        raise UserError(f"{corpus}: {Path(folders[0]) / name} is missing")
    return path


def _find_images(corpus: Path, roots: list[Path]) -> Path:
    """The first folder of photographs by name that holds a photograph (archives nest them in one of the same name)."""
    for root in roots:
        for folder in _IMAGE_FOLDERS:
            if (root / folder).is_dir() and any(name.endswith(".jpg") for name in os.listdir(root / folder)):
                return root / folder
    raise UserError(f"{corpus}: no photographs: none of {', '.join(f'{name}/' for name in _IMAGE_FOLDERS)} with *.jpg")


def _match(
    layout: _Layout, split_of: dict[str, str], captions: dict[Caption, str]
) -> tuple[list[Candidate], list[Skipped]]:  # fmt: skip
    """Bring captions, recordings, speakers, photographs and splits together; what lacks a counterpart comes second."""
    recordings, skipped = _read_recordings(layout.wav2capt)
    speakers = _read_speakers(layout.wav2spk)
    present = set(os.listdir(layout.images))
    candidates = []
    for wav, caption in recordings.items():
        image, number = caption
        if image not in split_of:
            continue
        stem = Path(image).stem
        speaker, text = speakers.get(wav), captions.get(caption)
        if speaker is None:
            skipped.append(Skipped(Path(wav).stem, str(layout.wavs / wav), f"no speaker in {layout.wav2spk.name}"))
        elif text is None:
            skipped.append(Skipped(Path(wav).stem, str(layout.wavs / wav), f"no caption in {layout.captions.name}"))
        elif not text:
            skipped.append(Skipped(Path(wav).stem, str(layout.captions), "empty caption"))
        elif image in present:
            utterance = Utterance(f"{speaker}-{stem}_{number}", layout.wavs / wav, text, speaker, stem)
            candidates.append(Candidate(utterance, layout.images / image, split_of[image]))
    recorded = set(recordings.values())
    for image, number in captions:
        if image not in present:
            skipped.append(Skipped(f"{image}#{number}", str(layout.images / image), "missing image file"))
        elif image in split_of and (image, number) not in recorded:
            skipped.append(
                Skipped(f"{image}#{number}", str(layout.captions), f"no recording in {layout.wav2capt.name}")
            )
    skipped += _unlisted(layout, split_of, recordings)
    captioned = {image for image, _ in captions}
    for image, split in split_of.items():
        if image not in captioned:
            skipped.append(Skipped(Path(image).stem, str(layout.splits[split]), "image without caption"))
    return _without_repeats(candidates, skipped)


def _unlisted(layout: _Layout, split_of: dict[str, str], recordings: dict[str, Caption]) -> list[Skipped]:
    """Recordings of images in the splits, to judge by the name, that ``wav2capt.txt`` does not know."""
    stems = {Path(image).stem for image in split_of}
    return [
        Skipped(Path(name).stem, str(layout.wavs / name), f"not in {layout.wav2capt.name}")
        for name in sorted(set(os.listdir(layout.wavs)) - recordings.keys())
        if name.endswith(".wav") and Path(name).stem.rpartition("_")[0] in stems
    ]


def _without_repeats(candidates: list[Candidate], skipped: list[Skipped]) -> tuple[list[Candidate], list[Skipped]]:
    """Leave out a second recording of a caption by the same speaker, whose utterance id would be the same."""
    seen: set[str] = set()
    unique = []
    for item in candidates:
        if item.utterance.id in seen:
            skipped.append(Skipped(item.utterance.id, str(item.utterance.wav), "recorded twice"))
        else:
            seen.add(item.utterance.id)
            unique.append(item)
    return unique, skipped


def _read_splits(paths: dict[str, Path]) -> dict[str, str]:
    """Image file name to split."""
    split_of: dict[str, str] = {}
    for split, path in paths.items():
        for number, image in _lines(path):
            if split_of.setdefault(image, split) != split:
                raise UserError(f"{path}:{number}: {image} is in {split_of[image]} as well")
    return split_of


def _read_captions(path: Path) -> dict[Caption, str]:
    """The captions with single spaces, in the file's order."""
    captions: dict[Caption, str] = {}
    rows = _token_rows(path) if path.name == "Flickr8k.token.txt" else _kaggle_rows(path)
    for line, image, number, text in rows:
        if captions.setdefault((image, number), text) != text:
            raise UserError(f"{path}:{line}: another caption {image}#{number}")
    return captions


def _token_rows(path: Path) -> Iterator[tuple[int, str, int, str]]:
    """Line number, image, caption number and caption of ``<image>#<number><tab><caption>``."""
    for line, content in _lines(path):
        key, tab, text = content.partition("\t")
        image, _, number = key.rpartition("#")
        if not image or not number.isdecimal() or not (tab or content.endswith(key)):
            raise UserError(f"{path}:{line}: not <image>#<number><tab><caption>")
        yield line, image, int(number), " ".join(text.split())


def _kaggle_rows(path: Path) -> Iterator[tuple[int, str, int, str]]:
    """The same of a CSV file ``image,caption``, where the order of an image's captions gives their numbers."""
    count: dict[str, int] = {}
    lines = _lines(path)
    if next(lines, (1, ""))[1] != "image,caption":
        raise UserError(f"{path}:1: the first line is not image,caption")
    for line, content in lines:
        try:  # a row a line, so that a quote left open spoils no more than its own
            image, *fields = next(csv.reader([content]))
        except csv.Error as error:
            raise UserError(f"{path}:{line}: {error}") from error
        if not image or not fields:
            raise UserError(f"{path}:{line}: not <image>,<caption>")
        number = count.get(image, 0)
        count[image] = number + 1
        yield line, image, number, " ".join(",".join(fields).split())


def _read_recordings(path: Path) -> tuple[dict[str, Caption], list[Skipped]]:
    """Recording's file name to caption, from lines ``<wav> <image> #<number>``; contradicting repeats come second."""
    recordings: dict[str, Caption] = {}
    skipped = []
    for line, content in _lines(path):
        fields = content.split()
        if len(fields) != 3 or not fields[2].startswith("#") or not fields[2][1:].isdecimal():
            raise UserError(f"{path}:{line}: not <recording> <image> #<number>")
        caption = (fields[1], int(fields[2][1:]))
        if recordings.setdefault(fields[0], caption) != caption:
            skipped.append(Skipped(Path(fields[0]).stem, str(path), f"listed twice (line {line})"))
    return recordings, skipped


def _read_speakers(path: Path) -> dict[str, str]:
    """Recording's file name to speaker, ``spk`` and the number in four digits, from lines ``<wav> <number>``."""
    speakers: dict[str, str] = {}
    for line, content in _lines(path):
        fields = content.split()
        if len(fields) != 2 or not fields[1].isdecimal():
            raise UserError(f"{path}:{line}: not <recording> <speaker number>")
        speaker = f"spk{int(fields[1]):04d}"
        if speakers.setdefault(fields[0], speaker) != speaker:
            raise UserError(f"{path}:{line}: {fields[0]} has two speakers")
    return speakers


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and content of the lines that are not blank; UserError where one is not UTF-8."""
    for number, raw in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        try:
            line = raw.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise UserError(f"{path}:{number}: not UTF-8 (byte 0x{raw[error.start]:02x})") from error
        if line:
            yield number, line
