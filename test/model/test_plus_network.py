"""Networks whose heads predict the number of keywords or have two branches, with CLIP and the public methods."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures import (
    CONTEXT,
    JOINT,
    STATES,
    SUBWORD,
    WIDTH,
    settings,
    stored_split,
    trainer,
    training_data,
    wave,
    whole_model,
    with_paths,
)

from speechclip.api import SpeechCLIP
from speechclip.checkpoint.folder import load_model
from speechclip.common.constants import FRAME_SECONDS
from speechclip.common.errors import UserError
from speechclip.model.heads.base import CASCADED, PARALLEL
from speechclip.model.inference import embed_branches, embed_speech, find_keywords
from speechclip.model.losses import masked_contrastive_loss
from speechclip.model.network import SpeechNetwork
from speechclip.train.step import LossStep, TrainBatch

WAVES = [wave(samples, seed) for seed, samples in enumerate((9600, 16000, 6400))]
CIF: dict[str, Any] = {"model__head__cif__frames_per_keyword": 4.0, "model__head__cif__dropout": 0.0}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipe")


def _model(recipe: Path, head: str) -> SpeechNetwork:
    model: SpeechNetwork = whole_model(recipe, head, large=True, **CIF)[0]
    if head.endswith("plus"):  # weights that differ between frames, and sums that differ between utterances
        with torch.no_grad():
            model.head.cif.weight.weight.mul_(4)  # type: ignore[union-attr]
            model.head.cif.weight.bias.fill_(-1.5)  # type: ignore[union-attr]
    return model


@pytest.fixture(scope="module")
def hybrid_plus(recipe: Path) -> SpeechNetwork:
    return _model(recipe, "hybrid_plus")


def test_clip_reads_only_existing_keywords(hybrid_plus: SpeechNetwork) -> None:
    clip = hybrid_plus.clip
    assert clip is not None
    torch.manual_seed(1)
    keywords, counts = torch.randn(4, CONTEXT - 2, SUBWORD), torch.tensor([CONTEXT - 2, 1, 5, 7])
    together = clip.encode_keywords(keywords, counts)
    for row, count in enumerate(counts.tolist()):
        alone = clip.encode_keywords(keywords[row : row + 1, :count])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-5)
    behind = torch.arange(CONTEXT - 2)[None, :] >= counts[:, None]
    other = clip.encode_keywords(keywords.masked_fill(behind[:, :, None], 9.0), counts)
    torch.testing.assert_close(other, together, rtol=0, atol=1e-6)  # positions behind EOT are not read


@pytest.mark.parametrize("head", ["hybrid", "cascaded_plus", "hybrid_plus"])
def test_branches_and_keywords_of_plus_heads(recipe: Path, head: str) -> None:
    model = SpeechCLIP(_model(recipe, head))
    branches = [CASCADED] if head == "cascaded_plus" else [PARALLEL, CASCADED]
    first = model.encode_speech(WAVES)
    assert first.shape == (3, JOINT)
    for name in branches:
        embedded = model.encode_speech(WAVES, branch=name)
        assert embedded.norm(dim=-1).tolist() == pytest.approx([1] * 3, abs=1e-6)
        assert torch.equal(embedded, first) == (name == branches[0])
    with pytest.raises(UserError, match=f"branch: a {head} head has the branch {' and '.join(branches)}, not both"):
        model.encode_speech(WAVES, branch="both")
    found = model.keywords(WAVES, top_k=3)
    numbers = [len(item) for item in found]
    if head == "hybrid":
        assert numbers == [3, 3, 3]
        return
    assert len(set(numbers)) > 1
    for item, samples in zip(found, WAVES, strict=True):
        spans = [keyword.span for keyword in item]
        assert spans[0][0] == 0.0
        assert all(start < end for start, end in spans)
        assert [end for _, end in spans[:-1]] == pytest.approx([start for start, _ in spans[1:]])
        assert spans[-1][1] <= len(samples) / 16000 + 1e-6
        assert all(len(keyword.subwords) == 3 for keyword in item)


def test_hidden_states_end_with_the_head_layer(hybrid_plus: SpeechNetwork) -> None:
    states, frames = SpeechCLIP(hybrid_plus).hidden_states(WAVES)
    assert len(states) == STATES + 1
    assert states[-1].shape == states[0].shape
    mixed, padding = hybrid_plus._mix(torch.stack(states[:-1], dim=1), frames)
    with torch.no_grad():
        assert torch.equal(states[-1], hybrid_plus.head.frame_states(mixed, padding))


@pytest.mark.parametrize("head", ["cascaded", "hybrid_plus"])
def test_keywords_of_a_split_equal_those_of_utterances(recipe: Path, tmp_path: Path, head: str) -> None:
    model = _model(recipe, head)
    stored_split(tmp_path, "train", images=3, each=2, seed=0)
    stored_split(tmp_path, "dev", images=5, each=2, seed=1)
    source = training_data(tmp_path).dev_speech
    table = find_keywords(model, source, batch_size=3)
    branches = embed_branches(model, source, batch_size=3)
    assert list(branches) == ([CASCADED] if head == "cascaded" else [PARALLEL, CASCADED])
    assert np.array_equal(embed_speech(model, source, batch_size=3), branches[next(iter(branches))])
    assert (table.segments is None) == (head == "cascaded")
    counts = table.mask.sum(axis=1)
    assert (len(set(counts.tolist())) > 1) == (head == "hybrid_plus")
    assert table.mask.shape[1] == counts.max()
    for at in range(len(source.lengths)):
        batch = source.batch([at])
        with torch.no_grad():
            output = model.apply_head(batch.states, batch.frames)
        keywords = output.keywords
        assert int(keywords.mask.sum()) == counts[at]
        np.testing.assert_allclose(table.vectors[at, : counts[at]], keywords.vectors[0].numpy(), rtol=0, atol=1e-4)
        assert (table.vectors[at, counts[at] :] == 0).all()
        assert table.attention[at].shape == (counts[at], int(batch.frames))
        for name, embedding in output.branches.items():
            unit = torch.nn.functional.normalize(embedding[0], dim=-1).numpy()
            np.testing.assert_allclose(branches[name][at], unit, rtol=0, atol=1e-4)
        if table.segments is not None:
            seconds = keywords.segments[0].numpy() * FRAME_SECONDS
            np.testing.assert_allclose(table.segments[at], seconds, rtol=0, atol=1e-4)


def test_loss_is_the_weighted_sum_of_its_parts(recipe: Path, tmp_path: Path) -> None:
    model = _model(recipe, "hybrid_plus")
    stored_split(tmp_path, "train", images=4, each=2, seed=0)
    stored_split(tmp_path, "dev", images=2, each=2, seed=1)
    data = training_data(tmp_path)
    weights = {"parallel_weight": 0.5, "cascaded_weight": 1.5, "quantity_weight": 0.25}
    config = settings(model__head__name="hybrid_plus", **{f"model__loss__{k}": v for k, v in weights.items()})
    fabric: Any = type("Fabric", (), {"world_size": 1, "all_gather": None})()
    batch = data.train_speech.batch(range(8))
    targets = torch.nn.functional.normalize(torch.randn(8, JOINT), dim=-1)
    groups = torch.from_numpy(data.train.utterance_image)
    with torch.no_grad():
        total = LossStep(model, config, fabric)(TrainBatch(batch, targets, groups))
        output = model.apply_head(batch.states, batch.frames)
        parts = {
            name: masked_contrastive_loss(
                torch.nn.functional.normalize(row, dim=-1), targets, groups, model.loss.scale
            ).item()
            for name, row in output.branches.items()
        }
    lengths = batch.frames.tolist()
    mixed, padding = model._mix(batch.states, batch.frames)
    with torch.no_grad():
        alpha = model.head.cif.alpha(model.head.frame_states(mixed, padding), padding)  # type: ignore[union-attr, operator]
    off = [abs(float(row.sum()) - max(1, round(length / 4))) for row, length in zip(alpha, lengths, strict=True)]
    quantity = sum(off) / len(off)
    assert quantity > 0.1
    expected = 0.5 * parts[PARALLEL] + 1.5 * parts[CASCADED] + 0.25 * quantity
    assert total.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("head", ["hybrid", "cascaded_plus"])
def test_plus_heads_learn_and_their_checkpoints_load(recipe: Path, tmp_path: Path, head: str) -> None:
    clip = _model(recipe, head).clip
    stored_split(tmp_path, "train", images=8, each=3, seed=0)
    stored_split(tmp_path, "dev", images=4, each=2, seed=1)
    config = settings(
        model__head__name=head, optim__max_steps=40, optim__lr=3e-3, train__eval_interval=20, train__log_interval=5,
        model__head__cif__scaling_steps=20, **CIF,
    )  # fmt: skip
    config = with_paths(config, clip=recipe / "models" / "clip")
    run = trainer(config, training_data(tmp_path), tmp_path / "exp", clip=clip)
    run.run()
    lines = [json.loads(line) for line in (tmp_path / "exp" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.8 * losses[0]
    model = load_model(tmp_path / "exp" / "last", with_speech_encoder=False)
    states, frames = torch.randn(2, STATES, 30, WIDTH), torch.tensor([30, 12])
    run.model.eval()
    with torch.no_grad():
        ours, theirs = (item.apply_head(states, frames).embedding for item in (run.model, model))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
