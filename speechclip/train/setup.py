"""Builds the parts of a training run from a configuration, data directories and extracted features."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from speechclip.checkpoint.folder import WEIGHTS, read_checkpoint
from speechclip.common.errors import MissingFileError, UserError
from speechclip.common.files import file_sha256
from speechclip.config import Config
from speechclip.data.augmented import AugmentedStore, AugmentedWaves
from speechclip.data.dataset import SpeechSource, Split, StoreSource, WaveSource
from speechclip.data.embeddings import embeddings_dim, embeddings_source
from speechclip.data.features import FeatureStore, feature_folder
from speechclip.data.kaldi import DataDir
from speechclip.data.regions import FOLDER as REGIONS
from speechclip.data.regions import RegionStore
from speechclip.data.vocabulary import Vocabulary
from speechclip.model.encoders.clip import load_clip
from speechclip.model.encoders.factory import load_speech_encoder
from speechclip.model.encoders.transformers import load_transformers_model
from speechclip.model.heads.factory import has_keywords
from speechclip.model.heads.fast_vgs import FAST_VGS, check_regions, holds_transformer, region_kind
from speechclip.model.heads.reranker import RERANKERS
from speechclip.model.network import Dimensions, SpeechNetwork, build_network
from speechclip.train.rerank import RerankTrainer, load_coarse, with_coarse_head
from speechclip.train.trainer import Trainer, TrainingData


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
        store = FeatureStore(feature_folder(dump, settings.speech_encoder.part))
        width, states = store.dim, len(layers) if layers is not None else len(store.layers)
    if has_keywords(settings.head.name):
        clip = load_clip(settings.clip)
        words = Vocabulary.load(vocabulary)
    joint = embeddings_dim(_embeddings(dump))
    if clip is not None and clip.joint_dim != joint:
        raise UserError(
            f"{dump}/image_embeddings.npz: {joint} dimensions, but {settings.clip.path} has {clip.joint_dim}. "
            "Extract the CLIP embeddings with this CLIP model."
        )
    if settings.head.name == FAST_VGS:
        joint = settings.head.fast_vgs.dim  # its own joint space
    dimensions = Dimensions(speech=width, states=states, joint=joint)
    model = build_network(settings, dimensions, speech_encoder=speech_encoder, clip=clip, vocabulary=words)
    if holds_transformer(settings):
        path = settings.speech_encoder.path
        model.head.start_from(load_transformers_model(path), path)
    return model


def prepare_training(
    config: Config, data_root: Path, dump_root: Path, vocabulary: str, coarse: str = ""
) -> tuple[Config, SpeechNetwork, TrainingData]:
    """Build the network and load the data of a training run.

    Args:
        config: the wanted configuration.
        data_root: folder with the data directories train/ and dev/.
        dump_root: folder with the features and embeddings of each.
        vocabulary: see :func:`training_model`.
        coarse: the checkpoint that a reranker is trained on; empty for other heads.

    Returns:
        The configuration of the run, the network and the data. A reranker takes its encoders and its coarse head from
        ``coarse``.

    Raises:
        UserError: a file is missing or does not fit.
    """
    is_reranker = config.model.head.name in RERANKERS.values()
    if is_reranker and not coarse:
        raise UserError("--coarse: is not set. A reranker needs the checkpoint of a trained parallel or hybrid head.")
    if coarse and not is_reranker:
        raise UserError(f"--coarse: a {config.model.head.name} head has no coarse checkpoint. Remove the option.")
    if is_reranker:
        config = with_coarse_head(config, coarse, RegionStore(dump_root / "train" / REGIONS))
    model = training_model(config, dump_root / "train", vocabulary)
    if is_reranker:
        load_coarse(model, coarse)
    return config, model, training_data(config, data_root, dump_root)


def make_trainer(
    config: Config, model: SpeechNetwork, data: TrainingData, out: Path, *, dump_root: Path, coarse: str = "",
    **options: Any,
) -> Trainer:  # fmt: skip
    """Return the trainer of :func:`prepare_training`'s result. ``options`` are those of :class:`Trainer`."""
    if not coarse:
        return Trainer(config, model, data, out, **options)
    stores = RegionStore(dump_root / "train" / REGIONS), RegionStore(dump_root / "dev" / REGIONS)
    for store, split in zip(stores, (data.train, data.dev)):
        store.check_images(split.image_ids)
    folder, _, _ = read_checkpoint(coarse, strict=True)
    weights = file_sha256(folder / WEIGHTS)[:16]
    origin = {**options.pop("origin"), "coarse": coarse}
    return RerankTrainer(config, model, data, out, regions=stores, coarse=weights, origin=origin, **options)


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
    regions = region_kind(config.model)
    train, dev = (Split.load(data / name, dump / name, config.data.languages, regions) for name in ("train", "dev"))
    for split in (train, dev):
        check_regions(config.model, split.regions)
    return TrainingData(
        train, dev, training_source(config, train.data, dump / "train"), speech_source(config, dev.data, dump / "dev")
    )


def frozen_parts(data: TrainingData, dump: Path) -> dict[str, dict[str, str]]:
    """Return the descriptions of the frozen encoders whose stored outputs training reads."""
    parts = {"clip": embeddings_source(dump / "image_embeddings.npz")}
    if isinstance(data.train_speech, StoreSource):
        parts["speech_encoder"] = data.train_speech.store.encoder
    if data.train.regions is not None:
        parts["regions"] = data.train.regions.source
    return parts


def speech_source(config: Config, data: DataDir, dump: Path) -> SpeechSource:
    """Open the speech of a data directory: its feature store in ``dump``, or waveforms if ``data.feats`` is online."""
    if config.data.feats == "online":
        return WaveSource(data)
    folder = feature_folder(dump, config.model.speech_encoder.part)
    return StoreSource(folder, data.ids, config.model.speech_encoder.layers)


def training_source(config: Config, data: DataDir, dump: Path) -> SpeechSource:
    """Open the training speech as :func:`speech_source` does, with ``data.augment`` if it is switched on."""
    augment = config.data.augment
    if not augment.probability:
        return speech_source(config, data, dump)
    if config.data.feats == "online":
        return AugmentedWaves(data, augment)
    return AugmentedStore(dump, data, augment, config.model.speech_encoder.layers)
