#!/usr/bin/env python3
"""Write the model and the demo data that come with the repository: models/hybrid and models/demo.

Run it in egs/mini after `./run.sh --stop_stage 5 --head hybrid`. models/hybrid holds the trained head, its settings and
its scores; it uses the encoders next to it, models/hubert and models/clip. models/demo holds the first scenes of the
test split, six spoken queries and an index of the scenes. The queries are the first captions of evenly spaced scenes;
they are not selected by their results.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import shutil
import sys
from pathlib import Path

from prepare import read_captions

from speechclip.common.errors import UserError
from speechclip.common.files import read_json, replace_folder, write_json
from speechclip.config import save

SCORES = ("retrieval.json", "keywords.json")
MOST_BYTES = 8_000_000  # of models/ in all
COLUMNS = ("query", "scene", "caption")


def ship_head(checkpoint: Path, scores: Path, models: Path) -> Path:
    """Copy a trained head to MODELS/hybrid and let it use the encoders next to it. Return the folder.

    Raises:
        UserError: the checkpoint or its scores are missing or damaged.
    """
    from speechclip.checkpoint.folder import PROVENANCE, SETTINGS, VOCABULARY, WEIGHTS, read_checkpoint

    folder, config, origin = read_checkpoint(checkpoint, strict=True)
    results = {name: read_json(scores / name) for name in SCORES}
    model = dataclasses.replace(
        config.model,
        speech_encoder=dataclasses.replace(config.model.speech_encoder, path="../hubert"),
        clip=dataclasses.replace(config.model.clip, path="../clip"),
    )
    encoders = {name: {**facts} for name, facts in origin["encoders"].items()}
    encoders["speech_encoder"]["path"], encoders["clip"]["path"] = "../hubert", "../clip"

    def write(part: Path) -> None:
        for name in (WEIGHTS, VOCABULARY):
            shutil.copyfile(folder / name, part / name)
        save(dataclasses.replace(config, model=model), part / SETTINGS)
        write_json(part / PROVENANCE, {**origin, "encoders": encoders, "recipe": "../.."})
        for name, content in results.items():
            write_json(part / name, content)

    target = models / "hybrid"
    replace_folder(target, write)
    return target


def ship_demo(head: Path, corpus: Path, models: Path, scenes: int, queries: int) -> Path:
    """Write MODELS/demo: images/, queries/ with queries.tsv, and index/. Return the folder.

    Args:
        head: folder of the trained head, next to MODELS/demo.
        corpus: folder of the mini corpus.
        models: folder to write into.
        scenes: number of scenes, the first ones of the test split.
        queries: number of spoken queries, spread evenly over these scenes.

    Raises:
        UserError: the corpus is incomplete.
    """
    from speechclip.api import SpeechCLIP
    from speechclip.search.build import index_files
    from speechclip.search.index import INFO, SOURCES
    from speechclip.search.items import ITEMS
    from speechclip.search.sources import Sources
    from speechclip.search.write import Structure

    records = [record for record in read_captions(corpus / "captions.tsv") if record.split == "test"]
    images = sorted({record.image for record in records})[:scenes]
    if not 0 < queries <= len(images):
        raise UserError(f"{corpus}: {len(images)} test scenes. Choose 1 to {len(images)} queries.")
    first = {record.image: record for record in reversed(records)}
    chosen = [first[images[row * len(images) // queries]] for row in range(queries)]
    target = models / "demo"

    def write(part: Path) -> None:
        for folder in ("images", "queries"):
            (part / folder).mkdir()
        for image in images:
            shutil.copyfile(corpus / "images" / f"{image}.png", part / "images" / f"{image}.png")
        rows = []
        for record in chosen:
            name = "_".join(record.caption.split()) + ".flac"
            shutil.copyfile(corpus / "audio" / record.split / f"{record.utterance}.flac", part / "queries" / name)
            rows.append((name, record.image, record.caption))
        with (part / "queries.tsv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, delimiter="\t", lineterminator="\n").writerows([COLUMNS, *rows])

    replace_folder(target, write)
    found = {path.stem: path for path in sorted((target / "images").glob("*.png"))}
    model = SpeechCLIP.from_pretrained(head)
    built = models / ".demo_index"
    try:
        index_files(model, head, Sources(images=found), built, Structure("exact"))
        info, items = read_json(built / INFO), read_json(built / ITEMS)

        def finish(part: Path) -> None:
            shutil.copytree(built, part, dirs_exist_ok=True)
            origin = {**info["provenance"], "command": "local/ship_model.py"}  # no paths of this machine
            write_json(part / INFO, {**info, "model": "../../hybrid", "provenance": origin})
            write_json(part / ITEMS, {**items, "files": []})
            (part / SOURCES).unlink()

        replace_folder(target / "index", finish)
    finally:
        shutil.rmtree(built, ignore_errors=True)
    return target


def main() -> int:
    """Parse the options and write both folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default="exp/tiny_hybrid/best", help="folder of the trained head")
    parser.add_argument("--scores", type=Path, default="exp/tiny_hybrid/scores", help="folder of its scores")
    parser.add_argument("--corpus", type=Path, default="corpus", help="folder of the mini corpus")
    parser.add_argument("--models", type=Path, default="models", help="folder to write hybrid/ and demo/ into")
    parser.add_argument("--scenes", type=int, default=60, help="scenes of the demo")
    parser.add_argument("--queries", type=int, default=6, help="spoken queries of the demo")
    args = parser.parse_args()
    try:
        head = ship_head(args.checkpoint, args.scores, args.models)
        ship_demo(head, args.corpus, args.models, args.scenes, args.queries)
        size = sum(path.stat().st_size for path in args.models.rglob("*") if path.is_file())
        if size > MOST_BYTES:
            raise UserError(f"{args.models}: {size / 1e6:.1f} MB, at most {MOST_BYTES / 1e6:.0f} MB are shipped.")
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{args.models}: {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
