"""Stage 2: store the hidden states of the frozen speech encoder."""

from __future__ import annotations

from speechclip.config import build_parser, parse
from speechclip.errors import exit_on_user_error


@exit_on_user_error
def main() -> None:
    """Encode every utterance of a data directory into a feature store; finished shards are kept on a restart."""
    parser = build_parser("speechclip.bin.dump_features", __doc__ or "")
    parser.add_argument("--data_dir", type=str, required=True, help="data directory")
    parser.add_argument("--out", type=str, required=True, help="folder of the store")
    parser.add_argument("--batch_seconds", type=float, default=60.0, help="speech in a batch, padding included")
    config, options = parse(parser)

    from speechclip.extract import extract_features

    count, seconds, hours = extract_features(config, options.data_dir, options.out, batch_seconds=options.batch_seconds)
    print(f"{options.out}: {count} utterances, {hours:.2f} h of speech, in {seconds:.0f} s")


if __name__ == "__main__":
    main()
