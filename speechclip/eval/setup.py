"""Inputs of the scoring scripts: the trained network, the split, its speech, and the gold sets of keywords."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from speechclip.checkpoint.folder import SETTINGS, load_model, read_checkpoint
from speechclip.common.devices import pick_device
from speechclip.common.errors import UserError
from speechclip.common.files import lines_fingerprint
from speechclip.common.provenance import provenance
from speechclip.config import AugmentConfig, Config, load, to_dict
from speechclip.data.dataset import SpeechSource, Split, StoreSource, WaveSource
from speechclip.data.embeddings import embeddings_source
from speechclip.data.features import feature_folder
from speechclip.data.regions import FOLDER as REGIONS
from speechclip.data.regions import ROW_NAMES, RegionStore
from speechclip.eval.coarse_to_fine import two_stage_report
from speechclip.eval.gold import Word, count_utterances
from speechclip.eval.neighbours import Subwords
from speechclip.eval.ranking import Ints
from speechclip.eval.second_stage import SECTION, Counted, add_second_stage
from speechclip.eval.stopwords import stop_word_ids
from speechclip.model.encoders.tokenizers import add_special_tokens, join_subwords
from speechclip.model.heads.fast_vgs import check_regions, region_kind
from speechclip.model.inference import embed_towers, pair_scores
from speechclip.model.network import SpeechNetwork, reduced_subword_embeddings
from speechclip.model.reranking import encode_candidates, reranker_of, score_candidates


def load_for_scoring(
    checkpoint: str, data: str, dump: str, overrides: Sequence[str] = (), *, with_encoders: bool = False
) -> tuple[SpeechNetwork, Config, Split, SpeechSource]:
    """Load a checkpoint, its configuration, and the split to score it on. The model is on the GPU if there is one.

    Stored features are used if they exist and the checkpoint was trained on stored features. Otherwise the speech
    encoder runs now. CLIP is loaded only if the head needs its text transformer.

    Args:
        checkpoint: checkpoint folder.
        data: data directory.
        dump: folder with its stored features and CLIP embeddings.
        overrides: ``--eval.KEY VALUE`` words that change the returned configuration.
        with_encoders: load the speech encoder and CLIP in any case.

    Raises:
        UserError: a file is missing or damaged, or the stored features are of another encoder than the checkpoint's.
    """
    # strict: the score of an older copy of the checkpoint would be wrong
    folder, config, origin = read_checkpoint(checkpoint, strict=True)
    if overrides:
        config = load([folder / SETTINGS], overrides)
    features = feature_folder(dump, config.model.speech_encoder.part)
    stored = config.data.feats == "dump" and (features / "feats.scp").is_file()
    model = load_model(folder, with_speech_encoder=with_encoders or not stored, with_clip=with_encoders)
    model = model.to(pick_device())
    kind = region_kind(config.model)
    split = Split.load(data, dump, config.eval.languages, kind)
    check_regions(config.model, split.regions)
    if split.regions is not None:
        _check_same_regions(split.regions, origin, checkpoint)
    elif split.images.shape[1] != model.dimensions.joint:
        raise UserError(
            f"{dump}/image_embeddings.npz: {split.images.shape[1]} dimensions, {checkpoint} has "
            f"{model.dimensions.joint}. Use embeddings of the CLIP model that the checkpoint was trained with."
        )
    embedded_by = embeddings_source(Path(dump) / "image_embeddings.npz").get("weights")
    if (
        not kind
        and embedded_by
        and embedded_by != origin.get("encoders", {}).get("clip", {}).get("weights", embedded_by)
    ):
        raise UserError(
            f"{dump}/image_embeddings.npz: embedded with another CLIP than {checkpoint} was trained with. "
            "Extract the embeddings again."
        )
    if not stored:
        return model, config, split, WaveSource(split.data)
    source = StoreSource(features, split.ids, config.model.speech_encoder.layers)
    if (source.dim, source.num_states) != (model.dimensions.speech, model.dimensions.states):
        raise UserError(
            f"{dump}/feats.scp: {source.num_states} states of {source.dim} dimensions, {checkpoint} needs "
            f"{model.dimensions.states} of {model.dimensions.speech}. Extract the features again."
        )
    trained_on = origin.get("encoders", {}).get("speech_encoder", {})
    for key in ("weights", "normalize", "window_seconds"):
        if trained_on.get(key) != source.store.encoder.get(key) and trained_on:
            raise UserError(
                f"{dump}/feats.scp: extracted with another speech encoder than {checkpoint} was trained with "
                f"({key} differs). Extract the features again."
            )
    return model, config, split, source


def rerank(
    report: dict[str, Any], ranks: dict[str, Any], model: SpeechNetwork, speech: np.ndarray, split: Split,
    source: SpeechSource, config: Config, *, data: str, dump: str, reranker: str = "",
) -> None:  # fmt: skip
    """Add the scores after reranking to a report: see :func:`speechclip.eval.second_stage.add_second_stage`.

    Args:
        report, ranks: of the coarse scores; they are changed.
        model: the scored network. Without ``reranker`` it has one itself.
        speech: [U, J], its embeddings of the utterances.
        split, source: see :func:`load_for_scoring`.
        config: ``eval.top_k`` is K.
        data, dump: see :func:`load_for_scoring`.
        reranker: run folder or checkpoint of a reranker.

    Raises:
        UserError: the checkpoint has no reranker, or the regions of an image are missing or of another width.
    """
    name = config.model.head.name
    if reranker:
        folder = Path(reranker) / "best" if (Path(reranker) / "best").is_dir() else Path(reranker)
        model, its, _, source = load_for_scoring(str(folder), data, dump)
        name = f"{name} + {its.model.head.name}"
        reranker_of(model, str(folder))
        report_of = {"checkpoint": str(folder)}
    else:
        report_of = {}
    store, settings = RegionStore(Path(dump) / REGIONS), model.config.head.reranker
    store.check_images(split.image_ids)
    if store.width != settings.region_features:
        raise UserError(
            f"{store.directory}: features of width {store.width}, but the reranker reads {settings.region_features}. "
            "Extract the regions with the CLIP that it was trained with."
        )
    found = encode_candidates(model, source, store, split.image_ids, split.images, config.data.eval_batch_size)
    add_second_stage(
        report, ranks, lambda: speech @ split.images.T, split.utterance_image, config.eval.top_k,
        lambda pairs: score_candidates(model, found, pairs, settings.block), name=name,
        n_bootstrap=config.eval.bootstrap,
    )  # fmt: skip
    report[SECTION] |= report_of


def _check_same_regions(store: RegionStore, origin: dict[str, Any], checkpoint: str) -> None:
    """Raise UserError if regions are of another model than those that a checkpoint was trained with."""
    trained, found = origin.get("encoders", {}).get("regions", {}).get("weights"), store.source.get("weights")
    if trained and found and trained != found:
        raise UserError(
            f"{store.directory}: made with another model than {checkpoint} was trained with. Extract the regions again."
        )


def score_towers(model: SpeechNetwork, split: Split, source: SpeechSource, config: Config) -> TowerScores:
    """Score a fast_vgs head: coarse rows by dot products, and coarse-to-fine rows for the best ``eval.top_k``.

    Args:
        model: the network.
        split: with regions.
        source: its speech.
        config: settings of the evaluation.
    """
    assert split.regions is not None
    settings = config.model.head.fast_vgs
    towers = embed_towers(model, source, split.regions, split.image_ids, config.data.eval_batch_size)
    started = time.perf_counter()
    coarse = towers.coarse()
    counted = Counted(lambda pairs: pair_scores(model, towers, pairs, settings.block))
    seconds = time.perf_counter() - started
    report, ranks = two_stage_report(
        coarse, split.utterance_image, config.eval.top_k, counted, config.eval.bootstrap
    )  # fmt: skip
    section = report[SECTION]
    section["name"] = ROW_NAMES[settings.regions]
    section["cost"] = counted.cost(section, seconds)
    return TowerScores(report, ranks, towers.speech.numpy(), towers.images.numpy())


def settings_fingerprint(config: Config) -> str:
    """Return a fingerprint of all settings. A run is trained with one configuration for every seed."""
    settings = to_dict(config)
    if config.data.augment == AugmentConfig():  # as before there was augmentation
        del settings["data"]["augment"]
    return lines_fingerprint([json.dumps(settings, sort_keys=True)])


def result_provenance(checkpoint: str, data: str, config: Config) -> dict[str, Any]:
    """Return the origin of a score: this command, the settings, and command, seed, commit and cost of the training.

    Args:
        checkpoint: checkpoint folder.
        data: data directory.
        config: the configuration of the checkpoint with the settings of this evaluation.
    """
    _, _, trained = read_checkpoint(checkpoint)
    now = provenance(command=None, seed=trained["seed"], data=[Path(data)])
    keys = (
        "command",
        "recipe_command",
        "commit",
        "trained",
        "total",
        "train_seconds",
        "step",
        "dev_mean_R@10",
        "dev_mean_R@1",
    )
    training = {key: trained[key] for key in keys if key in trained}
    named: dict[str, str] = {"head": config.model.head.name}
    if "converted_from" in trained:  # a published checkpoint: the name of its folder is arbitrary
        width = trained["dimensions"]["speech"]
        size = {768: "base", 1024: "large"}.get(width, f"d{width}")
        named |= {"model": size, "tag": "published"}
    scored = {"languages": list(config.eval.languages)} if config.eval.languages else {}
    return {
        **now, **named, **scored, "settings": settings_fingerprint(config), "checkpoint": checkpoint,
        "training": training,
    }  # fmt: skip


class TowerScores(NamedTuple):
    """Report and ranks as of :func:`speechclip.eval.coarse_to_fine.two_stage_report`.

    ``speech`` and ``images`` are the coarse vectors [U, d] and [I, d].
    """

    report: dict[str, Any]
    ranks: dict[str, tuple[Ints, Ints]]
    speech: np.ndarray
    images: np.ndarray


@dataclass(frozen=True)
class KeywordGold:
    """The gold sets of keywords.

    Attributes:
        subwords: the table of subword embeddings.
        content: the gold ids of each utterance.
        with_special: the ids of its padded token sequence, decoded and encoded again as in the published code.
        words: the words of each caption.
        train_counts: by subword id, the number of training utterances that have it.
        strings: subwords by id.
        encode: a function from a text to its ids.
    """

    subwords: Subwords
    content: list[set[int]]
    with_special: list[set[int]]
    words: list[list[Word]]
    train_counts: dict[int, int]
    strings: dict[int, str]
    encode: Callable[[str], list[int]]


def keyword_gold(model: SpeechNetwork, captions: list[str], train_captions: list[str]) -> KeywordGold:
    """Return the gold sets of captions for a model with keywords, and the counts of the frequency prior."""
    clip, vocabulary = model.clip, model.vocabulary
    assert clip is not None and vocabulary is not None
    tokenizer = clip.tokenizer
    rows = [tokenizer.encode(caption)[: clip.room] for caption in captions]
    strings = dict(zip(vocabulary.ids, vocabulary.subwords))
    special = tokenizer.special
    table, _ = reduced_subword_embeddings(clip, vocabulary)
    subwords = Subwords(table.cpu().numpy(), np.array(vocabulary.ids), special, frozenset(stop_word_ids(strings)))
    train = [set(tokenizer.encode(caption)[: clip.room]) for caption in train_captions]
    spelt = {identity: tokenizer.subword(identity) for identity in {identity for row in rows for identity in row}}
    words = [
        [Word(text, tuple(row[at] for at in places)) for text, places in join_subwords([spelt[i] for i in row])]
        for row in rows
    ]
    return KeywordGold(
        subwords,
        [set(row) for row in rows],
        [set(tokenizer.retokenize(add_special_tokens(tokenizer, row, clip.context_length))) for row in rows],
        words,
        dict(count_utterances(train)),
        spelt | strings,
        tokenizer.encode,
    )
