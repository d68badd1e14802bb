"""The configuration: frozen dataclasses, filled from YAML layers and dotted overrides, and validated.

Later layers win. Unknown keys, wrong types and values out of bounds are errors that name the key. Bounds are declared
next to their fields. The defaults are the published Base settings (Shih et al. 2022; Wang et al. 2024).
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Optional, Union

from speechclip.common.constants import FRAME_SECONDS
from speechclip.common.errors import UserError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

_MAX_BYTES, _MAX_VALUES = 1 << 20, 10_000  # of a configuration file


@dataclass(frozen=True)
class Bound:
    """An interval of finite numbers.

    Attributes:
        low: the smallest value.
        high: the largest value; infinity for no limit.
        low_excluded: whether ``low`` itself is out of bounds.
        high_excluded: whether ``high`` itself is out of bounds.
        odd: whether the number has to be odd.
    """

    low: float
    high: float = math.inf
    low_excluded: bool = False
    high_excluded: bool = False
    odd: bool = False

    def holds(self, value: Any) -> bool:
        """Return whether a number, or every number of a list, is within the bounds."""
        if isinstance(value, (list, tuple)):
            return all(self.holds(item) for item in value)
        above = value > self.low if self.low_excluded else value >= self.low
        below = value < self.high if self.high_excluded else value <= self.high
        return math.isfinite(value) and above and below and (not self.odd or value % 2 == 1)

    def __str__(self) -> str:
        """Describe the interval."""
        if self.odd:
            return "odd and positive"
        if self.high < math.inf:
            return (
                f"in {'(' if self.low_excluded else '['}{self.low:g}, {self.high:g}{')' if self.high_excluded else ']'}"
            )
        return "positive" if self.low_excluded and self.low == 0 else f"at least {self.low:g}"


def bounded(default: Any, bound: Bound) -> Any:
    """Declare a dataclass field with its default and its bounds."""
    metadata = {"bound": bound}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


FINITE = Bound(-sys.float_info.max)
POSITIVE = Bound(0, low_excluded=True)
NOT_NEGATIVE = Bound(0)
AT_LEAST_ONE = Bound(1)
FRACTION = Bound(0, 1, low_excluded=True)
PROBABILITY = Bound(0, 1, high_excluded=True)  # dropout, decay


@dataclass(frozen=True)
class SpeechEncoderConfig:
    """The frozen speech encoder.

    Attributes:
        path: transformers folder or hub id of a HuBERT, wav2vec 2.0, WavLM, data2vec-audio or Whisper; fairseq's HuBERT
            file; or "s3prl:NAME", "s3prl:NAME:CHECKPOINT" for an s3prl upstream.
        normalize: give each waveform zero mean and unit variance; null follows the encoder's preprocessor_config.json.
        window_seconds: length that Whisper's input is padded to. Whisper was trained with 30; less is faster.
        layers: hidden states in the weighted sum, e.g. [0, 6, 12]; null takes all.
        state_norm: apply a LayerNorm without affine parameters to every hidden state first (published Large models).
        part: "all", or "convolutions" for the output of the waveform convolutions alone. The head fast_vgs then
            holds the transformer; with "all" it has a new transformer over the weighted sum.
        train_seconds: of the head fast_vgs: utterances are cut or padded with zeros to this length in training.
        eval_seconds: the same in evaluation and in extracted features.
    """

    path: str = ""
    normalize: Optional[bool] = None
    window_seconds: float = bounded(30.0, POSITIVE)
    layers: Optional[list[int]] = None
    state_norm: bool = False
    part: Literal["all", "convolutions"] = "all"
    train_seconds: float = bounded(8.0, POSITIVE)
    eval_seconds: float = bounded(10.0, POSITIVE)


@dataclass(frozen=True)
class ClipConfig:
    """The frozen CLIP.

    Attributes:
        path: open_clip folder (open_clip_config.json next to the weights), transformers folder, OpenAI's file, hub id
            "hf-hub:..." or "NAME:PRETRAINED", where PRETRAINED is a tag or a file. Empty: precomputed embeddings are
            used instead (parallel head only).
    """

    path: str = ""


@dataclass(frozen=True)
class CIFConfig:
    """Continuous integrate-and-fire of the heads cascaded_plus and hybrid_plus.

    Attributes:
        frames_per_keyword: the target number of keywords is the number of 20 ms frames divided by this, rounded.
        layers: convolutions that predict the weight alpha of a frame.
        width: kernel size of these convolutions, in frames, odd.
        dropout: dropout after each convolution, and before the last linear layer.
        scaling_steps: in the first training steps, alpha is scaled so that the target number of keywords fires.
        tail_threshold: in evaluation, a remainder of at least this fires as well.
        max_keywords: maximum number of keywords per utterance; less if the text tower has fewer positions.
        segments: "alpha" as published; "changes" cuts at the highest peaks of the change between frames, and alpha is
            scaled to 1 in each segment. The number of segments is still that of ``frames_per_keyword``.
        change_window: frames on each side of a cut that are compared.
        change_distance: smallest number of frames between two cuts.
    """

    frames_per_keyword: float = bounded(20.0, POSITIVE)
    layers: int = bounded(1, AT_LEAST_ONE)
    width: int = bounded(3, Bound(1, odd=True))
    dropout: float = bounded(0.5, PROBABILITY)
    scaling_steps: int = bounded(5000, NOT_NEGATIVE)
    tail_threshold: float = bounded(0.5, FRACTION)
    max_keywords: int = bounded(75, AT_LEAST_ONE)
    segments: Literal["alpha", "changes"] = "alpha"
    change_window: int = bounded(2, AT_LEAST_ONE)
    change_distance: int = bounded(8, AT_LEAST_ONE)


@dataclass(frozen=True)
class FastVgsConfig:
    """Head fast_vgs: both towers and the cross-modal layers of FaST-VGS (Peng and Harwath 2022).

    Attributes:
        dim: width of both towers.
        heads: attention heads of all transformer layers except those of wav2vec 2.0.
        feed_forward: width of their feed-forward blocks.
        joined_frames: frames of 20 ms that are joined to one position before the speech tower (ours, for small models).
        speech_layers: transformer layers of wav2vec 2.0 in the speech tower.
        speech_layer: number of the layer that the tower reads, from 1. Layers above it are not trained.
        speech_heads: attention heads of these layers.
        speech_feed_forward: width of their feed-forward blocks.
        pre_norm: these layers are pre-norm (the mini HuBERT, wav2vec 2.0 Large).
        position_kernel: width of the positional convolution, in frames.
        position_groups: groups of the positional convolution.
        widths: channels of ResDAVEnet after its Linear, and after each stage. Each stage halves the number of frames.
        image_layers: transformer layers of the image tower.
        cross_layers: cross-modal layers.
        init_scale: factor of the deviation of the first weights of the cross-modal layers, for few steps.
        region_features: width of the features of a region.
        regions: the kind of the regions: butd, frcnn or clip.
        fine_batch: the batch is cut into parts of this size, and fine scores are computed inside each part; 0 for all
            pairs of the batch. It divides data.batch_size. The coarse scores always have the whole batch.
        fine_parts: "shuffled" leaves the parts to chance, "similar" puts pairs with high coarse scores into one part.
        block: pairs whose fine scores are computed at a time. Less needs less memory.
        top_k: candidates of coarse-to-fine retrieval, in each direction.
    """

    dim: int = bounded(768, AT_LEAST_ONE)
    heads: int = bounded(12, AT_LEAST_ONE)
    feed_forward: int = bounded(3072, AT_LEAST_ONE)
    joined_frames: int = bounded(1, AT_LEAST_ONE)
    speech_layers: int = bounded(8, AT_LEAST_ONE)
    speech_layer: int = bounded(8, AT_LEAST_ONE)
    speech_heads: int = bounded(12, AT_LEAST_ONE)
    speech_feed_forward: int = bounded(3072, AT_LEAST_ONE)
    pre_norm: bool = False
    position_kernel: int = bounded(128, AT_LEAST_ONE)
    position_groups: int = bounded(16, AT_LEAST_ONE)
    widths: list[int] = bounded([128, 128, 256, 512, 768], AT_LEAST_ONE)
    image_layers: int = bounded(6, AT_LEAST_ONE)
    cross_layers: int = bounded(2, AT_LEAST_ONE)
    init_scale: float = bounded(1.0, POSITIVE)
    region_features: int = bounded(2048, AT_LEAST_ONE)
    regions: Literal["butd", "frcnn", "clip"] = "butd"
    fine_batch: int = bounded(0, NOT_NEGATIVE)
    fine_parts: Literal["shuffled", "similar"] = "shuffled"
    block: int = bounded(256, AT_LEAST_ONE)
    top_k: int = bounded(100, AT_LEAST_ONE)


@dataclass(frozen=True)
class RerankerConfig:
    """The heads reranker and reranker_hybrid: cross-modal layers over a trained head and image regions.

    Attributes:
        dim: width of the cross-modal layers.
        heads: their attention heads.
        layers: number of cross-modal layers.
        frames: "layer" reads the output of the trained head's layer at the frames, "input" the weighted sum below it,
            which costs less.
        stride: frames of 20 ms that are joined to one position.
        speech_layers: transformer layers over the joined frames, before the cross-modal layers.
        region_features: width of the features of a region. Training sets it to that of the stored regions.
        dropout: dropout of all layers.
        input_dropout: dropout of the joined frames.
        group: utterances in a hard group; all pairs of a group are scored. It divides data.batch_size.
        crossed_groups: groups of a batch that pass the cross-modal layers; the others train the pooled speech alone,
            which costs less; 0 for all.
        pool: the images of a group are drawn from the first one and its ``pool`` nearest by the coarse score.
        cache: keep the frames of all training utterances in memory, in half precision. They do not change, because the
            trained head is frozen. It needs data.max_seconds 0.
        block: pairs that are scored at a time in evaluation. Less needs less memory.
        dev_top_k: candidates that are reordered for the scores on dev during training.
    """

    dim: int = bounded(256, AT_LEAST_ONE)
    heads: int = bounded(4, AT_LEAST_ONE)
    layers: int = bounded(2, AT_LEAST_ONE)
    frames: Literal["layer", "input"] = "layer"
    stride: int = bounded(4, AT_LEAST_ONE)
    speech_layers: int = bounded(1, NOT_NEGATIVE)
    region_features: int = bounded(768, AT_LEAST_ONE)
    dropout: float = bounded(0.1, PROBABILITY)
    input_dropout: float = bounded(0.1, PROBABILITY)
    group: int = bounded(8, Bound(2))
    crossed_groups: int = bounded(0, NOT_NEGATIVE)
    pool: int = bounded(32, AT_LEAST_ONE)
    cache: bool = False
    block: int = bounded(256, AT_LEAST_ONE)
    dev_top_k: int = bounded(20, AT_LEAST_ONE)


@dataclass(frozen=True)
class HeadConfig:
    """The trained head.

    Attributes:
        name: parallel, cascaded, hybrid, cascaded_plus, hybrid_plus, fast_vgs, reranker, mean (a baseline), or a head
            that a module of speechclip/model/heads registers.
        block: of a head with keywords: "attention", or "transformer" for a whole transformer layer and one more
            LayerNorm (COCO's Large Hybrid).
        attention_heads: heads of the self-attention.
        dropout: dropout of attention and feed-forward.
        input_dropout: dropout on the weighted sum of hidden states; of fast_vgs on the features of regions, too.
        pooling: of the head parallel: "cls" as published, or "weights" (ours) for joined frames and weights over time
            for every dimension, without a transformer layer. Then attention_heads, dropout and cls_std have no effect.
            "both" (ours) adds the two embeddings, with a loss each.
        joined_frames: with pooling "weights" and "both": frames of 20 ms that are joined to one position.
        keywords: K, the number of keywords of the heads cascaded and hybrid.
        projection_layers: linear layers from a keyword's state to the subword width, 1 or 2.
        parallel_layers: linear layers from a hybrid head's parallel [CLS] to the embedding, 1 or 2.
        quantizer_temperature: temperature of the softmax over the vocabulary.
        quantizer_final_temperature: the temperature changes to this value; 0 keeps it.
        quantizer_steps: training steps in which it changes.
        quantizer_soft_steps: training steps in which a keyword is the expected subword embedding, not the nearest one.
        cls_std: standard deviation of the [CLS] vectors at the start of training. The published code has 1.
        cif: settings of the heads that predict the number of keywords.
        fast_vgs: settings of the head fast_vgs.
        reranker: settings of the heads reranker and reranker_hybrid.
    """

    name: str = "parallel"
    block: Literal["attention", "transformer"] = "attention"
    attention_heads: int = bounded(8, AT_LEAST_ONE)
    dropout: float = bounded(0.1, PROBABILITY)
    input_dropout: float = bounded(0.0, PROBABILITY)
    pooling: Literal["cls", "weights", "both"] = "cls"
    joined_frames: int = bounded(4, AT_LEAST_ONE)
    keywords: int = bounded(8, AT_LEAST_ONE)
    projection_layers: Literal[1, 2] = 1
    parallel_layers: Literal[1, 2] = 1
    quantizer_temperature: float = bounded(0.1, POSITIVE)
    quantizer_final_temperature: float = bounded(0.0, NOT_NEGATIVE)
    quantizer_steps: int = bounded(0, NOT_NEGATIVE)
    quantizer_soft_steps: int = bounded(0, NOT_NEGATIVE)
    cls_std: float = bounded(1.0, POSITIVE)
    cif: CIFConfig = field(default_factory=CIFConfig)
    fast_vgs: FastVgsConfig = field(default_factory=FastVgsConfig)
    reranker: RerankerConfig = field(default_factory=RerankerConfig)


@dataclass(frozen=True)
class LossConfig:
    """The masked contrastive loss.

    Attributes:
        name: "softmax", or "sigmoid" as SigLIP is trained: each pair of the batch is a binary decision.
        bias: of the logits, sigmoid only; learned if the temperature is. SigLIP starts with -10 and temperature 0.1.
        temperature: tau in logits = cosine / tau; the initial value if it is learned.
        learn_temperature: train log(1 / tau). Published for Large, and for SpeechCLIP+ of both sizes except COCO's
            Large Hybrid.
        parallel_weight: weight of a hybrid head's loss on the parallel branch.
        cascaded_weight: weight of a hybrid head's loss on the cascaded branch.
        quantity_weight: weight of the quantity loss (cascaded_plus, hybrid_plus).
        diversity_weight: weight of the loss on keywords of an utterance that repeat each other.
        coverage_weight: weight of the loss on subwords that no keyword of the batch selects.
        margin: of the head fast_vgs: it is subtracted from the scores of matching pairs.
        fine_weight: of the head fast_vgs: weight of the loss on the scores of the cross-modal layers.
        coarse_weight: of the head fast_vgs: weight of the loss on the dot products.
        coarse_final_weight: coarse_weight changes linearly to this value in coarse_steps; null keeps it.
        coarse_steps: updates after which coarse_final_weight is reached and stays; 0 for the end of training.
    """

    name: Literal["softmax", "sigmoid"] = "softmax"
    bias: float = bounded(-10.0, FINITE)
    temperature: float = bounded(0.07, POSITIVE)
    learn_temperature: bool = False
    parallel_weight: float = bounded(1.0, NOT_NEGATIVE)
    cascaded_weight: float = bounded(1.0, NOT_NEGATIVE)
    quantity_weight: float = bounded(0.25, NOT_NEGATIVE)
    diversity_weight: float = bounded(0.0, NOT_NEGATIVE)
    coverage_weight: float = bounded(0.0, NOT_NEGATIVE)
    margin: float = bounded(1.0, NOT_NEGATIVE)
    fine_weight: float = bounded(1.0, NOT_NEGATIVE)
    coarse_weight: float = bounded(0.1, NOT_NEGATIVE)
    coarse_final_weight: Optional[float] = bounded(None, NOT_NEGATIVE)
    coarse_steps: int = bounded(0, NOT_NEGATIVE)


@dataclass(frozen=True)
class ModelConfig:
    """Everything that defines the model. It is saved with the weights."""

    speech_encoder: SpeechEncoderConfig = field(default_factory=SpeechEncoderConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    loss: LossConfig = field(default_factory=LossConfig)


@dataclass(frozen=True)
class AugmentConfig:
    """Noise and rooms on the training speech. With probability 0 nothing changes.

    Attributes:
        probability: share of the training utterances that are heard in another condition, drawn again in every epoch.
        kinds: conditions to draw from: white, babble, reverb, telephone, clipping; with noise_dir musan_noise,
            musan_music and musan_speech.
        snr: lowest and highest SNR of a noise, in dB.
        copies: with feats "dump", number of copies of the training speech in the feature store; each has its own noise.
        noise_dir: noises in MUSAN's layout; empty for none.
        rir_dir: impulse responses; empty for simulated rooms.
    """

    probability: float = bounded(0.0, Bound(0, 1))
    kinds: list[str] = field(default_factory=lambda: ["white", "babble", "reverb", "telephone"])
    snr: tuple[float, float] = (0.0, 20.0)
    copies: int = bounded(1, AT_LEAST_ONE)
    noise_dir: str = ""
    rir_dir: str = ""


@dataclass(frozen=True)
class DataConfig:
    """The training data and its batches.

    Attributes:
        feats: "dump" reads hidden states from the feature store, "online" computes them in the training loop.
        store_dtype: precision of the feature store.
        max_seconds: longer utterances are cropped at random, in training only; 0 for no limit.
        batch_size: utterances in a global batch, over all processes. The contrastive loss needs at least 2.
        eval_batch_size: utterances in an evaluation batch, per process.
        encode_batch_size: utterances that the speech encoder takes at a time with feats "online", per process; less
            needs less memory.
        bucket_batches: batches are cut from this many shuffled batches, sorted by length; 1 for no sorting.
        time_masks: number of spans of frames that are set to zero in each training utterance.
        time_mask_frames: length of the longest such span, in frames of 20 ms.
        layer_dropout: probability that a hidden state takes no part in the weighted sum of a training step.
        channel_dropout: probability that a dimension of the weighted sum is 0 in a whole training utterance.
        feature_noise: Gaussian noise on the weighted sum in training, relative to the deviation of the frame.
        augment: noise and rooms on the training speech; off by default.
        workers: loader processes; 0 reads in the training process.
        languages: train and choose the best step on utterances in these languages only; empty for all.
    """

    feats: Literal["dump", "online"] = "dump"
    store_dtype: Literal["float16", "float32"] = "float16"
    max_seconds: float = bounded(6.4, NOT_NEGATIVE)
    batch_size: int = bounded(256, Bound(2))
    eval_batch_size: int = bounded(32, AT_LEAST_ONE)
    encode_batch_size: int = bounded(64, AT_LEAST_ONE)
    bucket_batches: int = bounded(8, AT_LEAST_ONE)
    time_masks: int = bounded(0, NOT_NEGATIVE)
    time_mask_frames: int = bounded(20, AT_LEAST_ONE)
    layer_dropout: float = bounded(0.0, PROBABILITY)
    channel_dropout: float = bounded(0.0, PROBABILITY)
    feature_noise: float = bounded(0.0, NOT_NEGATIVE)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    workers: int = bounded(0, NOT_NEGATIVE)
    languages: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class OptimConfig:
    """Adam with linear warm-up and linear decay, counted in steps.

    Attributes:
        lr: peak learning rate.
        final_lr: learning rate at the last step.
        betas: Adam's decay rates.
        weight_decay: L2 penalty, added to the gradient ("adam") or decoupled ("adamw").
        algorithm: the optimiser. "bert_adam" is Adam without bias correction, with decoupled weight decay and a
            learning rate that starts from 0 (Devlin et al. 2019).
        epsilon: added to the denominator of an update.
        warmup_steps: steps of linear warm-up, at most max_steps.
        max_steps: training ends after this step.
        clip_norm: gradients are scaled down to this global norm; 0 for no clipping.
        ema_decay: evaluate and save an exponential moving average of the weights; 0 for the weights themselves.
    """

    lr: float = bounded(1e-4, POSITIVE)
    final_lr: float = bounded(1e-8, NOT_NEGATIVE)
    betas: tuple[float, float] = bounded((0.9, 0.999), PROBABILITY)
    weight_decay: float = bounded(1e-6, NOT_NEGATIVE)
    algorithm: Literal["adam", "adamw", "bert_adam"] = "adam"
    epsilon: float = bounded(1e-8, POSITIVE)
    warmup_steps: int = bounded(5000, NOT_NEGATIVE)
    max_steps: int = bounded(50000, AT_LEAST_ONE)
    clip_norm: float = bounded(4.0, NOT_NEGATIVE)
    ema_decay: float = bounded(0.0, PROBABILITY)


@dataclass(frozen=True)
class ObjectivesConfig:
    """Further training objectives of later papers. All are off by default. They change no published setting.

    Attributes:
        queue: number of earlier utterances and images that are further negatives; 0 for none (SIC, arXiv 2408.13119).
        all_images: all images of the training split are negatives of an utterance, not only those of the batch (ours).
            CLIP is frozen, so their embeddings never age.
        momentum: decay of the momentum model, which embeds the utterances of the queue and gives soft targets.
        distillation: share of the momentum model's distribution in the targets of the contrastive loss (SIC).
        image_distillation: share of the softmax of the cosines between the images in these targets. It transfers CLIP's
            image space to the speech (our addition).
        image_temperature: temperature of this softmax.
        rise_steps: training steps in which both shares rise from 0.
        matching_weight: weight of the loss that tells pairs from hard negatives (SIM, arXiv 2408.13119).
        denoising_weight: weight of cross-modal denoising (CMD, arXiv 2408.13705).
        denoising_noise: length of the noise vector that denoising adds to an image of length 1.
        stride: frames of 20 ms that matching and denoising join to one position.
        keyword_weight: weight of a contrastive loss on a linear map of the mean keyword before quantisation (ours).
    """

    queue: int = bounded(0, NOT_NEGATIVE)
    all_images: bool = False
    momentum: float = bounded(0.995, PROBABILITY)
    distillation: float = bounded(0.0, Bound(0, 1))
    image_distillation: float = bounded(0.0, Bound(0, 1))
    image_temperature: float = bounded(0.07, POSITIVE)
    rise_steps: int = bounded(0, NOT_NEGATIVE)
    matching_weight: float = bounded(0.0, NOT_NEGATIVE)
    denoising_weight: float = bounded(0.0, NOT_NEGATIVE)
    denoising_noise: float = bounded(1.0, POSITIVE)
    stride: int = bounded(8, AT_LEAST_ONE)
    keyword_weight: float = bounded(0.0, NOT_NEGATIVE)

    @property
    def needs_momentum(self) -> bool:
        """True if a momentum model is needed."""
        return bool(self.queue or self.distillation)

    @property
    def active(self) -> bool:
        """True if an objective is on."""
        weights = self.matching_weight, self.denoising_weight, self.keyword_weight
        return bool(self.needs_momentum or self.all_images or self.image_distillation or any(weights))


@dataclass(frozen=True)
class TrainConfig:
    """The training loop.

    Attributes:
        encoder: the trained part of the speech encoder. "frozen"; a number N for its top N transformer layers;
            "transformer" for all layers, the feature projection and the positional convolution; "all" for the
            waveform convolutions as well. It needs data.feats online. The encoder stays in eval mode: no dropout, no
            layer drop, no masking. Layers above the last one in model.speech_encoder.layers stay frozen. With
            model.speech_encoder.part "convolutions" the head fast_vgs holds the transformer itself, with the dropout of
            the head. Then only "all" needs data.feats online.
        encoder_lr: peak learning rate of the trained part of the encoder. It follows the schedule of optim.lr.
        image_lr: peak learning rate of the image tower of the head fast_vgs; 0 for optim.lr. If both towers move fast,
            they take long to find each other.
        precision: precision of Lightning Fabric; bf16-mixed and 16-mixed need a GPU to be fast.
        eval_interval: steps between dev evaluations. Each of them also saves `last`.
        log_interval: steps between log lines and points in TensorBoard.
        patience: stop after this many dev evaluations without a better mean R@10; 0 never stops early.
        objectives: further objectives; off by default.
        supervision: the target of the loss; "text" trains the supervised topline on captions.
        tensorboard_utterances: dev utterances that TensorBoard shows with attention and embeddings; 0 for none.
    """

    encoder: Union[int, Literal["frozen", "transformer", "all"]] = "frozen"
    encoder_lr: float = bounded(1e-5, POSITIVE)
    image_lr: float = bounded(0.0, NOT_NEGATIVE)
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    eval_interval: int = bounded(1000, AT_LEAST_ONE)
    log_interval: int = bounded(50, AT_LEAST_ONE)
    patience: int = bounded(0, NOT_NEGATIVE)
    supervision: Literal["image", "text"] = "image"
    tensorboard_utterances: int = bounded(4, NOT_NEGATIVE)
    objectives: ObjectivesConfig = field(default_factory=ObjectivesConfig)


@dataclass(frozen=True)
class EvalConfig:
    """Scoring.

    Attributes:
        top_k: candidates that a reranker orders again, in each direction (K).
        bootstrap: resamples of the images for the confidence intervals; 0 for none.
        neighbours: number of subwords that are written for each keyword.
        sweep: numbers of neighbours for which keyword hit rates are computed.
        span_mass: fraction of a keyword's attention that its time span holds.
        boundary_tolerance: tolerance of word boundaries, in seconds.
        keep_attention: number of utterances whose attention is kept for the report; 0 for none.
        window_seconds: also score retrieval with utterances in windows of this length; 0 for no windows.
        window_hop: seconds between the starts of two windows, at most ``window_seconds``.
        languages: score utterances in these languages only; empty for all, with a table by language.
    """

    top_k: int = bounded(100, AT_LEAST_ONE)
    bootstrap: int = bounded(1000, NOT_NEGATIVE)
    neighbours: int = bounded(5, AT_LEAST_ONE)
    sweep: list[int] = bounded([1, 3, 5, 10, 20], AT_LEAST_ONE)
    span_mass: float = bounded(0.5, FRACTION)
    boundary_tolerance: float = bounded(0.02, NOT_NEGATIVE)
    keep_attention: int = bounded(1000, NOT_NEGATIVE)
    window_seconds: float = bounded(0.0, NOT_NEGATIVE)
    window_hop: float = bounded(5.0, POSITIVE)
    languages: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Config:
    """A complete configuration: model, data, optimiser, training loop, evaluation.

    Raises:
        UserError: a value out of bounds.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        _check_bounds(self, "")
        layers = self.model.speech_encoder.layers
        if layers is not None and (not layers or min(layers) < 0 or len(set(layers)) != len(layers)):
            raise UserError(
                f"model.speech_encoder.layers: {layers} is not a list of different numbers from 0 on. Correct the list."
            )
        if 0 < self.data.max_seconds < FRAME_SECONDS:
            raise UserError(
                f"data.max_seconds: {self.data.max_seconds} is less than one frame of {FRAME_SECONDS} s."
                " Choose a longer time."
            )
        fast_vgs = self.model.head.fast_vgs
        if fast_vgs.speech_layer > fast_vgs.speech_layers:
            raise UserError(
                f"model.head.fast_vgs.speech_layer: {fast_vgs.speech_layer} is more than the "
                f"{fast_vgs.speech_layers} layers (speech_layers)."
                " Change the value."
            )
        if len(fast_vgs.widths) < 2 or fast_vgs.widths[-1] != fast_vgs.dim:
            raise UserError(
                f"model.head.fast_vgs.widths: {fast_vgs.widths} does not end with {fast_vgs.dim} (dim)."
                " Change the value."
            )
        if not isinstance(self.train.encoder, str) and self.train.encoder < 1:
            raise UserError(
                f"train.encoder: {self.train.encoder} is not a number of layers from 1 on. Change the value."
            )
        self._check_head()
        self._check_objectives()
        if not math.isfinite(sum(self.data.augment.snr)) or self.data.augment.snr[0] > self.data.augment.snr[1]:
            raise UserError(
                f"data.augment.snr: {list(self.data.augment.snr)} is not a lowest and a highest SNR in dB."
                " Change the value."
            )
        if self.data.augment.probability and not self.data.augment.kinds:
            raise UserError("data.augment.kinds: is empty. Give at least one condition.")
        if self.optim.final_lr > self.optim.lr:
            raise UserError(
                f"optim.final_lr: {self.optim.final_lr} is not at most optim.lr ({self.optim.lr})."
                " Choose a smaller one."
            )
        if self.optim.warmup_steps > self.optim.max_steps:
            raise UserError(
                f"optim.warmup_steps: {self.optim.warmup_steps} is not in [0, {self.optim.max_steps}]."
                " Change it or optim.max_steps."
            )

    def _check_head(self) -> None:
        head = self.model.head
        owners = ("parallel", "reranker")  # a reranker keeps the settings of its coarse head
        if head.pooling != "cls" and head.name not in owners:
            raise UserError(f"model.head.pooling: belongs to the head parallel, not to {head.name}. Remove it.")
        size, batch = head.fast_vgs.fine_batch, self.data.batch_size
        if head.name == "fast_vgs" and size and (size < 2 or batch % size):
            raise UserError(
                f"model.head.fast_vgs.fine_batch: {size} is not a divisor of data.batch_size ({batch}) from 2 on."
                " Change one of them."
            )
        if head.name == "fast_vgs" and head.fast_vgs.fine_parts == "similar" and not size:
            raise UserError("model.head.fast_vgs.fine_parts: similar needs parts. Set model.head.fast_vgs.fine_batch.")

    def _check_objectives(self) -> None:
        objectives, head = self.train.objectives, self.model.head.name
        if not objectives.active:
            return
        if self.model.loss.name != "softmax":
            raise UserError(
                f"model.loss.name: {self.model.loss.name}, but train.objectives needs softmax. Change one of them."
            )
        if head == "fast_vgs" or head.startswith("reranker"):
            raise UserError(f"train.objectives: the head {head} has losses of its own. Switch the objectives off.")
        if objectives.all_images and self.train.supervision == "text":
            raise UserError("train.objectives.all_images: train.supervision is text. Switch all_images off.")
        if objectives.keyword_weight and head in ("parallel", "mean"):
            raise UserError(f"train.objectives.keyword_weight: the head {head} has no keywords. Set it to 0.")
        if objectives.distillation + objectives.image_distillation > 1:
            raise UserError(
                f"train.objectives: distillation ({objectives.distillation}) and image_distillation "
                f"({objectives.image_distillation}) are more than 1 together. Make one smaller."
            )


def _check_bounds(node: Any, prefix: str) -> None:
    """Check every field of a dataclass, and of those inside it, against its declared bounds."""
    for item in dataclasses.fields(node):
        value, key = getattr(node, item.name), prefix + item.name
        if dataclasses.is_dataclass(value):
            _check_bounds(value, f"{key}.")
        elif value is not None and (bound := item.metadata.get("bound")) is not None and not bound.holds(value):
            raise UserError(f"{key}: {value} is not {bound}. Change the value.")


def known_keys(cls: type = Config, prefix: str = "") -> list[str]:
    """Return every dotted key of the schema, in order."""
    keys: list[str] = []
    defaults = cls()
    for item in dataclasses.fields(cls):
        value = getattr(defaults, item.name)
        if dataclasses.is_dataclass(value):
            keys += known_keys(type(value), f"{prefix}{item.name}.")
        else:
            keys.append(prefix + item.name)
    return keys


def build_parser(prog: str, description: str) -> ArgumentParser:
    """Return the parser of a stage script: repeated ``--config FILE`` layers, then dotted overrides.

    Args:
        prog: the name of the script.
        description: for ``--help``, which lists every key.
    """
    from jsonargparse import ActionConfigFile, ArgumentParser

    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False, default_env=False)
    parser.add_argument("--config", action=ActionConfigFile, help="YAML layer; repeat it, later ones win")
    parser.add_class_arguments(Config, None, fail_untyped=True)
    return parser


def parse(parser: ArgumentParser, argv: Sequence[str] | None = None) -> tuple[Config, Any]:
    """Parse a command line.

    Args:
        parser: see :func:`build_parser`.
        argv: the words; None for those of this process.

    Returns:
        The configuration, and the namespace of the script's own options.

    Raises:
        UserError: an unknown key or option, a wrong type, a value out of bounds, or a missing file.
    """
    from jsonargparse import ArgumentError

    words = list(sys.argv[1:] if argv is None else argv)
    for flag, following in zip(words, [*words[1:], ""]):
        name, _, value = flag.partition("=")
        if name == "--config":
            _check_layer(Path(value or following))
    try:
        parsed = parser.parse_args(words)
        built = parser.instantiate_classes(parsed)
    except (ArgumentError, TypeError) as error:
        raise UserError(_explain(str(error))) from error
    names = [item.name for item in dataclasses.fields(Config)]
    for name in names:
        _check_null(built[name], name)
    config = Config(**{name: built[name] for name in names})
    for name in (*names, "config"):
        built.pop(name, None)
    return config, built


def _check_null(node: Any, key: str) -> None:
    """Refuse null for keys that may not be null: jsonargparse accepts it for every key."""
    if node is None:
        raise UserError(f"{key}: null is not allowed. Give a value.")
    for item in dataclasses.fields(node):
        value = getattr(node, item.name)
        if dataclasses.is_dataclass(value) or (value is None and not str(item.type).startswith("Optional")):
            _check_null(value, f"{key}.{item.name}")


def _check_layer(path: Path) -> None:
    """Refuse a YAML layer that is missing, is not a mapping, or holds an unknown key."""
    import yaml

    try:
        if path.is_file() and path.stat().st_size > _MAX_BYTES:
            raise UserError(
                f"{path}: too large for a configuration, which has at most {_MAX_BYTES} bytes."
                " Remove what is not configuration."
            )
        layer = yaml.safe_load(path.read_text(encoding="utf-8"))
        if _size(layer, {}) > _MAX_VALUES:
            raise UserError(f"{path}: expands to more than {_MAX_VALUES} values. Write out fewer anchors.")
    except RecursionError:
        raise UserError(f"{path}: nested too deeply for a configuration. Remove some levels.") from None
    except FileNotFoundError:
        raise UserError(f"{path}: is missing. Give an existing configuration file.") from None
    except (ValueError, yaml.YAMLError, OSError) as error:  # ValueError: not UTF-8, or an impossible date
        raise UserError(f"{path}: not a YAML file: {error}. Correct the YAML.") from error
    if layer is None:
        raise UserError(f"{path}: is empty. A configuration sets at least one key.")
    if not isinstance(layer, dict):
        raise UserError(
            f"{path}: a configuration is a mapping of keys, not {type(layer).__name__}. Write 'key: value' lines."
        )
    known = known_keys()

    def walk(node: dict[Any, Any], prefix: str) -> None:
        for name, value in node.items():
            key = f"{prefix}{name}"
            if isinstance(value, dict) and any(item.startswith(f"{key}.") for item in known):
                walk(value, f"{key}.")
            elif key not in known:
                raise UserError(f"{path}: {_unknown(key)}")

    walk(layer, "")


def _size(node: Any, known: dict[int, int]) -> int:
    """Count the values that a YAML node expands to: anchors can repeat a node many times."""
    if not isinstance(node, (dict, list)):
        return 1
    if id(node) not in known:
        known[id(node)] = _MAX_VALUES  # a node that contains itself has no end
        parts = [*node, *node.values()] if isinstance(node, dict) else node
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]


def _unknown(key: str) -> str:
    known = known_keys()
    same_leaf = [item for item in known if item.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    near = (same_leaf or difflib.get_close_matches(key, known, n=1, cutoff=0.5))[:1]
    return f"unknown configuration key '{key}'" + (f"; did you mean '{near[0]}'?" if near else "")


def load(paths: Sequence[str | Path], overrides: Sequence[str] = ()) -> Config:
    """Load a configuration from YAML layers.

    Args:
        paths: the layers; later ones win.
        overrides: words ``--key value``, which win over the layers.

    Raises:
        UserError: see :func:`parse`.
    """
    argv = [part for path in paths for part in ("--config", str(path))]
    return parse(_plain_parser(), [*argv, *overrides])[0]


@functools.lru_cache(maxsize=1)
def _plain_parser() -> ArgumentParser:
    """Return the parser of :func:`load`. Building it takes as long as reading a configuration."""
    return build_parser("config", "")


def to_dict(config: Any) -> dict[str, Any]:
    """Return a configuration as plain containers, for YAML."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value

    plain_dict: dict[str, Any] = plain(dataclasses.asdict(config))
    return plain_dict


def save(config: Config, path: str | Path) -> None:
    """Write a configuration as YAML, which :func:`load` reads."""
    import yaml

    Path(path).write_text(yaml.safe_dump(to_dict(config), sort_keys=False), encoding="utf-8")


def _explain(message: str) -> str:
    """Return jsonargparse's message on one line. For an unknown option, suggest the nearest key."""
    line = " ".join(message.split())
    unknown = re.match(r"unrecognized arguments: --([\w.-]+)", line)
    return _unknown(unknown.group(1)) if unknown else line.replace("Parser key ", "")


# -- published settings ----------------------------------------------------------------------------------------------

PUBLISHED_MODELS = ("base", "large")
PUBLISHED_HEADS = ("parallel", "cascaded", "hybrid", "cascaded_plus", "hybrid_plus")

_INSTALLED = Path(__file__).resolve().parent / "conf"  # in a wheel: see setup.py
_CHECKOUT = Path(__file__).resolve().parents[1] / "egs"


def published_layers(model: str, head: str, corpus: str = "") -> list[Path]:
    """Return the YAML layers of a published setting, as ``run.sh --model --head`` uses them. Later ones win.

    Args:
        model: base or large.
        head: parallel, cascaded, hybrid, cascaded_plus or hybrid_plus.
        corpus: flickr8k or spokencoco, for settings that were published for one corpus; empty for the shared ones.

    Raises:
        UserError: an unknown model, head or corpus.
    """
    folders = _folders(corpus)
    for kind, name, known in (("model", model, PUBLISHED_MODELS), ("head", head, PUBLISHED_HEADS)):
        if name not in known:
            raise UserError(
                f"no published settings for the {kind} {name!r} (known: {', '.join(known)}). Choose a known one."
            )
    files = [folder / f"{name}.yaml" for folder in folders for name in (model, head, f"{model}_{head}")]
    return [file for file in files if file.is_file()]


def published_config(model: str, head: str, corpus: str = "") -> Config:
    """Load the published configuration of a model and a head (Shih et al. 2022; Wang et al. 2024).

    Args:
        model, head, corpus: see :func:`published_layers`.

    Raises:
        UserError: see :func:`published_layers`.
    """
    return load(published_layers(model, head, corpus))


def _folders(corpus: str) -> list[Path]:
    """Return the folder of the shared layers and, for a corpus, its own folder."""
    shared = _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT / "conf"
    if not corpus:
        return [shared]
    own = _INSTALLED / corpus if _INSTALLED.is_dir() else _CHECKOUT / corpus / "conf"
    if not own.is_dir():
        raise UserError(f"no published settings for the corpus {corpus!r}. Choose a known corpus.")
    return [shared, own]
