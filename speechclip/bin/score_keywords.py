"""Stage 5: score the keywords of a head that has keywords."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from speechclip.bin import stage_script
from speechclip.common.arguments import ArgumentParser, parse_with_overrides
from speechclip.config import EvalConfig, known_keys


@stage_script
def main() -> None:
    """Score the keywords of a checkpoint on a data directory. Write keywords.{json,jsonl,npz} and attention.npz."""
    parser = ArgumentParser(prog="speechclip.bin.score_keywords", description=main.__doc__)
    parser.add_argument("--checkpoint", required=True, help="checkpoint folder")
    parser.add_argument("--data_dir", required=True, help="data directory")
    parser.add_argument("--train_data", required=True, help="training data directory, for the frequency prior")
    parser.add_argument("--dump_dir", required=True, help="folder with the stored features of the data")
    parser.add_argument("--out", required=True, help="folder of the scores")
    options, overrides = parse_with_overrides(parser, "eval", known_keys(EvalConfig, "eval."))

    from speechclip.common.files import check_folder
    from speechclip.data.alignments import find_alignments, load_alignments
    from speechclip.data.kaldi import DataDir
    from speechclip.eval.keyword_report import score_keywords
    from speechclip.eval.score_files import KEYWORDS, write_keywords
    from speechclip.eval.setup import keyword_gold, load_for_scoring, result_provenance
    from speechclip.model.inference import find_keywords

    check_folder(Path(options.out))
    model, config, split, source = load_for_scoring(options.checkpoint, options.data_dir, options.dump_dir, overrides)
    if not model.head.has_keywords:
        print(f"{options.checkpoint}: the {config.model.head.name} head has no keywords. Nothing to score.")
        return
    aligned = find_alignments(options.data_dir)
    alignments = load_alignments(aligned, split.ids) if aligned else None
    keywords = find_keywords(model, source, config.data.eval_batch_size)
    captions = _captions(split.data)
    gold = keyword_gold(model, captions, _captions(DataDir.load(options.train_data).only(config.eval.languages)))
    scores = score_keywords(keywords, gold, split, captions, alignments, config.eval)
    report = {**scores.report, "provenance": result_provenance(options.checkpoint, options.data_dir, config)}
    images = [split.image_ids[row] for row in split.utterance_image]
    attention = keywords.attention[: config.eval.keep_attention]
    write_keywords(Path(options.out), report, scores.records, split.ids, images, scores.contributions, attention)
    _print(report)
    print(f"{Path(options.out) / KEYWORDS} and keywords.jsonl written")


def _print(report: dict[str, Any]) -> None:
    """Print the main scores."""
    for name in ("clean", "reference", "content_top1"):
        row, prior = report[name], report["frequency_prior"][name]
        shuffled = report.get("shuffled_speech", {}).get(name, {}).get("avg")
        control = "" if shuffled is None else f", shuffled speech {shuffled:5.1f}"
        each = " ".join(f"{row[key]:.1f}" for key in row if key.startswith("kw"))
        print(f"{name:13} avg {row['avg']:5.1f}  (frequency prior {prior['avg']:5.1f}{control})  {each}")
    for name, row in report["flaws"].items():
        if "difference" in row:
            print(f"with {name}: avg {row['avg']:.1f}, {row['difference']['avg']:+.1f} points")
    keywords, duplicates = report["repetition"]["keywords"], report["repetition"]["duplicates"]
    print(f"{keywords:.1f} keywords per utterance, {duplicates:.1f} % of them repeat another one")
    words = report["words"]["content"]
    print(f"content words: precision {words['precision']:.1f} recall {words['recall']:.1f} F1 {words['f1']:.1f}"
          f"  (frequency prior {words['frequency_prior']['f1']:.1f})")  # fmt: skip
    if "segmentation" in report:
        boundaries, uniform = report["segmentation"], report["segmentation"]["uniform"]
        print(f"word boundaries: F1 {boundaries['f1']:.1f} R-value {boundaries['r_value']:.1f}"
              f"  (evenly spaced {uniform['f1']:.1f}, {uniform['r_value']:.1f})")  # fmt: skip
        overlap = report["overlap"]
        print(f"{overlap['named']:.1f} % of the keywords name a word. {overlap['overlap']:.1f} % of these overlap"
              f" it in time  (random position {overlap['random_position']['overlap']:.1f})")  # fmt: skip


def _captions(data: Any) -> list[str]:
    return [utterance.clip_text for utterance in data.utterances]


if __name__ == "__main__":
    main()
