"""The effect of three flaws of the published keyword evaluation on the hit rate, one at a time and together.

The flaws are in the authors' code (SpeechCLIP, avssl/model/kwClip.py):

special_tokens  The gold set is the padded token sequence, decoded and encoded again. So it contains start, end and
                padding. Special tokens can also be neighbours.
quantised       The neighbours are those of the quantised vector, which is a row of the table, and not those of z_k.
misaligned      The file of keywords shows the caption of the first utterance of a batch for all its utterances (8 in
                the published configurations). The printed hit rate does not have this flaw.

The last combination is the hit rate that a reader of that file would count.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechclip.eval.keyword_data import ALL, KeywordEvalData

NEIGHBOURS = 5
DUMP_BATCH = 8  # dev_batch_size of the published configurations

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

SPECIAL, QUANTISED, MISALIGNED = "special_tokens", "quantised", "misaligned"
COMBINATIONS = ((), (SPECIAL,), (QUANTISED,), (MISALIGNED,), (SPECIAL, QUANTISED), (SPECIAL, QUANTISED, MISALIGNED))


def flaw_name(flaws: tuple[str, ...]) -> str:
    """Return the key of a combination."""
    return "+".join(flaws) or "clean"


def flaw_report(data: KeywordEvalData) -> dict[str, Any]:
    """Return the hit rates (5 neighbours, stop words count) with each combination of flaws.

    Returns:
        by combination, names joined by "+": a row with "ci95", "frequency_prior", "shuffled_speech" and "only_special",
        the percentage of counted keywords that hit special tokens only. All but "clean" have "difference": the
        difference to clean in points.
    """
    first = np.arange(data.index.shape[0]) // DUMP_BATCH * DUMP_BATCH
    report: dict[str, Any] = {}
    clean: tuple[Bools, Bools] | None = None
    for flaws in COMBINATIONS:
        ids, gold = _neighbours(data, flaws), data.with_special[ALL] if SPECIAL in flaws else data.gold[ALL]
        caption = first if MISALIGNED in flaws else np.arange(len(first))
        scored = caption[data.index.owner]
        hit, counted = gold.intersects(scored, ids), gold.size[scored] > 0
        added = hit & counted & ~data.gold[ALL].intersects(scored, ids)
        row = data.hit_row(ids, gold, data.frequent[ALL][:NEIGHBOURS], hit, caption_of=caption)
        row["only_special"] = 100.0 * float(added.sum() / counted.sum())
        if clean is None:
            clean = hit, counted
        else:
            row["difference"] = data.rates.difference(clean, (hit, counted))
        report[flaw_name(flaws)] = row
    return report


def _neighbours(data: KeywordEvalData, flaws: tuple[str, ...]) -> Ints:
    """Return the ids of the neighbours, [N, 5]."""
    if QUANTISED in flaws:
        rows = data.quantised_any[ALL][:, :NEIGHBOURS] if SPECIAL in flaws else data.quantised
    else:
        rows = (data.nearest_any if SPECIAL in flaws else data.nearest[ALL]).rows[:, :NEIGHBOURS]
    return data.subwords.ids[rows]
