"""A trained model as a folder for other machines, in the hub's layout: weights, settings, vocabulary, model card."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speechclip.checkpoint.folder import PROVENANCE, SETTINGS, VOCABULARY, WEIGHTS, locate, read_checkpoint
from speechclip.common.errors import MissingFileError, UserError, first_line
from speechclip.common.files import is_hub_id, looks_local, read_json, replace_folder
from speechclip.config import Config, save

CARD = "README.md"
SCORES = ("retrieval.json", "keywords.json")
_PATH = re.compile(r"(?<![\w.:/-])(?:/|(?:\.\./)+)[^\s'\"]*")  # absolute and climbing paths in a command
#: Licences of what a model was made from, by a word of its path.
LICENCES = {
    "hubert": "HuBERT: Apache-2.0 as published on the hub, MIT as published with fairseq",
    "whisper": "Whisper: Apache-2.0",
    "wavlm": "WavLM: CC BY-SA 3.0",
    "wav2vec2": "wav2vec 2.0: Apache-2.0",
    "vit-": "OpenAI's CLIP: MIT",
    "clip": "CLIP: MIT as OpenAI published it; see its own card else",
}
CORPORA = {
    "flickr8k": "Flickr8k (Hodosh et al. 2013) is for research; the Flickr Audio Caption Corpus (Harwath and Glass "
    "2015) under the terms on its page",
    "spokencoco": "COCO 2014 (Lin et al. 2014): annotations CC BY 4.0, photographs under their Flickr licences; "
    "SpokenCOCO (Hsu et al. 2021): under the terms on its page",
    "mini": "the mini corpus is made by this project's scripts; its speech by espeak-ng (GPL-3.0, which does not cover "
    "its output)",
}


def pack(checkpoint: str, scores: Path, out: Path, corpus: str = "") -> None:
    """Write a folder that :meth:`SpeechCLIP.from_pretrained` loads anywhere.

    Encoders that lie on this machine are copied into it; those known by a name of the hub are left to be fetched.

    Args:
        checkpoint: a checkpoint folder. scores: folder with retrieval.json and perhaps keywords.json.
        out: the folder to write. corpus: what it was trained on, for the card.
    Raises:
        UserError: a checkpoint or scores that are missing or damaged, an encoder that is not where it was.
    """
    folder, config, origin = read_checkpoint(checkpoint, strict=True)
    results = {name: read_json(scores / name) for name in SCORES if (scores / name).is_file()}
    if SCORES[0] not in results:
        raise MissingFileError(scores / SCORES[0])

    def write(part: Path) -> None:
        for name in (WEIGHTS, VOCABULARY):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, part / name)
        packed = _with_encoders(config, folder, origin, part)
        save(packed, part / SETTINGS)
        told = _without_paths({**origin, "recipe": "."})
        for name, settings in (("speech_encoder", packed.model.speech_encoder), ("clip", packed.model.clip)):
            if name in told.get("encoders", {}):
                told["encoders"][name]["path"] = settings.path
        (part / PROVENANCE).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        for name, content in results.items():
            (part / name).write_text(json.dumps(_without_paths(content), indent=2) + "\n", encoding="utf-8")
        (part / CARD).write_text(card(packed, told, results, corpus), encoding="utf-8")

    replace_folder(out, write)


def push(folder: Path, name: str) -> str:
    """Upload a pack to the hub as the model ``name`` (owner/name), private at first. Returns its address.

    Raises UserError where the hub refuses.
    """
    from huggingface_hub import HfApi

    if not is_hub_id(name):
        raise UserError(f"{name}: a model on the hub is called owner/name")
    try:
        interface = HfApi()
        interface.create_repo(name, private=True, exist_ok=True)
        interface.upload_folder(repo_id=name, folder_path=str(folder))
    except Exception as error:  # the hub's client raises many classes: no network, no login, no right
        raise UserError(f"{name}: cannot be pushed to the hub: {first_line(error)}") from error
    return f"https://huggingface.co/{name}"


def _with_encoders(config: Config, folder: Path, origin: Mapping[str, Any], part: Path) -> Config:
    """The configuration with local encoders copied into the pack and named as they lie there."""
    model = config.model
    speech, clip = model.speech_encoder, model.clip
    speech = dataclasses.replace(speech, path=_carry(speech.path, "speech_encoder", folder, origin, part))
    clip = dataclasses.replace(clip, path=_carry(clip.path, "clip", folder, origin, part))
    return dataclasses.replace(config, model=dataclasses.replace(model, speech_encoder=speech, clip=clip))


def _carry(path: str, name: str, folder: Path, origin: Mapping[str, Any], part: Path) -> str:
    if not path:
        return path
    source = Path(locate(path, folder, dict(origin)))
    if source.is_dir():
        shutil.copytree(source, part / name)
        return name
    if source.is_file():
        shutil.copyfile(source, part / f"{name}{source.suffix}")
        return f"{name}{source.suffix}"
    if looks_local(path):
        raise UserError(f"{path}: the encoder that {folder} was trained with is not there any more")
    return path


def _without_paths(value: Any) -> Any:
    """The same without what only this machine knows: absolute paths and those that climb are cut to their last part."""
    if isinstance(value, dict):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    if isinstance(value, str):
        return _PATH.sub(lambda found: found.group().rstrip("/").rsplit("/", 1)[-1], value) if "/" in value else value
    return value


def card(config: Config, origin: Mapping[str, Any], results: Mapping[str, Mapping[str, Any]], corpus: str) -> str:
    """The model card: what it is, how it is used, data and licences, scores with their protocol, the command."""
    head = config.model.head.name
    lines = [
        "---",
        "license: other",
        "license_name: see-model-card",
        "library_name: speechclip",
        "tags: [speech, image, retrieval, speechclip]",
        "---",
        "",
        f"# SpeechCLIP, {head} head",
        "",
        "Speech aligned with CLIP through images alone, no transcripts ([Shih et al. 2022](https://arxiv.org/abs/2210.00705)).",
        "",
        "```python",
        "from speechclip import SpeechCLIP",
        "",
        'model = SpeechCLIP.from_pretrained("THIS_FOLDER_OR_ITS_HUB_ID")',
        'model.encode_speech(["query.wav"])',
        "```",
        "",
        "## Parts",
        "",
        f"* head: {head}, {origin.get('trained', '?')} trained parameters with the weighted sum",
        f"* speech encoder: `{config.model.speech_encoder.path}`, frozen",
        f"* CLIP: `{config.model.clip.path or 'none'}`, frozen",
        "",
        "## Data and licences",
        "",
    ]
    lines += [f"* {text}" for name, text in CORPORA.items() if name in corpus.lower()]
    described = f"{origin.get('encoders', {})} {config.model.speech_encoder.path} {config.model.clip.path}".lower()
    lines += [f"* {text}" for word, text in LICENCES.items() if word in described]
    lines += ["* the weights of the head: for the uses that the corpora above allow", "", "## Scores", ""]
    lines += [*_retrieval_lines(results["retrieval.json"]), ""]
    if "keywords.json" in results:
        lines += [*_keyword_lines(results["keywords.json"]), ""]
    lines += ["## How it was made", ""]
    for key in ("recipe_command", "command", "seed", "commit", "step"):
        if origin.get(key) not in (None, ""):
            lines.append(f"* {key.replace('_', ' ')}: `{origin[key]}`")
    if "converted_from" in origin:
        lines.append(f"* converted from the published `{origin['converted_from']}`, which does not tell its seed")
    return "\n".join(lines) + "\n"


def _retrieval_lines(report: Mapping[str, Any]) -> list[str]:
    lines = [
        "Recall in percent. Speech finds its image among all of the set; an image finds any of its utterances;",
        "captions are the utterance's own or, where it says so, any of the image's. Ties count against the system.",
        "",
        "| direction | R@1 | R@5 | R@10 | queries | gallery |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, row in report.items():
        if isinstance(row, Mapping) and "R@1" in row:
            numbers = " | ".join(f"{row[key]:.2f}" for key in ("R@1", "R@5", "R@10"))
            lines.append(f"| {name} | {numbers} | {row['n_queries']:,} | {row['n_gallery']:,} |")
    return lines


def _keyword_lines(report: Mapping[str, Any]) -> list[str]:
    return [
        "Keywords that hit, percent of all: "
        + ", ".join(
            f"{name} {report[name]['avg']:.1f}" for name in ("clean", "reference", "content_top1") if name in report
        )
        + " (README of the project says what each counts).",
    ]
