"""Training with further objectives: momentum model, resumption, checkpoints, errors, and nothing new if off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures import JOINT, STATES, WIDTH, killed_at, settings, trainer, training_data
from torch import Tensor

from speechclip.checkpoint.folder import WEIGHTS, load_model, read_weights
from speechclip.common.errors import UserError
from speechclip.model.encoders.clip import OpenClip
from speechclip.model.heads.base import Keywords, SpeechOutput
from speechclip.model.network import Dimensions, build_network
from speechclip.train.objectives.combined import make_objectives
from speechclip.train.objectives.momentum import MomentumModel
from speechclip.train.state import TENSORS

ALL = {
    "train__objectives__queue": 20, "train__objectives__momentum": 0.8, "train__objectives__distillation": 0.3,
    "train__objectives__all_images": True, "train__objectives__image_distillation": 0.2,
    "train__objectives__rise_steps": 6, "train__objectives__matching_weight": 0.5,
    "train__objectives__denoising_weight": 0.5, "train__objectives__stride": 3,
}  # fmt: skip
FEATURES = {"data__layer_dropout": 0.3, "data__channel_dropout": 0.1, "data__feature_noise": 0.1}

IMAGES = np.eye(JOINT, dtype=np.float32)


def _network(**changes: Any) -> Any:
    return build_network(settings(**changes).model, Dimensions(WIDTH, STATES, JOINT))


def test_momentum_model_is_a_moving_average() -> None:
    model = _network()
    teacher = MomentumModel(model, 0.75)
    expected = {name: p.detach().numpy().copy() for name, p in model.named_parameters() if p.requires_grad}
    rng = np.random.default_rng(0)
    for _ in range(3):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.from_numpy(rng.standard_normal(parameter.shape)).float())
        teacher.update(model)
        for name, parameter in model.named_parameters():
            if name in expected:
                expected[name] = 0.75 * expected[name] + 0.25 * parameter.detach().numpy()
    found = teacher.averages()
    assert found.keys() == expected.keys() and "head.cls" in found
    for name, value in expected.items():
        np.testing.assert_allclose(found[name].numpy(), value, atol=1e-5)


def test_momentum_model_embeds_without_dropout(corpus: Path) -> None:
    model, batch = _network(model__head__dropout=0.5), training_data(corpus).train_speech.batch([0, 3, 5])
    teacher = MomentumModel(model, 0.5)
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model.eval()(batch).embedding, dim=1)
        for parameter in model.parameters():
            parameter.add_(1.0)  # the average keeps the old values
    model.train()
    found = teacher.embed(model, batch)["parallel"]
    torch.testing.assert_close(found, expected)
    assert model.training and not found.requires_grad


@pytest.mark.parametrize("head", ["parallel", "hybrid"])
def test_a_killed_run_resumes_with_its_objectives(
    corpus: Path, clip: OpenClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    config = settings(model__head__name=head, optim__ema_decay=0.9, optim__max_steps=10, **ALL, **FEATURES)
    used = clip if head != "parallel" else None
    trainer(config, training_data(corpus), tmp_path / "whole", clip=used).run()
    with killed_at(monkeypatch, 6):
        trainer(config, training_data(corpus), tmp_path / "cut", clip=used).run()
    resumed = trainer(config, training_data(corpus), tmp_path / "cut", clip=used)
    assert resumed.progress.step == 4
    resumed.run()
    for name in (f"last/{WEIGHTS}", f"best/{WEIGHTS}", f"last/{TENSORS}"):
        whole, cut = read_weights(tmp_path / "whole" / name), read_weights(tmp_path / "cut" / name)
        assert whole.keys() == cut.keys()
        assert all(torch.equal(whole[key], cut[key]) for key in whole), name
    kept = {key for key in read_weights(tmp_path / "whole" / "last" / TENSORS) if key.startswith("objectives.")}
    for part in ("queue.speech", "queue.position", "momentum.average0", "matching.out.weight", "denoiser.out.bias"):
        assert f"objectives.{part}" in kept
    assert not any("objectives" in key for key in read_weights(tmp_path / "whole" / "best" / WEIGHTS))
    if head == "parallel":  # inference needs nothing of the objectives
        load_model(tmp_path / "whole" / "best", with_speech_encoder=False)


def test_keyword_objective_reads_the_mean_keyword() -> None:
    config = settings(model__head__name="cascaded", train__objectives__keyword_weight=0.5)
    table = torch.randn(9, 6)
    subwords = table, torch.ones(9, dtype=torch.bool)
    model = build_network(config.model, Dimensions(WIDTH, STATES, JOINT), subwords=subwords)
    objectives = make_objectives(config, model, IMAGES)
    assert objectives is not None and objectives.keyword is not None
    vectors, mask = torch.randn(2, 3, 6), torch.tensor([[True, True, True], [True, False, False]])
    keywords = Keywords(vectors, vectors, torch.zeros(2, 3), None, mask)
    found = objectives.keywords(SpeechOutput({}, keywords, None, None, torch.tensor([1, 1])))
    assert found is not None
    for row, mean in enumerate((vectors[0].mean(dim=0), vectors[1, 0])):
        expected = (
            mean.numpy() @ objectives.keyword.weight.detach().numpy().T + objectives.keyword.bias.detach().numpy()
        )
        np.testing.assert_allclose(found[row].detach().numpy(), expected / np.linalg.norm(expected), atol=1e-5)


def _weights(corpus: Path, out: Path, **changes: Any) -> dict[str, Tensor]:
    trainer(settings(optim__max_steps=4, **changes), training_data(corpus), out).run()
    return read_weights(out / "last" / WEIGHTS)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ALL, *FEATURES])
def test_each_option_changes_the_weights(corpus: Path, tmp_path: Path, name: str) -> None:
    value = {**ALL, **FEATURES}[name]
    if name in ("train__objectives__momentum", "train__objectives__rise_steps", "train__objectives__stride"):
        other: Any = {**ALL, name: {"momentum": 0.2, "rise_steps": 0, "stride": 5}[name.rsplit("__", 1)[1]]}
        first, second = _weights(corpus, tmp_path / "a", **ALL), _weights(corpus, tmp_path / "b", **other)
    else:
        first, second = _weights(corpus, tmp_path / "a"), _weights(corpus, tmp_path / "b", **{name: value})
    assert not torch.equal(first["head.cls"], second["head.cls"])


def test_options_that_are_off_build_nothing() -> None:
    config = settings()
    model = _network()
    state = torch.random.get_rng_state()
    assert make_objectives(config, model, IMAGES) is None
    states = torch.randn(2, STATES, 5, WIDTH, generator=torch.Generator().manual_seed(1))
    model.train()
    frames = model.weighted_sum(states)
    assert torch.equal(model.feature_noise(frames), frames)
    assert torch.equal(torch.random.get_rng_state(), state)  # nothing draws a random number


WRONG = [
    ({"train__objectives__keyword_weight": 1}, "the head parallel has no keywords"),
    ({"model__loss__name": "sigmoid", "train__objectives__queue": 8}, "model.loss.name: sigmoid"),
    ({"model__head__name": "reranker", "train__objectives__queue": 8}, "the head reranker has losses of its own"),
    ({"train__objectives__distillation": 0.7, "train__objectives__image_distillation": 0.4}, "more than 1 together"),
    ({"train__objectives__all_images": True, "train__supervision": "text"}, "train.supervision is text"),
    ({"model__head__name": "hybrid", "model__head__pooling": "weights"}, "pooling: belongs to the head parallel"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_settings_that_do_not_fit_are_errors(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings(**changes)
