"""Stage 2: store the CLIP embeddings of images and captions."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from speechclip.bin import stage_script
from speechclip.common.errors import UserError
from speechclip.common.shutdown import GracefulShutdown
from speechclip.config import build_parser, parse


@stage_script
def main() -> None:
    """Embed the images and captions of the data directories, or copy the user's own embeddings. A second call resumes.

    Several processes can share the work: see --jobs.

    After SIGTERM it finishes the current batch, stores the finished ones and exits with status 75.
    """
    stop = GracefulShutdown().__enter__()
    parser = build_parser("speechclip.bin.extract_clip_embeddings", __doc__ or "")
    parser.add_argument(
        "--data_dirs", type=list[str], required=True, help="data directories, e.g. '[data/train,data/dev]'"
    )
    parser.add_argument(
        "--dump_root", type=str, required=True, help="folder of the embeddings, with one folder per data directory"
    )
    parser.add_argument(
        "--clip_embeddings",
        type=str,
        default="",
        help=".npz file (ids, embeddings) that is used instead of the image tower",
    )
    parser.add_argument(
        "--text_embeddings", type=str, default="", help=".npz file that is used instead of the text tower, for scoring"
    )
    parser.add_argument(
        "--vocabulary", type=str, default="data/clip_vocabulary.tsv", help="reduced vocabulary to write"
    )
    parser.add_argument(
        "--captions", type=str, default="data/captions.tsv",
        help="all captions of the corpus, from stage 1; without it those of the data directories are used",
    )  # fmt: skip
    parser.add_argument(
        "--vocabulary_from", type=Literal["all", "train"], default="all", help="captions counted for the vocabulary"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the work")
    parser.add_argument(
        "--job", type=int, default=1,
        help="number of this process, from 1; 0 merges the embeddings after all others, and writes the vocabulary",
    )  # fmt: skip
    config, options = parse(parser)
    if not 0 <= options.job <= options.jobs or options.jobs < 1:
        raise UserError(f"--job: {options.job} is not between 0 and {options.jobs}. Change the value.")

    from speechclip.common.devices import pick_device
    from speechclip.common.files import check_folder
    from speechclip.data.embeddings import load_mapped
    from speechclip.data.kaldi import DataDir
    from speechclip.features.clip import (
        Job,
        check_given_texts,
        count_vocabulary,
        embed_images,
        embed_texts,
        vocabulary_texts,
    )
    from speechclip.model.encoders.clip import load_clip

    if not config.model.clip.path and not options.clip_embeddings:
        raise UserError("model.clip.path: not set. Set it or use --clip_embeddings.")
    for written in (Path(options.dump_root), Path(options.vocabulary).parent):
        check_folder(written)
    directories = [DataDir.load(path) for path in options.data_dirs]
    if options.text_embeddings:
        check_given_texts(directories, options.text_embeddings)
    clip = load_clip(config.model.clip).to(pick_device()) if config.model.clip.path else None
    job = Job(options.job, options.jobs)
    if clip is not None and job.merges:
        texts = vocabulary_texts(directories, Path(options.captions), only_train=options.vocabulary_from == "train")
        vocabulary = count_vocabulary(texts, clip)
    for directory in directories:
        out = Path(options.dump_root) / directory.path.name
        images = embed_images(directory, out, clip, options.clip_embeddings, stop=stop, job=job)
        # the user's image embeddings are in another space than the captions of this CLIP
        own = clip if not options.clip_embeddings else None
        embedded = embed_texts(directory, out, own, options.text_embeddings, stop=stop, job=job)
        if job.merges:
            load_mapped(out / "image_embeddings.npz")  # builds the mapped copy of a large file
        print(f"{out}: {images} images, {embedded} captions embedded")
    if clip is not None and job.merges:  # last: a bad image leaves no vocabulary
        vocabulary.save(options.vocabulary)
        print(f"{options.vocabulary}: {len(vocabulary)} subwords of {len(texts)} captions")


if __name__ == "__main__":
    main()
