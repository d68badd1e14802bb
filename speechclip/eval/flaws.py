"""What three flaws of the published keyword evaluation do to the hit rate, one at a time and together.

Of the authors' code (SpeechCLIP, avssl/model/kwClip.py):

special_tokens  the gold set is the padded token sequence, decoded and encoded again, so that start, end and padding are
                in it; and no row of the table is kept from being a neighbour
quantised       the neighbours looked up are those of the quantised vector, a row of the table itself, not of z_k
misaligned      in the file of keywords it writes, all utterances of a batch (8 in the published configurations) stand
                beside the caption of its first one; the hit rate it prints is not touched by this one

The last combination is what a reader of that file would count.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechclip.eval.case import ALL, KeywordEvalData

NEIGHBOURS = 5
DUMP_BATCH = 8  # dev_batch_size of the published configurations

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

SPECIAL, QUANTISED, MISALIGNED = "special_tokens", "quantised", "misaligned"
COMBINATIONS = ((), (SPECIAL,), (QUANTISED,), (MISALIGNED,), (SPECIAL, QUANTISED), (SPECIAL, QUANTISED, MISALIGNED))


def flaw_name(flaws: tuple[str, ...]) -> str:
    """The key of a combination."""
    return "+".join(flaws) or "clean"


def flaw_report(case: KeywordEvalData) -> dict[str, Any]:
    """Hit rates (5 neighbours, stop words count) with each combination of flaws, their key joined by "+".

    Each has "ci95", "frequency_prior", "shuffled_speech" and "only_special", the percentage of counted keywords that
    are hit by nothing that is in the caption itself; all but "clean" have "difference", against clean, in points.
    """
    first = np.arange(case.places.shape[0]) // DUMP_BATCH * DUMP_BATCH
    report: dict[str, Any] = {}
    clean: tuple[Bools, Bools] | None = None
    for flaws in COMBINATIONS:
        ids, gold = _neighbours(case, flaws), case.with_special[ALL] if SPECIAL in flaws else case.gold[ALL]
        caption = first if MISALIGNED in flaws else np.arange(len(first))
        asked = caption[case.places.owner]
        hit, counted = gold.intersects(asked, ids), gold.size[asked] > 0
        added = hit & counted & ~case.gold[ALL].intersects(asked, ids)
        row = case.hit_row(ids, gold, case.frequent[ALL][:NEIGHBOURS], hit, caption_of=caption)
        row["only_special"] = 100.0 * float(added.sum() / counted.sum())
        if clean is None:
            clean = hit, counted
        else:
            row["difference"] = case.rates.difference(clean, (hit, counted))
        report[flaw_name(flaws)] = row
    return report


def _neighbours(case: KeywordEvalData, flaws: tuple[str, ...]) -> Ints:
    """Ids [N, 5]."""
    if QUANTISED in flaws:
        rows = case.quantised_any[ALL][:, :NEIGHBOURS] if SPECIAL in flaws else case.quantised
    else:
        rows = (case.near_any if SPECIAL in flaws else case.near[ALL]).rows[:, :NEIGHBOURS]
    return case.subwords.ids[rows]
