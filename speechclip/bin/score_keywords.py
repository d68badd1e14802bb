"""Stage 5: score the keywords of a head that has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from speechclip.bin import ArgumentParser
from speechclip.errors import exit_on_user_error


@exit_on_user_error
def main() -> None:
    """Score a checkpoint's keywords on a data directory; writes keywords.json and keywords.jsonl."""
    parser = ArgumentParser(prog="speechclip.bin.score_keywords", description=main.__doc__)
    parser.add_argument("--checkpoint", required=True, help="checkpoint folder")
    parser.add_argument("--data_dir", required=True, help="data directory")
    parser.add_argument("--train_data", required=True, help="training data directory, for the frequency prior")
    parser.add_argument("--dump_dir", required=True, help="what stage 2 stored for the data")
    parser.add_argument("--out", required=True, help="folder of the scores")
    options = parser.parse_args()

    from speechclip.assemble import keyword_gold, result_provenance, scoring
    from speechclip.constants import FRAME_SECONDS
    from speechclip.data.kaldi import DataDir
    from speechclip.embed import find_keywords
    from speechclip.errors import writing
    from speechclip.eval.keywords import keyword_records, keyword_report

    model, config, split, source = scoring(options.checkpoint, options.data_dir, options.dump_dir)
    if not config.model.head.has_keywords:
        print(f"{options.checkpoint}: a {config.model.head.name} head has no keywords: nothing to score")
        return
    found = find_keywords(model, source, config.data.eval_batch_size)
    gold = keyword_gold(model, [u.text for u in split.data.utterances], _texts(DataDir.load(options.train_data)))
    report = keyword_report(
        found.vectors, found.mask, gold.subwords, gold.content, gold.with_special, gold.train_counts
    )
    ctm = Path(options.data_dir) / "ctm"
    if ctm.is_file():
        report["segmentation"] = _segmentation(ctm, split.ids, found, config.eval)
    report["provenance"] = result_provenance(options.checkpoint, options.data_dir)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    captions = _texts(split.data)
    records = keyword_records(
        split.ids, captions, found.vectors, found.mask, found.attention, FRAME_SECONDS, gold.subwords, gold.strings,
        config.eval.neighbours, config.eval.span_mass, found.segments,
    )  # fmt: skip
    with writing(out / "keywords.jsonl"), (out / "keywords.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    with writing(out / "keywords.json"):
        (out / "keywords.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for name in ("clean", "reference", "content_top1"):
        row, prior = report[name], report["frequency_prior"][name]
        each = " ".join(f"{row[key]:.1f}" for key in row if key.startswith("kw"))
        print(f"{name:13} avg {row['avg']:5.1f}  (no speech at all: {prior['avg']:5.1f})  {each}")
    keywords, duplicates = report["repetition"]["keywords"], report["repetition"]["duplicates"]
    print(f"{keywords:.1f} keywords an utterance, {duplicates:.1f} % of them a repetition")
    if ctm.is_file():
        score, uniform = report["segmentation"], report["segmentation"]["uniform"]
        print(f"word boundaries: F1 {score['f1']:.1f} R-value {score['r_value']:.1f}"
              f"  (evenly spaced: {uniform['f1']:.1f}, {uniform['r_value']:.1f})")  # fmt: skip
    print(f"{out / 'keywords.json'} and keywords.jsonl written")


def _segmentation(ctm: Path, ids: list[str], found: Any, settings: Any) -> dict[str, Any]:
    """Keyword times of the utterances that have an alignment, scored as word boundaries."""
    from speechclip.constants import FRAME_SECONDS
    from speechclip.data.alignments import load_alignments
    from speechclip.eval.segmentation import segmentation_report
    from speechclip.heads.spans import attention_span

    words = load_alignments(ctm, ids)
    rows = [row for row, identity in enumerate(ids) if identity in words]
    if found.segments is not None:
        spans, kind = [found.segments[row].tolist() for row in rows], "segments"
    else:
        spans, kind = [
            [attention_span(weights, FRAME_SECONDS, settings.span_mass) for weights in found.attention[row]]
            for row in rows
        ], "attention spans"
    times = [[(word.start, word.end) for word in words[ids[row]]] for row in rows]
    return {"of": kind, **segmentation_report(spans, times, settings.boundary_tolerance)}


def _texts(data: object) -> list[str]:
    return [utterance.text for utterance in data.utterances]  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
