"""Puts together what stage scripts work on: models and speech sources from a configuration and stage 2's files."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from speechclip.config import Config, load
from speechclip.data.dataset import SpeechSource, Split, StoreSource, WaveSource
from speechclip.data.embeddings import embeddings_source, load_embeddings
from speechclip.data.features import FeatureStore
from speechclip.data.kaldi import DataDir
from speechclip.data.vocabulary import Vocabulary
from speechclip.device import pick_device
from speechclip.errors import UserError
from speechclip.model import Dimensions, SpeechCLIP, build, reduced_table

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from speechclip.eval.gold import Word
    from speechclip.eval.neighbours import Subwords
    from speechclip.train.loop import TrainingData


def launch(precision: str) -> Fabric:
    """Fabric on the GPU if there is one, else the CPU; one process, or those that torchrun started."""
    from lightning_fabric import Fabric

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
    return fabric


def training_model(config: Config, dump: Path, vocabulary: str) -> SpeechCLIP:
    """A fresh model for training: only those frozen parts are loaded that the training step runs.

    Args:
        dump: stage 2's folder of the training split. vocabulary: reduced, a file, for a head with keywords.
    """
    from speechclip.encoders.clip import load_clip
    from speechclip.encoders.speech import load_speech_encoder

    settings = config.model
    speech_encoder, clip, words = None, None, None
    layers = settings.speech_encoder.layers
    if config.data.feats == "online":
        speech_encoder = load_speech_encoder(settings.speech_encoder)
        width, states = speech_encoder.dim, len(layers) if layers is not None else speech_encoder.num_states
    else:
        store = FeatureStore(dump)
        width, states = store.dim, len(layers) if layers is not None else len(store.layers)
    if settings.head.has_keywords:
        clip = load_clip(settings.clip)
        words = Vocabulary.load(vocabulary)
    joint = int(load_embeddings(_embeddings(dump))[1].shape[1])
    if clip is not None and clip.joint_dim != joint:
        raise UserError(f"{dump}/image_embeddings.npz: {joint} dimensions, {settings.clip.path} has {clip.joint_dim}")
    dimensions = Dimensions(speech=width, states=states, joint=joint)
    return build(settings, dimensions, speech_encoder=speech_encoder, clip=clip, vocabulary=words)


def _embeddings(dump: Path) -> Path:
    path = dump / "image_embeddings.npz"
    if not path.is_file():
        raise UserError(f"{path}: no such file; stage 2 makes it")
    return path


def training_data(config: Config, data: Path, dump: Path) -> TrainingData:
    """The train and dev splits with their embeddings and speech."""
    from speechclip.train.loop import TrainingData

    train, dev = (Split.load(data / name, dump / name) for name in ("train", "dev"))
    return TrainingData(
        train, dev, speech_source(config, train.data, dump / "train"), speech_source(config, dev.data, dump / "dev")
    )


def frozen_parts(data: TrainingData, dump: Path) -> dict[str, dict[str, str]]:
    """Descriptions of the frozen encoders whose stored outputs are trained on."""
    parts = {"clip": embeddings_source(dump / "image_embeddings.npz")}
    if isinstance(data.train_speech, StoreSource):
        parts["speech_encoder"] = data.train_speech.store.encoder
    return parts


def speech_source(config: Config, data: DataDir, dump: Path) -> SpeechSource:
    """Speech of a data directory: from the feature store in ``dump``, or the waveforms, as ``data.feats`` says."""
    if config.data.feats == "online":
        return WaveSource(data)
    return StoreSource(dump, [utterance.id for utterance in data.utterances], config.model.speech_encoder.layers)


def scoring(
    checkpoint: str, data: str, dump: str, overrides: Sequence[str] = ()
) -> tuple[SpeechCLIP, Config, Split, SpeechSource]:
    """A trained model, on a GPU where there is one, its configuration and the split to score it on.

    Stored features are used where there are any and the checkpoint was trained on stored ones; else the speech encoder
    is loaded and runs now. CLIP is loaded only where the head needs its text transformer.

    Args:
        overrides: ``--eval.KEY VALUE`` words, which change the configuration that is returned.
    Raises:
        UserError: among others, stored features of another encoder than the checkpoint's.
    """
    from speechclip.checkpoint import SETTINGS, load_model, read_checkpoint

    # a score of the checkpoint before would not be this one's
    folder, config, origin = read_checkpoint(checkpoint, strict=True)
    if overrides:
        config = load([folder / SETTINGS], overrides)
    stored = config.data.feats == "dump" and (Path(dump) / "feats.scp").is_file()
    model = load_model(folder, with_speech_encoder=not stored, with_clip=False).to(pick_device())
    split = Split.load(data, dump)
    if split.images.shape[1] != model.dimensions.joint:
        raise UserError(
            f"{dump}/image_embeddings.npz: {split.images.shape[1]} dimensions, {checkpoint} has "
            f"{model.dimensions.joint}: a checkpoint for other dimensions"
        )
    embedded_by = embeddings_source(Path(dump) / "image_embeddings.npz").get("weights")
    if embedded_by and embedded_by != origin.get("encoders", {}).get("clip", {}).get("weights", embedded_by):
        raise UserError(f"{dump}/image_embeddings.npz: made by another CLIP than {checkpoint} was trained with")
    if not stored:
        return model, config, split, WaveSource(split.data)
    source = StoreSource(dump, split.ids, config.model.speech_encoder.layers)
    if (source.dim, source.num_states) != (model.dimensions.speech, model.dimensions.states):
        raise UserError(
            f"{dump}/feats.scp: {source.num_states} states of {source.dim} dimensions, {checkpoint} wants "
            f"{model.dimensions.states} of {model.dimensions.speech}: a checkpoint for other dimensions"
        )
    trained_on = origin.get("encoders", {}).get("speech_encoder", {})
    for key in ("weights", "normalize", "window_seconds"):
        if trained_on.get(key) != source.store.encoder.get(key) and trained_on:
            raise UserError(
                f"{dump}/feats.scp: made by another speech encoder than {checkpoint} was trained with ({key} differs)"
            )
    return model, config, split, source


def result_provenance(checkpoint: str, data: str) -> dict[str, Any]:
    """Where a score comes from: this command, and the training run's command, seed, commit and cost."""
    from speechclip.checkpoint import provenance, read_checkpoint

    _, config, trained = read_checkpoint(checkpoint)
    now = provenance(command=None, seed=trained["seed"], data=[Path(data)])
    keys = ("command", "recipe_command", "commit", "trained", "total", "train_seconds", "step", "dev_mean_R@10")
    training = {key: trained[key] for key in keys if key in trained}
    named: dict[str, str] = {"head": config.model.head.name}
    if "converted_from" in trained:  # a published checkpoint, whose folder's name tells nothing of this kind
        width = trained["dimensions"]["speech"]
        size = {768: "base", 1024: "large"}.get(width, f"d{width}")
        named |= {"model": size, "tag": "published"}
    return {**now, **named, "checkpoint": checkpoint, "training": training}


@dataclass(frozen=True)
class KeywordGold:
    """What keywords are scored against.

    subwords: the table. content: each utterance's gold ids; with_special: those of its padded token sequence, encoded
    again as the published code does. words: of each caption. train_counts: training utterances a subword occurs in.
    strings: id -> subword. encode: a text's ids.
    """

    subwords: Subwords
    content: list[set[int]]
    with_special: list[set[int]]
    words: list[list[Word]]
    train_counts: dict[int, int]
    strings: dict[int, str]
    encode: Callable[[str], list[int]]


def keyword_gold(model: SpeechCLIP, captions: list[str], train_captions: list[str]) -> KeywordGold:
    """Gold sets of captions for a model with keywords, and the counts behind the frequency prior."""
    from speechclip.encoders.tokens import join_subwords, surround
    from speechclip.eval.gold import Word, count_utterances
    from speechclip.eval.neighbours import Subwords
    from speechclip.eval.stopwords import stop_word_ids

    clip, vocabulary = model.clip, model.vocabulary
    assert clip is not None and vocabulary is not None
    tokenizer = clip.tokenizer
    rows = [tokenizer.encode(caption)[: clip.context_length - 2] for caption in captions]
    strings = dict(zip(vocabulary.ids, vocabulary.subwords))
    special = frozenset({tokenizer.pad, tokenizer.sot, tokenizer.eot})
    table, _ = reduced_table(clip, vocabulary)
    subwords = Subwords(table.cpu().numpy(), np.array(vocabulary.ids), special, frozenset(stop_word_ids(strings)))
    train = [set(tokenizer.encode(caption)[: clip.context_length - 2]) for caption in train_captions]
    spelt = {identity: tokenizer.subword(identity) for identity in {identity for row in rows for identity in row}}
    words = [
        [Word(text, tuple(row[at] for at in places)) for text, places in join_subwords([spelt[i] for i in row])]
        for row in rows
    ]
    return KeywordGold(
        subwords,
        [set(row) for row in rows],
        [set(tokenizer.encode_again(surround(tokenizer, row, clip.context_length))) for row in rows],
        words,
        dict(count_utterances(train)),
        spelt | strings,
        tokenizer.encode,
    )
