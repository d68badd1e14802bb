"""Stage 2: store the hidden states of the frozen speech encoder."""

from __future__ import annotations

from pathlib import Path

from speechclip.bin import stage_script
from speechclip.common.errors import UserError
from speechclip.common.shutdown import GracefulShutdown
from speechclip.config import build_parser, parse


@stage_script
def main() -> None:
    """Encode every utterance of the data directories into feature stores. A second call resumes.

    After SIGTERM it finishes the current batch, stores the pending features and exits with status 75.
    """
    stop = GracefulShutdown().__enter__()
    parser = build_parser("speechclip.bin.extract_features", __doc__ or "")
    parser.add_argument(
        "--data_dirs", type=list[str], required=True, help="data directories, e.g. '[data/train,data/dev]'"
    )
    parser.add_argument(
        "--dump_root", type=str, required=True, help="folder of the stores; each has the name of its data directory"
    )
    parser.add_argument("--batch_seconds", type=float, default=60.0, help="the longest batch, with padding")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the work")
    parser.add_argument(
        "--job", type=int, default=1, help="number of this process, from 1; 0 writes the indices after all others"
    )
    parser.add_argument(
        "--copy", type=int, default=0,
        help="0 for the recordings; from 1, number of a copy with data.augment, in the folder DUMP_augmentN",
    )  # fmt: skip
    config, options = parse(parser)
    if not 0 <= options.copy <= config.data.augment.copies:
        raise UserError(
            f"--copy: {options.copy} is not between 0 and data.augment.copies ({config.data.augment.copies})."
            " Change the value."
        )
    if not 0 <= options.job <= options.jobs or options.jobs < 1:
        raise UserError(f"--job: {options.job} is not between 0 and {options.jobs}. Change the value.")

    from speechclip.data.augmented import copy_folder
    from speechclip.data.feature_index import INDEX, load_index
    from speechclip.data.features import feature_folder, write_index
    from speechclip.data.kaldi import DataDir
    from speechclip.features.speech import extract_features
    from speechclip.model.encoders.factory import load_speech_encoder

    encoder = load_speech_encoder(config.model.speech_encoder) if options.job else None
    for data in options.data_dirs:
        out = str(feature_folder(Path(options.dump_root) / Path(data).name, config.model.speech_encoder.part))
        if options.copy:
            out = str(copy_folder(Path(out), options.copy))
        if not options.job:
            ids = DataDir.load(data).ids
            write_index(Path(out), ids)
            load_index(Path(out) / INDEX)  # builds the mapped index of a large store
            print(f"{out}: {len(ids)} utterances")
            continue
        count, seconds, hours = extract_features(
            config, data, out, batch_seconds=options.batch_seconds, job=options.job, jobs=options.jobs,
            encoder=encoder, stop=stop, copy=options.copy,
        )  # fmt: skip
        if options.jobs == 1:
            load_index(Path(out) / INDEX)
        print(f"{out}: {count} utterances, {hours:.2f} h of speech, in {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
