"""Benchmark 2: hidden states of a corpus: ours in length buckets, s3prl's HuBERT in corpus order.

Both use the same random weights and waveforms. "same batches" compares both encoders on equal padded batches.
"bucketing" compares our encoder on both orders. The limit is the fastest matrix product of the machine. "compiled
corpus" compares the corpus with torch.compile on our encoder.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import numpy as np
import parts
import torch
from measure import OURS, PLAIN
from safetensors.torch import load_file
from sections import COMPILED
from torch import Tensor, nn

from speechclip.common.constants import HOP, SAMPLE_RATE
from speechclip.convert.hubert import transformers_name
from speechclip.features.speech import batches_by_seconds
from speechclip.model.encoders.base import SpeechFeatures
from speechclip.model.encoders.kernels.convolutions import convolve
from speechclip.model.encoders.kernels.linear import linear
from speechclip.model.encoders.transformers import waveform_encoder

CORPUS_BATCH = 16  # utterances of a padded batch in corpus order
BATCH_SECONDS = 60.0  # the default of stage 2
Compiler = Callable[..., Callable[..., Any]]  # torch.compile, or a stand-in


def plain_encoder(shape: str, folder: Path, device: str = "cpu") -> Callable[[list[Tensor]], SpeechFeatures]:
    """Return s3prl's HuBERT with the weights of ``parts.encoder_folder``, as a function of waveforms.

    Raises:
        ModuleNotFoundError: the extra s3prl is not installed.
    """
    from speechclip.common.compat import prepare

    prepare()
    from s3prl.upstream.hubert.expert import UpstreamExpert

    upstream = UpstreamExpert(str(_s3prl_file(shape, folder))).eval().requires_grad_(False).to(device)

    @torch.no_grad()
    def encode(waves: list[Tensor]) -> SpeechFeatures:
        states = torch.stack(list(upstream(waves)["hidden_states"]), dim=1)
        frames = [min(round(len(wave) / HOP), states.shape[2]) for wave in waves]
        return SpeechFeatures(states, torch.tensor(frames, device=device))

    return encode


def _s3prl_file(shape: str, folder: Path) -> Path:
    """Write the weights in s3prl's format of a HuBERT."""
    from s3prl.upstream.hubert.hubert_model import HubertConfig, HubertModel, HubertPretrainingConfig

    source = parts.encoder_folder(shape, folder)
    target, made = folder / "s3prl.pt", parts.hubert_config(shape)
    if target.is_file():
        return target
    large = shape == "large"
    settings = {
        "encoder_layers": made.num_hidden_layers, "encoder_embed_dim": made.hidden_size,
        "encoder_ffn_embed_dim": made.intermediate_size, "encoder_attention_heads": made.num_attention_heads,
        "extractor_mode": "layer_norm" if large else "default", "layer_norm_first": large, "conv_bias": large,
        "final_dim": 256, "encoder_layerdrop": 0.0, "label_rate": 50,
    }  # fmt: skip
    symbols = [list(range(10))]
    model = HubertModel(HubertConfig(**settings), HubertPretrainingConfig(normalize=large), symbols)
    weights = load_file(source / "model.safetensors")
    pretraining = ("label_embs_concat", "final_proj.weight", "final_proj.bias")
    for name, tensor in model.state_dict().items():
        if name not in pretraining:
            tensor.copy_(weights[transformers_name(name, large)])
    state = {"task_cfg": {"normalize": large}, "model_cfg": settings, "model_weight": model.state_dict(),
             "dictionaries_symbols": symbols}  # fmt: skip
    torch.save(state, target)
    return target


def orders(samples: np.ndarray) -> dict[str, list[list[int]]]:
    """Return batches in corpus order, and in length buckets as stage 2 makes them."""
    corpus = [list(range(at, min(at + CORPUS_BATCH, len(samples)))) for at in range(0, len(samples), CORPUS_BATCH)]
    return {PLAIN: corpus, OURS: list(batches_by_seconds(samples, BATCH_SECONDS))}


def over(encode: Callable[[list[Tensor]], Any], waves: list[Tensor], batches: list[list[int]]) -> Callable[[], None]:
    """Return a function that encodes a corpus once."""

    def once() -> None:
        for rows in batches:
            encode([waves[at] for at in rows])

    return once


def run(
    shape: str,
    utterances: int,
    repeats: int,
    device: str = "cpu",
    precision: str = "fp32",
    compiler: Compiler | None = None,
) -> list[dict[str, Any]]:
    """Measure a corpus, equal batches, bucketing alone, and the distance to the fastest matrix product.

    Args:
        shape: base, large or small.
        utterances: size of the corpus.
        repeats: rounds.
        device: cpu or cuda.
        precision: fp32, or bf16 for autocast around both encoders.
        compiler: measure the corpus with our encoder compiled by this function, too. None: do not.

    Returns:
        A row for each comparison, in seconds. If compiling fails, its row holds the reason in "failed".
    """
    samples = parts.lengths(utterances)
    waves = [wave.to(device) for wave in parts.waves(samples)]
    with tempfile.TemporaryDirectory() as folder:
        encoders = plain_encoder(shape, Path(folder), device), parts.speech_encoder(shape, Path(folder)).to(device)
    plain, ours = (at_precision(encode, device, precision) for encode in encoders)
    batches = orders(samples)
    works = {
        PLAIN: over(plain, waves, batches[PLAIN]),
        "same batches": over(ours, waves, batches[PLAIN]),
        OURS: over(ours, waves, batches[OURS]),
    }
    pairs = {"corpus": (PLAIN, OURS), "same batches": (PLAIN, "same batches"), "bucketing": ("same batches", OURS)}
    for encode in (plain, ours):
        encode(waves[:2])
    common = {
        "shape": shape, "utterances": utterances, "speech": float(samples.sum()) / SAMPLE_RATE, "device": device,
        "precision": precision, "padding": {kind: padding(samples, batches[kind]) for kind in (PLAIN, OURS)},
    }  # fmt: skip
    built: dict[str, Any] = {}
    if compiler is not None:
        work = over(at_precision(compiled_encoder(encoders[1], compiler), device, precision), waves, batches[OURS])
        built = build(work)
        if "failed" not in built:
            works[COMPILED], pairs[COMPILED] = work, (PLAIN, COMPILED)
    times = measure.interleaved(works, repeats, warm_up=device != "cpu", device=device)
    compared = {
        case: measure.compare({PLAIN: times[one], OURS: times[other]}) for case, (one, other) in pairs.items()
    }  # fmt: skip
    rows = [{**common, "case": case, "time": time} for case, time in compared.items()]
    if "failed" in built:
        rows.append({**common, "case": COMPILED})
    for row in rows:
        row |= built if row["case"] == COMPILED else {}
        print(f"{shape} {device} {precision} {row['case']}: {row.get('failed') or row['time']}", flush=True)
    if device == "cpu" and precision == "fp32":
        rows.append({**common, "case": "limit", **_against_limit(shape, samples, batches, times)})
    return rows


def compiled_encoder(encoder: Any, compiler: Compiler) -> Any:
    """Return a copy of our encoder whose convolutions and layers are compiled for every batch size and length.

    The hooks that record the hidden states stay outside the compiled functions.
    """
    made = copy.deepcopy(encoder)
    for module in (made.model.feature_extractor, *made.model.encoder.layers):
        module.forward = compiler(module.forward, dynamic=True)
    return made


def build(work: Callable[[], Any]) -> dict[str, Any]:
    """Return the wall time of the first call of a compiled function in "build", or why it failed in "failed"."""
    try:
        return {"build": measure.clock_seconds(work)}
    except Exception as error:  # no compiler, or an operator without a lowering: the page shows the reason
        return {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}


def by_part(shape: str, repeats: int) -> list[dict[str, Any]]:
    """Measure the parts of the encoder on a CPU, 16 s of speech: transformers' modules and ours."""
    batch, lengths = torch.stack(parts.waves(np.array([4 * SAMPLE_RATE] * 4))), [4 * SAMPLE_RATE] * 4
    before, after = parts.hubert(shape), waveform_encoder(parts.hubert(shape), shape, "hubert", False)
    with torch.no_grad():
        hidden = before.feature_projection(before.feature_extractor(batch).transpose(1, 2))
        works = {
            "convolutions": (
                lambda: before.feature_extractor(batch),
                lambda: convolve(after.model.feature_extractor, batch, lengths, after.min_samples),
            ),
            "positions": (
                lambda: before.encoder.pos_conv_embed(hidden), lambda: after.model.encoder.pos_conv_embed(hidden)
            ),
            "layers": (_layers(before, hidden), _layers(after.model, hidden)),
        }  # fmt: skip
        rows = [
            {"shape": shape, "part": part, "time": measure.compare(measure.interleaved({PLAIN: a, OURS: b}, repeats))}
            for part, (a, b) in works.items()
        ]
    return [{"case": "parts", **row} for row in rows]


def by_batch(shape: str, utterances: int, seconds: tuple[float, ...] = (15, 30, 60, 120)) -> list[dict[str, Any]]:
    """Measure the CPU time of a corpus by the seconds of speech in a batch."""
    samples = parts.lengths(utterances)
    waves = parts.waves(samples)
    encoder = waveform_encoder(parts.hubert(shape), shape, "hubert", False)
    works = {str(size): over(encoder, waves, list(batches_by_seconds(samples, size))) for size in seconds}
    times = measure.interleaved(works, 1, warm_up=False)
    return [{"case": "batches", "shape": shape, "seconds": size, "ours": times[str(size)][0]} for size in seconds]


def by_threads(shape: str, utterances: int, threads: tuple[int, ...] = (1, 2)) -> list[dict[str, Any]]:
    """Measure the wall time of a corpus by the number of threads, the lower of two rounds, for both encoders."""
    samples, held = parts.lengths(utterances), torch.get_num_threads()
    waves, batches = parts.waves(samples), orders(samples)
    with tempfile.TemporaryDirectory() as folder:
        encoders = plain_encoder(shape, Path(folder)), parts.speech_encoder(shape, Path(folder))
    works = {kind: over(encode, waves, batches[kind]) for kind, encode in zip((PLAIN, OURS), encoders)}
    rows = []
    try:
        for count in threads:
            torch.set_num_threads(count)
            times = {kind: min(measure.clock_seconds(work) for _ in range(2)) for kind, work in works.items()}
            rows.append({"case": "threads", "shape": shape, "threads": count, "clock": times})
            print(f"{shape} threads {count}: {times}", flush=True)
    finally:
        torch.set_num_threads(held)
    return rows


def compiled(shape: str, repeats: int) -> list[dict[str, Any]]:
    """Measure torch.compile on the encoder's layers with one fixed shape, 16 s of speech.

    Returns:
        A row for transformers' layers (plain) and one for ours: wall time of compiling, and CPU time with and without
        compiling; or the reason in "failed".
    """
    hidden = torch.randn(4, 199, parts.SHAPES[shape].width, generator=torch.Generator().manual_seed(0))
    models = {PLAIN: parts.hubert(shape), OURS: waveform_encoder(parts.hubert(shape), shape, "hubert", False).model}
    rows: list[dict[str, Any]] = []
    for kind, model in models.items():
        row: dict[str, Any] = {"case": "compiled", "shape": shape, "layers": kind}
        as_written = _layers(model, hidden)
        built = torch.compile(as_written, dynamic=False)
        with torch.no_grad():
            row |= build(built)
            if "failed" not in row:
                row["time"] = measure.compare(measure.interleaved({PLAIN: as_written, OURS: built}, repeats))
        torch._dynamo.reset()
        print(f"{shape} compiled {kind}: {row}", flush=True)
        rows.append(row)
    return rows


def _layers(model: Any, hidden: Tensor) -> Callable[[], Tensor]:
    def once() -> Tensor:
        states = hidden
        for layer in model.encoder.layers:
            states = layer(states)[0]
        return states

    return once


def _against_limit(
    shape: str, samples: np.ndarray, batches: dict[str, list[list[int]]], times: dict[str, list[float]]
) -> dict[str, float]:
    """Return the GFLOP/s of both passes and of the fastest matrix product."""
    reached = {
        kind: sum(operations(shape, samples[batch]) for batch in batches[kind]) / min(times[kind]) / 1e9
        for kind in (PLAIN, OURS)
    }
    return {"limit": product_limit(), **reached}


def at_precision(work: Callable[..., Any], device: str, precision: str) -> Callable[..., Any]:
    """Return the function under autocast to bfloat16 if the precision is "bf16", else the function itself."""
    if precision != "bf16":
        return work

    def under(*given: Any) -> Any:
        with torch.autocast(device, dtype=torch.bfloat16):
            return work(*given)

    return under


def padding(samples: np.ndarray, batches: list[list[int]]) -> float:
    """Return the fraction of padding in the computed samples."""
    computed = sum(len(batch) * int(samples[batch].max()) for batch in batches)
    return 1 - float(samples.sum()) / computed


def operations(shape: str, samples: np.ndarray) -> float:
    """Return the floating-point operations of a padded batch in HuBERT: convolutions, projections, attention."""
    config = parts.hubert_config(shape)
    total, frames, width = 0.0, float(samples.max()), 1
    for out, kernel, stride in zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True):
        frames = (frames - kernel) // stride + 1
        total += 2 * frames * width * out * kernel
        width = out
    d = config.hidden_size
    per_frame = 4 * d * d + 2 * d * config.intermediate_size
    total += 2 * frames * (width * d + d * d // config.num_conv_pos_embedding_groups * config.num_conv_pos_embeddings)
    total += config.num_hidden_layers * (2 * frames * per_frame + 4 * frames * frames * d)
    return total * len(samples)


def product_limit(size: int = 1024, repeats: int = 8) -> float:
    """Return the speed of the fastest single-precision matrix product of this machine, in GFLOP/s."""
    one, other = torch.randn(size, size), torch.randn(size, size)
    works: tuple[Callable[[], Any], ...] = (
        lambda: one @ other,
        lambda: one.numpy() @ other.numpy(),
        lambda: linear(one, other),
        lambda: nn.functional.conv1d(one[None], other[:, :, None]),
    )
    best = min(measure.seconds(work) for _ in range(repeats) for work in works)
    return 2 * size**3 / best / 1e9
