"""Whole models from wherever they come: a checkpoint folder, a published ``.ckpt``, a repository of the hub."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechclip.checkpoint.folder import find_checkpoint, load_model, load_weights
from speechclip.common.errors import UserError, first_line
from speechclip.common.files import is_hub_id
from speechclip.config import ClipConfig, ModelConfig
from speechclip.convert.hubert import hubert_model
from speechclip.convert.reader import PublishedCheckpoint, read_published
from speechclip.convert.rows import match_rows
from speechclip.data.vocabulary import Vocabulary
from speechclip.model.encoders.clip import OpenClip, load_clip
from speechclip.model.encoders.transformers import WaveformEncoder, waveform_encoder
from speechclip.model.heads.factory import has_keywords
from speechclip.model.network import Dimensions, SpeechNetwork, build_network

#: The CLIP a published checkpoint was trained with, by the width of its subword embeddings.
CLIP_OF_WIDTH = {512: "ViT-B-32-quickgelu:openai", 768: "ViT-L-14-quickgelu:openai"}
SPEECH_ENCODER = "speech_encoder"  # folder in a converted checkpoint


def load_pretrained(path: str | Path, *, clip: str | None = None) -> SpeechNetwork:
    """A model with its frozen encoders, in eval mode.

    Args:
        path: a checkpoint folder, a published ``.ckpt``, or the id of a model on the hub (``owner/name``).
        clip: of a published checkpoint: where its CLIP is (see ``model.clip.path``); None for OpenAI's by name,
            empty for none (parallel head only).
    Raises:
        UserError: nothing there, damaged, or an encoder that cannot be found or is another.
    """
    if Path(path).is_file():
        return load_published(path, clip=clip)[0]
    if find_checkpoint(Path(path)) is None and not Path(path).exists() and is_hub_id(str(path)):
        return load_model(_from_hub(str(path).removeprefix("hf-hub:")))
    return load_model(path)


def _from_hub(name: str) -> Path:
    """The local copy of a repository of the hub. Raises UserError where it cannot be had."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name))
    except Exception as error:  # the hub's client raises many classes for one cause: it cannot be had
        raise UserError(
            f"{name}: no such checkpoint folder, and not to be had from the hub: {first_line(error)}"
        ) from error


def load_published(path: str | Path, *, clip: str | None = None) -> tuple[SpeechNetwork, PublishedCheckpoint]:
    """A published ``.ckpt`` as a model in eval mode, with the HuBERT inside the file; and what the file held.

    Raises:
        UserError: see :func:`speechclip.convert.reader.read_published`; a CLIP that is missing or another one.
    """
    published = read_published(path)
    width = int(published.table.shape[1])
    where = CLIP_OF_WIDTH.get(width) if clip is None else clip
    if where is None:
        raise UserError(f"{path}: subword embeddings of width {width} are of no published CLIP: name it with --clip")
    config = dataclasses.replace(published.config, clip=ClipConfig(where))
    tower, vocabulary = None, None
    if where:
        tower = load_clip(config.clip)
        _check_copy(published, tower)
        vocabulary = _vocabulary(published, tower)
    words = vocabulary if has_keywords(config.head.name) else None
    return _model(published, config, clip=tower, vocabulary=words), published


def load_published_states(path: str | Path) -> SpeechNetwork:
    """A published ``.ckpt`` for ``hidden_states`` alone, in eval mode: they need no CLIP, and none is looked for.

    Raises:
        UserError: see :func:`speechclip.convert.reader.read_published`.
    """
    published = read_published(path)
    table = published.table.float()  # rows of special tokens are not known without CLIP, and no keyword is read
    return _model(published, published.config, subwords=(table, torch.ones(len(table), dtype=torch.bool)))


def _model(published: PublishedCheckpoint, config: ModelConfig, **parts: Any) -> SpeechNetwork:
    """The model with the file's trained tensors and its HuBERT, in eval mode. parts: see :func:`build`."""
    encoder, state = _speech_encoder(published), published.state
    joint = int(published.clip["text_projection"].shape[1])
    dimensions = Dimensions(encoder.dim, len(state["weighted_sum.weights"]), joint)
    model = build_network(config, dimensions, speech_encoder=encoder, **parts)
    load_weights(model, state, published.source)
    return model.eval()


def _speech_encoder(published: PublishedCheckpoint) -> WaveformEncoder:
    model = hubert_model(published.hubert, {}, published.source)
    return waveform_encoder(model, published.source, "hubert", bool(published.config.speech_encoder.normalize))


def _check_copy(published: PublishedCheckpoint, clip: OpenClip) -> None:
    """The file's own CLIP has to be the one that is loaded; it was published in half precision."""
    loaded: dict[str, Tensor] = clip.model.state_dict()
    full = {} if published.full is None else {"token_embedding.weight": published.full}
    for name, value in (published.clip | full).items():
        if name not in loaded or loaded[name].shape != value.shape:
            raise UserError(
                f"{published.source}: its CLIP has {name} {list(value.shape)}, {clip.description['path']} not"
            )
        if not torch.equal(loaded[name].half().cpu(), value.half()):
            raise UserError(
                f"{published.source}: trained with another CLIP than {clip.description['path']}: {name} differs"
            )


def _vocabulary(published: PublishedCheckpoint, clip: OpenClip) -> Vocabulary:
    """The ids of the file's subword rows; how often each occurred is not in the file and stands as 0."""
    full = clip.subword_embeddings if published.full is None else published.full  # of one file: equal in every bit
    ids = match_rows(published.table, full, published.source)
    return Vocabulary(ids, (0,) * len(ids), tuple(clip.tokenizer.subword(token) for token in ids))


def converted_config(config: ModelConfig) -> ModelConfig:
    """The configuration of a converted checkpoint, whose HuBERT lies inside the folder."""
    encoder = config.speech_encoder
    return dataclasses.replace(config, speech_encoder=dataclasses.replace(encoder, path=SPEECH_ENCODER))


def save_speech_encoder(model: Any, normalize: bool, folder: Path) -> None:
    """Write a transformers folder that :func:`speechclip.model.encoders.transformers.load_speech_encoder` reads."""
    model.save_pretrained(folder, safe_serialization=True)
    settings = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "do_normalize": normalize, "sampling_rate": 16000}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings) + "\n", encoding="utf-8")
