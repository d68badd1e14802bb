"""Whole models by name, path or hub id: published models, checkpoint folders, ``.ckpt`` files, hub repositories."""

from __future__ import annotations

import dataclasses
import logging
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechclip.checkpoint.folder import WEIGHTS, find_checkpoint, load_model, load_weights
from speechclip.checkpoint.published import (
    MANUAL_MODELS,
    PREFIX,
    PublishedModel,
    fetch_published,
    find_published,
    manual_file,
)
from speechclip.common.constants import PREPROCESSOR_CONFIG, SAMPLE_RATE
from speechclip.common.errors import MissingFileError, UserError, first_line
from speechclip.common.files import is_hub_id, write_json
from speechclip.config import ClipConfig, ModelConfig
from speechclip.convert.fast_vgs import FastVgsCheckpoint, is_fast_vgs, read_fast_vgs
from speechclip.convert.hubert import convolutions_model, hubert_model
from speechclip.convert.reader import PublishedCheckpoint, read_published
from speechclip.convert.rows import match_rows
from speechclip.convert.torchfile import read_torch_file
from speechclip.data.vocabulary import Vocabulary
from speechclip.model.encoders.clip import OpenClip, load_clip
from speechclip.model.encoders.front_end import front_end_of
from speechclip.model.encoders.transformers import WaveformEncoder, waveform_encoder
from speechclip.model.heads.factory import has_keywords
from speechclip.model.network import Dimensions, SpeechNetwork, build_network

#: The CLIP that a published checkpoint was trained with, by the width of its subword embeddings.
CLIP_OF_WIDTH = {512: "ViT-B-32-quickgelu:openai", 768: "ViT-L-14-quickgelu:openai"}
SPEECH_ENCODER = "speech_encoder"  # folder in a converted checkpoint
MINI = "mini"  # name of the model of the mini recipe
_BAR_WIDTH = 30  # characters
logger = logging.getLogger(__name__)


def load_pretrained(path: str | Path, *, clip: str | None = None) -> SpeechNetwork:
    """Load a model with its frozen encoders, in eval mode.

    Args:
        path: a checkpoint folder, a published ``.ckpt``, the name of a published model, "mini", or the id of a model on
            the hub (``owner/name``). A file or a checkpoint folder with this name wins.
        clip: path of the CLIP of a published checkpoint (see ``model.clip.path``); None for OpenAI's by name, "" for
            none (parallel head only).

    Raises:
        UserError: the checkpoint is missing or damaged, or cannot be downloaded.
        UserError: an encoder is missing or has other weights.
    """
    name = str(path)
    if find_checkpoint(Path(path)) is not None:
        return load_model(path)
    if file := published_file(path):
        return load_published(file, clip=clip)[0]
    if name == MINI:
        return load_model(mini_folder())
    if not Path(path).exists():
        if is_hub_id(name):
            return load_model(_download_from_hub(name.removeprefix("hf-hub:")))
        if not Path(path).parent.name and not name.startswith("."):
            raise UserError(
                f"{name}: neither a checkpoint folder nor a published model. `speechclip models` lists the models."
            )
    return load_model(path)


def mini_folder() -> Path:
    """Return the checkpoint folder of the mini recipe's model.

    An installed wheel has it at ``<package>/mini/hybrid``, a checkout at ``egs/mini/models/hybrid``. The folders
    ``hubert`` and ``clip`` next to it hold its encoders.

    Raises:
        MissingFileError: the folder is missing or holds no weights.
    """
    package = Path(__file__).resolve().parents[1]
    installed, checkout = package / "mini" / "hybrid", package.parent / "egs" / "mini" / "models" / "hybrid"
    folder = installed if installed.is_dir() else checkout
    if not (folder / WEIGHTS).is_file():
        raise MissingFileError(folder / WEIGHTS)
    return folder


def published_file(path: str | Path) -> Path | None:
    """Return the file of a published checkpoint, or None if the path is neither a file nor a published name.

    Args:
        path: the file, or the name of a published model, which is downloaded.

    Raises:
        UserError: the file cannot be downloaded.
    """
    if Path(path).is_file():
        return Path(path)
    if str(path).removeprefix(PREFIX) in MANUAL_MODELS:
        return manual_file(str(path))
    model = find_published(str(path))
    return None if model is None else download_published(model)


def download_published(model: PublishedModel) -> Path:
    """Return the file of a published model. The first call downloads it with a progress bar on a terminal.

    Raises:
        UserError: the file cannot be downloaded.
    """
    return fetch_published(model, ProgressBar() if sys.stderr.isatty() else None)


class ProgressBar:
    """A progress bar of a download on standard error: share, megabytes and remaining time."""

    def __init__(self) -> None:
        self._start: tuple[float, int] | None = None

    def __call__(self, done: int, total: int | None) -> None:
        """Draw the bar.

        Args:
            done: bytes so far, those of earlier calls of the program included.
            total: bytes of the file; None if the server does not announce them.
        """
        now = time.monotonic()
        if self._start is None:
            self._start = now, done
        seconds, received = now - self._start[0], done - self._start[1]
        text = f"{done / 1e6:,.1f} MB"
        if total:
            full = int(_BAR_WIDTH * done / total)
            text = f"[{'#' * full}{'.' * (_BAR_WIDTH - full)}] {text} of {total / 1e6:,.1f} MB"
            if received and done < total:
                text += f", {(total - done) * seconds / received:,.0f} s left"
        sys.stderr.write(f"\r{text:<79}" + ("\n" if done == total else ""))
        sys.stderr.flush()


def _download_from_hub(name: str) -> Path:
    """Return the local copy of a repository of the hub.

    Raises:
        UserError: it cannot be downloaded.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name))
    except Exception as error:  # the hub's client raises many classes
        raise UserError(
            f"{name}: not a checkpoint folder, and the hub does not provide it: {first_line(error)}"
        ) from error


def _bundle(path: str | Path) -> FastVgsCheckpoint | None:
    """Return the content of a bundle of FaST-VGS, None for other files."""
    content = read_torch_file(path)
    return read_fast_vgs(path, content) if is_fast_vgs(content) else None


def load_fast_vgs(bundle: FastVgsCheckpoint) -> tuple[SpeechNetwork, Any]:
    """Build the network of a bundle of FaST-VGS in eval mode.

    Returns:
        The network, and a transformers model that holds its waveform convolutions.

    Raises:
        UserError: a tensor is missing or has another shape.
    """
    model = convolutions_model(bundle.convolutions, bundle.source)
    settings = bundle.config.speech_encoder
    encoder = front_end_of(model, settings, path=bundle.source, kind="wav2vec2", normalize=bool(settings.normalize))
    dimensions = Dimensions(encoder.dim, 1, bundle.config.head.fast_vgs.dim)
    network = build_network(bundle.config, dimensions, speech_encoder=encoder)
    load_weights(network, bundle.state, bundle.source)
    return network.eval(), model


def load_published(
    path: str | Path, *, clip: str | None = None
) -> tuple[SpeechNetwork, PublishedCheckpoint | FastVgsCheckpoint]:
    """Load a published ``.ckpt`` of SpeechCLIP or bundle of FaST-VGS in eval mode, with the speech encoder in the file.

    Args:
        path: the file.
        clip: see :func:`load_pretrained`.

    Returns:
        The network, and the content of the file.

    Raises:
        UserError: see :func:`speechclip.convert.reader.read_published`.
        UserError: the CLIP is missing or another one.
    """
    if (bundle := _bundle(path)) is not None:
        return load_fast_vgs(bundle)[0], bundle
    published = read_published(path)
    width = int(published.table.shape[1])
    where = CLIP_OF_WIDTH.get(width) if clip is None else clip
    if where is None:
        raise UserError(
            f"{path}: no published CLIP has subword embeddings of width {width}. Name the CLIP with --clip."
        )
    config = dataclasses.replace(published.config, clip=ClipConfig(where))
    tower, vocabulary = None, None
    if where:
        tower = load_clip(config.clip)
        _check_copy(published, tower)
        vocabulary = _vocabulary(published, tower)
    words = vocabulary if has_keywords(config.head.name) else None
    return _network(published, config, clip=tower, vocabulary=words), published


def load_published_states(path: str | Path) -> SpeechNetwork:
    """Load a published ``.ckpt`` for ``hidden_states`` alone, in eval mode. It needs no CLIP.

    The waveforms are normalised only if the speech encoder itself needs it: the authors' feature extraction for s3prl
    ignores ``normalize_waveform``.

    Raises:
        UserError: see :func:`speechclip.convert.reader.read_published`.
    """
    if (bundle := _bundle(path)) is not None:
        return load_fast_vgs(bundle)[0]
    published = read_published(path)
    encoder = dataclasses.replace(published.config.speech_encoder, normalize=published.encoder_normalize)
    config = dataclasses.replace(published.config, speech_encoder=encoder)
    table = published.table.float()  # without CLIP, the rows of special tokens are unknown; hidden states read none
    return _network(published, config, subwords=(table, torch.ones(len(table), dtype=torch.bool)))


def _network(published: PublishedCheckpoint, config: ModelConfig, **parts: Any) -> SpeechNetwork:
    """Build the network with the file's trained tensors and its HuBERT, in eval mode.

    Args:
        published: the content of the file.
        config: the model's configuration.
        parts: see :func:`speechclip.model.network.build_network`.
    """
    encoder, state = _speech_encoder(published, bool(config.speech_encoder.normalize)), published.state
    joint = int(published.clip["text_projection"].shape[1])
    dimensions = Dimensions(encoder.dim, len(state["weighted_sum.weights"]), joint)
    network = build_network(config, dimensions, speech_encoder=encoder, **parts)
    load_weights(network, state, published.source)
    return network.eval()


def _speech_encoder(published: PublishedCheckpoint, normalize: bool) -> WaveformEncoder:
    model = hubert_model(published.hubert, {}, published.source)
    return waveform_encoder(model, published.source, "hubert", normalize)


def _check_copy(published: PublishedCheckpoint, clip: OpenClip) -> None:
    """Check that the CLIP in the file is the loaded one. CLIP was published in half precision.

    Raises:
        UserError: a tensor differs. The message names it.
    """
    loaded: dict[str, Tensor] = clip.model.state_dict()
    full = {} if published.full is None else {"token_embedding.weight": published.full}
    for name, value in (published.clip | full).items():
        if name not in loaded or loaded[name].shape != value.shape:
            raise UserError(
                f"{published.source}: its CLIP has {name} {list(value.shape)}, but {clip.description['path']} does not."
                " Name its CLIP with --clip."
            )
        if not torch.equal(loaded[name].half().cpu(), value.half()):
            raise UserError(
                f"{published.source}: trained with another CLIP than {clip.description['path']}: {name} differs."
                " Name its CLIP with --clip."
            )


def _vocabulary(published: PublishedCheckpoint, clip: OpenClip) -> Vocabulary:
    """Return the reduced vocabulary of the file. The file does not hold the counts; they are 0."""
    full = clip.subword_embeddings if published.full is None else published.full  # of the same file: equal in all bits
    ids = match_rows(published.table, full, published.source)
    return Vocabulary(ids, (0,) * len(ids), tuple(clip.tokenizer.subword(token) for token in ids))


def converted_config(config: ModelConfig) -> ModelConfig:
    """Return the configuration of a converted checkpoint. Its HuBERT is inside the folder."""
    encoder = config.speech_encoder
    return dataclasses.replace(config, speech_encoder=dataclasses.replace(encoder, path=SPEECH_ENCODER))


def save_speech_encoder(model: Any, normalize: bool, folder: Path) -> None:
    """Write a transformers folder for :func:`speechclip.model.encoders.transformers.load_waveform_encoder`.

    Args:
        model: the transformers model.
        normalize: whether it needs normalised waveforms.
        folder: the folder.
    """
    model.save_pretrained(folder, safe_serialization=True)
    extractor = "Wav2Vec2FeatureExtractor"
    settings = {"feature_extractor_type": extractor, "do_normalize": normalize, "sampling_rate": SAMPLE_RATE}
    write_json(folder / PREPROCESSOR_CONFIG, settings)
