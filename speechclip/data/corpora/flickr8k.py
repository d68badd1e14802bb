"""Flickr8k with the Flickr Audio Caption Corpus: 8,000 photographs with five captions each, read by 183 speakers.

Photographs and captions: Hodosh, Young and Hockenmaier 2013. Recordings: Harwath and Glass 2015. The parts are
published separately. They may be in one folder in any of these forms::

    Flicker8k_Dataset/ | Flickr8k_Dataset/ | Images/         photographs
    Flickr8k.token.txt | captions.txt                        captions (Kaggle has the latter), also in Flickr8k_text/
    Flickr_8k.{train,dev,test}Images.txt                     splits, also in Flickr8k_text/
    flickr_audio/{wavs/,wav2capt.txt,wav2spk.txt}            recordings

Labels that others published are read, too, see :mod:`speechclip.data.corpora.flickr8k_extras`.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from speechclip.common.errors import UserError
from speechclip.data.alignments import LabelSpool
from speechclip.data.corpora.download import RemoteFile
from speechclip.data.corpora.flickr8k_extras import (
    PHONEMES,
    WORDS,
    find_extras,
    read_keywords,
    read_phonemes,
    read_words,
)
from speechclip.data.corpora.preparation import (
    NO_SPLIT,
    SPLITS,
    Candidate,
    Limits,
    Skipped,
    Summary,
    id_problem,
    make_image_ids,
    without_repeats,
    write_corpus,
)
from speechclip.data.kaldi import KEYWORD_TABLE, StrPath, Utterance, parse_count

LIMITS = Limits()
LICENCE = (
    "Flickr8k (Hodosh et al. 2013) is for research; the Flickr Audio Caption Corpus (Harwath and Glass 2015) is under "
    "CC BY-SA"
)
PAGE = "https://groups.csail.mit.edu/sls/downloads/flickraudio/"
#: mteb's Flickr tasks rank all 8,091 photographs of Flickr8k, 6,000 of them for training.
MTEB_TASKS = frozenset({"FlickrAudioToImageRetrieval", "FlickrImageToAudioRetrieval"})

_MIRROR = "https://github.com/jbrownlee/Datasets/releases/download/Flickr8k"
_ILLINOIS = "http://nlp.cs.illinois.edu/HockenmaierGroup/Framing_Image_Description"
#: The checksums are the publisher's. No second host of flickr_audio.tar.gz is known.
SOURCES = (
    RemoteFile(
        "Flickr8k_Dataset.zip", (f"{_MIRROR}/Flickr8k_Dataset.zip", f"{_ILLINOIS}/Flickr8k_Dataset.zip"),
        1_120_000_000, ("Flicker8k_Dataset",), unpacked=1_130_000_000, into="",
        checksum="md5:f18a1e2920de5bd84dae7cf08ec78978",
        about="the 8,091 photographs of Flickr8k, Hodosh et al. 2013, also on Kaggle as adityajn105/flickr8k",
    ),
    RemoteFile(
        "Flickr8k_text.zip", (f"{_MIRROR}/Flickr8k_text.zip", f"{_ILLINOIS}/Flickr8k_text.zip"),
        2_400_000, ("Flickr8k_text/Flickr8k.token.txt", "Flickr8k_text/Flickr_8k.trainImages.txt"),
        unpacked=12_000_000, into="Flickr8k_text", checksum="md5:bf6c1abcb8e4a833b7f922104de18627",
        about="the captions and splits of Flickr8k, Hodosh et al. 2013",
    ),
    RemoteFile(
        "flickr_audio.tar.gz",
        ("https://groups.csail.mit.edu/sls/downloads/flickraudio/downloads/flickr_audio.tar.gz",),
        4_500_000_000, ("flickr_audio/wavs", "flickr_audio/wav2capt.txt", "flickr_audio/wav2spk.txt"),
        unpacked=5_500_000_000, into="", checksum="md5:9d078f1f150c26e864aa64d1d733779a",
        about="the Flickr 8k Audio Caption Corpus, Harwath and Glass 2015",
    ),
)  # fmt: skip

_TOKEN_FILE = "Flickr8k.token.txt"
_KAGGLE_FILE = "captions.txt"
_IMAGE_FOLDERS = ("Flicker8k_Dataset", "Flickr8k_Dataset", "Images")
_TEXT_FOLDERS = ("Flickr8k_text", "")
_AUDIO_FOLDERS = ("flickr_audio",)
_KAGGLE_ROW = re.compile(r'[^\s,"]+\.jpg,', re.IGNORECASE)  # the start of a row

Caption = tuple[str, int]  # image file name, number of the caption


@dataclass(frozen=True)
class _Layout:
    """The files and folders of the parts."""

    images: Path
    captions: Path
    splits: dict[str, Path]
    wavs: Path
    wav2capt: Path
    wav2spk: Path


def prepare_flickr8k(corpus_dir: StrPath, data_dir: StrPath, limits: Limits = LIMITS) -> Summary:
    """Write ``data_dir/{train,dev,test}``, ``captions.tsv`` and ``skipped.tsv`` from the published corpus.

    Utterance ids are ``spk<speaker>-<image>_<number>``. Image ids are the photographs' file names without suffix.
    ``ctm`` (words), ``phones.ctm`` and ``utt2keywords`` are written from the labels that the folder has.
    ``text`` has the captions as they are published, ``text_clip`` and ``captions.tsv`` have :func:`clip_caption` of
    them. Only images of the split lists are used. These items are skipped and listed: a caption, recording or speaker
    that the other files lack, a photograph that is missing, an unreadable file, a recording that is too short or long.

    Args:
        corpus_dir: the folder with the parts, each at most one folder deeper. The tables hold paths below this one, so
            it must be absolute or relative to the recipe.
        data_dir: folder of the data directories. All files are written, or none.
        limits: the limits.

    Raises:
        UserError: a part is missing or has another format, or too much would be skipped.
    """
    corpus = Path(corpus_dir)
    layout = find_parts(corpus)
    split_of, captions = _read_splits(layout.splits), _read_captions(layout.captions)
    lower = layout.captions.name == _KAGGLE_FILE
    items = _match(layout, split_of, captions, lower=lower)
    if not any(isinstance(item, Candidate) for item in items):
        raise UserError(
            f"{corpus}: no recording of {layout.wav2capt} belongs to an image of the split lists."
            " Check that the files belong together."
        )
    every = [(split_of.get(image, NO_SPLIT), clip_caption(text, lower=lower)) for (image, _), text in captions.items()]
    extras = find_extras(corpus)
    utterances = {item.utterance.wav.stem: item.utterance.id for item in items if isinstance(item, Candidate)}
    with ExitStack() as stack:
        labels, tables = {}, {}
        for name, read in ((WORDS, read_words), (PHONEMES, read_phonemes)):
            if name in extras:
                labels[name] = spool = stack.enter_context(LabelSpool())
                for recording, label in read(extras[name]):
                    if recording in utterances:
                        spool.add(utterances[recording], [label])
        if KEYWORD_TABLE in extras:
            found = read_keywords(extras[KEYWORD_TABLE])
            tables[KEYWORD_TABLE] = {utterances[key]: words for key, words in found.items() if key in utterances}
        return write_corpus(corpus, Path(data_dir), items, limits=limits, captions=every, labels=labels, tables=tables)


def clip_caption(text: str, *, lower: bool = False) -> str:
    """Return a caption as SpeechCLIP's authors pass it to CLIP: without one final full stop and the blank before it.

    Args:
        text: the caption.
        lower: also convert it to lower case, as the authors do with Kaggle's captions.
    """
    stripped = text.strip().removesuffix(".").rstrip()
    return stripped.lower() if lower else stripped


def find_parts(corpus: Path) -> _Layout:
    """Find the parts of a corpus.

    Raises:
        UserError: a part is missing.
    """
    if not corpus.is_dir():
        raise UserError(f"{corpus}: no such corpus folder. Check the path.")
    roots = [corpus, *sorted(item for item in corpus.iterdir() if item.is_dir())]
    captions = _find(roots, _TEXT_FOLDERS, _TOKEN_FILE) or _find(roots, _TEXT_FOLDERS, _KAGGLE_FILE)
    if captions is None:
        raise UserError(
            f"{corpus}: no captions: neither Flickr8k_text/{_TOKEN_FILE} nor {_KAGGLE_FILE}. Add one of them."
        )
    splits = {split: _require(corpus, roots, _TEXT_FOLDERS, f"Flickr_8k.{split}Images.txt") for split in SPLITS}
    return _Layout(
        images=_find_images(corpus, roots),
        captions=captions,
        splits=splits,
        wavs=_require(corpus, roots, _AUDIO_FOLDERS, "wavs"),
        wav2capt=_require(corpus, roots, _AUDIO_FOLDERS, "wav2capt.txt"),
        wav2spk=_require(corpus, roots, _AUDIO_FOLDERS, "wav2spk.txt"),
    )


def _find(roots: list[Path], folders: tuple[str, ...], name: str) -> Path | None:
    """Return the first ``root/folder/name`` that exists, or None."""
    paths = (root / folder / name for root in roots for folder in folders)
    return next((path for path in paths if path.exists()), None)


def _require(corpus: Path, roots: list[Path], folders: tuple[str, ...], name: str) -> Path:
    path = _find(roots, folders, name)
    if path is None:
        raise UserError(f"{corpus}: {Path(folders[0]) / name} is missing. Add it.")
    return path


def _find_images(corpus: Path, roots: list[Path]) -> Path:
    """Return the first folder of photographs that holds one; an archive may nest it in a folder of the same name."""
    for root in roots:
        for folder in _IMAGE_FOLDERS:
            if (root / folder).is_dir() and any(name.endswith(".jpg") for name in os.listdir(root / folder)):
                return root / folder
    raise UserError(
        f"{corpus}: no photographs: none of {', '.join(f'{name}/' for name in _IMAGE_FOLDERS)} with *.jpg."
        " Check the folder."
    )


def _match(
    layout: _Layout, split_of: dict[str, str], captions: dict[Caption, str], *, lower: bool
) -> list[Candidate | Skipped]:
    """Match captions, recordings, speakers, photographs and splits. An item that the other files lack is skipped."""
    recordings, skipped = _read_recordings(layout.wav2capt)
    speakers = _read_speakers(layout.wav2spk)
    present = set(os.listdir(layout.images))
    image_ids = make_image_ids(split_of)
    candidates = []
    for wav, caption in recordings.items():
        image, number = caption
        if image not in split_of:
            continue
        speaker, text, image_id = speakers.get(wav), captions.get(caption), image_ids[image]
        path = str(layout.wavs / wav)
        if speaker is None:
            skipped.append(Skipped(Path(wav).stem, path, f"no speaker in {layout.wav2spk.name}"))
        elif text is None:
            skipped.append(Skipped(Path(wav).stem, path, f"no caption in {layout.captions.name}"))
        elif not clip_caption(text):
            skipped.append(Skipped(Path(wav).stem, str(layout.captions), "empty caption"))
        elif problem := id_problem(image_id):
            skipped.append(Skipped(Path(wav).stem, str(layout.images / image), problem))
        elif image in present:
            utterance = Utterance(
                id=f"{speaker}-{image_id}_{number}",
                wav=layout.wavs / wav,
                text=text,
                speaker=speaker,
                image_id=image_id,
                clip_text=clip_caption(text, lower=lower),
            )
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
    return [*skipped, *without_repeats(candidates, "recorded twice")]


def _unlisted(layout: _Layout, split_of: dict[str, str], recordings: dict[str, Caption]) -> list[Skipped]:
    """Skip the recordings that ``wav2capt.txt`` lacks and whose name is that of an image of the split lists."""
    stems = {Path(image).stem for image in split_of}
    return [
        Skipped(Path(name).stem, str(layout.wavs / name), f"not in {layout.wav2capt.name}")
        for name in sorted(set(os.listdir(layout.wavs)) - recordings.keys())
        if name.endswith(".wav") and Path(name).stem.rpartition("_")[0] in stems
    ]


def _read_splits(paths: dict[str, Path]) -> dict[str, str]:
    """Return the split of each image file name."""
    split_of: dict[str, str] = {}
    for split, path in paths.items():
        for number, image in _lines(path):
            if split_of.setdefault(image, split) != split:
                raise UserError(
                    f"{path}:{number}: {image} is in {split_of[image]} as well. Remove it from one of them."
                )
    return split_of


def _read_captions(path: Path) -> dict[Caption, str]:
    """Return the captions with single blanks, in the order of the file."""
    captions: dict[Caption, str] = {}
    rows = _token_rows(path) if path.name == _TOKEN_FILE else _kaggle_rows(path)
    for line, image, number, text in rows:
        if captions.setdefault((image, number), text) != text:
            raise UserError(f"{path}:{line}: another caption {image}#{number}. Remove one of them.")
    return captions


def _token_rows(path: Path) -> Iterator[tuple[int, str, int, str]]:
    """Yield line number, image, caption number and caption of ``<image>#<number><tab><caption>``."""
    for line, content in _lines(path):
        key, tab, text = content.partition("\t")
        image, _, digits = key.rpartition("#")
        number = parse_count(digits)
        if not image or number is None or not (tab or content.endswith(key)):
            raise UserError(f"{path}:{line}: not <image>#<number><tab><caption>. Correct the line.")
        yield line, image, number, " ".join(text.split())


def _kaggle_rows(path: Path) -> Iterator[tuple[int, str, int, str]]:
    """Yield the same for a CSV file ``image,caption``. The order of an image's captions gives their numbers.

    A quoted caption may have several lines. A quote that is not closed would include the following rows, so it is
    refused.
    """
    count: dict[str, int] = {}
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)
    line = 1
    try:
        if next(reader, None) != ["image", "caption"]:
            raise UserError(f"{path}:1: the first line is not image,caption. Use the original file.")
        line = reader.line_num + 1
        for row in reader:
            if row:
                image, text = row[0].strip(), ",".join(row[1:])
                if not image or not row[1:]:
                    raise UserError(f"{path}:{line}: not <image>,<caption>. Correct the line.")
                if any(_KAGGLE_ROW.match(part) for part in text.splitlines()[1:]):
                    raise UserError(f"{path}:{line}: a quote is not closed. Close it or double it.")
                number = count.get(image, 0)
                count[image] = number + 1
                yield line, image, number, " ".join(text.split())
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}:{line}: not a CSV row ({error}). Close or double its quotes.") from error


def _read_recordings(path: Path) -> tuple[dict[str, Caption], list[Skipped]]:
    """Read lines ``<wav> <image> #<number>``.

    Returns:
        The caption of each recording by its file name, and the lines that contradict an earlier one.
    """
    recordings: dict[str, Caption] = {}
    skipped = []
    for line, content in _lines(path):
        fields = content.split()
        number = parse_count(fields[2][1:]) if len(fields) == 3 and fields[2].startswith("#") else None
        if number is None:
            raise UserError(f"{path}:{line}: not <recording> <image> #<number>. Correct the line.")
        caption = (fields[1], number)
        if recordings.setdefault(fields[0], caption) != caption:
            skipped.append(Skipped(Path(fields[0]).stem, str(path), f"listed twice (line {line})"))
    return recordings, skipped


def _read_speakers(path: Path) -> dict[str, str]:
    """Read lines ``<wav> <number>``. Return ``spk`` and the number in four digits by the recording's file name."""
    speakers: dict[str, str] = {}
    for line, content in _lines(path):
        fields = content.split()
        number = parse_count(fields[1]) if len(fields) == 2 else None
        if number is None:
            raise UserError(f"{path}:{line}: not <recording> <speaker number>. Correct the line.")
        speaker = f"spk{number:04d}"
        if speakers.setdefault(fields[0], speaker) != speaker:
            raise UserError(f"{path}:{line}: {fields[0]} has two speakers. Remove one of them.")
    return speakers


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield number and content of the lines that are not blank."""
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if line.strip():
            yield number, line.strip()


def _read_text(path: Path) -> str:
    """Return the content of a UTF-8 file without a byte order mark. UserError with the line if it is not UTF-8."""
    raw = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: not UTF-8 (byte 0x{raw[error.start]:02x}). Use the original file.") from error
