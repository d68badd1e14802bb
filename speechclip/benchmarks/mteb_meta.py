"""The description of a model for mteb: sizes, licence, papers, and the training data (extra ``mteb``)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechclip.checkpoint.folder import find_checkpoint, read_checkpoint
from speechclip.checkpoint.pretrained import MINI
from speechclip.checkpoint.published import PublishedModel, find_published
from speechclip.common.errors import UserError
from speechclip.common.files import is_hub_id
from speechclip.config import ModelConfig
from speechclip.data.corpora.registry import corpus_names, find_corpus
from speechclip.model.network import SpeechNetwork

BYTES = 4  # per parameter: float32


@dataclass(frozen=True)
class Corpus:
    """A training corpus as mteb describes it.

    Attributes:
        tasks: the tasks of mteb that have training images of the corpus, or its other splits.
        address: where the corpus is published.
    """

    tasks: frozenset[str]
    address: str


def _corpora() -> dict[str, Corpus]:
    """Return the training corpora by name: those of the recipes, the mini corpus, and none."""
    found = {name: find_corpus(name) for name in corpus_names()}
    return {name: Corpus(item.mteb_tasks, item.page) for name, item in found.items()} | {
        MINI: Corpus(frozenset(), ""), "none": Corpus(frozenset(), ""),
    }  # fmt: skip


CORPORA = _corpora()
_SPEECHCLIP = """@inproceedings{shih2022speechclip,
  author = {Shih, Yi-Jen and Wang, Hsuan-Fu and Chang, Heng-Jui and Berry, Layne and Lee, Hung-yi and Harwath, David},
  booktitle = {IEEE Spoken Language Technology Workshop (SLT)},
  title = {{SpeechCLIP}: Integrating Speech with Pre-Trained Vision and Language Model},
  eprint = {2210.00705},
  archiveprefix = {arXiv},
  year = {2022},
}"""
_PLUS = """@misc{wang2024speechclipplus,
  author = {Wang, Hsuan-Fu and Shih, Yi-Jen and Chang, Heng-Jui and Berry, Layne and Peng, Puyuan and Lee, Hung-yi and
    Wang, Hsin-Min and Harwath, David},
  title = {{SpeechCLIP+}: Self-Supervised Multi-Task Representation Learning for Speech via {CLIP} and
    Speech-Image Data},
  eprint = {2402.06959},
  archiveprefix = {arXiv},
  year = {2024},
}"""
_PLUS_HEADS = ("hybrid", "cascaded_plus", "hybrid_plus")


def training_corpus(path: str, named: str = "") -> str:
    """Return the name of the corpus that a checkpoint was trained on, a key of :data:`CORPORA`.

    Args:
        path: the checkpoint, see :meth:`SpeechCLIP.from_pretrained`.
        named: the corpus that the user gave; it wins.

    Raises:
        UserError: the corpus is unknown.
    """
    known = f"(known: {' '.join(CORPORA)})"
    if named:
        if named not in CORPORA:
            raise UserError(f"--trained_on: {named!r} is unknown {known}. Choose a known one.")
        return named
    if published := find_published(path):
        return published.corpus.lower()
    if path == MINI:
        return MINI
    if (folder := find_checkpoint(Path(path))) is not None:
        _, _, origin = read_checkpoint(folder)
        recipe = (folder.resolve() / str(origin.get("recipe", "."))).resolve()
        for words in (str(origin.get("corpus", "")), recipe.name):
            if found := [name for name in CORPORA if name in words.lower()]:
                return found[0]
    raise UserError(f"{path}: the training corpus is unknown. Give it with --trained_on {known}")


def model_name(path: str, named: str = "") -> str:
    """Return the name of a model in mteb's form, ``owner/name``.

    Published models are "speechclip/NAME". A model of the hub has its id. A local folder is "local/NAME"; for
    ``best`` and ``last`` the name is that of the run.

    Raises:
        UserError: the given name has another form.
    """
    if named:
        if not is_hub_id(named):
            raise UserError(f"--name: {named!r} is not owner/name. Use letters, digits, dots, - and _.")
        return named
    if published := find_published(path):
        return f"speechclip/{published.name}"
    if path == MINI:
        return f"speechclip/{MINI}"
    if is_hub_id(path) and not Path(path).exists():
        return path.removeprefix("hf-hub:")
    folder = Path(path).resolve()
    folder = folder.parent if folder.name in ("best", "last") else folder
    return "local/" + "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in folder.stem)


def describe(
    network: SpeechNetwork, path: str, *, name: str = "", trained_on: str = "", reranker: bool = False,
    loader: Any = None, changes: Mapping[str, Any] | None = None,
) -> Any:  # fmt: skip
    """Return mteb's ``ModelMeta`` of a model.

    Args:
        network: the loaded network.
        path: the checkpoint, see :meth:`SpeechCLIP.from_pretrained`.
        name: ``owner/name``; "" for :func:`model_name`.
        trained_on: the training corpus; "" for :func:`training_corpus`.
        reranker: the model scores pairs.
        loader: the function with which mteb loads a model that has a public name. Local folders get none.
        changes: fields of ModelMeta that replace ours, such as "release_date" or "license" of a model of your own.

    Raises:
        UserError: the training corpus is unknown, or a changed field is unknown or has a wrong value.
    """
    from mteb.models.model_meta import ModelMeta
    from pydantic import ValidationError

    corpus = CORPORA[training_corpus(path, trained_on)]
    published = find_published(path)
    parameters = sum(value.numel() for value in network.parameters())
    clip = network.clip
    public = published is not None or path == MINI or (is_hub_id(path) and not Path(path).exists())
    fields: dict[str, Any] = {
        "loader": loader if public else None,
        "loader_kwargs": {"path": path} if public else {},
        "name": model_name(path, name),
        "revision": revision(network),
        "languages": ["eng-Latn"],
        "n_parameters": parameters,
        "n_embedding_parameters": 0 if clip is None else clip.subword_embeddings.numel(),
        "memory_usage_mb": round(parameters * BYTES / 2**20, 1),
        "max_tokens": None if clip is None else clip.context_length,
        "embed_dim": network.dimensions.joint,
        "framework": ["PyTorch"],
        "similarity_fn_name": "cosine",
        "use_instructions": False,
        "training_datasets": set(corpus.tasks),
        "public_training_data": corpus.address or None,
        "modalities": ["audio"] if clip is None else ["audio", "image", "text"],
        "model_type": ["cross-encoder" if reranker else "dense"],
        **_origin(published, network.config),
        **(changes or {}),
    }
    try:
        return ModelMeta(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"][:1])
        raise UserError(f"ModelMeta: {field}: {first['msg']}. Correct the field in --meta.") from error


def revision(network: SpeechNetwork) -> str:
    """Return 16 hex digits that identify the trained tensors of a network."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.trained_state().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _origin(published: PublishedModel | None, config: ModelConfig) -> dict[str, Any]:
    """Return licence, dates, links and papers. SpeechCLIP is BSD-3-Clause; a licence of SpeechCLIP+ was not found."""
    plus = config.head.name in _PLUS_HEADS
    citation = f"{_SPEECHCLIP}\n{_PLUS}" if plus else _SPEECHCLIP
    if published is None:
        return {
            "release_date": None, "license": None, "open_weights": False, "public_training_code": None,
            "reference": None, "citation": citation,
        }  # fmt: skip
    author = "ShampooWang/SpeechCLIP_plus" if plus else "atosystem/SpeechCLIP"
    return {
        "release_date": "2024-02-10" if plus else "2022-10-03",  # the papers on arXiv
        "license": "not specified" if plus else "bsd-3-clause",
        "open_weights": True,
        "public_training_code": f"https://github.com/{author}",
        "reference": f"https://arxiv.org/abs/{'2402.06959' if plus else '2210.00705'}",
        "citation": citation,
    }
