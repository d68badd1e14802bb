"""A plane through the joint space, for a map of utterances and images."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Plane(NamedTuple):
    """Coordinates of utterances and images in a plane.

    Attributes:
        speech: coordinates of the utterances [U, 2].
        images: coordinates of the images [I, 2].
        explained: share of the variance along each axis.
        gap: cosine of the mean speech embedding and the mean image embedding; 1 means no modality gap.
    """

    speech: Floats
    images: Floats
    explained: tuple[float, float]
    gap: float


def project(speech: NDArray[np.floating], images: NDArray[np.floating]) -> Plane:
    """Project embeddings of speech [U, D] and images [I, D] onto their first two principal components.

    Each kind is first centred on its own mean. Otherwise the first axis would show only the kind of a point (the
    modality gap, Liang et al. 2022). Both kinds have the same weight, whatever their numbers. The direction of an axis
    is fixed: its largest coordinate is positive. So equal input gives an equal map.
    """
    kinds = [np.asarray(rows, dtype=np.float64) for rows in (speech, images)]
    means = [rows.mean(axis=0) for rows in kinds]
    centred = [rows - mean for rows, mean in zip(kinds, means, strict=True)]
    scatter = sum((rows.T @ rows) / len(rows) for rows in centred)  # [D, D]
    values, vectors = np.linalg.eigh(scatter)
    axes = vectors[:, ::-1][:, :2]  # the largest first
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    if axes.shape[1] < 2:
        axes = np.pad(axes, ((0, 0), (0, 2 - axes.shape[1])))
    total = max(float(values.sum()), 1e-12)
    share = [float(max(value, 0.0)) / total for value in (*values[::-1][:2], 0.0)]
    norms = max(float(np.linalg.norm(means[0]) * np.linalg.norm(means[1])), 1e-12)
    return Plane(centred[0] @ axes, centred[1] @ axes, (share[0], share[1]), float(np.dot(means[0], means[1])) / norms)
