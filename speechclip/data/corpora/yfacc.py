"""YFACC: 6,000 captions of Flickr8k in Yorùbá, read by one speaker. Olaleye, Oneata and Kamper 2022.

The parts are in one folder, each at most two folders deeper. The names are those of public code that reads the corpus::

    flickr_audio_yoruba_{train,dev,test}/[16k/]S001_<image>_<number>.wav    recordings
    Flickr8k.token.{train,dev,test}_yoruba.txt                              captions ``<image>.jpg#<number> <caption>``
    Flickr8k_alignment/<image>_<number>.TextGrid                            times of some words (optional)
    Flicker8k_Dataset/ | Flickr8k_Dataset/ | Images/                        photographs of Flickr8k
    Flickr8k.token.txt                                                      Flickr8k's own captions, for CLIP (optional)
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from speechclip.common.errors import UserError
from speechclip.data.alignments import LabelSpool, read_textgrid, timed_words
from speechclip.data.corpora.download import RemoteFile
from speechclip.data.corpora.flickr8k import MTEB_TASKS as FLICKR_TASKS
from speechclip.data.corpora.flickr8k import SOURCES as FLICKR8K
from speechclip.data.corpora.flickr8k import clip_caption
from speechclip.data.corpora.preparation import (
    SPLITS,
    Candidate,
    Limits,
    Skipped,
    Summary,
    id_problem,
    without_repeats,
    write_corpus,
)
from speechclip.data.kaldi import StrPath, Utterance, parse_count

LIMITS = Limits()
LICENCE = (
    "YFACC (Olaleye et al. 2022): CC BY-SA 4.0 according to public code that downloads it; Flickr8k (Hodosh et al. "
    "2013) is for research"
)
PAGE = "https://arxiv.org/abs/2210.04600"
MTEB_TASKS = FLICKR_TASKS  # the same photographs
SPEAKER, LANGUAGE = "S001", "yo"

#: The address is that of public code that reads the corpus. No size and no checksum are known. Photographs and English
#: captions are those of Flickr8k.
SOURCES = (
    *(item for item in FLICKR8K if item.name.startswith("Flickr8k_")),
    RemoteFile(
        "yfacc_v6.tar.gz", ("https://www.dropbox.com/s/wbpyd08t29airsg/yfacc_v6.tar.gz?dl=1",), 0,
        ("yfacc_v6",), into="yfacc_v6", about="YFACC, Olaleye et al. 2022, arXiv 2210.04600",
    ),
)  # fmt: skip

_IMAGES = ("Flicker8k_Dataset", "Flickr8k_Dataset", "Images")

logger = logging.getLogger(__name__)


def prepare_yfacc(corpus_dir: StrPath, data_dir: StrPath, limits: Limits = LIMITS) -> Summary:
    """Write ``data_dir/{train,dev,test}``, ``captions.tsv`` and ``skipped.tsv``; ``ctm`` if there are alignments.

    Utterance ids are ``S001-<image>_<number>``. ``text`` is the Yorùbá caption. CLIP reads the English caption with the
    same number, if Flickr8k's captions are there. ``utt2lang`` is "yo".

    Args:
        corpus_dir: the folder with the parts.
        data_dir: folder of the data directories. All files are written, or none.
        limits: the limits.

    Raises:
        UserError: a part is missing or has another format, or too much would be skipped.
    """
    corpus = Path(corpus_dir)
    parts = find_parts(corpus)
    english = dict(_captions(parts["english"])) if "english" in parts else {}
    items: list[Candidate | Skipped] = []
    for split in SPLITS:
        for key, text in _captions(parts[f"{split} captions"]):
            items.append(_candidate(parts, split, key, text, english.get(key, "")))
    captions = [(item.split, item.utterance.clip_text) for item in items if isinstance(item, Candidate)]
    unique = list(without_repeats(items, "listed twice"))
    with LabelSpool() as words:
        for item in unique:
            if isinstance(item, Candidate) and "alignments" in parts:
                _add_words(words, item.utterance, parts["alignments"])
        labels = {"ctm": words} if "alignments" in parts else {}
        return write_corpus(corpus, Path(data_dir), unique, limits=limits, captions=captions, labels=labels)


def find_parts(corpus: Path) -> dict[str, Path]:
    """Find the parts of a corpus: "images", "<split> recordings", "<split> captions", and "alignments", "english".

    Raises:
        UserError: a part is missing.
    """
    if not corpus.is_dir():
        raise UserError(f"{corpus}: no such corpus folder. Check the path.")
    roots = [corpus]
    level = [corpus]
    for _ in range(3):  # the archive is unpacked into a folder of its own, and may have one, too
        inside = [item for folder in level for item in sorted(folder.iterdir()) if item.is_dir()]
        roots += inside
        level = [item for item in inside if item.name not in _IMAGES and not item.name.startswith("flickr_audio")]
    wanted: dict[str, tuple[str, ...]] = {
        f"{split} captions": (f"Flickr8k.token.{split}_yoruba.txt",) for split in SPLITS
    }
    wanted |= {f"{split} recordings": (f"flickr_audio_yoruba_{split}",) for split in SPLITS}
    wanted |= {"images": _IMAGES, "alignments": ("Flickr8k_alignment",), "english": ("Flickr8k.token.txt",)}
    found = {}
    for part, names in wanted.items():
        paths = [root / name for root in roots for name in names if (root / name).exists()]
        if part == "images":  # an archive may nest the folder in one of the same name
            paths = [path for path in paths if any(name.endswith(".jpg") for name in os.listdir(path))]
        if part.endswith("recordings"):
            paths = [path / "16k" if (path / "16k").is_dir() else path for path in paths]
        if paths:
            found[part] = paths[0]
        elif part not in ("alignments", "english"):
            raise UserError(f"{corpus}: no {part}: {' or '.join(names)} is missing. Add it.")
    return found


def _captions(file: Path) -> Iterator[tuple[str, str]]:
    """Yield ``<image>.jpg#<number>`` and the caption of each line, with single blanks."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8. Save it as UTF-8.") from error
    for number, line in enumerate(lines, 1):
        fields = line.split()
        if not fields:
            continue
        image, _, digits = fields[0].rpartition("#")
        if not image or parse_count(digits) is None:
            raise UserError(f"{file}:{number}: not <image>#<number> <caption>. Correct the line.")
        yield fields[0], " ".join(fields[1:])


def _candidate(parts: dict[str, Path], split: str, key: str, text: str, english: str) -> Candidate | Skipped:
    """Return the utterance of a caption, or the reason why it cannot be used."""
    image, _, number = key.rpartition("#")
    stem = Path(image).stem
    if not text:
        return Skipped(key, str(parts[f"{split} captions"]), "empty caption")
    if problem := id_problem(stem):
        return Skipped(key, str(parts[f"{split} captions"]), problem)
    path = parts["images"] / image
    if not path.is_file():
        return Skipped(key, str(path), "missing photograph")
    wav = parts[f"{split} recordings"] / f"{SPEAKER}_{stem}_{number}.wav"
    clip = clip_caption(english) or text
    utterance = Utterance(f"{SPEAKER}-{stem}_{number}", wav, text, SPEAKER, stem, clip, LANGUAGE)
    return Candidate(utterance, path, split)


def _add_words(words: LabelSpool, utterance: Utterance, folder: Path) -> None:
    """Add the words of an utterance that has a TextGrid. A damaged file is logged: one of the published ones is."""
    file = folder / f"{utterance.id.removeprefix(f'{SPEAKER}-')}.TextGrid"
    if not file.is_file():
        return
    try:
        found = read_textgrid(file)
    except UserError as error:
        logger.warning("%s", error)
        return
    words.add(utterance.id, [part for word in found for part in timed_words(word.text.lower(), word.start, word.end)])
