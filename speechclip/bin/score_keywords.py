"""Stage 5: score the keywords of a cascaded head."""

from __future__ import annotations

import json
from pathlib import Path

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
    from speechclip.heads.cascaded import CascadedHead

    model, config, split, source = scoring(options.checkpoint, options.data_dir, options.dump_dir)
    if not isinstance(model.head, CascadedHead):
        print(f"{options.checkpoint}: a {config.model.head.name} head has no keywords: nothing to score")
        return
    found = find_keywords(model, source, config.data.eval_batch_size)
    gold = keyword_gold(model, [u.text for u in split.data.utterances], _texts(DataDir.load(options.train_data)))
    report = keyword_report(
        found.vectors, found.mask, gold.subwords, gold.content, gold.with_special, gold.train_counts
    )
    report["provenance"] = result_provenance(options.checkpoint, options.data_dir)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    captions = _texts(split.data)
    records = keyword_records(
        split.ids, captions, found.vectors, found.mask, found.attention, FRAME_SECONDS, gold.subwords, gold.strings,
        config.eval.neighbours, config.eval.span_mass,
    )  # fmt: skip
    with writing(out / "keywords.jsonl"), (out / "keywords.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    with writing(out / "keywords.json"):
        (out / "keywords.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for name in ("clean", "reference", "content_top1"):
        row, prior = report[name], report["frequency_prior"][name]
        each = " ".join(f"{row[key]:.1f}" for key in row if key.startswith("kw"))
        print(f"{name:13} avg {row['avg']:5.1f}  (no speech at all: {prior['avg']:5.1f})  {each}")
    print(f"{out / 'keywords.json'} and keywords.jsonl written")


def _texts(data: object) -> list[str]:
    return [utterance.text for utterance in data.utterances]  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
