"""Cross-modal retrieval between speech, images and captions: recall, mean reciprocal rank, intervals and chance.

An item of the gallery is relevant to a query if their groups are equal. The rank of a query is the rank of its
best-placed relevant item. So a direction with several right answers ("any of the image's utterances") needs no special
case. If a group array has two dimensions, [N, C], an item is relevant if the groups agree in at least one of the C
columns. Scores are in percent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from speechclip.data.mapped import new_array
from speechclip.data.mapped_embeddings import row_norms
from speechclip.eval.bootstrap import Bootstrap, interval
from speechclip.eval.ranking import (
    Floats,
    Ints,
    as_groups,
    as_matrix,
    blocks,
    check_answerable,
    first_hit_ranks,
    relevant_pairs,
    sort_groups,
)

CUTOFFS = (1, 5, 10)


def recall_table(ranks: ArrayLike) -> dict[str, float]:
    """Return ``{"R@1", "R@5", "R@10", "MRR"}`` in percent for ranks [Q] from 1.

    Raises:
        ValueError: ranks is empty.
    """
    r = np.asarray(ranks)
    if r.size == 0:
        raise ValueError("no ranks to average")
    return {name: 100.0 * float(column.mean()) for name, column in gains_of(r).items()}


def bootstrap_ci(
    ranks: ArrayLike, clusters: ArrayLike, n: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, list[float]]:
    """Return bootstrap intervals ``{"R@1": [low, high], ...}`` in percent. Clusters are resampled with replacement.

    Args:
        ranks: from 1, [Q].
        clusters: the image of each query, [Q]. Captions of one image are drawn together.
        n: number of resamples. The mean of a resample is over its queries.
        seed: equal seeds give equal intervals.
        level: the share of the resamples inside the interval, between 0 and 1.
    """
    r, c = np.asarray(ranks), np.asarray(clusters)
    if r.size == 0 or r.shape != c.shape:
        raise ValueError(f"ranks {r.shape} and clusters {c.shape} do not fit")
    gains = gains_of(r)
    columns = np.stack([*gains.values(), np.ones(len(r))], axis=1)  # [Q, 5]
    sums = Bootstrap(c, n, seed).sums(columns)
    low, high = 100.0 * interval(sums[:, :-1] / sums[:, -1:], level)
    return {name: [float(low[i]), float(high[i])] for i, name in enumerate(gains)}


def chance(query_groups: ArrayLike, gallery_groups: ArrayLike) -> dict[str, float]:
    """Return the expected ``{"R@1", "R@5", "R@10", "MRR"}`` in percent for a random order of the gallery.

    The values are exact. With n relevant items among G, none is in the first r with probability C(G - n, r) / C(G, r).
    The expected reciprocal rank follows from it.

    Args:
        query_groups: [Q] or [Q, C].
        gallery_groups: [G] or [G, C].
    """
    qg = as_groups(query_groups, None, "query_groups")
    gg = as_groups(gallery_groups, None, "gallery_groups")
    total = len(gg)
    relevant = _count_relevant(qg, gg)
    check_answerable(relevant > 0, 0)
    table = dict.fromkeys([*(f"R@{k}" for k in CUTOFFS), "MRR"], 0.0)
    drawn = np.arange(total)
    for n, queries in zip(*np.unique(relevant, return_counts=True), strict=True):
        # probability that no relevant item is in the first r, for r = 0 .. G
        missed = np.concatenate([[1.0], np.cumprod(np.clip(total - n - drawn, 0, None) / (total - drawn))])
        weight = 100.0 * float(queries) / len(qg)
        for k in CUTOFFS:
            table[f"R@{k}"] += weight * (1.0 - float(missed[min(k, total)]))
        table["MRR"] += weight * float(((missed[:-1] - missed[1:]) / (drawn + 1)).sum())
    return table


def evaluate(
    queries: ArrayLike,
    gallery: ArrayLike,
    query_groups: ArrayLike,
    gallery_groups: ArrayLike,
    clusters: ArrayLike,
    n_bootstrap: int = 1000,
    seed: int = 0,
    ranks: Ints | None = None,
) -> dict[str, Any]:
    """Score one direction: ``{"R@1", "R@5", "R@10", "MRR", "n_queries", "n_gallery", "ci95"}``.

    Args:
        queries: [Q, D].
        gallery: [G, D].
        query_groups: [Q] or [Q, C].
        gallery_groups: [G] or [G, C].
        clusters: the image of each query, [Q].
        n_bootstrap: number of resamples; 0 for no "ci95".
        seed: seed of the resamples.
        ranks: [Q]; None: compute them.
    """
    ranks = first_hit_ranks(queries, gallery, query_groups, gallery_groups) if ranks is None else ranks
    scores = {**recall_table(ranks), "n_queries": len(ranks), "n_gallery": len(np.asarray(gallery_groups))}
    intervals = {"ci95": bootstrap_ci(ranks, clusters, n=n_bootstrap, seed=seed)} if n_bootstrap else {}
    return {**scores, **intervals}


def retrieval_report(
    speech: ArrayLike,
    utt_images: ArrayLike,
    images: ArrayLike | None,
    texts: ArrayLike | None = None,
    captions: Sequence[str] | None = None,
    text_utterances: ArrayLike | None = None,
    n_bootstrap: int = 1000,
    seed: int = 0,
    keep: dict[str, tuple[Ints, Ints]] | None = None,
) -> dict[str, Any]:
    """Score every direction that the given embeddings allow.

    Own-caption directions ("speech->text", "text->speech") accept the utterance's own caption. Equal captions count as
    own. Captions are equal if they differ in case or white space only, as for CLIP's tokenizers. The directions "(any
    caption)" accept every caption of the same image too. The text directions use the M utterances that have a text.
    The queries of "image->speech" are the images that have an utterance. The gallery of "speech->image" is all images.
    "text->image" is the topline of a perfect recogniser.

    Args:
        speech: embeddings [U, D]. Rows are normalised here, as those of images and texts.
        utt_images: the row of ``images`` for every utterance, [U].
        images: embeddings [I, D]; None for no image directions.
        texts: embeddings of captions [M, D]; None for no text directions.
        captions: the M captions behind ``texts``; None: all captions differ.
        text_utterances: the utterance of each text, [M]; None: M = U, in order.
        n_bootstrap: number of resamples; 0 for no intervals.
        seed: seed of the resamples.
        keep: receives by direction the rank of each query and the query's image, for paired tests.
    Returns:
        by direction, the result of :func:`evaluate`.
        "random": by direction, the chance level.
        "mean_R@10": the mean of both speech-image directions.
    """
    spoken, owner = _unit(speech, "speech"), np.asarray(utt_images, dtype=np.int64)
    if owner.shape != (len(spoken),):
        raise ValueError(f"utt_images {owner.shape} does not fit speech {spoken.shape}")
    # direction -> queries, gallery, their groups and the queries' images
    cases: dict[str, tuple[Floats, Floats, Ints, Ints, Ints]] = {}
    if images is not None:
        pictured = _unit(images, "images")
        if owner.size and (owner.min() < 0 or owner.max() >= len(pictured)):
            raise ValueError(f"utt_images names a row outside the {len(pictured)} images")
        used, every = np.unique(owner), np.arange(len(pictured))
        cases["speech->image"] = (spoken, pictured, owner, every, owner)
        cases["image->speech"] = (pictured[used], spoken, used, owner, used)
    if texts is not None:
        written = _unit(texts, "texts")
        rows = np.arange(len(spoken)) if text_utterances is None else np.asarray(text_utterances, dtype=np.int64)
        if len(rows) != len(written) or (captions is not None and len(captions) != len(written)):
            raise ValueError(f"{len(written)} texts, {len(rows)} utterances of theirs and the captions do not fit")
        with_text, image = spoken[rows], owner[rows]
        own = rows
        if captions is not None:
            read = [" ".join(caption.lower().split()) for caption in captions]
            own = np.unique(np.asarray(read), return_inverse=True)[1].reshape(-1)
        either = np.stack([image, own], axis=1)
        cases["speech->text"] = (with_text, written, own, own, image)
        cases["text->speech"] = (written, with_text, own, own, image)
        cases["speech->text (any caption)"] = (with_text, written, either, either, image)
        cases["text->speech (any caption)"] = (written, with_text, either, either, image)
        if images is not None:
            cases["text->image"] = (written, pictured, image, every, image)
    report: dict[str, Any] = {}
    for name, case in cases.items():
        ranks = first_hit_ranks(*case[:4])
        report[name] = evaluate(*case, n_bootstrap, seed, ranks)
        if keep is not None:
            keep[name] = (ranks, case[4])
    report["random"] = {name: chance(case[2], case[3]) for name, case in cases.items()}
    if images is not None:
        report["mean_R@10"] = (report["speech->image"]["R@10"] + report["image->speech"]["R@10"]) / 2
    return report


def branch_report(
    branches: Mapping[str, Floats],
    utt_images: ArrayLike,
    images: ArrayLike | None,
    texts: ArrayLike | None = None,
    captions: Sequence[str] | None = None,
    text_utterances: ArrayLike | None = None,
    n_bootstrap: int = 1000,
) -> tuple[dict[str, Any], dict[str, tuple[Ints, Ints]]]:
    """Score every branch of a head.

    Args:
        branches: by branch, speech embeddings [U, J]. The other arguments are those of :func:`retrieval_report`.
    Returns:
        the report of the first branch. With several branches, "branch" is the name of the first, and "branches" has the
            speech directions of the others.
        the rank and the image of every query of the first branch, by direction.
    """

    def score(branch: str, keep: dict[str, tuple[Ints, Ints]] | None = None) -> dict[str, Any]:
        speech = branches[branch]
        return retrieval_report(
            speech, utt_images, images, texts, captions, text_utterances, n_bootstrap=n_bootstrap, keep=keep
        )

    ranks: dict[str, tuple[Ints, Ints]] = {}
    first, *others = branches
    report = score(first, ranks)
    if others:
        directions = [name for name in report if "speech" in name or name == "mean_R@10"]
        reports = {name: score(name) for name in others}
        report["branch"] = first
        report["branches"] = {name: {key: reports[name][key] for key in directions} for name in others}
    return report, ranks


def gains_of(ranks: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    """Return what every rank adds to each score, before the mean."""
    hits = {f"R@{k}": (ranks <= k).astype(np.float64) for k in CUTOFFS}
    return {**hits, "MRR": 1.0 / ranks}


def _count_relevant(query_groups: Ints, gallery_groups: Ints) -> Ints:
    """Count the relevant items of every query, [Q, C] and [G, C] -> [Q]. Up to two columns need no list of pairs."""
    if query_groups.shape[1] > 2:
        listed = sort_groups(gallery_groups)
        parts = blocks(len(query_groups), len(gallery_groups), None)
        found = [np.bincount(relevant_pairs(query_groups[part], *listed)[0], minlength=part.stop - part.start)
                 for part in parts]  # fmt: skip
        return np.concatenate(found)

    def equal(columns: list[int]) -> Ints:
        """Count the items that agree in all of the columns."""
        both = np.concatenate([gallery_groups[:, columns], query_groups[:, columns]])
        index = np.unique(both, axis=0, return_inverse=True)[1].reshape(-1)
        counts = np.bincount(index[: len(gallery_groups)], minlength=int(index.max()) + 1)
        return counts[index[len(gallery_groups) :]]

    if query_groups.shape[1] == 1:
        return equal([0])
    return equal([0]) + equal([1]) - equal([0, 1])


def _unit(values: ArrayLike, name: str) -> Floats:
    """Scale the rows of a matrix to length one. Zero rows stay zero."""
    array = as_matrix(values, name)
    norm = row_norms(array)
    unit = new_array(array.shape, array.dtype)  # in a temporary map if it is large
    for part in blocks(len(array), array.shape[1], None):
        np.divide(array[part], np.where(norm[part] > 0, norm[part], 1), out=unit[part])
    return unit
