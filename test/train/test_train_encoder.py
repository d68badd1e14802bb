"""Training a part of the speech encoder: which tensors change, checkpoints, resumption, and errors."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fixtures import (
    WIDTH,
    killed_at,
    make_data,
    save_hubert,
    settings,
    store_embeddings,
    store_regions,
    trainer,
    training_data,
    wave,
    with_paths,
)
from lightning_fabric import Fabric
from torch import Tensor

from speechclip.api import SpeechCLIP
from speechclip.checkpoint.folder import WEIGHTS, load_model, read_weights
from speechclip.checkpoint.hub import pack
from speechclip.common.errors import UserError
from speechclip.common.files import write_json
from speechclip.config import Config, SpeechEncoderConfig
from speechclip.model.encoders.factory import load_speech_encoder
from speechclip.model.losses import margin_loss, similar_parts
from speechclip.model.network import ENCODER_PREFIX
from speechclip.train.setup import make_trainer, prepare_training
from speechclip.train.state import TENSORS
from speechclip.upstream.expert import UpstreamExpert


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings with random image embeddings, and a tiny HuBERT of each type."""
    folder = tmp_path_factory.mktemp("recipe")
    make_recipe(folder)
    save_hubert(folder / "hubert0")
    save_hubert(folder / "hubert1", large=True)
    return folder


def make_recipe(folder: Path) -> None:
    """Write two splits of recordings with random embeddings and regions of the images."""
    for name, images, seed in (("train", 8, 0), ("dev", 4, 1)):
        data = make_data(folder / "data" / name, images=images, each=2, seed=seed)
        store_embeddings(data, folder / "dump" / name)
        store_regions(folder / "dump" / name, sorted(data.images), width=6, seed=seed)


def _config(recipe: Path, part: Any, large: bool = False, **changes: Any) -> Config:
    changes = {
        "optim__max_steps": 3, "train__eval_interval": 2, "data__max_seconds": 0.5, "train__encoder_lr": 1e-3,
        **changes,
    }  # fmt: skip
    config = settings(data__feats="online", train__encoder=part, **changes)
    return with_paths(config, hubert=recipe / f"hubert{int(large)}")


def _trainer(recipe: Path, out: Path, config: Config) -> Any:
    encoder = load_speech_encoder(SpeechEncoderConfig(config.model.speech_encoder.path))
    return trainer(config, training_data(recipe, feats="online"), out, encoder=encoder)


def _encoder_tensors(folder: Path) -> dict[str, Tensor]:
    tensors = read_weights(folder / WEIGHTS)
    prefix = f"{ENCODER_PREFIX}model."
    return {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}


def tower_config(recipe: Path, part: Any, **changes: Any) -> Config:
    """Return small settings of the head fast_vgs over the tiny HuBERT."""
    sizes = {
        "dim": WIDTH, "heads": 2, "feed_forward": 16, "speech_layers": 2, "speech_layer": 2, "speech_heads": 4,
        "speech_feed_forward": 2 * WIDTH, "position_kernel": 16, "position_groups": 4, "widths": [8, WIDTH],
        "image_layers": 1, "cross_layers": 1, "region_features": 6, "regions": "clip", "top_k": 3,
    }  # fmt: skip
    seconds = {"train_seconds": 0.4, "eval_seconds": 0.5, "part": "convolutions"}
    defaults = {
        **{f"model__head__fast_vgs__{key}": value for key, value in sizes.items()},
        **{f"model__speech_encoder__{key}": value for key, value in seconds.items()},
        "data__feats": "online", "optim__max_steps": 2, "train__eval_interval": 2, "train__encoder": part,
        "train__encoder_lr": 1e-4, "train__tensorboard_utterances": 0, "data__encode_batch_size": 1,
    }  # fmt: skip
    return with_paths(settings(model__head__name="fast_vgs", **{**defaults, **changes}), hubert=recipe / "hubert0")


def tower_trainer(recipe: Path, out: Path, config: Config, fabric: Any = None) -> Any:
    """Return the trainer of a fast_vgs head."""
    torch.manual_seed(0)
    config, model, data = prepare_training(config, recipe / "data", recipe / "dump", "")
    if fabric is None:
        fabric = Fabric(accelerator="cpu", devices=1)
        fabric.launch()
    return make_trainer(
        config, model, data, out, fabric=fabric, seed=0, origin={"seed": 0, "data": {"train": "0"}},
        dump_root=recipe / "dump",
    )  # fmt: skip


LAYERS = ("encoder.layers.0.", "encoder.layers.1.")
BELOW = ("feature_projection.", "encoder.pos_conv_embed.")
CONVOLUTIONS = ("feature_extractor.",)
PARTS = [  # part, Large, layers in the weighted sum, prefixes of the trained tensors
    (1, False, None, LAYERS[1:]),
    (2, True, None, LAYERS),
    (1, False, [0, 1], LAYERS[:1]),  # nothing depends on the layer above
    ("transformer", False, None, LAYERS + BELOW + ("encoder.layer_norm.",)),
    ("transformer", True, None, LAYERS + BELOW),  # the LayerNorm after the last layer is not used
    ("all", False, None, LAYERS + BELOW + CONVOLUTIONS + ("encoder.layer_norm.",)),
    ("all", True, None, LAYERS + BELOW + CONVOLUTIONS),
]


@pytest.mark.parametrize(("part", "large", "layers", "prefixes"), PARTS)
def test_only_the_selected_part_of_the_encoder_is_trained(
    recipe: Path, tmp_path: Path, part: Any, large: bool, layers: Any, prefixes: tuple[str, ...]
) -> None:
    changes = {} if layers is None else {"model__speech_encoder__layers": layers}
    config = _config(recipe, part, large, **changes)
    encoder = load_speech_encoder(config.model.speech_encoder)
    start = {name: value.clone() for name, value in encoder.model.state_dict().items()}
    states = {} if layers is None else {"states": len(layers)}
    run = trainer(config, training_data(recipe, feats="online"), tmp_path, encoder=encoder, **states)
    run.run()
    trained = _encoder_tensors(tmp_path / "last")
    assert trained.keys() == {n for n, _ in encoder.model.named_parameters() if n.startswith(prefixes)}
    for name, value in encoder.model.state_dict().items():
        moved = not torch.equal(value, start[name])
        assert moved == name.startswith(prefixes) or name.endswith("k_proj.bias"), name  # has no gradient but rounding
    assert not any(module.training for module in encoder.modules())


def test_frozen_training_is_the_default_and_stores_no_encoder(recipe: Path, tmp_path: Path) -> None:
    assert Config().train.encoder == "frozen"
    run = _trainer(recipe, tmp_path, _config(recipe, "frozen"))
    before = copy.deepcopy(run.model.speech_encoder.state_dict())
    run.run()
    assert len(run.optimizer.param_groups) == 1
    assert _encoder_tensors(tmp_path / "last") == {}
    after = run.model.speech_encoder.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_encoder_has_its_own_learning_rate(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = _config(recipe, 1, optim__lr=1e-3, train__encoder_lr=1e-5, optim__final_lr=0, optim__max_steps=4)
    rates = []
    plain = torch.optim.Adam.step

    def step(self: torch.optim.Adam, closure: Any = None) -> Any:
        rates.append([group["lr"] for group in self.param_groups])
        return plain(self, closure)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    run = _trainer(recipe, tmp_path, config)
    run.run()
    assert rates == [pytest.approx([rate, rate / 100]) for rate in (5e-4, 1e-3, 5e-4, 0)]
    assert len(run.optimizer.param_groups[1]["params"]) == len(run.model.encoder_parameters()) == 16


@pytest.mark.parametrize(("part", "decay"), [("transformer", 0.9), (1, 0.0)])
def test_a_killed_run_with_a_trained_encoder_resumes_exactly(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: Any, decay: float
) -> None:
    config = _config(
        recipe, part, optim__max_steps=6, data__time_masks=1, optim__ema_decay=decay, data__encode_batch_size=3
    )
    _trainer(recipe, tmp_path / "whole", config).run()
    with killed_at(monkeypatch, 3):
        _trainer(recipe, tmp_path / "cut", config).run()
    resumed = _trainer(recipe, tmp_path / "cut", config)
    assert resumed.progress.step == 2
    resumed.run()
    for name in (f"last/{WEIGHTS}", f"best/{WEIGHTS}", f"last/{TENSORS}"):
        whole, cut = read_weights(tmp_path / "whole" / name), read_weights(tmp_path / "cut" / name)
        assert whole.keys() == cut.keys()
        assert all(torch.equal(whole[key], cut[key]) for key in whole), name
        assert any(ENCODER_PREFIX in key for key in whole)


def test_loaded_and_packed_models_use_the_trained_encoder(recipe: Path, tmp_path: Path) -> None:
    run = _trainer(recipe, tmp_path, _config(recipe, "all"))
    run.run()
    waves = [torch.from_numpy(wave(9000, 3)), torch.from_numpy(wave(7000, 4))]
    with torch.no_grad():
        expected = run.model.eval().encode_waves(waves).states
    frozen = load_speech_encoder(SpeechEncoderConfig(str(recipe / "hubert0")))(waves).states
    assert (expected - frozen).abs().max() > 1e-3
    write_json(tmp_path / "scores" / "retrieval.json", {"speech->image": {}})
    pack(str(tmp_path / "last"), tmp_path / "scores", tmp_path / "pack")
    for folder in (tmp_path / "last", tmp_path / "pack"):
        model = SpeechCLIP.from_pretrained(folder)
        with torch.no_grad():
            assert torch.equal(model.network.encode_waves(waves).states, expected)
        assert load_model(folder).count_parameters()["trained"] == run.origin["trained"]
        upstream = UpstreamExpert(folder)
        hidden = upstream(waves)["hidden_states"]
        assert torch.allclose(torch.stack(hidden[:-1], dim=1), expected, atol=1e-5)
    assert "trained (all)" in (tmp_path / "pack" / "README.md").read_text()
    without = load_model(tmp_path / "last", with_speech_encoder=False)  # for hidden states that are given
    assert without.speech_encoder is None


def test_stored_features_with_a_trained_encoder_are_an_error(recipe: Path, tmp_path: Path) -> None:
    config = settings(train__encoder=2)
    with pytest.raises(UserError, match="^train.encoder: 2 needs .* data.feats is dump. Set data.feats to online"):
        trainer(config, SimpleNamespace(), tmp_path)
    for part, message in ((0, "0 is not a number of layers"), (3, "3, but the used states depend on 2 layers")):
        with pytest.raises(UserError, match=f"^train.encoder: {message}"):
            _trainer(recipe, tmp_path, _config(recipe, part))


TOWER = "speech.transformer."
TOWER_PARTS = [  # part, stored convolutions, prefixes of the trained tensors of the tower's transformer
    ("frozen", False, ()),
    (1, False, ("layers.1.",)),
    ("transformer", False, ("layers.0.", "layers.1.", "input_norm.", "projection.", "position.", "norm.")),
    ("all", True, ("layers.0.", "layers.1.", "input_norm.", "projection.", "position.", "norm.")),
]


@pytest.mark.parametrize(("part", "convolutions", "prefixes"), TOWER_PARTS)
def test_fast_vgs_trains_the_selected_part(
    recipe: Path, tmp_path: Path, part: Any, convolutions: bool, prefixes: tuple[str, ...]
) -> None:
    config = tower_config(recipe, part)
    run = tower_trainer(recipe, tmp_path / "run", config)
    names = {f"{TOWER}{name}" for name, _ in run.model.head.speech.transformer.named_parameters()}
    wanted = {name for name in names if name.startswith(tuple(f"{TOWER}{prefix}" for prefix in prefixes))}
    rates = [(group["lr_scale"], len(group["params"])) for group in run.optimizer.param_groups if "lr_scale" in group]
    if part != "frozen":
        assert rates[1] == (pytest.approx(0.1), len(run.model.encoder_parameters()))
    before = {name: value.clone() for name, value in run.model.head.named_parameters()}
    kernels = run.model.speech_encoder.convolutions.state_dict()
    kernels = {name: value.clone() for name, value in kernels.items()}
    run.run()
    for name, value in run.model.head.named_parameters():
        if name.startswith(TOWER):
            moved = not torch.equal(value, before[name])
            new = name == f"{TOWER}cls"  # it comes from no encoder
            assert moved == (name in wanted or new) or name.endswith("key.bias"), name
    moved = {
        n for n, value in run.model.speech_encoder.convolutions.state_dict().items() if (value != kernels[n]).any()
    }
    assert bool(moved) == convolutions
    loaded = load_model(tmp_path / "run" / "last")
    waves = [torch.from_numpy(wave(9000, 3))]
    with torch.no_grad():
        assert torch.equal(loaded.encode_waves(waves).states, run.model.eval().encode_waves(waves).states)


def test_fine_loss_of_parts_is_the_mean_of_their_losses(recipe: Path, tmp_path: Path) -> None:
    config = tower_config(
        recipe, "transformer", model__head__fast_vgs__fine_batch=2, model__head__dropout=0, data__batch_size=6
    )
    run = tower_trainer(recipe, tmp_path, config)
    batch = run._train_batch(run.data.train_speech.batch([0, 5, 3, 9, 8, 14]))
    head = run.model.train().head
    loss = run.step_module(batch)
    output, (image, target) = run.model(batch.batch), head.image(batch.regions)
    scores = head.scorer.score_grid(output.sequence, output.valid, image)
    fine = [margin_loss(scores[at : at + 2, at : at + 2], batch.groups[at : at + 2], 1.0) for at in (0, 2, 4)]
    coarse = margin_loss(output.embedding @ target.T, batch.groups, 1.0)
    torch.testing.assert_close(loss, sum(fine) / 3 + 0.1 * coarse)
    assert loss != config.model.loss.fine_weight * margin_loss(scores, batch.groups, 1.0) + 0.1 * coarse
    weights = {"coarse_weight": 1, "coarse_final_weight": 0.2}
    changing = dataclasses.replace(config.model, loss=dataclasses.replace(config.model.loss, **weights))
    run.step_module._config = dataclasses.replace(config, model=changing)
    batch.step = config.optim.max_steps // 2
    torch.testing.assert_close(run.step_module(batch), sum(fine) / 3 + 0.6 * coarse)
    early = dataclasses.replace(changing, loss=dataclasses.replace(changing.loss, coarse_steps=1))
    run.step_module._config = dataclasses.replace(config, model=early)
    torch.testing.assert_close(run.step_module(batch), sum(fine) / 3 + 0.2 * coarse)  # reached, and kept
    run.step_module._config = dataclasses.replace(config, model=changing)
    head.settings = dataclasses.replace(head.settings, fine_parts="similar")
    order = similar_parts(output.embedding @ target.T, batch.groups, torch.arange(6), 2).tolist()
    assert order != list(range(6))
    fine = [margin_loss(scores[at][:, at], batch.groups[at], 1.0) for at in (order[:2], order[2:4], order[4:])]
    torch.testing.assert_close(run.step_module(batch), sum(fine) / 3 + 0.6 * coarse)
    with pytest.raises(UserError, match=r"fine_parts: similar needs parts. Set model.head.fast_vgs.fine_batch\."):
        tower_config(recipe, "transformer", model__head__fast_vgs__fine_parts="similar")
    for size in (1, 4):
        with pytest.raises(UserError, match=f"fine_batch: {size} is not a divisor of data.batch_size .6. from 2 on"):
            tower_config(recipe, "transformer", model__head__fast_vgs__fine_batch=size, data__batch_size=6)


def test_image_tower_has_its_own_learning_rate(recipe: Path, tmp_path: Path) -> None:
    run = tower_trainer(recipe, tmp_path / "run", tower_config(recipe, "frozen", optim__lr=1e-3, train__image_lr=2e-4))
    rates = {id(p): group["lr_scale"] for group in run.optimizer.param_groups for p in group["params"]}
    trained = {id(parameter) for parameter in run.model.trained_parameters()}
    assert rates.keys() == trained
    images = {id(parameter) for parameter in run.model.head.image.parameters()}
    assert {at: rate for at, rate in rates.items() if at in images} == dict.fromkeys(images, pytest.approx(0.2))
    assert {rates[at] for at in trained - images} == {1.0}


def test_fast_vgs_over_hidden_states_trains_and_loads(recipe: Path, tmp_path: Path) -> None:
    """The states of the whole encoder are the input, and the encoder is trained as with every other head."""
    changes = {"model__speech_encoder__part": "all", "model__head__fast_vgs__joined_frames": 2}
    config = tower_config(recipe, 1, **changes)
    run = tower_trainer(recipe, tmp_path / "run", config)
    before = {name: value.clone() for name, value in run.model.head.named_parameters()}
    run.run()
    assert _encoder_tensors(tmp_path / "run" / "last").keys() >= {"encoder.layers.1.attention.q_proj.weight"}
    moved = {name for name, value in run.model.head.named_parameters() if not torch.equal(value, before[name])}
    assert f"{TOWER}layers.0.attention.value.weight" in moved and f"{TOWER}cls" in moved
    loaded, waves = load_model(tmp_path / "run" / "last"), [torch.from_numpy(wave(9000, 3))]
    with torch.no_grad():
        wanted = run.model.eval().apply_head(*run.model.encode_waves(waves)).embedding
        torch.testing.assert_close(loaded.eval().apply_head(*loaded.encode_waves(waves)).embedding, wanted)
    states = UpstreamExpert(tmp_path / "run" / "last")(waves)["hidden_states"]
    assert len(states) == 3 and {state.shape for state in states} == {(1, 27, WIDTH)}


def test_fast_vgs_refuses_more_layers_than_it_reads(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^train.encoder: 3, but the used states depend on 2 layers"):
        tower_trainer(recipe, tmp_path, tower_config(recipe, 3))
    with pytest.raises(UserError, match="^train.encoder: all needs .* data.feats is dump"):
        trainer(settings(train__encoder="all", model__head__name="fast_vgs"), SimpleNamespace(), tmp_path)


def test_gradients_of_the_encoder_are_exact(recipe: Path) -> None:
    """Compare a derivative with a difference quotient, in double precision and in parts of two utterances."""
    config = _config(recipe, "all")
    run = _trainer(recipe, recipe / "unused", config)
    model = run.model.double().eval()
    model.encode_batch_size = 2
    batch = training_data(recipe, feats="online").train_speech.batch([0, 3, 5])
    batch = batch._replace(waves=tuple(item.double() for item in batch.waves))
    direction = torch.linspace(-1, 1, 20).double()

    def value() -> Tensor:
        return (model(batch).embedding @ direction).sum()

    value().backward()
    for name in ("encoder.layers.0.attention.v_proj.weight", "feature_extractor.conv_layers.1.conv.weight"):
        parameter = run.model.speech_encoder.model.get_parameter(name)
        assert parameter.grad is not None
        at = int(parameter.grad.abs().argmax())
        flat, step = parameter.data.view(-1), 1e-6
        flat[at] += step
        above = value().item()
        flat[at] -= 2 * step
        below = value().item()
        flat[at] += step
        assert parameter.grad.view(-1)[at].item() == pytest.approx((above - below) / (2 * step), rel=1e-4)
