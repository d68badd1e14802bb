"""Score the retrieval of speech in one language with speech in another one, after stage 4."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from speechclip.bin import stage_script
from speechclip.common.arguments import ArgumentParser


@stage_script
def main(argv: Sequence[str] | None = None) -> None:
    """Score every pair of languages from the stored speech embeddings. Write cross_lingual.json."""
    parser = ArgumentParser(prog="speechclip.bin.score_cross_lingual", description=main.__doc__)
    parser.add_argument("--data_dir", required=True, help="data directory with utt2lang")
    parser.add_argument("--scores", required=True, help="folder of the scores of stage 4")
    parser.add_argument("--bootstrap", type=int, default=1000, help="resamples of the intervals; 0 for none")
    args = parser.parse_args(argv)

    import numpy as np

    from speechclip.common.files import write_json
    from speechclip.data.kaldi import DataDir
    from speechclip.eval.cross_lingual import cross_lingual_report
    from speechclip.eval.score_files import RETRIEVAL, read_scores, read_speech_embeddings

    data, folder = DataDir.load(args.data_dir), Path(args.scores)
    owners = [utterance.image_id for utterance in data.utterances]
    tongues: dict[str, set[str]] = {}
    for utterance in data.utterances:
        tongues.setdefault(utterance.image_id, set()).add(utterance.language)
    if max(map(len, tongues.values())) < 2:
        print(f"{args.data_dir}: no image has speech in two languages. Nothing to score.")
        return
    speech = read_speech_embeddings(folder, [utterance.id for utterance in data.utterances])
    languages = [utterance.language for utterance in data.utterances]
    report = cross_lingual_report(speech, languages, np.unique(owners, return_inverse=True)[1], args.bootstrap)
    report["provenance"] = read_scores(folder / RETRIEVAL)["provenance"]
    write_json(folder / "cross_lingual.json", report)
    for name, row in report["random"].items():
        print(f"{name:10} " + "  ".join(f"{key} {report[name][key]:5.1f} (chance {row[key]:.1f})" for key in row))
    print(f"{folder / 'cross_lingual.json'} written")


if __name__ == "__main__":
    main()
