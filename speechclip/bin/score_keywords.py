"""Stage 5: score the keywords of a head that has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechclip.bin import stage_script
from speechclip.common.arguments import ArgumentParser, parse_with_overrides
from speechclip.config import EvalConfig, known_keys

if TYPE_CHECKING:
    from speechclip.config import EvalConfig
    from speechclip.data.alignments import AlignedWord
    from speechclip.data.dataset import Split
    from speechclip.eval.case import KeywordEvalData
    from speechclip.eval.setup import KeywordGold
    from speechclip.model.inference import KeywordTable

SEED = 0  # of the resamples and of the shuffled captions: the same for every run, so that runs compare


@stage_script
def main() -> None:
    """Score a checkpoint's keywords on a data directory; writes keywords.{json,jsonl,npz} and attention.npz."""
    parser = ArgumentParser(prog="speechclip.bin.score_keywords", description=main.__doc__)
    parser.add_argument("--checkpoint", required=True, help="checkpoint folder")
    parser.add_argument("--data_dir", required=True, help="data directory")
    parser.add_argument("--train_data", required=True, help="training data directory, for the frequency prior")
    parser.add_argument("--dump_dir", required=True, help="what stage 2 stored for the data")
    parser.add_argument("--out", required=True, help="folder of the scores")
    options, overrides = parse_with_overrides(parser, "eval", known_keys(EvalConfig, "eval."))

    from speechclip.data.alignments import find_alignments, load_alignments
    from speechclip.data.kaldi import DataDir
    from speechclip.eval.setup import keyword_gold, load_for_scoring, result_provenance
    from speechclip.model.inference import find_keywords

    model, config, split, source = load_for_scoring(options.checkpoint, options.data_dir, options.dump_dir, overrides)
    if not model.head.has_keywords:
        print(f"{options.checkpoint}: a {config.model.head.name} head has no keywords: nothing to score")
        return
    aligned = find_alignments(options.data_dir)
    spoken = load_alignments(aligned, split.ids) if aligned else None
    found = find_keywords(model, source, config.data.eval_batch_size)
    gold = keyword_gold(model, _texts(split.data), _texts(DataDir.load(options.train_data)))
    provenance = result_provenance(options.checkpoint, options.data_dir)
    report = write_scores(Path(options.out), found, gold, split, spoken, config.eval, provenance)
    _print(report)
    print(f"{Path(options.out) / 'keywords.json'} and keywords.jsonl written")


def write_scores(
    out: Path, found: KeywordTable, gold: KeywordGold, split: Split, spoken: dict[str, list[AlignedWord]] | None,
    settings: EvalConfig, provenance: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Score the keywords of a split and write all files of the stage into a folder; returns what keywords.json holds.

    spoken: words and their times by utterance, None where the data has no alignments.
    """
    from speechclip.eval.keywords import Settings, find, score

    asked = Settings(tuple(settings.sweep), settings.neighbours, settings.bootstrap, SEED)
    case = find(
        found.vectors, found.mask, gold.subwords, gold.content, gold.with_special, gold.train_counts,
        split.utterance_image, asked,
    )  # fmt: skip
    report = score(case, gold.words, asked)
    overlap = None if spoken is None else _time_scores(report, case, found, split, spoken, gold, settings)
    report["settings"] = {
        "span_mass": settings.span_mass, "boundary_tolerance": settings.boundary_tolerance, "sweep": settings.sweep,
        "neighbours": settings.neighbours, "bootstrap": settings.bootstrap, "seed": SEED, "images": len(split.images),
    }  # fmt: skip
    report["provenance"] = provenance
    _write(out, report, case, found, split, spoken, overlap, gold, settings)
    return report


def _time_scores(
    report: dict[str, Any], case: KeywordEvalData, found: KeywordTable, split: Split, spoken: dict[str, list[AlignedWord]],
    gold: KeywordGold, settings: EvalConfig,
) -> list[bool | None]:  # fmt: skip
    """Adds "segmentation" and "overlap" to the report. Returns for each keyword whether it overlaps its word."""
    import numpy as np

    from speechclip.eval.bootstrap import Bootstrap
    from speechclip.eval.gold import other_images
    from speechclip.eval.overlap import SpokenWords, overlap_report, overlaps
    from speechclip.eval.segmentation import segmentation_report

    kind = "attention spans" if found.segments is None else "segments"
    spans = found.spans(settings.span_mass)
    rows = [row for row, identity in enumerate(split.ids) if identity in spoken]
    images = split.utterance_image[rows]
    shuffled_index = other_images(images, SEED)
    report["segmentation"] = {"of": kind, **segmentation_report(
        [spans[row].tolist() for row in rows],
        [[(word.start, word.end) for word in spoken[split.ids[row]]] for row in rows],
        settings.boundary_tolerance,
        None if shuffled_index is None else shuffled_index.tolist(),
        Bootstrap(images, settings.bootstrap, SEED) if settings.bootstrap else None,
    )}  # fmt: skip
    texts = {word.text for words in spoken.values() for word in words}
    ids = {text: gold.encode(text) for text in texts}
    words = SpokenWords.of([spoken.get(identity, []) for identity in split.ids], ids, int(gold.subwords.ids.max()))
    flat = np.concatenate(spans)
    report["overlap"] = overlap_report(case, flat, words, found.seconds, kind)
    named = case.subwords.ids[case.near["content"].rows[:, 0]]
    each = overlaps(flat, case.places.owner, named, words, found.seconds)
    return [bool(hit) if name else None for hit, name in zip(each.hit, each.named, strict=True)]


def _write(
    out: Path, report: dict[str, Any], case: KeywordEvalData, found: KeywordTable, split: Split,
    spoken: dict[str, list[AlignedWord]] | None, overlap: list[bool | None] | None, gold: KeywordGold,
    settings: EvalConfig,
) -> None:  # fmt: skip
    """keywords.jsonl, keywords.npz, attention.npz and, last, keywords.json."""
    import numpy as np

    from speechclip.common.errors import writing
    from speechclip.eval.contributions import contributions, save_contributions
    from speechclip.eval.records import keyword_records, save_attention

    out.mkdir(parents=True, exist_ok=True)
    records = keyword_records(
        split.ids, _texts(split.data), case, np.concatenate(found.spans(settings.span_mass)), gold.strings, gold.words,
        spoken, overlap, settings.neighbours,
    )  # fmt: skip
    with writing(out / "keywords.jsonl"), (out / "keywords.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    with writing(out / "keywords.npz"):
        images = [split.image_ids[row] for row in split.utterance_image]
        save_contributions(out / "keywords.npz", split.ids, images, contributions(case, gold.words))
    with writing(out / "attention.npz"):
        (out / "attention.npz").unlink(missing_ok=True)
        if settings.keep_attention:
            kept = slice(settings.keep_attention)
            save_attention(out / "attention.npz", split.ids[kept], found.attention[kept])
    with writing(out / "keywords.json"):
        (out / "keywords.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _print(report: dict[str, Any]) -> None:
    """The scores in a few lines."""
    for name in ("clean", "reference", "content_top1"):
        row, prior = report[name], report["frequency_prior"][name]
        other = report.get("shuffled_speech", {}).get(name, {}).get("avg")
        beside = "" if other is None else f", another image's caption: {other:5.1f}"
        each = " ".join(f"{row[key]:.1f}" for key in row if key.startswith("kw"))
        print(f"{name:13} avg {row['avg']:5.1f}  (no speech at all: {prior['avg']:5.1f}{beside})  {each}")
    for name, row in report["flaws"].items():
        if "difference" in row:
            print(f"with {name}: avg {row['avg']:.1f}, {row['difference']['avg']:+.1f} points")
    keywords, duplicates = report["repetition"]["keywords"], report["repetition"]["duplicates"]
    print(f"{keywords:.1f} keywords an utterance, {duplicates:.1f} % of them a repetition")
    words = report["words"]["content"]
    print(f"content words: precision {words['precision']:.1f} recall {words['recall']:.1f} F1 {words['f1']:.1f}"
          f"  (no speech at all: {words['frequency_prior']['f1']:.1f})")  # fmt: skip
    if "segmentation" in report:
        boundaries, uniform = report["segmentation"], report["segmentation"]["uniform"]
        print(f"word boundaries: F1 {boundaries['f1']:.1f} R-value {boundaries['r_value']:.1f}"
              f"  (evenly spaced: {uniform['f1']:.1f}, {uniform['r_value']:.1f})")  # fmt: skip
        there = report["overlap"]
        print(f"{there['named']:.1f} % of the keywords name a spoken word, {there['overlap']:.1f} % of them where it is"
              f" said  (at random: {there['random_position']['overlap']:.1f})")  # fmt: skip


def _texts(data: Any) -> list[str]:
    return [utterance.clip_text for utterance in data.utterances]


if __name__ == "__main__":
    main()
