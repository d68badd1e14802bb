"""The data that all sections of the keyword report share: keywords, captions, and the neighbours of the keywords."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechclip.eval.gold import IdSets
from speechclip.eval.neighbours import Neighbours, Subwords
from speechclip.eval.rates import HitRates, KeywordIndex

ALL, CONTENT = "all", "content"  # with stop words, and without them in captions and neighbours

Ints = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class KeywordEvalData:
    """N keywords of U utterances with their neighbours and gold sets. Mappings have the keys `ALL` and `CONTENT`.

    Attributes:
        index: utterance and number of each keyword.
        rates: computes hit rates of these keywords.
        subwords: the table of subword embeddings.
        counts: by subword id, the number of training utterances that have it.
        gold: the subwords of the captions.
        gold_rows: the same as rows of the table, padded with -1, [U, G].
        with_special: the ids of the padded token sequences, special tokens included.
        shuffled_index: an utterance of another image for each utterance, [U]; None if one image has over half of them.
        frequent: subword ids, most frequent in training first.
        nearest: the nearest rows without special tokens (and stop words).
        nearest_any: the 5 nearest of all rows.
        quantised: the 5 rows nearest to the row that the keyword is quantised to, without special tokens, [N, 5].
        quantised_any: the same with special tokens (and without stop words), [N, k].
        best: the nearest gold row and its cosine, [N] each; the keys "shuffled all" and "shuffled content" exist too.
    """

    index: KeywordIndex
    rates: HitRates
    subwords: Subwords
    counts: Mapping[int, int]
    gold: Mapping[str, IdSets]
    gold_rows: Mapping[str, Ints]
    with_special: Mapping[str, IdSets]
    shuffled_index: Ints | None
    frequent: Mapping[str, list[int]]
    nearest: Mapping[str, Neighbours]
    nearest_any: Neighbours
    quantised: Ints
    quantised_any: Mapping[str, Ints]
    best: Mapping[str, tuple[Ints, Floats]]

    def hit_row(
        self,
        ids: Ints,
        gold: IdSets,
        prior: Sequence[int],
        hit: Bools | None = None,
        shuffled: Bools | None = None,
        caption_of: Ints | None = None,
    ) -> dict[str, Any]:
        """Return hit rates with "ci95", "frequency_prior" and "shuffled_speech".

        Args:
            ids: ids of the neighbours, [N, k].
            gold: the gold sets.
            prior: k ids that the frequency prior uses instead of the neighbours.
            hit: whether each keyword hits, [N]; None: compute it.
            shuffled: whether each keyword hits the caption of another image, [N]; None: compute it.
            caption_of: the utterance whose caption each utterance is scored against, [U]; None: its own.
        """
        caption = np.arange(self.index.shape[0]) if caption_of is None else caption_of
        scored = caption[self.index.owner]
        row = self.rates.scored(gold.intersects(scored, ids) if hit is None else hit, gold.size[scored] > 0)
        frequent = gold.intersects(np.arange(len(caption)), prior)  # [U]
        row["frequency_prior"] = self.rates.row(frequent[scored], gold.size[scored] > 0)
        if self.shuffled_index is not None:
            other = caption[self.shuffled_index][self.index.owner]
            hits = gold.intersects(other, ids) if shuffled is None else shuffled
            row["shuffled_speech"] = self.rates.row(hits, gold.size[other] > 0)
        return row
