"""Stage 4: embed the test set and score retrieval."""

from __future__ import annotations

import json
from pathlib import Path

from speechclip.bin import stage_script
from speechclip.common.arguments import ArgumentParser, parse_with_overrides
from speechclip.config import EvalConfig, known_keys


@stage_script
def main() -> None:
    """Score a checkpoint's retrieval on a data directory; writes retrieval.json and speech_embeddings.npz."""
    parser = ArgumentParser(prog="speechclip.bin.score_retrieval", description=main.__doc__)
    parser.add_argument("--checkpoint", required=True, help="checkpoint folder")
    parser.add_argument("--data_dir", required=True, help="data directory")
    parser.add_argument("--dump_dir", required=True, help="what stage 2 stored for it")
    parser.add_argument("--out", required=True, help="folder of the scores")
    options, overrides = parse_with_overrides(parser, "eval", known_keys(EvalConfig, "eval."))

    import numpy as np

    from speechclip.common.errors import writing
    from speechclip.data.embeddings import save_embeddings
    from speechclip.eval.retrieval import retrieval_report
    from speechclip.eval.setup import load_for_scoring, result_provenance
    from speechclip.eval.significance import save_ranks
    from speechclip.model.inference import embed_branches

    model, config, split, source = load_for_scoring(options.checkpoint, options.data_dir, options.dump_dir, overrides)
    branches = embed_branches(model, source, config.data.eval_batch_size)
    captions = None
    if split.text_utterance is not None:
        captions = [split.data.utterances[at].clip_text for at in split.text_utterance]
    kept: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {name: {} for name in branches}
    reports = {
        name: retrieval_report(
            speech,
            split.utterance_image,
            split.images,
            split.texts,
            captions,
            split.text_utterance,
            n_bootstrap=config.eval.bootstrap,
            keep=kept[name],
        )
        for name, speech in branches.items()
    }
    first, *others = reports
    report = reports[first]
    if others:  # of a hybrid head: what its keywords alone find
        spoken = [name for name in report if "speech" in name or name == "mean_R@10"]
        report["branch"] = first
        report["branches"] = {name: {key: reports[name][key] for key in spoken} for name in others}
    report["provenance"] = result_provenance(options.checkpoint, options.data_dir)
    out = Path(options.out)
    save_embeddings(out / "speech_embeddings.npz", split.ids, branches[first])
    for name in others:
        save_embeddings(out / f"speech_embeddings_{name}.npz", split.ids, branches[name])
    with writing(out / "ranks.npz"):
        save_ranks(out / "ranks.npz", kept[first], report["provenance"]["data"])
    target = out / "retrieval.json"
    with writing(target):
        target.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    further = [(f"{name}: {key}", row) for name in others for key, row in report["branches"][name].items()]
    for name, row in [*report.items(), *further]:
        if isinstance(row, dict) and "R@1" in row:
            print(f"{name:38} " + "  ".join(f"{key} {row[key]:5.1f}" for key in ("R@1", "R@5", "R@10", "MRR")))
    print(f"{target} written")


if __name__ == "__main__":
    main()
