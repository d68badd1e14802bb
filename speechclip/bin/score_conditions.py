"""Stage 4: score heads and recognisers under noise, in rooms, over the telephone and at other speeds."""

from __future__ import annotations

from pathlib import Path

from speechclip.bin import stage_script
from speechclip.common.arguments import ArgumentParser


@stage_script
def main() -> None:
    """Score all systems on the same signals. Write scores/conditions.json and conditions.npz of every system.

    conditions.json also has paired tests of every head against every recogniser, and against the same head with another
    tag.
    """
    parser = ArgumentParser(prog="speechclip.bin.score_conditions", description=main.__doc__)
    parser.add_argument(
        "--run", nargs=2, action="append", default=[], metavar=("CHECKPOINT", "EXP"),
        help="checkpoint folder, and the experiment folder of its scores; repeat it",
    )  # fmt: skip
    parser.add_argument(
        "--asr_run", nargs=2, action="append", default=[], metavar=("RECOGNIZER", "EXP"),
        help="recogniser, and its experiment folder; EXP may have a text_head; repeat it",
    )  # fmt: skip
    parser.add_argument("--clip", default="", help="CLIP for the transcripts; default: that of the first checkpoint")
    parser.add_argument("--data_dir", required=True, help="data directory")
    parser.add_argument("--dump_dir", required=True, help="folder with its CLIP embeddings")
    parser.add_argument("--train_data", required=True, help="training data directory, for the speakers")
    parser.add_argument("--noise_dir", default="", help="noises in MUSAN's layout: noise/, music/, speech/")
    parser.add_argument("--rir_dir", default="", help="impulse responses; default: simulated rooms")
    parser.add_argument("--snr", nargs="+", type=float, default=[20, 10, 5, 0], help="SNRs in dB")
    parser.add_argument(
        "--kinds", nargs="+", default=[], help="kinds of conditions next to clean, such as white reverb; default: all"
    )
    parser.add_argument("--batch_seconds", type=float, default=60.0, help="the longest batch, with padding")
    parser.add_argument("--bootstrap", type=int, default=1000, help="resamples of the images for the intervals")
    parser.add_argument("--seed", type=int, default=0, help="seed of noises and rooms")
    options = parser.parse_args()
    if not options.run and not options.asr_run:
        parser.error("--run, --asr_run: give at least one")

    import numpy as np

    from speechclip.checkpoint.folder import read_checkpoint
    from speechclip.common.devices import pick_device
    from speechclip.common.errors import UserError
    from speechclip.common.files import check_folder
    from speechclip.common.provenance import provenance
    from speechclip.config import ClipConfig
    from speechclip.data.conditioned import Interference
    from speechclip.data.dataset import Split
    from speechclip.data.kaldi import read_table
    from speechclip.eval.condition_systems import Systems, condition_report
    from speechclip.eval.conditions import ConditionScorer
    from speechclip.eval.score_files import CONDITIONS, write_conditions
    from speechclip.model.encoders.clip import load_clip

    path = options.clip
    if options.asr_run and not path and options.run:
        path = read_checkpoint(options.run[0][0])[1].model.clip.path
    if options.asr_run and not path:
        raise UserError("--clip: is not given. Transcripts need CLIP's text tower.")
    split = Split.load(options.data_dir, options.dump_dir)
    heard = set(read_table(Path(options.train_data) / "utt2spk").values())
    unseen = np.array([utterance.speaker not in heard for utterance in split.data.utterances])
    interference = Interference(split.data, options.noise_dir, options.rir_dir, options.seed)
    conditions = interference.conditions(options.snr)
    known = {condition.kind for condition in conditions}
    for kind in options.kinds:
        if kind not in known:
            raise UserError(f"--kinds: {kind!r} is not one of: {' '.join(sorted(known))}. Choose a known one.")
    conditions = [c for c in conditions if not options.kinds or c.kind in ("clean", *options.kinds)]
    clip = load_clip(ClipConfig(path)).to(pick_device()) if options.asr_run else None
    loaded = Systems()
    for _, exp in (*options.run, *options.asr_run):
        check_folder(Path(exp))
    for checkpoint, exp in options.run:
        loaded.add_head(checkpoint, exp)
    for recognizer, exp in options.asr_run:
        loaded.add_recognizer(recognizer, exp)
    scorer = ConditionScorer(
        split, interference, loaded.systems, loaded.encoders, clip, unseen, batch_seconds=options.batch_seconds,
        n_bootstrap=options.bootstrap,
    )  # fmt: skip
    for condition in conditions:
        scorer.score(condition)
        rows = {Path(name).name: s.conditions.get(condition.name) for name, s in scorer.scores.items()}
        shown = "  ".join(f"{name} {row['speech->image']['R@1']:.1f}" for name, row in rows.items() if row)
        print(f"{condition.name:20} R@1: {shown or 'no such utterance'}", flush=True)
    for system in loaded.systems:
        report = condition_report(system, loaded.systems, scorer.scores, conditions)
        report["provenance"] = provenance(command=None, seed=system.seed, data=[Path(options.data_dir)])
        report["provenance"]["noise_seed"] = options.seed
        folder = Path(system.name) / "scores"
        write_conditions(folder, report, scorer.scores[system.name].ranks)
        print(f"{folder / CONDITIONS} written")


if __name__ == "__main__":
    main()
