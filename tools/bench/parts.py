"""Inputs of the benchmarks: models of the published sizes with random weights, and speech with realistic lengths."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speechclip.common.compat import prepare
from speechclip.common.constants import FRAME_RATE, SAMPLE_RATE
from speechclip.config import Config, SpeechEncoderConfig, load
from speechclip.data.vocabulary import Vocabulary
from speechclip.model.encoders.base import SpeechFeatures
from speechclip.model.encoders.clip import ImagePreprocess, OpenClip
from speechclip.model.encoders.factory import load_speech_encoder
from speechclip.model.encoders.tokenizers import BpeTokenizer
from speechclip.model.network import Dimensions, SpeechNetwork, build_network

ROOT = Path(__file__).resolve().parents[2]
SUBWORDS = 8112  # of the reduced vocabulary of Flickr8k
MEAN_SECONDS, SHORTEST, LONGEST = 4.0, 1.0, 15.0


@dataclass(frozen=True)
class Shape:
    """A size of the published models.

    Attributes:
        name: base, large, or small for the regression check.
        hubert: settings of transformers' HubertConfig.
        clip: name of the CLIP in open_clip.
        states: number of hidden states.
        width: width of the hidden states.
        side: side of an image, in pixels.
    """

    name: str
    hubert: dict[str, Any]
    clip: str
    states: int
    width: int
    side: int = 224


_LARGE = {
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
    "feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True,
}  # fmt: skip
SHAPES = {
    "base": Shape("base", {}, "ViT-B-32-quickgelu", 13, 768),
    "large": Shape("large", _LARGE, "ViT-L-14-quickgelu", 25, 1024),
    # not a published size: for the regression check, which takes seconds
    "small": Shape("small", {"num_hidden_layers": 3}, "ViT-B-32-quickgelu", 4, 768),
}


def lengths(count: int, seed: int = 0) -> np.ndarray:
    """Return lengths of utterances in samples, [count]: log-normal, mean 4 s, 1 to 15 s."""
    sigma = 0.45
    drawn = np.random.default_rng(seed).lognormal(np.log(MEAN_SECONDS) - sigma**2 / 2, sigma, count)
    return np.round(np.clip(drawn, SHORTEST, LONGEST) * SAMPLE_RATE).astype(np.int64)


def waves(samples: np.ndarray, seed: int = 0) -> list[Tensor]:
    """Return noise of the given lengths."""
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.standard_normal(int(n), dtype=np.float32) * 0.1) for n in samples]


def settings(shape: str, head: str) -> Config:
    """Return the published settings of a size and a head."""
    size = "base" if shape == "small" else shape
    folder = ROOT / "egs" / "conf"
    layers = [folder / f"{name}.yaml" for name in (size, head, f"{size}_{head}")]
    return load([path for path in layers if path.is_file()])


@cache
def plain_clip(shape: str) -> Any:
    """Return open_clip's CLIP of a size with random weights, both towers, frozen."""
    prepare()
    import open_clip

    torch.manual_seed(1)
    made = open_clip.model.CLIP(**open_clip.get_model_config(SHAPES[shape].clip))
    return made.eval().requires_grad_(False)


@cache
def clip(shape: str) -> OpenClip:
    """Return this project's CLIP with the tensors of :func:`plain_clip`."""
    prepare()
    import open_clip
    from open_clip.tokenizer import SimpleTokenizer
    from PIL.Image import Resampling

    tensors = plain_clip(shape).state_dict()
    with torch.device("meta"):
        model = open_clip.model.CLIP(**open_clip.get_model_config(SHAPES[shape].clip))
    model.load_state_dict(tensors, assign=True)
    model.attn_mask = plain_clip(shape).attn_mask  # not part of the state dict
    preprocess = ImagePreprocess((SHAPES[shape].side,) * 2, (0.5,) * 3, (0.25,) * 3, Resampling.BICUBIC)
    return OpenClip(model, BpeTokenizer(SimpleTokenizer()), preprocess, {"path": shape, "kind": "random"})


def model(shape: str, head: str, subwords: int = SUBWORDS, seed: int = 0) -> SpeechNetwork:
    """Return a fresh network without a speech encoder, with a vocabulary of ``subwords`` entries."""
    tower = clip(shape)
    special = [tower.tokenizer.pad, tower.tokenizer.sot, tower.tokenizer.eot]
    drawn = np.random.default_rng(seed).permutation(np.arange(1, tower.tokenizer.sot))[: subwords - len(special)]
    ids = (*special, *drawn.tolist())
    words = Vocabulary(ids, (1,) * len(ids), tuple(str(token) for token in ids))
    torch.manual_seed(seed)
    size = SHAPES[shape]
    return build_network(
        settings(shape, head).model, Dimensions(size.width, size.states, tower.joint_dim), clip=tower, vocabulary=words
    )


def hubert_config(shape: str) -> Any:
    """Return transformers' configuration of a HuBERT of a size."""
    prepare()
    import transformers

    return transformers.HubertConfig(**SHAPES[shape].hubert)


def hubert(shape: str) -> Any:
    """Return transformers' HuBERT of a size with random weights."""
    prepare()
    import transformers

    torch.manual_seed(2)
    return transformers.HubertModel(hubert_config(shape)).eval().requires_grad_(False)


def encoder_folder(shape: str, folder: Path) -> Path:
    """Return a transformers folder with :func:`hubert`; it is written if it is missing."""
    if not (folder / "config.json").is_file():
        hubert(shape).save_pretrained(folder)
        about = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "do_normalize": shape == "large"}
        (folder / "preprocessor_config.json").write_text(json.dumps(about))
    return folder


def speech_encoder(shape: str, folder: Path) -> Any:
    """Return this project's encoder of :func:`encoder_folder`."""
    return load_speech_encoder(SpeechEncoderConfig(path=str(encoder_folder(shape, folder))))


def features(shape: str, batch: int, seconds: float = MEAN_SECONDS, seed: int = 0) -> SpeechFeatures:
    """Return random hidden states of ``batch`` utterances of nearly equal length, in half precision like a store."""
    size = SHAPES[shape]
    longest = round(seconds * FRAME_RATE)
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(batch, size.states, longest, size.width, generator=generator).half()
    frames = torch.randint(max(1, longest - 10), longest + 1, (batch,), generator=generator)
    frames[0] = longest
    return SpeechFeatures(states, frames)


def pixels(shape: str, batch: int, seed: int = 0) -> Tensor:
    """Return random preprocessed images [B, 3, side, side]."""
    side = SHAPES[shape].side
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))
