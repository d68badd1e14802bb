"""Tasks of mteb for speech and images: loaded by name, or made from a data directory (extra ``mteb``).

Recordings and images stay undecoded in the data sets. The wrapper decodes them as the recipes do, so that neither
torchcodec nor FFmpeg is needed, and EXIF orientation is applied.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import mteb
from datasets import Dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.retrieval_dataset_loaders import RetrievalDatasetLoader
from mteb.abstasks.task_metadata import TaskMetadata

from speechclip.common.errors import UserError, first_line
from speechclip.common.provenance import fingerprint
from speechclip.data.kaldi import DataDir

A2I, I2A = "a2i", "i2a"
DIRECTIONS = {A2I: "speech->image", I2A: "image->speech"}  # as retrieval.json names them
FLICKR_TASKS = ("FlickrAudioToImageRetrieval", "FlickrImageToAudioRetrieval")
logger = logging.getLogger(__name__)


class DataDirTask(AbsTaskRetrieval):
    """Retrieval between the utterances and the images of a data directory. :func:`data_dir_tasks` makes subclasses."""

    directory: DataDir
    data_loaded: bool

    def load_data(self, **kwargs: Any) -> None:
        """Fill ``dataset``. The paths of the files are stored, not their content."""
        if self.data_loaded:
            return
        utterances, images = self.directory.utterances, self.directory.images
        speech = Dataset.from_dict(
            {"id": [item.id for item in utterances], "audio": [str(item.wav.resolve()) for item in utterances]}
        )
        pictures = Dataset.from_dict({"id": list(images), "image": [str(path.resolve()) for path in images.values()]})
        speech = undecoded(speech.cast_column("audio", datasets.Audio()))
        pictures = undecoded(pictures.cast_column("image", datasets.Image()))
        relevant: dict[str, dict[str, int]] = {}
        for item in utterances:
            query, document = (item.id, item.image_id) if self.metadata.category == A2I else (item.image_id, item.id)
            relevant.setdefault(query, {})[document] = 1
        queries, corpus = (speech, pictures) if self.metadata.category == A2I else (pictures, speech)
        split = {"queries": queries, "corpus": corpus, "relevant_docs": relevant, "top_ranked": None}
        self.dataset = {"default": {self.metadata.eval_splits[0]: split}}
        self.data_loaded = True


def data_dir_tasks(path: str | Path) -> list[AbsTaskRetrieval]:
    """Return two tasks, speech -> image and image -> speech, made from a data directory.

    Their ``hit_rate_at_k`` is R@k of retrieval.json. The names are those of the recipe and the split, such as
    "MiniTestA2IRetrieval".

    Raises:
        UserError: the data directory is missing or invalid.
    """
    directory = DataDir.load(path)
    place = Path(path).resolve()
    recipe = place.parent.parent.name if place.parent.name == "data" else place.parent.name
    title = "".join(word.capitalize() for word in f"{recipe} {place.name}".replace("_", " ").split())
    tasks = []
    for category, direction in DIRECTIONS.items():
        name = f"{''.join(letter for letter in title if letter.isalnum())}{category.upper()}Retrieval"
        modalities = ["audio", "image"] if category == A2I else ["image", "audio"]
        metadata = TaskMetadata(
            name=name,
            description=f"{direction} on a data directory of a SpeechCLIP recipe: {len(directory.utterances)} "
            f"utterances, {len(directory.images)} images.",
            dataset={"path": f"{recipe}/{place.name}", "revision": fingerprint(place)},
            type="Any2AnyRetrieval",
            category=category,
            modalities=modalities,
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="hit_rate_at_10",
            task_subtypes=["Cross-Modal Retrieval"],
        )
        tasks.append(type(name, (DataDirTask,), {"metadata": metadata, "directory": directory})())
    return tasks


def named_tasks(names: Sequence[str]) -> list[Any]:
    """Return tasks of mteb.

    Raises:
        UserError: mteb has no task with a name. The message lists similar ones.
    """
    tasks = []
    for name in names:
        try:
            tasks.append(mteb.get_task(name))
        except KeyError as error:
            raise UserError(
                f"--tasks: {name!r} is not a task of mteb {mteb.__version__}: {first_line(error)}"
            ) from error
    return tasks


def undecoded(dataset: Dataset) -> Dataset:
    """Return a data set whose recordings and images are dictionaries of ``bytes`` and ``path``."""
    for name, feature in dataset.features.items():
        if isinstance(feature, (datasets.Audio, datasets.Image)):
            dataset = dataset.cast_column(name, type(feature)(decode=False))
    return dataset


class _UndecodedLoader(RetrievalDatasetLoader):
    """mteb's loader reads the first item of each part. Without decoding, it needs no torchcodec."""

    def _load_dataset_split(self, config: str, num_proc: int | None) -> Dataset:
        return undecoded(super()._load_dataset_split(config, num_proc))


def load_undecoded(task: Any) -> None:
    """Load the data of a retrieval task without decoding its recordings and images. Other tasks load as usual.

    Raises:
        UserError: the data cannot be loaded.
    """
    if task.data_loaded:
        return
    try:
        if type(task).load_data is AbsTaskRetrieval.load_data and not task.metadata.is_multilingual:
            place = task.metadata.dataset
            task.dataset = {"default": {
                split: _UndecodedLoader(place["path"], place["revision"], split=split, config="default").load()
                for split in task.eval_splits
            }}  # fmt: skip
            task.dataset_transform()
            task.data_loaded = True
        else:
            task.load_data()
    except UserError:
        raise
    except Exception as error:  # datasets, the hub's client and the decoders raise many classes
        raise UserError(
            f"{task.metadata.name}: its data cannot be loaded: {first_line(error)}. Check the connection to the hub; a "
            "decoding error needs FFmpeg and torchcodec."
        ) from error
    if isinstance(task, AbsTaskRetrieval):
        for splits in (task.dataset or {}).values():
            for split in splits.values():
                for part in ("corpus", "queries"):
                    split[part] = undecoded(split[part])


def caveats(task: Any, training_datasets: set[str] | None) -> list[str]:
    """Return sentences that a reader of a task's scores needs.

    Args:
        task: the task.
        training_datasets: the tasks of mteb with training data of the model; None if they are unknown.
    """
    name, found = task.metadata.name, []
    trained = name in (training_datasets or set())
    if name in FLICKR_TASKS:
        found.append(
            f"{name} uses all 8,091 images of Flickr8k. 6,000 of them are training images of the papers"
            + (", and of this model" if trained else "")
            + ". Its scores are not those of the papers' test set of 1,000 images."
        )
    elif trained:
        found.append(f"{name}: the model was trained on another split of these data, or on some of these images.")
    if task.metadata.category == I2A:
        found.append(
            f"{name}: recall_at_k divides by the number of recordings of an image, usually five. The papers' R@k is "
            "hit_rate_at_k."
        )
    return found
