"""What the sections of the keyword report share: keywords, captions, and what was found in one search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechclip.eval.gold import IdSets
from speechclip.eval.neighbours import Near, Subwords
from speechclip.eval.rates import HitRates, KeywordIndex

ALL, CONTENT = "all", "content"  # with stop words, and without them on either side

Ints = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class KeywordEvalData:
    """N keywords of U utterances and what is known of them. Keys of mappings are `ALL` and `CONTENT`.

    places, rates: of the keywords. subwords: the table. counts: training utterances a subword occurs in.
    gold: subwords of the captions. gold_rows: the same as rows of the table, padded with -1 [U, G].
    with_special: the same of the padded token sequences. shuffled_index: [U], an utterance of another image, or None.
    frequent: ids, most frequent in training first. near: the nearest rows without special ones (and stop words).
    near_any: the 5 nearest of all rows. Around the row that a keyword is quantised to: quantised, the 5 nearest without
    special ones, [N, 5]; quantised_any: the nearest with special ones (and without stop words), [N, k].
    best: nearest gold row and its cosine, [N] each, also "shuffled all" and so on.
    """

    places: KeywordIndex
    rates: HitRates
    subwords: Subwords
    counts: Mapping[int, int]
    gold: Mapping[str, IdSets]
    gold_rows: Mapping[str, Ints]
    with_special: Mapping[str, IdSets]
    shuffled_index: Ints | None
    frequent: Mapping[str, list[int]]
    near: Mapping[str, Near]
    near_any: Near
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
        """Hit rates with "ci95", "frequency_prior" and "shuffled_speech".

        ids: [N, k] of the neighbours. prior: ids in their place. hit, shuffled: [N], where they are known
        already, the second against captions of other images.
        caption_of: [U], the utterance whose caption is taken for each one's; None: its own.
        """
        caption = np.arange(self.places.shape[0]) if caption_of is None else caption_of
        asked = caption[self.places.owner]
        row = self.rates.scored(gold.intersects(asked, ids) if hit is None else hit, gold.size[asked] > 0)
        frequent = gold.intersects(np.arange(len(caption)), prior)  # [U]
        row["frequency_prior"] = self.rates.row(frequent[asked], gold.size[asked] > 0)
        if self.shuffled_index is not None:
            other = caption[self.shuffled_index][self.places.owner]
            found = gold.intersects(other, ids) if shuffled is None else shuffled
            row["shuffled_speech"] = self.rates.row(found, gold.size[other] > 0)
        return row
