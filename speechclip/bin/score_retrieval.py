"""Stage 4: embed the test set and score retrieval."""

from __future__ import annotations

from pathlib import Path

from speechclip.bin import stage_script
from speechclip.common.arguments import ArgumentParser, parse_with_overrides
from speechclip.config import EvalConfig, known_keys


@stage_script
def main() -> None:
    """Score the retrieval of a checkpoint on a data directory. Write retrieval.json, ranks and speech embeddings."""
    parser = ArgumentParser(prog="speechclip.bin.score_retrieval", description=main.__doc__)
    parser.add_argument("--checkpoint", required=True, help="checkpoint folder")
    parser.add_argument("--data_dir", required=True, help="data directory")
    parser.add_argument("--dump_dir", required=True, help="folder with the stored features of the data")
    parser.add_argument("--out", required=True, help="folder of the scores")
    options, overrides = parse_with_overrides(parser, "eval", known_keys(EvalConfig, "eval."))

    from speechclip.common.files import check_folder
    from speechclip.eval.languages import language_report
    from speechclip.eval.retrieval import branch_report
    from speechclip.eval.score_files import RETRIEVAL, write_retrieval
    from speechclip.eval.setup import load_for_scoring, result_provenance
    from speechclip.model.inference import embed_branches

    check_folder(Path(options.out))
    model, config, split, source = load_for_scoring(options.checkpoint, options.data_dir, options.dump_dir, overrides)
    branches = embed_branches(model, source, config.data.eval_batch_size)
    captions = None
    if split.text_utterance is not None:
        captions = [split.data.utterances[at].clip_text for at in split.text_utterance]
    report, ranks = branch_report(
        branches, split.utterance_image, split.images, split.texts, captions, split.text_utterance,
        n_bootstrap=config.eval.bootstrap,
    )  # fmt: skip
    report |= language_report(
        next(iter(branches.values())), split.utterance_image, split.images,
        [utterance.language for utterance in split.data.utterances], split.texts, captions, split.text_utterance,
        n_bootstrap=config.eval.bootstrap,
    )  # fmt: skip
    report["provenance"] = result_provenance(options.checkpoint, options.data_dir, config)
    write_retrieval(Path(options.out), report, split.ids, branches, ranks)
    rows = {
        **report,
        **{
            f"{name}: {key}": row
            for part in ("branches", "languages")
            for name, rows in report.get(part, {}).items()
            for key, row in rows.items()
        },
        **{f"speech->speech {name}": row for name, row in report.get("across_languages", {}).items()},
    }
    for name, row in rows.items():
        if isinstance(row, dict) and "R@1" in row:
            print(f"{name:38} " + "  ".join(f"{key} {row[key]:5.1f}" for key in ("R@1", "R@5", "R@10", "MRR")))
    print(f"{Path(options.out) / RETRIEVAL} written")


if __name__ == "__main__":
    main()
