"""Rerankers: hard groups, training over a frozen head, resumption, several processes, scoring and errors."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures import killed_at, settings, store_regions, stored_split
from lightning_fabric import Fabric

from speechclip.bin.score_retrieval import main as score_retrieval
from speechclip.checkpoint.folder import WEIGHTS, load_model, read_weights
from speechclip.common.errors import UserError
from speechclip.config import Config
from speechclip.eval.coarse_to_fine import REORDERED, two_stage_report
from speechclip.model.heads.reranker import SpeechTokens
from speechclip.model.reranking import encode_candidates, fine_scores, score_candidates
from speechclip.train.rerank import FINE_WEIGHTS, HardGroups
from speechclip.train.setup import make_trainer, prepare_training
from speechclip.train.state import TENSORS

REGION = 24  # width of the features of a region


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two splits with random features and regions, and a trained parallel head in coarse/best."""
    folder = tmp_path_factory.mktemp("recipe")
    make_recipe(folder)
    return folder


def make_recipe(folder: Path) -> None:
    """Write two splits with random features and regions, and train a parallel head."""
    for name, images, seed in (("train", 12, 0), ("dev", 6, 1)):
        split = stored_split(folder, name, images=images, each=3, seed=seed)
        store_regions(folder / "dump" / name, split.image_ids, width=REGION, seed=seed)
    _train(folder, folder / "coarse", settings(optim__max_steps=6, train__tensorboard_utterances=0))


def rerank_config(**changes: Any) -> Config:
    """Return small settings of a reranker."""
    reranker = {"dim": 16, "heads": 2, "layers": 1, "stride": 4, "group": 4, "pool": 6, "dev_top_k": 3, "dropout": 0.1}
    sizes = {f"model__head__reranker__{key}": value for key, value in reranker.items()}
    defaults = {"optim__max_steps": 6, "train__eval_interval": 2, "train__tensorboard_utterances": 0}
    return settings(model__head__name="reranker", **{**sizes, **defaults, **changes})


def rerank_trainer(recipe: Path, out: Path, config: Config, fabric: Any = None, coarse: str = "") -> Any:
    """Return the trainer of a reranker over the head in coarse/best, or of another head."""
    torch.manual_seed(0)
    dump = recipe / "dump"
    if not coarse and config.model.head.name == "reranker":
        coarse = str(recipe / "coarse" / "best")
    config, model, data = prepare_training(config, recipe / "data", dump, "", coarse)
    if fabric is None:
        fabric = Fabric(accelerator="cpu", devices=1)
        fabric.launch()
    return make_trainer(
        config, model, data, out, fabric=fabric, seed=0, origin={"seed": 0, "data": {"train": "0"}}, dump_root=dump,
        coarse=coarse,
    )  # fmt: skip


def _train(recipe: Path, out: Path, config: Config) -> Any:
    run = rerank_trainer(recipe, out, config)
    run.run()
    return run


# -- hard groups -----------------------------------------------------------------------------------------------------


def _groups(**changes: Any) -> HardGroups:
    rng = np.random.default_rng(0)
    images = rng.standard_normal((20, 8)).astype(np.float32)
    owner = np.repeat(np.arange(20), 3)[rng.permutation(60)]
    speech = images[owner] + 0.1 * rng.standard_normal((60, 8)).astype(np.float32)
    options: dict[str, Any] = {"size": 4, "pool": 5, "seed": (0, 0), **changes}
    return HardGroups(np.arange(24).reshape(6, 4), speech, images, owner, **options)


def test_hard_groups_hold_near_images_once() -> None:
    batches = _groups()
    assert len(batches) == 6
    for number, batch in enumerate(batches):
        assert len(batch) == 16
        for at in range(4):
            group = batch[4 * at : 4 * at + 4]
            anchor, owners = group[0], batches._owner[group]
            assert anchor == 4 * number + at
            assert len(set(owners.tolist())) == 4
            scores = batches._images @ batches._speech[anchor]
            order = [image for image in np.argsort(-scores) if image != owners[0]]
            assert set(owners[1:].tolist()) <= set(order[:5])


def test_hard_groups_depend_on_seed_and_place_only() -> None:
    assert list(_groups()) == list(_groups())
    assert _groups()[3] == list(_groups())[3]
    assert list(_groups()) != list(_groups(seed=(0, 1)))
    assert list(_groups(pool=3))[0] != list(_groups(pool=19))[0]


# -- training --------------------------------------------------------------------------------------------------------


def test_training_changes_the_reranker_alone(recipe: Path, tmp_path: Path) -> None:
    run = _train(recipe, tmp_path, rerank_config())
    coarse, trained = (read_weights(path / WEIGHTS) for path in (recipe / "coarse" / "best", tmp_path / "last"))
    for name, value in coarse.items():
        kept = name.replace("head.", "head.coarse.", 1) if name.startswith("head.") else name
        assert torch.equal(trained[kept], value), name
    fresh = rerank_trainer(recipe, tmp_path / "fresh", rerank_config()).model.trained_state()
    moved = {name for name, value in fresh.items() if not torch.equal(value, trained[name])}
    assert {name for name in moved if name.startswith("head.coarse.")} == set()
    changed = ("pooled.joined.projection.weight", "scorer.score.2.weight", "pooled.projection.weight", "fine_weight")
    assert {f"head.{name}" for name in changed} <= moved
    assert trained["head.fine_weight"].item() in [pytest.approx(weight) for weight in FINE_WEIGHTS]
    assert run.origin["trained"] == sum(
        value.numel() for name, value in trained.items()
        if name.startswith("head.") and not name.startswith("head.coarse.") and name != "head.fine_weight"
    )  # fmt: skip
    dev = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines() if "dev" in line]
    assert all(f"speech->image{REORDERED}" in record["dev"] for record in dev)
    origin = json.loads((tmp_path / "best" / "provenance.json").read_text())
    assert origin["dev_mean_R@1"] == run.progress.best


def test_scores_are_coarse_plus_weighted_fine(recipe: Path, tmp_path: Path) -> None:
    run = rerank_trainer(recipe, tmp_path, rerank_config())
    model, dev = run.model, run.data.dev
    found = encode_candidates(model, run.data.dev_speech, run._regions[1], dev.image_ids, dev.images, 5)
    pairs = np.stack(np.meshgrid(np.arange(18), np.arange(6), indexing="ij"), axis=-1).reshape(-1, 2)
    fine = fine_scores(model, found, pairs, 7)
    coarse = (found.coarse @ found.embeddings.T).numpy().reshape(-1) / 0.07
    model.head.fine_weight.fill_(0.25)
    assert np.allclose(score_candidates(model, found, pairs, 7), coarse + 0.25 * fine, atol=1e-4)
    # neither the block nor the padding of the other utterances changes a score
    assert np.allclose(fine_scores(model, found, pairs[::-1], 100)[::-1], fine, atol=1e-4)
    expected = load_model(recipe / "coarse" / "best", with_speech_encoder=False)
    batch = run.data.dev_speech.batch([0, 1])
    with torch.no_grad():
        assert torch.equal(model.eval()(batch).embedding, expected(batch).embedding)


@pytest.mark.parametrize("crossed", [0, 1])
def test_loss_of_a_group_is_symmetric_cross_entropy(recipe: Path, tmp_path: Path, crossed: int) -> None:
    off = {f"model__head__reranker__{key}": 0 for key in ("dropout", "input_dropout")}
    run = rerank_trainer(recipe, tmp_path, rerank_config(**off, model__head__reranker__crossed_groups=crossed))
    indices = run._batches(0, 0)[0]
    batch = run._train_batch(run.data.train_speech.batch(indices))
    model, train = run.model.train(), run.data.train
    loss = run.step_module(batch).item()
    found = encode_candidates(model, run.data.train_speech, run._regions[0], train.image_ids, train.images, 9)
    losses = []
    for at in range(0, 4 * crossed or len(indices), 4):
        group = np.array(indices[at : at + 4])
        pairs = np.stack(np.meshgrid(group, train.utterance_image[group], indexing="ij"), axis=-1).reshape(-1, 2)
        scores = torch.from_numpy(fine_scores(model, found, pairs, 16).reshape(4, 4))
        losses.append(-(scores.log_softmax(0).diag() + scores.log_softmax(1).diag()).mean() / 2)
    # the pooled speech has the same loss over all pairs of the batch
    owners = train.utterance_image[np.array(indices)]
    with torch.no_grad():
        tokens = SpeechTokens(*(part[indices] for part in found[:4]))
        every = model.head.match_pooled(tokens, found.embeddings)
        known = every[:, owners]
    same = torch.from_numpy(owners[:, None] == owners[None, :]).fill_diagonal_(False)
    known = known.masked_fill(same, -torch.inf)
    second = -(known.log_softmax(0).diag() + known.log_softmax(1).diag()).mean() / 2
    third = -every.log_softmax(1)[torch.arange(len(owners)), torch.from_numpy(owners)].mean()
    assert loss == pytest.approx(float(torch.stack(losses).mean() + second + third), rel=1e-4)


def test_the_chosen_weight_is_the_best_on_dev(recipe: Path, tmp_path: Path) -> None:
    run = _train(recipe, tmp_path, rerank_config(optim__lr=1e-2, optim__max_steps=8))
    model = load_model(tmp_path / "best", with_speech_encoder=False)
    dev = run.data.dev
    found = encode_candidates(model, run.data.dev_speech, run._regions[1], dev.image_ids, dev.images, 5)
    means = {}
    for weight in FINE_WEIGHTS:
        model.head.fine_weight.fill_(weight)
        coarse = (found.coarse @ found.embeddings.T).numpy()
        report, _ = two_stage_report(
            coarse, dev.utterance_image, 3, lambda pairs: score_candidates(model, found, pairs, 9), n_bootstrap=0
        )
        means[weight] = report["coarse_to_fine"]["mean_R@1"]
    stored = read_weights(tmp_path / "best" / WEIGHTS)["head.fine_weight"].item()
    assert means[min(means, key=lambda weight: abs(weight - stored))] == max(means.values()) == run.progress.best


@pytest.mark.parametrize("cache", [False, True])
def test_a_killed_reranker_resumes_to_equal_weights(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: bool
) -> None:
    changes = {"model__head__reranker__cache": cache, "data__max_seconds": 0 if cache else 0.3}
    config = rerank_config(optim__ema_decay=0.5, **changes)
    _train(recipe, tmp_path / "whole", config)
    with killed_at(monkeypatch, 5):
        _train(recipe, tmp_path / "cut", config)
    resumed = rerank_trainer(recipe, tmp_path / "cut", config)
    assert resumed.progress.step == 4
    resumed.run()
    for name in (f"last/{WEIGHTS}", f"best/{WEIGHTS}", f"last/{TENSORS}"):
        whole, cut = read_weights(tmp_path / "whole" / name), read_weights(tmp_path / "cut" / name)
        assert whole.keys() == cut.keys()
        assert all(torch.equal(whole[key], cut[key]) for key in whole), name


def test_another_coarse_head_starts_training_over(recipe: Path, tmp_path: Path) -> None:
    _train(recipe, tmp_path / "run", rerank_config(optim__max_steps=2))
    _train(recipe, tmp_path / "coarse", settings(optim__max_steps=2, train__tensorboard_utterances=0))
    same = rerank_trainer(recipe, tmp_path / "run", rerank_config(optim__max_steps=2))
    assert same.progress.finished
    other = rerank_trainer(
        recipe, tmp_path / "run", rerank_config(optim__max_steps=2), coarse=str(tmp_path / "coarse" / "best")
    )
    assert other.progress.step == 0


ERRORS = [
    ({"data__batch_size": 6}, "data.batch_size: 6 is not a multiple of model.head.reranker.group .4."),
    ({"model__head__reranker__pool": 2}, "model.head.reranker.group: 4 images cannot be drawn from 12 .* pool of 2"),
    ({"model__head__reranker__cache": True}, "model.head.reranker.cache: needs whole utterances"),
]


@pytest.mark.parametrize(("changes", "message"), ERRORS)
def test_unusable_settings_of_a_reranker_are_one_line(
    recipe: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        rerank_trainer(recipe, tmp_path, rerank_config(**changes))


def test_a_reranker_needs_a_head_that_it_can_rerank(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^--coarse: is not set. A reranker needs"):
        prepare_training(rerank_config(), recipe / "data", recipe / "dump", "", "")
    with pytest.raises(UserError, match="^--coarse: a parallel head has no coarse checkpoint"):
        prepare_training(settings(), recipe / "data", recipe / "dump", "", "x")
    _train(recipe, tmp_path, rerank_config(optim__max_steps=2))
    with pytest.raises(UserError, match="best: has a reranker head. A reranker needs one of: parallel, hybrid"):
        prepare_training(rerank_config(), recipe / "data", recipe / "dump", "", str(tmp_path / "best"))


# -- scoring ---------------------------------------------------------------------------------------------------------


def _score(recipe: Path, checkpoint: Path, out: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> dict[str, Any]:
    command = [
        "score_retrieval", "--checkpoint", str(checkpoint), "--data_dir", str(recipe / "data" / "dev"), "--dump_dir",
        str(recipe / "dump" / "dev"), "--out", str(out), "--eval.bootstrap", "50", *words,
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", command)
    score_retrieval()
    return json.loads((out / "retrieval.json").read_text())


def test_stage_4_scores_both_orders(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _train(recipe, tmp_path / "run", rerank_config())
    plain = _score(recipe, recipe / "coarse" / "best", tmp_path / "plain", monkeypatch)
    assert "coarse_to_fine" not in plain
    own = _score(recipe, tmp_path / "run" / "best", tmp_path / "own", monkeypatch, "--eval.top_k", "2")
    capsys.readouterr()
    other = _score(
        recipe, recipe / "coarse" / "best", tmp_path / "other", monkeypatch, "--rerank", str(tmp_path / "run"),
        "--eval.top_k", "2",
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert "speech->image (coarse to fine)" in printed
    assert "R@1 of mean after reranking: " in printed
    for report in (own, other):  # the coarse rows are those of the trained head
        assert report["speech->image"] == plain["speech->image"]
        assert report["coarse_to_fine"]["top_k"] == 2
        assert report["coarse_to_fine"]["cost"]["pairs"] == 18 * 2 + 6 * 2
    same = [
        {k: v for k, v in r["coarse_to_fine"].items() if k not in ("cost", "name", "checkpoint")} for r in (own, other)
    ]
    assert same[0] == same[1]
    assert (own["coarse_to_fine"]["name"], other["coarse_to_fine"]["name"]) == ("reranker", "parallel + reranker")
    with np.load(tmp_path / "own" / "ranks.npz") as arrays:
        ranks = arrays["speech->image (coarse to fine)/ranks"]
    assert 100 * (ranks == 1).mean() == pytest.approx(own["coarse_to_fine"]["speech->image"]["R@1"])


def test_stage_4_refuses_a_run_without_a_reranker(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        _score(
            recipe, recipe / "coarse" / "best", tmp_path, monkeypatch, "--rerank", str(recipe / "coarse")
        )  # fmt: skip
    assert "coarse/best: has a parallel head. Give the checkpoint of a reranker." in capsys.readouterr().err
