#!/usr/bin/env python3
"""Measure the relative error of hidden states that stored features cause, layer by layer.

It compares, on utterances of a data directory (or on noise without --data_dir):
  fp16     states in half precision and in single precision
  crop     6.4 s (or --crop) of frames of an encoded utterance, and the encoding of the same samples
  padding  an utterance in a batch sorted by length, or in corpus order, and the same utterance alone
The relative error is |a - b| / |b| over all values of a layer (Frobenius norms), averaged over utterances.

With --checkpoint instead of --encoder it measures the states of the s3prl upstream, including the head's layer.

Usage: tools/measure/measure_feature_costs.py --encoder FOLDER | --checkpoint FOLDER [--normalize true|false]
       [--data_dir DIR] [--utterances 64] [--batch 8] [--crop 6.4] [--seed 0];
       --encoder random:base and random:large are untrained HuBERT models of the published sizes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from speechclip.common.arguments import ArgumentParser, exit_on_user_error
from speechclip.common.constants import HOP, SAMPLE_RATE
from speechclip.common.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


def relative_error(found: Tensor, wanted: Tensor) -> np.ndarray:
    """Return |found - wanted| / |wanted| of each layer, [L], for states [L, T, D]."""
    shared = min(found.shape[1], wanted.shape[1])
    difference = (found[:, :shared] - wanted[:, :shared]).flatten(1).norm(dim=1)
    return (difference / wanted[:, :shared].flatten(1).norm(dim=1)).numpy()


def in_batches(encoder: object, waves: Sequence[Tensor], order: Sequence[int], size: int) -> dict[int, Tensor]:
    """Encode utterances in padded batches in the given order. Return the hidden states [L, T_i, D] of each."""
    states = {}
    for at in range(0, len(order), size):
        chosen = order[at : at + size]
        batch, frames = encoder([waves[i] for i in chosen])  # type: ignore[operator]
        for i, row, count in zip(chosen, batch, frames.tolist()):
            states[i] = row[:, :count].clone()
    return states


def load_or_make(name: str, normalize: bool | None) -> object:
    """Load the encoder. "random:base" and "random:large" build a HuBERT of that size."""
    from speechclip.common.compat import prepare
    from speechclip.config import SpeechEncoderConfig
    from speechclip.model.encoders.factory import load_speech_encoder

    if not name.startswith("random:"):
        return load_speech_encoder(SpeechEncoderConfig(path=name, normalize=normalize))
    prepare()
    import transformers

    large = name == "random:large"
    shape = (
        dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096) if large else {}
    )
    kind = dict(feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True) if large else {}
    with tempfile.TemporaryDirectory() as folder:
        transformers.HubertModel(transformers.HubertConfig(**shape, **kind)).save_pretrained(folder)
        return load_speech_encoder(
            SpeechEncoderConfig(path=folder, normalize=large if normalize is None else normalize)
        )


def upstream_states(checkpoint: str) -> Callable[[Sequence[Tensor]], tuple[Tensor, Tensor]]:
    """Return a function that computes the states of a checkpoint's s3prl upstream, like a speech encoder."""
    import torch

    from speechclip.api import SpeechCLIP

    model = SpeechCLIP.from_pretrained(checkpoint)

    def encode(waves: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        states, frames = model.hidden_states(waves)
        return torch.stack(states, dim=1), frames

    return encode


@exit_on_user_error
def main() -> None:
    """Measure and print a table."""
    parser = ArgumentParser(prog="measure_feature_costs.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", default=None, help="trained SpeechCLIP; measures the states of its upstream")
    parser.add_argument("--encoder", default=None, help="transformers folder, random:base or random:large")
    parser.add_argument(
        "--normalize", choices=("true", "false"), default=None, help="value of model.speech_encoder.normalize"
    )
    parser.add_argument("--data_dir", default=None, help="data directory; without it, noise of 1 to 8 s")
    parser.add_argument("--utterances", type=int, default=64, help="number of utterances, drawn at random")
    parser.add_argument("--batch", type=int, default=8, help="utterances per padded batch")
    parser.add_argument("--crop", type=float, default=6.4, help="length of a crop in seconds")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw, the crops and the random weights")
    options = parser.parse_args()

    import torch

    from speechclip.common.provenance import commit
    from speechclip.data.audio import load_audio
    from speechclip.data.kaldi import DataDir

    torch.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    if (options.encoder is None) == (options.checkpoint is None):
        raise UserError("--encoder: give either --encoder or --checkpoint")
    normalize = None if options.normalize is None else options.normalize == "true"
    encoder = upstream_states(options.checkpoint) if options.checkpoint else load_or_make(options.encoder, normalize)
    if options.data_dir:
        found = DataDir.load(Path(options.data_dir)).utterances
        drawn = rng.permutation(len(found))[: options.utterances]
        waves = [torch.from_numpy(load_audio(found[i].wav)) for i in drawn]
    else:
        waves = [torch.randn(int(n)) * 0.1 for n in rng.integers(SAMPLE_RATE, 8 * SAMPLE_RATE, options.utterances)]
    count = len(waves)
    alone = in_batches(encoder, waves, range(count), 1)
    by_length = sorted(range(count), key=lambda i: -len(waves[i]))
    rows = {
        "fp16": [relative_error(alone[i].half().float(), alone[i]) for i in alone],
        "padding, sorted": _against(in_batches(encoder, waves, by_length, options.batch), alone),
        "padding, corpus order": _against(in_batches(encoder, waves, range(count), options.batch), alone),
    }
    limit = round(options.crop * SAMPLE_RATE) // HOP * HOP
    crops = []
    for i in range(count):
        if len(waves[i]) > limit + HOP:
            first = int(rng.integers((len(waves[i]) - limit) // HOP)) * HOP
            states, _ = encoder([waves[i][first : first + limit]])  # type: ignore[operator]
            crops.append(relative_error(alone[i][:, first // HOP : (first + limit) // HOP], states[0]))
    if crops:
        rows[f"crop to {options.crop} s ({len(crops)} utt.)"] = crops
    measured = options.encoder or options.checkpoint
    print(f"{measured}: {count} utterances, batches of {options.batch}, seed {options.seed}, commit {commit()}")
    for name, errors in rows.items():
        mean = np.mean(errors, axis=0)
        print(f"{name:32} mean {mean.mean():.2e}  by layer " + " ".join(f"{value:.1e}" for value in mean))


def _against(found: dict[int, Tensor], wanted: dict[int, Tensor]) -> list[np.ndarray]:
    return [relative_error(found[i], wanted[i]) for i in wanted]


if __name__ == "__main__":
    main()
