"""Stage 4: recognise the speech of data directories."""

from __future__ import annotations

from pathlib import Path

from speechclip.bin import stage_script
from speechclip.common.arguments import ArgumentParser


@stage_script
def main() -> None:
    """Write the transcripts of a recogniser: one JSON Lines file for each data directory."""
    parser = ArgumentParser(prog="speechclip.bin.transcribe", description=main.__doc__)
    parser.add_argument(
        "--recognizer", required=True,
        help="pocketsphinx, a folder of speechclip.bin.train_recognizer, or a folder or hub id of transformers",
    )  # fmt: skip
    parser.add_argument("--data_dirs", nargs="+", required=True, metavar="DIR", help="data directories")
    parser.add_argument("--dump_root", default="", help="folder with the stored features, for a trained CTC recogniser")
    parser.add_argument("--out", required=True, help="folder of the transcripts; each has the name of its directory")
    parser.add_argument("--batch_size", type=int, default=16, help="utterances at a time")
    options = parser.parse_args()
    if options.batch_size < 1:
        parser.error(f"--batch_size: {options.batch_size} is not at least 1")

    from speechclip.checkpoint.recognizers import load_recognizer
    from speechclip.common.files import check_folder
    from speechclip.data.dataset import SpeechSource, StoreSource, WaveSource
    from speechclip.data.kaldi import DataDir
    from speechclip.eval.recognition import transcribe
    from speechclip.eval.transcripts import write_transcripts
    from speechclip.model.recognizers.ctc import CtcRecognizer

    out = Path(options.out)
    check_folder(out)
    directories = [DataDir.load(path) for path in options.data_dirs]
    dumps = [Path(options.dump_root) / directory.path.name for directory in directories]
    stored = bool(options.dump_root) and all((dump / "feats.scp").is_file() for dump in dumps)
    recognizer = load_recognizer(options.recognizer, stored=stored)
    for directory, dump in zip(directories, dumps):
        ids = [utterance.id for utterance in directory.utterances]
        source: SpeechSource = WaveSource(directory)
        if stored and isinstance(recognizer, CtcRecognizer):
            source = StoreSource(dump, ids, recognizer.layers)
        texts = transcribe(recognizer, source, options.batch_size)
        target = out / f"{directory.path.name}.jsonl"
        write_transcripts(target, dict(zip(ids, texts)), {**recognizer.description, "name": recognizer.name})
        print(f"{target}: {len(texts)} transcripts, {sum(not text for text in texts)} of them empty")


if __name__ == "__main__":
    main()
