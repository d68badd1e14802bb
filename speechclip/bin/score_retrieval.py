"""Stage 4: embed the test set and score retrieval."""

from __future__ import annotations

import json
from pathlib import Path

from speechclip.bin import ArgumentParser
from speechclip.errors import exit_on_user_error


@exit_on_user_error
def main() -> None:
    """Score a checkpoint's retrieval on a data directory; writes retrieval.json and speech_embeddings.npz."""
    parser = ArgumentParser(prog="speechclip.bin.score_retrieval", description=main.__doc__)
    parser.add_argument("--checkpoint", required=True, help="checkpoint folder")
    parser.add_argument("--data_dir", required=True, help="data directory")
    parser.add_argument("--dump_dir", required=True, help="what stage 2 stored for it")
    parser.add_argument("--out", required=True, help="folder of the scores")
    options = parser.parse_args()

    import numpy as np

    from speechclip.assemble import result_provenance, scoring
    from speechclip.data.embeddings import save_embeddings
    from speechclip.embed import embed_speech
    from speechclip.errors import writing
    from speechclip.eval.retrieval import retrieval_report
    from speechclip.eval.significance import save_ranks

    model, config, split, source = scoring(options.checkpoint, options.data_dir, options.dump_dir)
    speech = embed_speech(model, source, config.data.eval_batch_size)
    captions = None
    if split.text_utterance is not None:
        captions = [split.data.utterances[at].text for at in split.text_utterance]
    kept: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    report = retrieval_report(
        speech, split.utterance_image, split.images, split.texts, captions, split.text_utterance,
        n_bootstrap=config.eval.bootstrap, keep=kept,
    )  # fmt: skip
    report["provenance"] = result_provenance(options.checkpoint, options.data_dir)
    out = Path(options.out)
    save_embeddings(out / "speech_embeddings.npz", split.ids, speech)
    with writing(out / "ranks.npz"):
        save_ranks(out / "ranks.npz", kept, report["provenance"]["data"])
    target = out / "retrieval.json"
    with writing(target):
        target.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for name, row in report.items():
        if isinstance(row, dict) and "R@1" in row:
            print(f"{name:28} " + "  ".join(f"{key} {row[key]:5.1f}" for key in ("R@1", "R@5", "R@10", "MRR")))
    print(f"{target} written")


if __name__ == "__main__":
    main()
