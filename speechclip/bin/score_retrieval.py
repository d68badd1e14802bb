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
    parser.add_argument(
        "--rerank", default="",
        help="run or checkpoint of a reranker, which orders the first eval.top_k again; a reranker's own checkpoint "
        "needs no option",
    )  # fmt: skip
    options, overrides = parse_with_overrides(parser, "eval", known_keys(EvalConfig, "eval."))

    from speechclip.common.files import check_folder
    from speechclip.data.windows import WindowSource
    from speechclip.eval.coarse_to_fine import REORDERED
    from speechclip.eval.languages import language_report
    from speechclip.eval.retrieval import branch_report
    from speechclip.eval.score_files import RETRIEVAL, write_image_embeddings, write_retrieval
    from speechclip.eval.second_stage import SECTION
    from speechclip.eval.setup import load_for_scoring, rerank, result_provenance, score_towers
    from speechclip.model.heads.base import PARALLEL
    from speechclip.model.inference import embed_branches, embed_windows
    from speechclip.model.reranking import is_reranker

    check_folder(Path(options.out))
    model, config, split, source = load_for_scoring(options.checkpoint, options.data_dir, options.dump_dir, overrides)
    captions, table = None, split.data.utterances
    if split.text_utterance is not None:
        captions = [table.clip_texts[at] for at in split.text_utterance.tolist()]
    images = split.images
    if split.regions is not None:
        report, ranks, speech, images = score_towers(model, split, source, config)
        write_image_embeddings(Path(options.out), split.image_ids, images)
        branches = {PARALLEL: speech}
    else:
        branches = embed_branches(model, source, config.data.eval_batch_size)
        known = split.utterance_image, split.images, split.texts, captions, split.text_utterance, config.eval.bootstrap
        report, ranks = branch_report(branches, *known)
        if seconds := config.eval.window_seconds:
            windows = WindowSource(source, seconds, config.eval.window_hop)
            report["windows"], _ = branch_report(embed_windows(model, windows, config.data.eval_batch_size), *known)
            report["windows"] |= {"seconds": seconds, "hop": config.eval.window_hop, "windows": len(windows.owner)}
    if options.rerank or is_reranker(model):
        rerank(
            report, ranks, model, next(iter(branches.values())), split, source, config,
            data=options.data_dir, dump=options.dump_dir, reranker=options.rerank,
        )  # fmt: skip
    report |= language_report(
        next(iter(branches.values())), split.utterance_image, images,
        table.languages_of(), split.texts, captions, split.text_utterance,
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
        **{f"in windows: {key}": row for key, row in report.get("windows", {}).items()},
        **{f"speech->speech {name}": row for name, row in report.get("across_languages", {}).items()},
        **{f"{key}{REORDERED}": row for key, row in report.get(SECTION, {}).items()},
    }
    for name, row in rows.items():
        if isinstance(row, dict) and "R@1" in row:
            print(f"{name:38} " + "  ".join(f"{key} {row[key]:5.1f}" for key in ("R@1", "R@5", "R@10", "MRR")))
    for name, test in report.get(SECTION, {}).get("paired", {}).items():
        first = test["R@1"]
        print(f"R@1 of {name} after reranking: {first['difference']:+.1f}, p {first['p']:.4f}")
    print(f"{Path(options.out) / RETRIEVAL} written")


if __name__ == "__main__":
    main()
