"""Stage 4: score the retrieval of a recogniser in front of CLIP, and train the text head behind it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from speechclip.bin import stage_script
from speechclip.config import build_parser, parse

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@stage_script
def main() -> None:
    """Embed the transcripts with CLIP's text tower and score them as speech is scored.

    With --text_head, a small head over the text embeddings is trained on the training images and scored, too.
    """
    from jsonargparse.typing import NonNegativeInt

    parser = build_parser("speechclip.bin.score_asr", main.__doc__ or "")
    parser.add_argument("--transcripts", type=str, required=True, help="folder of speechclip.bin.transcribe")
    parser.add_argument("--data_root", type=str, required=True, help="folder with train/, dev/ and test/")
    parser.add_argument("--dump_root", type=str, required=True, help="folder with the CLIP embeddings of each")
    parser.add_argument("--recognizer", type=str, default="", help="folder of the trained recogniser, for provenance")
    parser.add_argument("--out", type=str, required=True, help="experiment folder of the recogniser")
    parser.add_argument("--text_head", type=str, default="", help="experiment folder of the text head; empty: no head")
    parser.add_argument(
        "--text_head_input", type=Literal["transcripts", "captions"], default="transcripts",
        help="training texts of the head: transcripts of the training speech, or its captions",
    )  # fmt: skip
    parser.add_argument("--hidden", type=NonNegativeInt, default=512, help="width of the text head's hidden layer")
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="seed of the recogniser and of the text head")
    config, options = parse(parser)

    import numpy as np

    from speechclip.common.devices import pick_device
    from speechclip.common.errors import UserError
    from speechclip.common.files import check_folder, read_json
    from speechclip.common.provenance import provenance
    from speechclip.data.dataset import Split
    from speechclip.eval.recognition import recognition_report, save_text_head
    from speechclip.eval.score_files import RETRIEVAL, write_retrieval
    from speechclip.eval.transcripts import read_transcripts
    from speechclip.features.clip import encode_captions
    from speechclip.model.encoders.clip import load_clip
    from speechclip.train.text_head import TextHeadSettings, train_text_head

    if not config.model.clip.path:
        raise UserError("model.clip.path: not set. Transcripts need CLIP's text tower: give --clip.")
    for folder in (options.out, options.text_head):
        if folder:
            check_folder(Path(folder))
    data_root, dump_root = Path(options.data_root), Path(options.dump_root)
    test = Split.load(data_root / "test", dump_root / "test")
    texts, recognizer = read_transcripts(Path(options.transcripts) / "test.jsonl", test.ids)
    clip = load_clip(config.model.clip).to(pick_device())

    def embed(lines: list[str]) -> NDArray[np.float32]:
        return np.concatenate(list(encode_captions(lines, clip)))

    embeddings = embed(texts)
    name = f"asr_{recognizer['name']}"
    mark = " (weak)" if recognizer["kind"] == "pocketsphinx" else ""

    def write(folder: str, head: str, rows: NDArray[np.float32], training: dict[str, Any]) -> None:
        report, ranks = recognition_report(test, texts, rows, config.eval.bootstrap)
        origin = provenance(command=None, seed=options.seed, data=[data_root / "test"])
        origin |= {"head": f"{head}{mark}", "tag": "", "recognizer": recognizer, "training": training}
        report["provenance"] = origin
        write_retrieval(Path(folder) / "scores", report, test.ids, {"text": rows}, ranks)
        wer, recall = report["recognition"], report["speech->image"]
        print(f"{folder}/scores/{RETRIEVAL}: WER {wer['wer']:.1f}, R@1 {recall['R@1']:.1f}, R@10 {recall['R@10']:.1f}")

    trained = read_json(Path(options.recognizer) / "provenance.json") if options.recognizer else {}
    keys = ("command", "recipe_command", "commit", "trained", "train_seconds", "step", "dev_wer")
    write(options.out, name, embeddings, {key: trained[key] for key in keys if key in trained})
    if not options.text_head:
        return
    train, dev = (Split.load(data_root / split, dump_root / split) for split in ("train", "dev"))
    dev_texts, _ = read_transcripts(Path(options.transcripts) / "dev.jsonl", dev.ids)
    if options.text_head_input == "transcripts":
        train_texts, _ = read_transcripts(Path(options.transcripts) / "train.jsonl", train.ids)
    else:
        train_texts = [utterance.clip_text for utterance in train.data.utterances]
    settings = TextHeadSettings(hidden=options.hidden)
    found = train_text_head(embed(train_texts), train, embed(dev_texts), dev, settings, options.seed)
    origin = provenance(command=None, seed=options.seed, data=[data_root / "train", data_root / "dev"])
    origin |= {
        "step": found.step, "dev_mean_R@10": found.dev_score, "train_seconds": found.seconds,
        "trained": sum(p.numel() for p in found.head.parameters()),
    }  # fmt: skip
    save_text_head(Path(options.text_head) / "text_head", found.head, origin)
    write(options.text_head, f"{name}_text_head", found.embed(embeddings), {k: origin[k] for k in keys if k in origin})


if __name__ == "__main__":
    main()
