"""SpokenCOCO: 123,000 photographs of COCO 2014 with five captions each, read by 2,353 speakers.

Photographs: Lin et al. 2014. Recordings: Hsu et al. 2021. Split: Karpathy and Fei-Fei 2015 (113,287 images for
training, 5,000 for dev, 5,000 with 25,031 utterances for test). The parts are in one folder, as they are published::

    train2014/ val2014/                                  photographs, here or in mscoco_img/ or images/
    SpokenCOCO/wavs/                                     recordings
    annotations/captions_{train,val}2014.json            COCO's captions, for the vocabulary (optional)
    SpokenCOCO/SpokenCOCO_ksplit_{train,val,test}.json   splits, there or in SpokenCOCO/ksplit/

Each JSON file has ``{"data": [{"image", "captions": [{"text", "speaker", "uttid", "wav"}]}]}``, or the unrolled form
with one ``"caption"`` per entry (``..._unrolled_karpathy.json``). Forms with ids of their own (``reassign_id``) hold
the same images and captions. Here ids come from the file names in every form.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from speechclip.common.errors import UserError
from speechclip.common.files import read_json
from speechclip.data.corpora.download import RemoteFile
from speechclip.data.corpora.preparation import (
    NO_SPLIT,
    SPLITS,
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

LIMITS = Limits(check_samples=False)  # only the headers of the 605,000 recordings are read
LICENCE = (
    "COCO 2014 (Lin et al. 2014): annotations CC BY 4.0, photographs under their Flickr licences; SpokenCOCO (Hsu et "
    "al. 2021): under the terms on its page"
)
PAGE = "https://groups.csail.mit.edu/sls/downloads/placesaudio/"
#: SPEECH-COCO speaks captions of COCO's val2014; most of these images are training images of SpokenCOCO.
MTEB_TASKS = frozenset(
    {
        "SpokenCOCOA2IRetrieval", "SpokenCOCOI2ARetrieval", "SpeechCocoA2IRetrieval", "SpeechCocoI2ARetrieval",
        "COCOModalEquivA2IHumanRetrieval", "COCOModalEquivI2AHumanRetrieval", "COCOModalEquivA2ITTSRetrieval",
        "COCOModalEquivI2ATTSRetrieval", "COCOModalEquivT2IRetrieval", "COCOModalEquivI2TRetrieval",
        "MSCOCOT2IRetrieval", "MSCOCOI2TRetrieval",
    }
)  # fmt: skip

_COCO = ("http://images.cocodataset.org", "https://s3.amazonaws.com/images.cocodataset.org")  # two names of one host
_DARKNET = "https://pjreddie.com/media/files"  # as scripts/get_coco_dataset.sh of pjreddie/darknet has it
#: COCO publishes no checksums: these are the same in several unrelated downloaders (LAVIS is one of them). No checksum
#: and no second host are known for SpokenCOCO's archive and its Karpathy split.
SOURCES = (
    RemoteFile(
        "train2014.zip", (*(f"{host}/zips/train2014.zip" for host in _COCO), f"{_DARKNET}/train2014.zip"),
        13_510_573_713, ("train2014",), unpacked=13_600_000_000, into="",
        checksum="md5:0da8c0bd3d6becc4dcb32757491aca88", about="COCO's training images of 2014, cocodataset.org",
    ),
    RemoteFile(
        "val2014.zip", (*(f"{host}/zips/val2014.zip" for host in _COCO), f"{_DARKNET}/val2014.zip"),
        6_645_013_297, ("val2014",), unpacked=6_700_000_000, into="",
        checksum="md5:a3d79f5ed8d289b7a7554ce06a5782b3", about="COCO's validation images of 2014, cocodataset.org",
    ),
    RemoteFile(
        "annotations_trainval2014.zip", tuple(f"{host}/annotations/annotations_trainval2014.zip" for host in _COCO),
        252_872_794, ("annotations/captions_train2014.json", "annotations/captions_val2014.json"),
        unpacked=830_000_000, into="", checksum="md5:0a379cfc70b0e71301e0f377548639bd",
        about="COCO's captions of 2014, cocodataset.org",
    ),
    RemoteFile(
        "SpokenCOCO.tar.gz", ("https://data.csail.mit.edu/placesaudio/SpokenCOCO.tar.gz",), 69_000_000_000,
        ("SpokenCOCO/wavs",), unpacked=75_000_000_000, into="", about="SpokenCOCO's recordings, Hsu et al. 2021",
    ),
    RemoteFile(
        "ksplit.tar.gz", ("https://huggingface.co/speechclip/models/resolve/main/ksplit.tar.gz",), 60_000_000,
        ("SpokenCOCO/ksplit",), unpacked=400_000_000, into="SpokenCOCO",
        about="SpokenCOCO's Karpathy split, SpokenCOCO_ksplit_{train,val,test}.json; the same split with word "
        "alignments, not tried here, is VG-HuBERT's karpathy_json.tar, "
        "https://www.cs.utexas.edu/~harwath/model_checkpoints/vg_hubert/karpathy_json.tar",
    ),
)  # fmt: skip

_PUBLISHED = {"train": "train", "dev": "val", "test": "test"}
_IMAGE_FOLDERS = ("", "mscoco_img", "images")


def prepare_spokencoco(corpus_dir: StrPath, data_dir: StrPath, limits: Limits = LIMITS) -> Summary:
    """Write ``data_dir/{train,dev,test}``, ``data_dir/captions.tsv`` and ``data_dir/skipped.tsv``.

    Utterance ids are ``<speaker>-<image number>_<caption number>`` with the numbers of COCO. If the ``uttid`` does not
    end in these numbers, or another utterance has the same id, the id is ``<speaker>-<uttid>``. Image ids are the
    photographs' file names without suffix, or their paths if two photographs have the same file name. ``text`` has the
    captions as they are published, ``text_clip`` and ``captions.tsv`` have :func:`clip_caption` of them.

    Args:
        corpus_dir: the folder with the parts.
        data_dir: folder of the data directories. All files are written, or none.
        limits: the limits.

    Raises:
        UserError: a part is missing or has another format, or too much would be skipped.
    """
    corpus = Path(corpus_dir)
    audio, images, files = find_parts(corpus)
    entries = [(split, file, *entry) for split, file in files.items() for entry in _entries(file)]
    if not entries:
        raise UserError(f"{corpus}: no utterance in the split files. Use the original files.")
    split_of: dict[str, str] = {}
    for split, file, image, _ in entries:
        if split_of.setdefault(image, split) != split:
            raise UserError(f"{file}: {image} is in the split {split_of[image]} as well. Remove it from one of them.")
    image_ids = make_image_ids(split_of)
    items = [
        _candidate(file, audio, images, image, image_ids[image], caption, split)
        for split, file, image, caption in entries
    ]
    written, unusable = _written_captions(corpus, {Path(image).name: split for image, split in split_of.items()})
    captions = written or [
        (split, clip_caption(caption["text"]))
        for split, _, _, caption in entries
        if caption_problem(caption.get("text")) is None
    ]
    unique = [*unusable, *_resolve_ids(items)]
    return write_corpus(corpus, Path(data_dir), unique, limits=limits, captions=captions)


def clip_caption(text: str) -> str:
    """Return a caption as SpeechCLIP's authors pass it to CLIP: in lower case. Nothing is removed."""
    return text.lower()


def find_parts(corpus: Path) -> tuple[Path, Path, dict[str, Path]]:
    """Find the parts of a corpus.

    Returns:
        The folder that holds ``wavs/``, the folder of the photographs, and the file of each split.

    Raises:
        UserError: a part is missing.
    """
    if not corpus.is_dir():
        raise UserError(f"{corpus}: no such corpus folder. Check the path.")
    audio = corpus / "SpokenCOCO" if (corpus / "SpokenCOCO").is_dir() else corpus
    images = _image_root(corpus)
    if not (audio / "wavs").is_dir():
        raise UserError(f"{corpus}: no recordings: no SpokenCOCO/wavs/ or wavs/. Add one of them.")
    return audio, images, {split: _split_file(audio, _PUBLISHED[split]) for split in SPLITS}


def _split_file(folder: Path, published: str) -> Path:
    """Return the plainest JSON file of a split.

    Args:
        folder: where to search.
        published: the published name of the split: train, val or test.

    Raises:
        UserError: no form of the file exists.
    """
    found = []
    for place in (folder, folder / "ksplit"):
        for name in sorted(os.listdir(place)) if place.is_dir() else []:
            words = name.removesuffix(".json").split("_")
            if name.endswith(".json") and published in words and {"ksplit", "karpathy"} & set(words):
                found.append((len(words), place / name))
    if not found:
        raise UserError(
            f"{folder}: no file of the Karpathy split for {published}: SpokenCOCO_ksplit_{published}.json, or with "
            "karpathy, unrolled or reassign_id in its name."
            " Add the file."
        )
    return min(found)[1]


def _image_root(corpus: Path) -> Path:
    """Return the folder that holds train2014/ and val2014/."""
    for name in _IMAGE_FOLDERS:
        if (corpus / name / "val2014").is_dir():
            return corpus / name
    raise UserError(
        f"{corpus}: no photographs: no val2014/ in it or in {', '.join(f'{n}/' for n in _IMAGE_FOLDERS if n)}."
        " Add the folder."
    )


def _entries(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield image path and caption of every utterance of a split, in the order of the file."""
    data = read_json(file).get("data")
    if not isinstance(data, list):
        raise UserError(f"{file}: no list under 'data'. Use the original file.")
    for number, entry in enumerate(data):
        captions = (
            entry.get("captions", [entry["caption"]] if "caption" in entry else None)
            if isinstance(entry, dict)
            else None
        )
        if not isinstance(captions, list) or not isinstance(entry.get("image"), str):
            raise UserError(
                f"{file}: entry {number}: needs 'image' and 'captions' or 'caption'. Use the original file."
            )
        for caption in captions:
            if not isinstance(caption, dict):
                raise UserError(f"{file}: entry {number}: a caption is not a JSON object. Use the original file.")
            yield entry["image"], caption


def _written_captions(corpus: Path, split_of: Mapping[str, str]) -> tuple[list[tuple[str, str]], list[Skipped]]:
    """Read COCO's own captions.

    Args:
        corpus: the folder with the parts.
        split_of: split of each photograph by its file name.

    Returns:
        Split and text of every caption, and the unusable captions. Both are empty if a file is missing.
    """
    found: list[tuple[str, str]] = []
    skipped: list[Skipped] = []
    for name in ("train2014", "val2014"):
        file = corpus / "annotations" / f"captions_{name}.json"
        if not file.is_file():
            return [], []
        annotations = read_json(file).get("annotations")
        if not isinstance(annotations, list):
            raise UserError(f"{file}: not COCO's captions: no list under 'annotations'. Use the original file.")
        for number, item in enumerate(annotations):
            key = item.get("image_id") if isinstance(item, dict) else None
            if not isinstance(key, int) or "caption" not in item:
                raise UserError(
                    f"{file}: not COCO's captions: annotation {number} needs 'image_id' and 'caption'."
                    " Use the original file."
                )
            if problem := caption_problem(item["caption"]):
                skipped.append(Skipped(f"annotation {number} of image {key}", str(file), problem))
            else:
                image = f"COCO_{name}_{key:012d}.jpg"
                found.append((split_of.get(image, NO_SPLIT), clip_caption(item["caption"])))
    return found, skipped


def _candidate(
    file: Path, audio: Path, images: Path, image: str, image_id: str, caption: Mapping[str, Any], split: str
) -> Candidate | Skipped:
    """Return the utterance of an entry, with ``<speaker>-<uttid>`` as its id, or the reason why it cannot be used."""
    uttid = caption.get("uttid")
    for key in ("speaker", "uttid", "wav"):
        value = caption.get(key)
        if not isinstance(value, str) or not value.strip():
            return Skipped(str(uttid or image), str(file), f"caption without {key}")
    if problem := caption_problem(caption.get("text")):
        return Skipped(str(uttid), str(file), problem)
    speaker = caption["speaker"].strip()
    key = f"{speaker}-{str(uttid).strip()}"
    if problem := id_problem(key, speaker, image_id):
        return Skipped(key, str(file), problem)
    path = images / image
    if not os.path.exists(path):
        return Skipped(key, str(path), "missing photograph")
    text = " ".join(caption["text"].split())
    return Candidate(Utterance(key, audio / caption["wav"], text, speaker, image_id, clip_caption(text)), path, split)


def _resolve_ids(items: list[Candidate | Skipped]) -> list[Candidate | Skipped]:
    """Give every utterance the shortest id that no other recording has, and skip repeats.

    The forms are ``<speaker>-<image number>_<caption number>``, ``<speaker>-<uttid>`` and
    ``<speaker>-<image id>_<uttid>``.
    """
    recordings: dict[str, set[Path]] = {}
    for item in items:
        if isinstance(item, Candidate):
            for key in {_short_id(item.utterance), item.utterance.id}:
                recordings.setdefault(key, set()).add(item.utterance.wav)
    unique: list[Candidate] = []
    for item in items:
        if isinstance(item, Candidate):
            short, key = _short_id(item.utterance), item.utterance.id
            if len(recordings[short]) == 1:
                key = short
            elif len(recordings[key]) > 1:
                speaker = item.utterance.speaker
                key = f"{speaker}-{item.utterance.image_id}_{key.removeprefix(f'{speaker}-')}"
            unique.append(replace(item, utterance=replace(item.utterance, id=key)))
    skipped = [item for item in items if isinstance(item, Skipped)]
    return [*skipped, *without_repeats(unique, "listed twice")]


def _short_id(utterance: Utterance) -> str:
    """Return ``<speaker>-<number>_<number>`` from a ``uttid`` that ends in two numbers, else the id itself."""
    parts = utterance.id.removeprefix(f"{utterance.speaker}-").rsplit("_", 2)
    if len(parts) != 3 or not all(part.isdecimal() for part in parts[1:]):
        return utterance.id
    return f"{utterance.speaker}-{parts[1]}_{parts[2]}"
