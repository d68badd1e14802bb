"""Tiny random encoders, CLIP models, data directories, stores and configurations for the tests."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from speechclip.common.compat import prepare
from speechclip.config import Config, load
from speechclip.data.dataset import Split, StoreSource, WaveSource
from speechclip.data.embeddings import save_embeddings
from speechclip.data.features import FeatureWriter
from speechclip.data.kaldi import DataDir, Utterance, write_data_dir
from speechclip.data.vocabulary import Vocabulary
from speechclip.model.encoders.tokenizers import add_special_tokens
from speechclip.train.logger import TrainLogger

WORDS = ("red", "blue", "round", "large", "small", "dog", "house", "tree", "boat", "a", "the", "near", "and", "two")
WIDTH, STATES = 32, 3  # of the speech encoder
CONTEXT, SUBWORD, JOINT = 16, 24, 20  # of the CLIP: positions, subword width, joint width


def captions(count: int, seed: int = 0) -> list[str]:
    """Return random sentences of a few words."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=rng.integers(3, 7)).tolist()) for _ in range(count)]


def _shake(model: torch.nn.Module, seed: int) -> None:
    """Perturb every parameter: values that start at one or zero would hide a forgotten part."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def save_hubert(folder: Path, *, large: bool = False, seed: int = 5, width: int = WIDTH) -> Path:
    """Write a transformers folder with a tiny random HuBERT of Base type (group norm) or Large type."""
    prepare()
    import transformers

    config = transformers.HubertConfig(
        hidden_size=width, num_hidden_layers=STATES - 1, num_attention_heads=4, intermediate_size=2 * width,
        conv_dim=[16] * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
        feat_extract_norm="layer" if large else "group", do_stable_layer_norm=large, conv_bias=large,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = transformers.HubertModel(config)
    _shake(model, seed)
    model.save_pretrained(folder)
    settings = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "do_normalize": large}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def save_clip(folder: Path, *, seed: int = 7) -> Path:
    """Write an open_clip folder with a tiny random CLIP and its own sentencepiece vocabulary."""
    prepare()
    import open_clip
    import sentencepiece
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    proto = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(captions(60)), model_writer=proto, vocab_size=40, hard_vocab_limit=False, pad_id=0,
        unk_id=1, bos_id=-1, eos_id=-1, character_coverage=1.0, num_threads=1, minloglevel=2,
    )  # fmt: skip
    (folder / "spm.model").write_bytes(proto.getvalue())
    pieces = sentencepiece.SentencePieceProcessor(model_proto=proto.getvalue()).get_piece_size()
    shape = {
        "embed_dim": JOINT,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16},
        "text_cfg": {"context_length": CONTEXT, "vocab_size": pieces + 2, "width": SUBWORD, "heads": 2, "layers": 2},
    }
    torch.manual_seed(seed)
    model = open_clip.model.CLIP(**shape)
    _shake(model, seed)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    preprocess = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.25], "interpolation": "bicubic"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": shape, "preprocess_cfg": preprocess}))
    return folder


def wave(samples: int, seed: int) -> np.ndarray:
    """Return noise, float32, loud enough to survive 16-bit storage."""
    return (np.random.default_rng(seed).standard_normal(samples) * 0.1).astype(np.float32)


def make_data(folder: Path, *, images: int, each: int, prefix: str = "i", seed: int = 0) -> DataDir:
    """Write a data directory of ``images`` random pictures with ``each`` utterances of 0.3 to 1.3 s of noise."""
    media = folder.parent / f"{folder.name}_media"
    media.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    utterances, files = [], {}
    for number in range(images):
        image = f"{prefix}{number:02d}"
        files[image] = media / f"{image}.png"
        Image.fromarray(rng.integers(0, 255, (24, 40, 3), dtype=np.uint8)).save(files[image])
        for take in range(each):
            name = f"s{take}-{image}"
            # different lengths: a tie would leave the order within a bucket open
            samples = 4800 + 640 * (number * each + take) % 16000
            soundfile.write(media / f"{name}.wav", wave(samples, 100 * seed + number), 16000)
            text = captions(1, seed=1000 * seed + 10 * number + take)[0]
            utterances.append(Utterance(name, media / f"{name}.wav", text, f"s{take}", image))
    write_data_dir(folder, utterances, files)
    return DataDir.load(folder)


def store_embeddings(data: DataDir, dump: Path, *, width: int = JOINT, seed: int = 0) -> None:
    """Write random image and caption embeddings as stage 2 does."""
    rng = np.random.default_rng(seed)
    save_embeddings(dump / "image_embeddings.npz", list(data.images), rng.standard_normal((len(data.images), width)))
    ids = [utterance.id for utterance in data.utterances]
    save_embeddings(dump / "text_embeddings.npz", ids, rng.standard_normal((len(ids), width)))


def store_features(data: DataDir, dump: Path, *, dtype: str = "float32", seed: int = 0) -> None:
    """Write random hidden states of 8 to 30 frames. They depend on the image, so that a head can learn from them."""
    rng = np.random.default_rng(seed)
    signature = {image: np.random.default_rng((9, at)).standard_normal(WIDTH) for at, image in enumerate(data.images)}
    with FeatureWriter(dump, encoder={"weights": "random"}, layers=range(STATES), dtype=dtype) as writer:
        for utterance in data.utterances:
            frames = int(rng.integers(8, 31))
            states = rng.standard_normal((STATES, frames, WIDTH)) + signature[utterance.image_id]
            writer.add(utterance.id, states.astype(np.float32))


def store_regions(dump: Path, ids: Sequence[str], *, width: int, seed: int = 0) -> None:
    """Write random regions of images, as of CLIP's patches in a grid of two by two."""
    from speechclip.data.regions import FOLDER, Regions, RegionWriter, grid_boxes

    generator = torch.Generator().manual_seed(seed)
    with RegionWriter(dump / FOLDER, {"kind": "clip", "weights": "random"}) as writer:
        for image in ids:
            writer.add_image(image, Regions(torch.randn(4, width, generator=generator), grid_boxes(2, 2)))


def vocabulary_of(texts: Sequence[str], clip: Any) -> Vocabulary:
    """Return the reduced vocabulary of texts, special tokens included."""
    tokenizer = clip.tokenizer
    rows = [add_special_tokens(tokenizer, tokenizer.encode(text), clip.context_length) for text in texts]
    return Vocabulary.from_rows(rows, tokenizer.subword)


def settings(**changes: Any) -> Config:
    """Return a small configuration. ``changes`` use double underscores for dots, e.g. ``optim__lr=1e-3``."""
    defaults: dict[str, Any] = {
        "model__head__attention_heads": 4, "model__head__keywords": 3, "data__batch_size": 8,
        "data__eval_batch_size": 5, "data__bucket_batches": 2, "optim__lr": 1e-3, "optim__warmup_steps": 2,
        "optim__max_steps": 12, "train__eval_interval": 4, "train__log_interval": 3,
    }  # fmt: skip
    words: list[str] = []
    for key, value in {**defaults, **changes}.items():
        words += [f"--{key.replace('__', '.')}", json.dumps(value) if isinstance(value, (list, bool)) else str(value)]
    return load([], words)


def stored_split(folder: Path, name: str, *, images: int, each: int, seed: int, dtype: str = "float32") -> Split:
    """Write a split with random features and embeddings: ``folder``/data/``name`` and ``folder``/dump/``name``."""
    data = make_data(folder / "data" / name, images=images, each=each, prefix=name, seed=seed)
    dump = folder / "dump" / name
    store_embeddings(data, dump, seed=seed)
    store_features(data, dump, dtype=dtype, seed=seed)
    return Split.load(folder / "data" / name, dump)


def training_data(folder: Path, *, feats: str = "dump") -> Any:
    """Return the ``TrainingData`` of the splits that :func:`stored_split` wrote to ``folder``."""
    from speechclip.train.trainer import TrainingData

    splits = [Split.load(folder / "data" / name, folder / "dump" / name) for name in ("train", "dev")]
    sources: list[Any] = [
        StoreSource(folder / "dump" / name, split.ids) if feats == "dump" else WaveSource(split.data)
        for name, split in zip(("train", "dev"), splits, strict=True)
    ]
    return TrainingData(*splits, *sources)


def trainer(
    config: Config, data: Any, folder: Path, *, clip: Any = None, encoder: Any = None, seed: int = 0,
    fabric: Any = None,
    force: bool = False, origin: Any = None, states: int = STATES,
) -> Any:  # fmt: skip
    """Return a ``Trainer`` with a fresh network for the features of :func:`store_features`, on one CPU by default."""
    from lightning_fabric import Fabric

    from speechclip.model.network import Dimensions, build_network
    from speechclip.train.trainer import Trainer

    torch.manual_seed(seed)
    words = vocabulary_of(captions(30), clip) if clip is not None else None
    dimensions = Dimensions(WIDTH, states, JOINT)
    model = build_network(config.model, dimensions, speech_encoder=encoder, clip=clip, vocabulary=words)
    if fabric is None:
        fabric = Fabric(accelerator="cpu", devices=1, precision=config.train.precision)
        fabric.launch()
    origin = {"seed": seed, "data": {"train": "0"}, **(origin or {})}
    return Trainer(config, model, data, folder, fabric=fabric, seed=seed, origin=origin, force=force)


def with_paths(config: Config, *, hubert: Path | str = "", clip: Path | str = "") -> Config:
    """Return the configuration with paths of encoders."""
    model = config.model
    speech, image = replace(model.speech_encoder, path=str(hubert)), replace(model.clip, path=str(clip))
    return replace(config, model=replace(model, speech_encoder=speech, clip=image))


def whole_model(recipe: Path, head: str, *, large: bool = False, **changes: Any) -> tuple[Any, Config]:
    """Return a fresh, perturbed network with both encoders, which are written to ``recipe``/models if missing."""
    from speechclip.model.encoders.clip import load_clip
    from speechclip.model.encoders.factory import load_speech_encoder
    from speechclip.model.network import Dimensions, build_network

    hubert, clip_folder = recipe / "models" / f"hubert{int(large)}", recipe / "models" / "clip"
    if not hubert.exists():
        save_hubert(hubert, large=large)
    if not clip_folder.exists():
        save_clip(clip_folder)
    config = settings(model__head__name=head, **changes)
    located = with_paths(config, hubert=hubert, clip=clip_folder).model
    encoder, clip = load_speech_encoder(located.speech_encoder), load_clip(located.clip)
    torch.manual_seed(3)
    model = build_network(
        located, Dimensions(WIDTH, STATES, JOINT), speech_encoder=encoder, clip=clip,
        vocabulary=vocabulary_of(captions(30), clip) if head != "parallel" else None,
    )  # fmt: skip
    for part in model.trained_modules().values():
        _shake(part, 3)
    relative = with_paths(config, hubert=hubert.relative_to(recipe), clip=clip_folder.relative_to(recipe))
    return model.eval(), relative


class _Killed(Exception):
    """Stands for a kill of the process."""


@contextlib.contextmanager
def killed_at(monkeypatch: pytest.MonkeyPatch, number: int) -> Iterator[None]:
    """Expect that the training in the block is killed when it logs a step."""
    plain = TrainLogger.step

    def step(self: TrainLogger, at: int) -> None:
        if at == number:
            raise _Killed
        plain(self, at)

    with monkeypatch.context() as patch:
        patch.setattr(TrainLogger, "step", step)
        with pytest.raises(_Killed):
            yield
