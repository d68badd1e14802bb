"""Builds the parts of a training run from a configuration, data directories and extracted features."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from lightning_fabric import Fabric

from speechclip.common.errors import MissingFileError, UserError
from speechclip.config import Config
from speechclip.data.augmented import AugmentedStore, AugmentedWaves
from speechclip.data.dataset import SpeechSource, Split, StoreSource, WaveSource
from speechclip.data.embeddings import embeddings_source, load_embeddings
from speechclip.data.features import FeatureStore
from speechclip.data.kaldi import DataDir
from speechclip.data.vocabulary import Vocabulary
from speechclip.model.encoders.clip import load_clip
from speechclip.model.encoders.factory import load_speech_encoder
from speechclip.model.heads.factory import has_keywords
from speechclip.model.network import Dimensions, SpeechNetwork, build_network
from speechclip.train.trainer import TrainingData


def launch(precision: str) -> Fabric:
    """Launch Fabric on the GPUs if there are any, else on the CPU, with one process or those that torchrun started."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    fabric = Fabric(
        accelerator="auto",
        devices=local,
        num_nodes=max(1, world // local),
        strategy="ddp" if world > 1 else "auto",
        precision=precision,  # type: ignore[arg-type]
    )
    fabric.launch()
    package = logging.getLogger("speechclip")
    if world > 1 and package.handlers:  # torch.distributed adds a handler to the root logger: lines would appear twice
        package.propagate = False
    return fabric


def training_model(config: Config, dump: Path, vocabulary: str) -> SpeechNetwork:
    """Build a fresh model for training. Only the frozen parts that a training step runs are loaded.

    Args:
        config: the whole configuration.
        dump: the folder with the features and embeddings of the training split.
        vocabulary: the file of the reduced vocabulary; only a head with keywords reads it.

    Raises:
        UserError: an encoder, the features, the embeddings or the vocabulary is missing, or their dimensions differ.
    """
    settings = config.model
    speech_encoder, clip, words = None, None, None
    layers = settings.speech_encoder.layers
    if config.data.feats == "online":
        speech_encoder = load_speech_encoder(settings.speech_encoder)
        width, states = speech_encoder.dim, len(layers) if layers is not None else speech_encoder.num_states
    else:
        store = FeatureStore(dump)
        width, states = store.dim, len(layers) if layers is not None else len(store.layers)
    if has_keywords(settings.head.name):
        clip = load_clip(settings.clip)
        words = Vocabulary.load(vocabulary)
    joint = int(load_embeddings(_embeddings(dump))[1].shape[1])
    if clip is not None and clip.joint_dim != joint:
        raise UserError(
            f"{dump}/image_embeddings.npz: {joint} dimensions, but {settings.clip.path} has {clip.joint_dim}. "
            "Extract the CLIP embeddings with this CLIP model."
        )
    dimensions = Dimensions(speech=width, states=states, joint=joint)
    return build_network(settings, dimensions, speech_encoder=speech_encoder, clip=clip, vocabulary=words)


def _embeddings(dump: Path) -> Path:
    path = dump / "image_embeddings.npz"
    if not path.is_file():
        raise MissingFileError(path)
    return path


def training_data(config: Config, data: Path, dump: Path) -> TrainingData:
    """Load the train and dev splits with their embeddings and speech.

    Args:
        config: decides whether speech is features or waveforms.
        data: the folder with the data directories train/ and dev/.
        dump: the folder with the features and embeddings of each.
    """
    train, dev = (Split.load(data / name, dump / name, config.data.languages) for name in ("train", "dev"))
    return TrainingData(
        train, dev, training_source(config, train.data, dump / "train"), speech_source(config, dev.data, dump / "dev")
    )


def frozen_parts(data: TrainingData, dump: Path) -> dict[str, dict[str, str]]:
    """Return the descriptions of the frozen encoders whose stored outputs training reads."""
    parts = {"clip": embeddings_source(dump / "image_embeddings.npz")}
    if isinstance(data.train_speech, StoreSource):
        parts["speech_encoder"] = data.train_speech.store.encoder
    return parts


def speech_source(config: Config, data: DataDir, dump: Path) -> SpeechSource:
    """Open the speech of a data directory: its feature store in ``dump``, or waveforms if ``data.feats`` is online."""
    if config.data.feats == "online":
        return WaveSource(data)
    return StoreSource(dump, [utterance.id for utterance in data.utterances], config.model.speech_encoder.layers)


def training_source(config: Config, data: DataDir, dump: Path) -> SpeechSource:
    """Open the training speech as :func:`speech_source` does, with ``data.augment`` if it is switched on."""
    augment = config.data.augment
    if not augment.probability:
        return speech_source(config, data, dump)
    if config.data.feats == "online":
        return AugmentedWaves(data, augment)
    return AugmentedStore(dump, data, augment, config.model.speech_encoder.layers)
