"""Stage 4: embed the test set and score retrieval."""

from __future__ import annotations

import json
from pathlib import Path

from speechclip.bin import ArgumentParser, parse_scoring
from speechclip.errors import exit_on_user_error


@exit_on_user_error
def main() -> None:
    """Score a checkpoint's retrieval on a data directory; writes retrieval.json and speech_embeddings.npz."""
    parser = ArgumentParser(prog="speechclip.bin.score_retrieval", description=main.__doc__)
    parser.add_argument("--checkpoint", required=True, help="checkpoint folder")
    parser.add_argument("--data_dir", required=True, help="data directory")
    parser.add_argument("--dump_dir", required=True, help="what stage 2 stored for it")
    parser.add_argument("--out", required=True, help="folder of the scores")
    options, overrides = parse_scoring(parser)

    import numpy as np

    from speechclip.assemble import result_provenance, scoring
    from speechclip.data.embeddings import save_embeddings
    from speechclip.embed import embed_readouts
    from speechclip.errors import writing
    from speechclip.eval.retrieval import retrieval_report
    from speechclip.eval.significance import save_ranks

    model, config, split, source = scoring(options.checkpoint, options.data_dir, options.dump_dir, overrides)
    readouts = embed_readouts(model, source, config.data.eval_batch_size)
    captions = None
    if split.text_utterance is not None:
        captions = [split.data.utterances[at].text for at in split.text_utterance]
    kept: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {name: {} for name in readouts}
    reports = {
        name: retrieval_report(
            speech, split.utterance_image, split.images, split.texts, captions, split.text_utterance,
            n_bootstrap=config.eval.bootstrap, keep=kept[name],
        )
        for name, speech in readouts.items()
    }
    first, *others = reports
    report = reports[first]
    if others:  # of a hybrid head: what its keywords alone find
        spoken = [name for name in report if "speech" in name or name == "mean_R@10"]
        report["readout"] = first
        report["readouts"] = {name: {key: reports[name][key] for key in spoken} for name in others}
    report["provenance"] = result_provenance(options.checkpoint, options.data_dir)
    out = Path(options.out)
    save_embeddings(out / "speech_embeddings.npz", split.ids, readouts[first])
    for name in others:
        save_embeddings(out / f"speech_embeddings_{name}.npz", split.ids, readouts[name])
    with writing(out / "ranks.npz"):
        save_ranks(out / "ranks.npz", kept[first], report["provenance"]["data"])
    target = out / "retrieval.json"
    with writing(target):
        target.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    further = [(f"{name}: {key}", row) for name in others for key, row in report["readouts"][name].items()]
    for name, row in [*report.items(), *further]:
        if isinstance(row, dict) and "R@1" in row:
            print(f"{name:38} " + "  ".join(f"{key} {row[key]:5.1f}" for key in ("R@1", "R@5", "R@10", "MRR")))
    print(f"{target} written")


if __name__ == "__main__":
    main()
