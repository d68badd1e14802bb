"""The tiny HuBERT of the mini corpus: its shape, span masks and cluster targets."""

from __future__ import annotations

from typing import Any

import numpy as np

from speechclip.common.constants import HOP, SAMPLE_RATE

FIELD = 400  # samples in the receptive field of a frame
SPAN = 5  # frames in a masked span: less than a word, because other words do not predict it in these captions
#: Frames whose features are clustered together, one tuple per clustering: around the frame (the length of a word),
#: before it, after it, and close to it. A state that predicts all of them with a linear map represents the whole word.
CONTEXTS = (tuple(range(-12, 13, 3)), tuple(range(-24, 1, 3)), tuple(range(0, 25, 3)), tuple(range(-4, 5, 2)))


def hubert_config() -> Any:
    """Return a ``transformers.HubertConfig`` of the Large type: layer norms in the front end, pre-norm transformer."""
    from transformers import HubertConfig

    return HubertConfig(
        vocab_size=32,
        hidden_size=144,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        conv_dim=(16, 32, 48, 64, 64, 96, 128),
        conv_kernel=(10, 3, 3, 3, 3, 2, 2),
        conv_stride=(5, 2, 2, 2, 2, 2, 2),
        conv_bias=True,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        num_conv_pos_embeddings=32,
        num_conv_pos_embedding_groups=8,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        final_dropout=0.0,
        layerdrop=0.0,
        mask_time_prob=0.05,
        mask_feature_prob=0.0,
    )


def num_frames(samples: int) -> int:
    """Return the number of frames of the front end for a number of samples."""
    return max(0, (samples - FIELD) // HOP + 1)


def log_mel(samples: np.ndarray) -> np.ndarray:
    """Return the log mel spectrum on the frames of the front end, in units of 10 dB: [T, 40]."""
    import librosa

    power = librosa.feature.melspectrogram(
        y=samples, sr=SAMPLE_RATE, n_fft=FIELD, hop_length=HOP, n_mels=40, center=False
    )
    return np.ascontiguousarray(np.log10(power + 1e-3).T, dtype=np.float32)


def mfcc(mel: np.ndarray) -> np.ndarray:
    """Return 13 MFCCs of a log mel spectrum [T, 40] with two orders of differences, standardised: [T, 39]."""
    import librosa
    from scipy.fft import dct

    basic = dct(mel, type=2, norm="ortho", axis=1)[:, :13].T
    width = min(9, basic.shape[1] - (basic.shape[1] + 1) % 2)
    stacked = np.concatenate(
        [basic, librosa.feature.delta(basic, width=width), librosa.feature.delta(basic, width=width, order=2)]
    )
    return standardised(stacked.T.astype(np.float32))


def standardised(features: np.ndarray) -> np.ndarray:
    """Return features [T, D] with zero mean and unit variance over the utterance, which removes most of the voice."""
    return np.asarray((features - features.mean(0)) / (features.std(0) + 1e-5))


def with_context(features: np.ndarray, shifts: tuple[int, ...]) -> np.ndarray:
    """Concatenate the features of the frames at ``shifts`` from each frame: [T, D] to [T, len(shifts) * D].

    The first and the last frame are repeated. Such a cluster depends on the context, so only a state that represents
    the context predicts it.
    """
    frames = np.arange(len(features))
    return np.concatenate([features[np.clip(frames + shift, 0, len(features) - 1)] for shift in shifts], axis=1)


def span_mask(rng: np.random.Generator, rows: int, frames: int, share: float) -> np.ndarray:
    """Return a mask of frames, bool [rows, frames]: spans of ``SPAN`` frames that start anywhere and may overlap."""
    starts = rng.random((rows, frames)) < -np.log(1 - share) / SPAN
    starts[np.arange(rows), rng.integers(0, frames, rows)] = True
    mask = starts.copy()
    for shift in range(1, min(SPAN, frames)):
        mask[:, shift:] |= starts[:, :-shift]
    return mask


def fit_clusters(features: np.ndarray, count: int, seed: int) -> Any:
    """Fit k-means to features [N, D] after scaling each dimension. The result has ``predict``."""
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    kmeans = MiniBatchKMeans(count, batch_size=8192, n_init=1, max_iter=40, random_state=seed)
    return make_pipeline(StandardScaler(), kmeans).fit(features)
