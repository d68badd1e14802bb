"""Cross-modal retrieval between speech, images and captions: recall, mean reciprocal rank, intervals and chance.

An item of the gallery is relevant to a query when their groups are equal; a query is answered by the best-placed
relevant item, so a direction with several right answers ("any of the image's utterances") needs no rule of its own.
Where a group array has two dimensions, [N, C], an item is relevant when the groups agree in at least one of the C
columns. Scores are in percent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from speechclip.data.embeddings import row_norms
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
    """``{"R@1", "R@5", "R@10", "MRR"}`` of ranks [Q] counted from 1, in percent."""
    r = np.asarray(ranks)
    if r.size == 0:
        raise ValueError("no ranks to average")
    return {name: 100.0 * float(column.mean()) for name, column in gains_of(r).items()}


def bootstrap_ci(
    ranks: ArrayLike, clusters: ArrayLike, n: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, list[float]]:
    """Percentile bootstrap intervals ``{"R@1": [low, high], ...}`` in percent, resampling clusters with replacement.

    ranks [Q]; clusters [Q] names what a query belongs to, its image: the captions of one image are no independent
    draws, so they are drawn together. The mean of a resample is over its queries. Equal seeds give equal intervals.
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
    """Expected ``{"R@1", "R@5", "R@10", "MRR"}`` in percent when the gallery is ordered at random.

    query_groups [Q] or [Q, C], gallery_groups [G] or [G, C]. Exact: with n relevant among G items, no relevant one is
    among the first r with probability C(G - n, r) / C(G, r), and the expected reciprocal rank follows from that.
    """
    qg = as_groups(query_groups, None, "query_groups")
    gg = as_groups(gallery_groups, None, "gallery_groups")
    total = len(gg)
    relevant = _count_relevant(qg, gg)
    check_answerable(relevant > 0, 0)
    table = dict.fromkeys([*(f"R@{k}" for k in CUTOFFS), "MRR"], 0.0)
    drawn = np.arange(total)
    for n, queries in zip(*np.unique(relevant, return_counts=True), strict=True):
        # probability that the first r items hold no relevant one, for r = 0 .. G
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
    """One direction: ``{"R@1", "R@5", "R@10", "MRR", "n_queries", "n_gallery", "ci95"}``.

    Arguments as of `first_hit_ranks` and `bootstrap_ci`; clusters [Q]; ranks [Q] where they are known already. Without
    resamples (0) there is no "ci95".
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
    """Every direction that the given embeddings allow; a direction without its embeddings is absent.

    speech [U, D]; utt_images [U], the row of every utterance's image in images [I, D]; texts [M, D], the embedding of
    the caption of utterance text_utterances[m] (by default of utterance m, M = U); captions, the M strings behind
    texts. Rows are L2-normalised here.

    Own-caption directions ("speech->text", "text->speech") accept the utterance's own caption; an equal string counts
    as own when captions are given, and strings that differ in case or white space are equal, as to CLIP's tokenizers.
    "(any caption)" accepts every caption of the image besides. The text directions are measured on exactly the M
    utterances that have a text. "image->speech" asks only with images that have an utterance; all of images are the
    gallery of "speech->image". "text->image" is the topline of a perfect recogniser.
    "random" holds the chance level of every direction, "mean_R@10" the mean over the two speech-image directions.
    ``keep``, where given, gets for every direction the rank of each query and the query's image, for paired tests.
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
        asked, every = np.unique(owner), np.arange(len(pictured))
        cases["speech->image"] = (spoken, pictured, owner, every, owner)
        cases["image->speech"] = (pictured[asked], spoken, asked, owner, asked)
    if texts is not None:
        written = _unit(texts, "texts")
        rows = np.arange(len(spoken)) if text_utterances is None else np.asarray(text_utterances, dtype=np.int64)
        if len(rows) != len(written) or (captions is not None and len(captions) != len(written)):
            raise ValueError(f"{len(written)} texts, {len(rows)} utterances of theirs and the captions do not fit")
        said, image = spoken[rows], owner[rows]
        own = rows
        if captions is not None:
            read = [" ".join(caption.lower().split()) for caption in captions]
            own = np.unique(np.asarray(read), return_inverse=True)[1].reshape(-1)
        either = np.stack([image, own], axis=1)
        cases["speech->text"] = (said, written, own, own, image)
        cases["text->speech"] = (written, said, own, own, image)
        cases["speech->text (any caption)"] = (said, written, either, either, image)
        cases["text->speech (any caption)"] = (written, said, either, either, image)
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


def gains_of(ranks: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    """What every rank adds to each score, before the mean."""
    hits = {f"R@{k}": (ranks <= k).astype(np.float64) for k in CUTOFFS}
    return {**hits, "MRR": 1.0 / ranks}


def _count_relevant(query_groups: Ints, gallery_groups: Ints) -> Ints:
    """[Q, C] and [G, C] -> [Q], the relevant items of every query; up to two columns without comparing all pairs."""
    if query_groups.shape[1] > 2:
        listed = sort_groups(gallery_groups)
        parts = blocks(len(query_groups), len(gallery_groups), None)
        found = [np.bincount(relevant_pairs(query_groups[part], *listed)[0], minlength=part.stop - part.start)
                 for part in parts]  # fmt: skip
        return np.concatenate(found)

    def equal(columns: list[int]) -> Ints:
        """How many items agree in all of the columns."""
        both = np.concatenate([gallery_groups[:, columns], query_groups[:, columns]])
        index = np.unique(both, axis=0, return_inverse=True)[1].reshape(-1)
        counts = np.bincount(index[: len(gallery_groups)], minlength=int(index.max()) + 1)
        return counts[index[len(gallery_groups) :]]

    if query_groups.shape[1] == 1:
        return equal([0])
    return equal([0]) + equal([1]) - equal([0, 1])


def _unit(values: ArrayLike, name: str) -> Floats:
    """A matrix with rows of length one; rows of zeros stay."""
    array = as_matrix(values, name)
    norm = row_norms(array)
    return array / np.where(norm > 0, norm, 1)
