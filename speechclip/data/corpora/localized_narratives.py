"""Localized Narratives: spontaneous descriptions of COCO, Flickr30k, ADE20k and Open Images, with times of the words.

Pont-Tuset et al. 2020, google.github.io/localized-narratives. Any of the four parts may be in one folder::

    [annotations/]<part>_<split>_localized_narratives[-00000-of-00004].jsonl    annotations
    voice-recordings/<split>/<split>_<image>_<annotator>.ogg                    recordings
    train2017/ val2017/ | train2014/ val2014/                                   photographs of COCO
    flickr30k-images/                                                           photographs of Flickr30k
    ADEChallengeData2016/images/{training,validation}/                          photographs of ADE20k
    open_images/{train,validation,test}/                                        photographs of Open Images

Each line is ``{"dataset_id", "image_id", "annotator_id", "caption", "timed_caption": [{"utterance", "start_time",
"end_time"}], "traces", "voice_recording"}``. The names of COCO's and ADE20k's photographs and of the recordings of
Flickr30k and ADE20k have ids that are padded with zeros; the annotations do not.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from speechclip.common.errors import UserError
from speechclip.data.alignments import LabelSpool, timed_words
from speechclip.data.corpora.download import RemoteFile
from speechclip.data.corpora.download_each import download_each
from speechclip.data.corpora.flickr8k import MTEB_TASKS as FLICKR_TASKS
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
from speechclip.data.kaldi import StrPath, Utterance

LIMITS = Limits(max_seconds=300.0, check_samples=False)  # only the headers of the 870,000 recordings are read
LICENCE = (
    "Localized Narratives (Pont-Tuset et al. 2020): CC BY 4.0; the photographs of COCO, Flickr30k, ADE20k and Open "
    "Images under the terms of their publishers"
)
PAGE = "https://google.github.io/localized-narratives/"
MTEB_TASKS = COCO_TASKS | FLICKR_TASKS  # COCO's train2017 has most of val2014; Flickr30k has photographs of Flickr8k
PARTS = ("coco", "flickr30k", "ade20k", "open_images")

_GOOGLE = "https://storage.googleapis.com/localized-narratives"
_COCO = "http://images.cocodataset.org/zips"
_SPLIT_FOLDERS = ("train", "val", "validation", "test", "train_v6")
_RECORDINGS = ("voice-recordings", "voice_recordings", "")
_LIST = re.compile(
    r"(coco|flickr30k|ade20k|open_images)_(train|val|validation|test)(?:_v6)?_localized_narratives"
    r"(?:-\d{5}-of-\d{5})?\.jsonl"
)
_TRACES, _AFTER_TRACES = re.compile(rb',\s*"traces":\s*\['), re.compile(rb',\s*"voice_recording":')
_NUMBERS = re.compile(r"(\w+)/\w+?_([0-9]+)_[0-9]+\.\w+$")


def _annotations(name: str, shards: int, size: int = 0) -> tuple[RemoteFile, ...]:
    """Return the annotation files of a part and split. Only one size was found (0: unknown)."""
    names = [f"{name}-{at:05d}-of-{shards:05d}.jsonl" for at in range(shards)] if shards > 1 else [f"{name}.jsonl"]
    about = "annotations, google.github.io/localized-narratives"
    return tuple(RemoteFile(item, (f"{_GOOGLE}/annotations/{item}",), size, (item,), about=about) for item in names)


#: The addresses are those of the publisher's localized_narratives.py. The size of ADE20k's training file is in public
#: code that downloads it, those of COCO's photographs are on cocodataset.org. The other photographs come from their
#: publishers. ``download_more`` gets the recordings.
SOURCES = (
    *_annotations("coco_train_localized_narratives", 4),
    *_annotations("coco_val_localized_narratives", 1),
    *_annotations("flickr30k_train_localized_narratives", 1),
    *_annotations("flickr30k_val_localized_narratives", 1),
    *_annotations("flickr30k_test_localized_narratives", 1),
    *_annotations("ade20k_train_localized_narratives", 1, 802_749_301),
    *_annotations("ade20k_validation_localized_narratives", 1),
    *_annotations("open_images_train_v6_localized_narratives", 10),
    *_annotations("open_images_validation_localized_narratives", 1),
    *_annotations("open_images_test_localized_narratives", 1),
    *(
        RemoteFile(
            f"{name}.zip", (f"{_COCO}/{name}.zip",), size, (name,), unpacked=size, into="",
            about="COCO's photographs of 2017, cocodataset.org",
        )
        for name, size in (("train2017", 18_000_000_000), ("val2017", 1_000_000_000))
    ),
)  # fmt: skip

logger = logging.getLogger(__name__)


def prepare_localized_narratives(corpus_dir: StrPath, data_dir: StrPath, limits: Limits = LIMITS) -> Summary:
    """Write ``data_dir/{train,dev,test}``, each with the times of its words in ``ctm``, and ``skipped.tsv``.

    COCO and ADE20k have no test list. The images of their validation list with an even number are in ``test``, and the
    others in ``dev``.

    Utterance ids are ``<annotator>-<name of the recording>``, image ids ``<part>_<image>``. The time of several words
    is divided by their number of characters.

    Args:
        corpus_dir: the folder with the parts.
        data_dir: folder of the data directories. All files are written, or none.
        limits: the limits.

    Raises:
        UserError: a part is missing or has another format, or too much would be skipped.
    """
    corpus = Path(corpus_dir)
    lists, recordings = find_parts(corpus)
    tested = {part for _, part, split in lists if split == "test"}
    photographs = _Photographs(corpus)
    captions: list[tuple[str, str]] = []
    labelled: set[str] = set()  # a repeated utterance adds no words
    with LabelSpool() as words:

        def items() -> Iterator[Candidate | Skipped]:
            for file, part, split in lists:
                for line, entry in read_annotations(file):
                    item = _candidate(file, line, part, split, entry, recordings, photographs)
                    if isinstance(item, Candidate):
                        if item.utterance.id not in labelled:
                            words.add(item.utterance.id, _words(entry))
                            labelled.add(item.utterance.id)
                        if split == "dev" and part not in tested and item.utterance.image_id[-1] in "02468":
                            item = replace(item, split="test")
                        captions.append((item.split, item.utterance.clip_text))
                    yield item

        unique = without_repeats(items(), "listed twice")
        return write_corpus(corpus, Path(data_dir), unique, limits=limits, captions=captions, labels={"ctm": words})


def find_parts(corpus: Path) -> tuple[list[tuple[Path, str, str]], Path]:
    """Find the annotations and recordings of a corpus.

    Returns:
        File, part and split of each annotation file, and the folder of the recordings.

    Raises:
        UserError: the annotations of a split or the recordings are missing.
    """
    if not corpus.is_dir():
        raise UserError(f"{corpus}: no such corpus folder. Check the path.")
    found = []
    for file in _annotation_files(corpus):
        if match := _LIST.fullmatch(file.name):
            split = {"val": "dev", "validation": "dev"}.get(match.group(2), match.group(2))
            found.append((file, match.group(1), split))
    for split, name in (("train", "train"), ("dev", "val or validation")):
        if not any(item[2] == split for item in found):
            raise UserError(
                f"{corpus}: no annotations: no <part>_{name.split()[0]}_localized_narratives.jsonl. Add it."
            )
    parts = {part for _, part, _ in found}
    for place in _RECORDINGS:
        if any((corpus / place / f"{part}_{split}").is_dir() for part in parts for split in _SPLIT_FOLDERS):
            return found, corpus / place
    raise UserError(f"{corpus}: no recordings: no voice-recordings/{min(parts)}_train/. Add it.")


def _annotation_files(corpus: Path) -> list[Path]:
    """Return the files of annotations, sorted by name."""
    files = {file.name: file for folder in (corpus, corpus / "annotations") for file in folder.glob("*.jsonl")}
    return [files[name] for name in sorted(files) if _LIST.fullmatch(name)]


def download_more(corpus: Path, mirror: str) -> None:
    """Download the recordings of all annotations in a folder, one by one. Existing files are kept.

    Recordings that the server does not have are listed in ``missing_recordings.tsv``. Stage 1 skips them.

    Args:
        corpus: the folder.
        mirror: URL of a folder with ``voice-recordings/``, tried first; may be empty.

    Raises:
        UserError: the server cannot be reached, or more than 1% of the recordings are missing there.
    """

    def wanted() -> Iterator[tuple[str, Path]]:
        for file in _annotation_files(corpus):
            for _, entry in read_annotations(file):
                for name in _recording_names(entry)[:1]:
                    yield name, corpus / "voice-recordings" / name

    bases = [f"{mirror.rstrip('/')}/voice-recordings"] * bool(mirror) + [f"{_GOOGLE}/voice-recordings"]
    missing = download_each(wanted(), bases, corpus / "missing_recordings.tsv")
    if missing:
        logger.warning("%d recordings are missing on the server, see %s", missing, corpus / "missing_recordings.tsv")


def read_annotations(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line number and annotation, without the traces. They are most of each line and are not parsed.

    Raises:
        UserError: a line is not a JSON object.
    """
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            # A quote inside of a JSON string has a backslash before it, so these keys cannot be in a caption.
            start = _TRACES.search(line)
            stop = _AFTER_TRACES.search(line, start.end()) if start else None
            try:
                entry = json.loads(line[: start.start()] + line[stop.start() :] if start and stop else line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{file}:{number}: not valid JSON ({error}). Download the file again.") from error
            if not isinstance(entry, dict):
                raise UserError(f"{file}:{number}: not a JSON object. Use the original file.")
            yield number, entry


def _recording_names(entry: Mapping[str, Any]) -> list[str]:
    """Return the possible paths of a recording. Those of Flickr30k and ADE20k have the image id in 16 digits."""
    name = entry.get("voice_recording")
    if not isinstance(name, str) or not name.strip() or ".." in name.split("/"):
        return []
    name = name.strip().lstrip("/")
    match = _NUMBERS.search(name)
    if match and any(word in str(entry.get("dataset_id")) for word in ("Flic", "ADE")):
        split, image = match.groups()
        return [f"{split}/{split}_{image.zfill(16)}_{entry.get('annotator_id')}.ogg", name]
    return [name]


class _Photographs:
    """The photographs of all parts. The place of the last one is tried first."""

    def __init__(self, corpus: Path) -> None:
        self.roots = [corpus, *(corpus / name for name in ("images", *PARTS))]
        self.last: dict[str, tuple[Path, str]] = {}

    def find(self, part: str, image: str) -> Path | None:
        """Return the file of an image, or None."""
        if part in self.last:
            root, form = self.last[part]
            if os.path.exists(path := root / self._name(form, image)):
                return path
        for root in self.roots:
            for form in self.FORMS[part]:
                path = root / self._name(form, image)
                try:
                    found = path.exists()
                except (OSError, ValueError):  # a name that no file can have
                    return None
                if found:
                    self.last[part] = root, form
                    return path
        return None

    FORMS = {
        "coco": ("train2017/{12}.jpg", "val2017/{12}.jpg", "train2014/COCO_train2014_{12}.jpg",
                 "val2014/COCO_val2014_{12}.jpg"),
        "flickr30k": ("flickr30k-images/{0}.jpg", "flickr30k_images/{0}.jpg"),
        "ade20k": ("ADEChallengeData2016/images/training/ADE_train_{8}.jpg",
                   "ADEChallengeData2016/images/validation/ADE_val_{8}.jpg"),
        "open_images": ("open_images/train/{0}.jpg", "open_images/validation/{0}.jpg", "open_images/test/{0}.jpg",
                        "train/{0}.jpg", "validation/{0}.jpg", "test/{0}.jpg"),
    }  # fmt: skip

    @staticmethod
    def _name(form: str, image: str) -> str:
        """Insert an image id: as it is, or its digits at the end, padded to a number of digits."""
        before, width, after = re.split(r"\{(\d+)\}", form)
        image = image.removesuffix(".jpg")
        if width != "0":
            image = image.rpartition("_")[2].zfill(int(width))
        return f"{before}{image}{after}"


def _candidate(
    file: Path, line: int, part: str, split: str, entry: Mapping[str, Any], recordings: Path, photographs: _Photographs
) -> Candidate | Skipped:
    """Return the utterance of an annotation, or the reason why it cannot be used."""
    image, annotator, names = entry.get("image_id"), entry.get("annotator_id"), _recording_names(entry)
    place = f"{file.name}:{line}"
    if not isinstance(image, str) or not image.strip() or "/" in image:
        return Skipped(place, str(file), "annotation without image_id")
    if not isinstance(annotator, int) or isinstance(annotator, bool) or not 0 <= annotator < 10**9:
        return Skipped(place, str(file), "annotation without annotator_id")
    if not names:
        return Skipped(place, str(file), "annotation without voice_recording")
    if problem := caption_problem(entry.get("caption")):
        return Skipped(place, str(file), problem)
    if problem := _timing_problem(entry.get("timed_caption")):
        return Skipped(place, str(file), problem)
    speaker, image = f"a{annotator:05d}", image.strip()
    key, image_id = f"{speaker}-{Path(names[-1]).stem}", f"{part}_{image.removesuffix('.jpg')}"
    if problem := id_problem(key, speaker, image_id):
        return Skipped(place, str(file), problem)
    path = photographs.find(part, image)
    if path is None:
        return Skipped(key, str(photographs.roots[0] / part / f"{image}.jpg"), "missing photograph")
    wav = recordings / names[0]
    if len(names) > 1 and not os.path.exists(wav) and os.path.exists(recordings / names[1]):
        wav = recordings / names[1]
    text = " ".join(entry["caption"].split())
    return Candidate(Utterance(key, wav, text, speaker, image_id), path, split)


def _timing_problem(timed: Any) -> str | None:
    """Return the reason why a timed caption cannot be used, or None. An empty one is an utterance without words."""
    if not isinstance(timed, list):
        return "timed_caption is not a list"
    for item in timed:
        if not isinstance(item, dict) or not isinstance(item.get("utterance"), str):
            return "timed_caption without utterance"
        start, end = item.get("start_time"), item.get("end_time")
        if not (isinstance(start, int | float) and isinstance(end, int | float) and 0 <= start <= end < 1e5):
            return "timed_caption with unusable times"
    return None


def _words(entry: Mapping[str, Any]) -> Iterator[Any]:
    for item in entry["timed_caption"]:
        yield from timed_words(item["utterance"], item["start_time"], item["end_time"])
