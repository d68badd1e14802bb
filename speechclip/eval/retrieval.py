"""Cross-modal retrieval between speech, images and captions: recall, mean reciprocal rank, intervals and chance.

An item of the gallery is relevant to a query when their groups are equal; a query is answered by the best-placed
relevant item, so a direction with several right answers ("any of the image's utterances") needs no rule of its own.
Where a group array has two dimensions, [N, C], an item is relevant when the groups agree in at least one of the C
columns. Scores are in percent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from speechclip.data.embeddings import row_norms
from speechclip.eval.bootstrap import Bootstrap, interval
from speechclip.matmul import linear

CUTOFFS = (1, 5, 10)
BLOCK_SCORES = 1 << 22  # scores held at a time: 16 MiB in single precision

Ints = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]


def first_hit_ranks(
    queries: ArrayLike, gallery: ArrayLike, query_groups: ArrayLike, gallery_groups: ArrayLike, block: int | None = None
) -> Ints:
    """Rank, from 1, of the best-placed relevant gallery item of every query, by dot product.

    queries [Q, D], gallery [G, D], query_groups [Q] or [Q, C], gallery_groups [G] or [G, C]. At most ``block`` queries
    are scored at a time (by default as many as keep the scores under 16 MiB). Ties count against the system: an
    irrelevant item that scores the same stands before the relevant one, and equal gallery rows always score the same.
    Raises ValueError for shapes that do not fit, values that are not finite, and a query without a relevant item.
    """
    q, g = _matrix(queries, "queries"), _matrix(gallery, "gallery")
    qg, gg = _groups(query_groups, len(q), "query_groups"), _groups(gallery_groups, len(g), "gallery_groups")
    if q.shape[1] != g.shape[1] or qg.shape[1] != gg.shape[1]:
        raise ValueError(f"queries {q.shape} and gallery {g.shape}, or the columns of their groups, do not fit")
    # a matrix product may round equal columns differently, so every distinct row is scored once
    first, row_of_item = _distinct_rows(g)
    repeated = len(first) < len(g)
    rows = g[first] if repeated else g
    order = np.argsort(gg, axis=0, kind="stable")
    groups = np.take_along_axis(gg, order, axis=0)
    ranks = np.empty(len(q), dtype=np.int64)
    for part in _blocks(len(q), len(g), block):
        scores = _products(q[part], rows)
        if repeated:
            scores = scores[:, row_of_item]  # [b, G]
        # the relevant items are few: only they are looked at one by one
        row, item, count = _relevant_pairs(qg[part], groups, order)
        _check_answerable(count > 0, part.start)
        ranks[part] = ranks_from_scores(scores, row, item)
    return ranks


def ranks_from_scores(scores: Floats, of_query: Ints, item: Ints) -> Ints:
    """Rank, from 1, of the best-placed relevant item of every query, given all scores [Q, G].

    of_query, item [P]: the relevant pairs, by query, at least one for each, none twice. Ties as in `first_hit_ranks`.
    """
    at = scores[of_query, item]
    best = np.maximum.reduceat(at, np.searchsorted(of_query, np.arange(len(scores))))  # [Q]
    before = np.array([np.count_nonzero(row >= value) for row, value in zip(scores, best, strict=True)])
    ranks: Ints = 1 + before - np.bincount(of_query[at >= best[of_query]], minlength=len(scores))
    return ranks


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
    qg = _groups(query_groups, None, "query_groups")
    gg = _groups(gallery_groups, None, "gallery_groups")
    total = len(gg)
    relevant = _count_relevant(qg, gg)
    _check_answerable(relevant > 0, 0)
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
    as own when captions are given. "(any caption)" accepts every caption of the image besides. The text directions are
    measured on exactly the M utterances that have a text. "image->speech" asks only with images that have an
    utterance; all of images are the gallery of "speech->image". "text->image" is the topline of a perfect recogniser.
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
        own = rows if captions is None else np.unique(np.asarray(captions), return_inverse=True)[1].reshape(-1)
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
        order = np.argsort(gallery_groups, axis=0, kind="stable")
        groups = np.take_along_axis(gallery_groups, order, axis=0)
        parts = _blocks(len(query_groups), len(gallery_groups), None)
        return np.concatenate([_relevant_pairs(query_groups[part], groups, order)[2] for part in parts])

    def equal(columns: list[int]) -> Ints:
        """How many items agree in all of the columns."""
        both = np.concatenate([gallery_groups[:, columns], query_groups[:, columns]])
        index = np.unique(both, axis=0, return_inverse=True)[1].reshape(-1)
        counts = np.bincount(index[: len(gallery_groups)], minlength=int(index.max()) + 1)
        return counts[index[len(gallery_groups) :]]

    if query_groups.shape[1] == 1:
        return equal([0])
    return equal([0]) + equal([1]) - equal([0, 1])


def _products(queries: Floats, gallery: Floats) -> Floats:
    """[b, D] and [G, D] -> [b, G]."""
    if queries.dtype != np.float32 or gallery.dtype != np.float32:
        return queries @ gallery.T
    with torch.no_grad():
        products: Floats = linear(torch.from_numpy(queries), torch.from_numpy(gallery)).numpy()
    return products


def _relevant_pairs(query_groups: Ints, groups: Ints, order: Ints) -> tuple[Ints, Ints, Ints]:
    """Row and gallery item of every relevant pair, by row and each once, and their number in each row.

    query_groups [b, C]; order [G, C], the gallery's items sorted by each column of their groups; groups [G, C], those.
    """
    keys = []
    for column in range(query_groups.shape[1]):
        asked, listed = query_groups[:, column], groups[:, column]
        start, stop = np.searchsorted(listed, asked, "left"), np.searchsorted(listed, asked, "right")
        count = stop - start
        row = np.repeat(np.arange(len(asked)), count)
        place = np.arange(len(row)) - np.repeat(np.cumsum(count) - count - start, count)
        keys.append(row * len(groups) + order[place, column])
    key = np.unique(np.concatenate(keys)) if len(keys) > 1 else keys[0]
    row, item = np.divmod(key, len(groups))
    return row, item, np.bincount(row, minlength=len(query_groups))


def _distinct_rows(matrix: Floats) -> tuple[Ints, Ints]:
    """Index of the first of every set of equal rows, and for each row the position of its set in that index.

    Rows are told apart by a 64-bit hash, which is checked: no copy of the matrix is made or sorted.
    """
    hashes = np.concatenate([_row_hashes(matrix[part]) for part in _blocks(len(matrix), matrix.shape[1], None)])
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    inverse = inverse.reshape(-1)
    repeated = np.flatnonzero(first[inverse] != np.arange(len(matrix)))
    same = all(
        np.array_equal(matrix[repeated[part]], matrix[first[inverse[repeated[part]]]])
        for part in _blocks(len(repeated), matrix.shape[1], None)
    )
    if not same:  # two rows with one hash: sort the rows themselves
        _, first, inverse = np.unique(matrix + 0, axis=0, return_index=True, return_inverse=True)
        inverse = inverse.reshape(-1)
    return first, inverse


def _row_hashes(rows: Floats) -> NDArray[np.uint64]:
    """[b, D] -> [b]; equal rows have equal hashes, a negative zero counts as a positive one."""
    raw = np.ascontiguousarray(rows + 0)
    words = raw.view(np.dtype(f"u{raw.itemsize}")).astype(np.uint64)
    drawn = np.random.default_rng(0).integers(0, 2**63, size=words.shape[1], dtype=np.uint64)
    odd = drawn * np.uint64(2) + np.uint64(1)
    mixed = (words ^ (words >> np.uint64(15))) * odd
    hashed: NDArray[np.uint64] = (mixed ^ (mixed >> np.uint64(29))).sum(axis=1, dtype=np.uint64)
    return hashed


def _blocks(queries: int, gallery: int, block: int | None) -> Iterator[slice]:
    """Slices over the queries."""
    step = max(1, BLOCK_SCORES // max(1, gallery)) if block is None else block
    if step < 1:
        raise ValueError(f"block is {step}; it has to be at least 1")
    for start in range(0, queries, step):
        yield slice(start, min(start + step, queries))


def _check_answerable(answerable: Bools, offset: int) -> None:
    """Raises ValueError where a query has no relevant item."""
    if not answerable.all():
        raise ValueError(f"query {offset + int(np.argmin(answerable))} has no relevant item in the gallery")


def _matrix(values: ArrayLike, name: str) -> Floats:
    """A finite, non-empty [N, D] matrix in at least single precision."""
    array = np.asarray(values)
    array = array.astype(np.result_type(array, np.float32), copy=False)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"{name}: a non-empty [N, D] matrix is needed, the shape is {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: row {int(np.argmin(np.isfinite(array).all(axis=1)))} holds NaN or infinity")
    return array


def _unit(values: ArrayLike, name: str) -> Floats:
    """A matrix with rows of length one; rows of zeros stay."""
    array = _matrix(values, name)
    norm = row_norms(array)
    return array / np.where(norm > 0, norm, 1)


def _groups(values: ArrayLike, length: int | None, name: str) -> Ints:
    """[N] or [N, C] -> [N, C]."""
    array = np.asarray(values, dtype=np.int64)
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2 or len(array) == 0 or (length is not None and len(array) != length):
        raise ValueError(f"{name}: one group, or one row of groups, for each item is needed")
    return array
