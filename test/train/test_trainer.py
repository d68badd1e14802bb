"""Training: the loss falls, a killed run resumes exactly, patience stops it, and stored features equal online ones."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fixtures import (
    JOINT,
    STATES,
    WIDTH,
    captions,
    killed_at,
    make_data,
    save_hubert,
    settings,
    store_embeddings,
    trainer,
    training_data,
    vocabulary_of,
)
from torch import Tensor
from torch.nn.functional import normalize

from speechclip.checkpoint.folder import WEIGHTS, load_model, read_weights
from speechclip.common.errors import UserError
from speechclip.common.files import SUMS, lines_fingerprint
from speechclip.config import SpeechEncoderConfig
from speechclip.data.batches import bucketed_batches
from speechclip.data.dataset import Batch, Crop, StoreSource
from speechclip.data.features import FeatureWriter
from speechclip.model.encoders.clip import OpenClip
from speechclip.model.encoders.factory import load_speech_encoder
from speechclip.model.feature_augment import random_spans
from speechclip.model.losses import masked_contrastive_loss
from speechclip.model.network import Dimensions, build_network
from speechclip.train.checks import check_batch_size
from speechclip.train.optim import learning_rate
from speechclip.train.state import COUNTERS, TENSORS
from speechclip.train.trainer import TrainingData


def _records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_loss_falls_and_both_checkpoints_load(corpus: Path, tmp_path: Path) -> None:
    config = settings(optim__max_steps=60, optim__lr=3e-3, train__eval_interval=20, train__log_interval=6)
    progress = trainer(config, training_data(corpus), tmp_path).run()
    assert progress.step == 60
    assert progress.finished
    losses = [record["loss"] for record in _records(tmp_path) if "loss" in record]
    assert len(losses) == 10
    assert losses[-1] < 0.3 * losses[0]
    dev = {record["step"]: record["dev"]["mean_R@10"] for record in _records(tmp_path) if "dev" in record}
    assert sorted(dev) == [20, 40, 60]
    origin = json.loads((tmp_path / "best" / "provenance.json").read_text())
    assert origin["step"] == progress.best_step
    assert origin["dev_mean_R@10"] == dev[progress.best_step] == max(dev.values())
    loaded = load_model(tmp_path / "last", with_speech_encoder=False)
    assert origin["trained"] == sum(p.numel() for p in loaded.trained_parameters())
    assert list((tmp_path / "tensorboard").glob("events*"))


KILLS = [("parallel", 0.0, 6), ("parallel", 0.9, 9), ("cascaded", 0.9, 6), ("cascaded", 0.0, 2)]
KILLS += [("hybrid_plus", 0.9, 6)]


@pytest.mark.parametrize(("head", "decay", "at"), KILLS)
def test_a_killed_run_resumes_to_equal_weights(
    corpus: Path, clip: OpenClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str, decay: float, at: int
) -> None:
    config = settings(  # dropout, masks and crops: everything random; the saves at 4 and 8 are inside epochs of 3 steps
        model__head__name=head, model__head__input_dropout=0.1, data__time_masks=2, data__time_mask_frames=5,
        data__max_seconds=0.4, optim__ema_decay=decay, model__loss__learn_temperature=True,
        model__head__cif__frames_per_keyword=4, model__head__cif__scaling_steps=7,  # ends after the kill
    )  # fmt: skip
    used = clip if head != "parallel" else None
    trainer(config, training_data(corpus), tmp_path / "whole", clip=used).run()

    with killed_at(monkeypatch, at):
        trainer(config, training_data(corpus), tmp_path / "cut", clip=used).run()
    resumed = trainer(config, training_data(corpus), tmp_path / "cut", clip=used)
    assert resumed.progress.step == at // 4 * 4
    resumed.run()
    for name in (f"last/{WEIGHTS}", f"best/{WEIGHTS}", f"last/{TENSORS}"):
        whole, cut = read_weights(tmp_path / "whole" / name), read_weights(tmp_path / "cut" / name)
        assert _same(whole, cut), name
    if decay:  # the average differs from the weights
        averaged = read_weights(tmp_path / "whole" / "last" / WEIGHTS)
        state = read_weights(tmp_path / "whole" / "last" / TENSORS)
        assert not torch.equal(averaged["head.cls"], state["weights.head.cls"])
    strip = ("loss", "step", "dev", "temperature")  # the loss of a cut interval averages only the repeated steps
    whole_log, cut_log = (_records(tmp_path / name) for name in ("whole", "cut"))
    assert [r["step"] for r in whole_log] == [r["step"] for r in cut_log]
    for ours, theirs in zip(whole_log, cut_log, strict=True):
        if "dev" in ours or ours["step"] > 9:
            assert {key: ours.get(key) for key in strip} == {key: theirs.get(key) for key in strip}


def test_seed_determines_the_weights(corpus: Path, tmp_path: Path) -> None:
    config = settings(optim__max_steps=4)
    weights = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        trainer(config, training_data(corpus), tmp_path / name, seed=seed).run()
        weights.append(read_weights(tmp_path / name / "last" / WEIGHTS))
    assert _same(weights[0], weights[1])
    assert not _same(weights[0], weights[2])


def test_damaged_training_state_is_one_line(corpus: Path, tmp_path: Path) -> None:
    config = settings(optim__max_steps=4)
    trainer(config, training_data(corpus), tmp_path).run()
    state = tmp_path / "last" / TENSORS
    state.write_bytes(state.read_bytes()[:-10])
    (tmp_path / "last" / SUMS).unlink()  # so that the file itself is read
    with pytest.raises(UserError, match=f"{TENSORS}: damaged or truncated"):
        trainer(config, training_data(corpus), tmp_path)
    (tmp_path / "last" / COUNTERS).write_text("{")
    with pytest.raises(UserError, match=f"{COUNTERS}: missing or damaged"):
        trainer(config, training_data(corpus), tmp_path)


class _Poisoned(StoreSource):
    """A store in which one utterance is NaN."""

    def batch(self, indices: Sequence[int], crop: Crop | None = None) -> Batch:
        batch = super().batch(indices, crop)
        assert batch.states is not None
        batch.states[batch.indices == 13] = torch.nan
        return batch


def test_nan_features_stop_training_and_name_the_utterance(corpus: Path, tmp_path: Path) -> None:
    data = training_data(corpus)
    poisoned = _Poisoned(corpus / "dump" / "train", data.train.ids)
    data = TrainingData(data.train, data.dev, poisoned, data.dev_speech)
    with pytest.raises(
        UserError, match=rf"data/train: the loss is nan at step \d+. Features are not finite: {data.train.ids[13]}"
    ) as caught:
        trainer(settings(), data, tmp_path).run()
    assert sum(name in str(caught.value) for name in data.train.ids) == 1  # not the other utterances of the batch
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "last").exists()


def test_optimiser_gets_scheduled_rate_and_clipped_gradients(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(optim__max_steps=5, optim__clip_norm=0.01, optim__final_lr=1e-5)
    rates, norms = [], []
    plain = torch.optim.Adam.step

    def step(self: torch.optim.Adam, closure: Any = None) -> Any:
        group = self.param_groups[0]
        rates.append(group["lr"])
        norms.append(math.sqrt(sum(float(p.grad.square().sum()) for p in group["params"])))
        return plain(self, closure)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    trainer(config, training_data(corpus), tmp_path).run()
    assert rates == [learning_rate(number, config.optim) for number in range(5)]
    assert norms == pytest.approx([0.01] * 5, rel=1e-3)


@pytest.mark.parametrize("learn", [False, True])
def test_temperature_changes_only_if_it_is_learned(corpus: Path, tmp_path: Path, learn: bool) -> None:
    trainer(settings(model__loss__learn_temperature=learn), training_data(corpus), tmp_path).run()
    scale = read_weights(tmp_path / "last" / WEIGHTS)["loss.log_scale"].exp().item()
    assert (abs(scale - 1 / 0.07) > 1e-3) == learn
    shown = [record["temperature"] for record in _records(tmp_path) if "temperature" in record]
    assert (len(set(shown)) > 1) == learn


def test_patience_stops_early(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([5.0, 7.0, 7.0, 6.0, 9.0])
    row = {"R@1": 0.0, "R@5": 0.0, "R@10": 0.0, "MRR": 0.0}
    report = {"speech->image": row, "image->speech": row}
    monkeypatch.setattr(
        "speechclip.train.trainer.retrieval_report", lambda *args, **named: {**report, "mean_R@10": next(scores)}
    )
    config = settings(optim__max_steps=50, train__eval_interval=2, train__patience=2)
    progress = trainer(config, training_data(corpus), tmp_path).run()
    assert (progress.step, progress.best, progress.best_step, progress.finished) == (8, 7.0, 4, True)
    assert json.loads((tmp_path / "best" / "provenance.json").read_text())["step"] == 4


@pytest.mark.parametrize("feats", ["dump", "online"])
def test_mixed_precision_rounds_no_input(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, feats: str
) -> None:
    """The training precision does not round waveforms, stored hidden states or targets."""
    seen: list[tuple[Batch, Tensor]] = []
    encoder = load_speech_encoder(SpeechEncoderConfig(str(save_hubert(tmp_path / "hubert"))))
    data = training_data(corpus, feats=feats)
    run = trainer(settings(train__precision="bf16-mixed", optim__max_steps=2), data, tmp_path / "run", encoder=encoder)
    plain_features, plain_loss = run.model.features, run.model.loss.forward

    def features(batch: Batch) -> Any:
        if run.model.training:
            seen.append((batch, torch.empty(0)))
        return plain_features(batch)

    def loss(speech: Tensor, target: Tensor, groups: Tensor) -> Tensor:
        seen[-1] = (seen[-1][0], target)
        return plain_loss(speech, target, groups)

    with monkeypatch.context() as patch:
        patch.setattr(run.model, "features", features)
        patch.setattr(run.model.loss, "forward", loss)
        run.run()
    assert len(seen) == 2
    for batch, target in seen:
        read = data.train_speech.batch(batch.indices.tolist(), Crop(6.4, 0, 0))
        pairs = [(batch.states, read.states)] if feats == "dump" else zip(batch.waves, read.waves, strict=True)
        assert all(ours.dtype == theirs.dtype and torch.equal(ours, theirs) for ours, theirs in pairs)
        assert torch.equal(target, _targets(run)[batch.indices])


def test_fingerprint_of_utterances_is_that_of_lines(corpus: Path, tmp_path: Path) -> None:
    data = training_data(corpus)
    lines = [
        f"{item}\t{split.image_ids[int(image)]}\t{length:.2f}"
        for split, speech in ((data.train, data.train_speech), (data.dev, data.dev_speech))
        for item, image, length in zip(split.ids, split.utterance_image, speech.lengths)
    ]
    assert trainer(settings(), data, tmp_path).origin["inputs"]["utterances"] == lines_fingerprint(lines)


def _targets(run: Any) -> torch.Tensor:
    """Return the target of every training utterance."""
    return torch.from_numpy(run._targets[run._target_rows])


def test_text_supervision_replaces_images_by_captions(corpus: Path, tmp_path: Path) -> None:
    data = training_data(corpus)
    images = _targets(trainer(settings(), data, tmp_path / "image"))
    assert torch.equal(images, torch.from_numpy(data.train.images[data.train.utterance_image]))
    texts = _targets(trainer(settings(train__supervision="text"), data, tmp_path / "text"))
    assert data.train.texts is not None
    assert torch.equal(texts, torch.from_numpy(data.train.texts))  # stored in the order of the utterances
    shuffled = torch.randperm(24, generator=torch.Generator().manual_seed(0)).numpy()
    other = SimpleNamespace(
        **{**vars(data.train), "texts": data.train.texts[shuffled], "text_utterance": shuffled}, ids=data.train.ids
    )
    moved = TrainingData(other, data.dev, data.train_speech, data.dev_speech)  # type: ignore[arg-type]
    assert torch.equal(_targets(trainer(settings(train__supervision="text"), moved, tmp_path / "moved")), texts)
    missing = SimpleNamespace(**{**vars(data.train), "texts": None}, ids=data.train.ids)
    moved = TrainingData(missing, data.dev, data.train_speech, data.dev_speech)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="train.supervision: text needs"):
        trainer(settings(train__supervision="text"), moved, tmp_path / "none")


def test_a_batch_needs_an_utterance_for_each_process() -> None:
    with pytest.raises(UserError, match="^data.batch_size: 8 is less than the 9 processes. Use at least 9.$"):
        check_batch_size(8, 9)
    check_batch_size(2, 2)  # the global batch counts
    with pytest.raises(UserError, match="^model.head.fast_vgs.fine_batch: 2 is less than the 3 processes."):
        check_batch_size(8, 3, fine_batch=2)
    check_batch_size(8, 2, fine_batch=2)


def test_random_spans_fit_the_utterance_and_the_limit() -> None:
    torch.manual_seed(0)
    frames = torch.tensor([4, 30, 1])
    many = torch.stack([random_spans(frames, 30, 1, 6) for _ in range(400)])
    lengths = many.sum(dim=2)
    assert int(lengths.max()) == 6
    assert int(lengths.min()) == 0
    edges = (many[..., 1:] != many[..., :-1]).sum(dim=2)
    assert int(edges.max()) <= 2  # one span
    assert many[:, 1].any(dim=0).all()
    starts = many.int().argmax(dim=2)
    assert int(starts[:, 0].max()) <= 3
    assert not random_spans(frames, 30, 3, 6).equal(random_spans(frames, 30, 3, 6))


@pytest.mark.parametrize("head", ["parallel", "cascaded"])
def test_stored_and_online_features_give_equal_weights(clip: OpenClip, tmp_path: Path, head: str) -> None:
    """Store in fp32 what the encoder returns for each training batch, so that padding affects both runs alike."""
    encoder = load_speech_encoder(SpeechEncoderConfig(str(save_hubert(tmp_path / "hubert"))))
    for name, images, seed in (("train", 8, 0), ("dev", 4, 1)):
        data = make_data(tmp_path / "data" / name, images=images, each=3, seed=seed)
        store_embeddings(data, tmp_path / "dump" / name)
    changes = {
        "model__head__name": head, "data__max_seconds": 0, "data__bucket_batches": 3, "optim__max_steps": 3,
        "train__eval_interval": 3, "data__time_masks": 1,
    }  # fmt: skip
    config = settings(data__feats="online", **changes)
    online = training_data(tmp_path, feats="online")
    for name, source in (("train", online.train_speech), ("dev", online.dev_speech)):
        split = online.train if name == "train" else online.dev
        batches = bucketed_batches(source.lengths, 8 if name == "train" else 12, bucket_batches=3, seed=0, epoch=0)
        assert sorted(sum(batches, [])) == list(range(len(split.ids)))  # one epoch, every utterance once
        with FeatureWriter(tmp_path / "dump" / name, encoder={}, layers=range(STATES), dtype="float32") as writer:
            for batch in batches:
                waves = source.batch(batch).waves
                assert len({len(wave) for wave in waves}) > 1  # padding there is
                states, frames = encoder(waves)
                for index, row, count in zip(batch, states, frames.tolist(), strict=True):
                    writer.add(split.ids[index], row[:, :count])
    used = clip if head == "cascaded" else None
    trainer(config, online, tmp_path / "online", clip=used, encoder=encoder).run()
    trainer(settings(**changes), training_data(tmp_path), tmp_path / "dumped", clip=used).run()
    start = build_network(
        config.model, Dimensions(WIDTH, STATES, JOINT), clip=used,
        vocabulary=vocabulary_of(captions(30), used) if used else None,
    ).trained_state()  # fmt: skip
    ours, theirs = (read_weights(tmp_path / name / "last" / WEIGHTS) for name in ("online", "dumped"))
    for name, value in ours.items():
        assert (value - theirs[name]).abs().max() < 1e-5, name
    assert (ours["weighted_sum.weights"] - start["weighted_sum.weights"]).abs().max() > 1e-3  # and they have moved


def test_both_embeddings_of_a_summed_head_have_a_loss(corpus: Path, tmp_path: Path) -> None:
    changes = {"model__head__pooling": "both", "model__head__dropout": 0, "model__head__attention_heads": 4}
    run = trainer(settings(**changes), training_data(corpus), tmp_path)
    batch = run._train_batch(run.data.train_speech.batch(range(6)))
    run.model.train()
    output = run.model(batch.batch)
    assert output.parts is not None
    losses = [
        masked_contrastive_loss(normalize(part, dim=-1), batch.targets, batch.groups, run.model.loss.scale)
        for part in output.parts
    ]
    assert losses[0] != losses[1]
    torch.testing.assert_close(run.step_module(batch), sum(losses) / 2)
    assert run.run().finished
    assert load_model(tmp_path / "last", with_speech_encoder=False).config.head.pooling == "both"
