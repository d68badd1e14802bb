"""A plane through the joint space, for a map of utterances and images."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Plane(NamedTuple):
    """speech [U, 2], images [I, 2]: coordinates. explained: share of the variance along each axis.

    gap: cosine of the mean of speech with the mean of images, before both were moved to the origin; 1 is no gap.
    """

    speech: Floats
    images: Floats
    explained: tuple[float, float]
    gap: float


def project(speech: NDArray[np.floating], images: NDArray[np.floating]) -> Plane:
    """The first two principal components of both kinds of embeddings, [U, D] and [I, D], together.

    Each kind is centred on its own mean first: without that the first axis would show nothing but which kind a point
    is of (Liang et al. 2022, the modality gap). Both kinds weigh the same, however many there are of each. An axis
    points to where its longest coordinate is positive, so equal input gives an equal map.
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
