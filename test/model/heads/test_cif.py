"""Integrate-and-fire against a sequential version, by hand, and its gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from speechclip.model.heads.cif import IntegrateAndFire, crossings, integrate

DIM = 6


def _sequential(
    frames: list[list[float]], alpha: list[float], *, training: bool, target: int | None
) -> tuple[list[list[float]], list[tuple[float, float]]]:
    """Integrate frame by frame and return segments and their times in frames. ``target`` scales the weights."""
    count = len(alpha)
    if target is not None:
        total = sum(alpha)
        alpha = [weight * (target + 1e-9) / total for weight in alpha]
    done: list[list[float]] = []
    times: list[tuple[float, float]] = []
    state, held, begun = [0.0] * len(frames[0]), 0.0, 0.0
    for at, (frame, weight) in enumerate(zip(frames, alpha)):
        left = weight
        while held + left >= 1.0:  # fires, perhaps several times
            part = 1.0 - held
            left -= part
            done.append([s + part * x for s, x in zip(state, frame)])
            now = at + (weight - left) / weight
            times.append((begun, now))
            state, held, begun = [0.0] * len(frame), 0.0, now
        state = [s + left * x for s, x in zip(state, frame)]
        held += left
    if not done:  # at least one segment
        return [state], [(0.0, float(count))]
    if not training and held >= 0.5:
        done.append([s / held for s in state])
        times.append((begun, float(count)))
    return done, times


def _module(**settings: float) -> IntegrateAndFire:
    torch.manual_seed(4)
    module = IntegrateAndFire(DIM, **settings).double()  # type: ignore[arg-type]
    with torch.no_grad():
        module.weight.weight.mul_(6)  # weights that differ between frames
    return module


def _batch(lengths: tuple[int, ...] = (40, 11, 25, 1, 7), seed: int = 0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    frames = torch.randn(len(lengths), max(lengths), DIM, dtype=torch.float64)
    padding = torch.arange(max(lengths))[None, :] >= torch.tensor(lengths)[:, None]
    return frames, padding


def _without_dropout(module: IntegrateAndFire) -> IntegrateAndFire:
    module.dropout = 0.0
    return module


@pytest.mark.parametrize("per_keyword", [3.0, 20.0])
@pytest.mark.parametrize("mode", ["scaled", "unscaled", "evaluation"])
def test_cif_equals_a_sequential_version(mode: str, per_keyword: float) -> None:
    module = _without_dropout(_module(scaling_steps=10, frames_per_keyword=per_keyword))
    module.train(mode != "evaluation")
    module.step = 9 if mode == "scaled" else 10
    frames, padding = _batch()
    fired = module(frames, padding)
    alpha = module.alpha(frames, padding)
    for row, length in enumerate((~padding).sum(dim=1).tolist()):
        target = max(1, round(length / per_keyword)) if mode == "scaled" else None
        wanted, times = _sequential(
            frames[row, :length].tolist(), alpha[row, :length].tolist(), training=mode != "evaluation", target=target
        )
        assert fired.mask[row].tolist() == [k < len(wanted) for k in range(fired.mask.shape[1])]
        got = fired.vectors[row, : len(wanted)]
        torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-7)
        torch.testing.assert_close(
            fired.segments[row, : len(wanted)], torch.tensor(times, dtype=torch.float32), rtol=0, atol=1e-4
        )
        assert (fired.vectors[row, len(wanted) :] == 0).all()
        assert (fired.weights[row, len(wanted) :] == 0).all()


def test_cif_by_hand() -> None:
    # sums 0.6, 1.2, 1.3, 2.5: the first 1 is passed in frame 1, the second in frame 3, and 0.5 is left
    alpha = torch.tensor([[0.6, 0.6, 0.1, 1.2]], dtype=torch.float64)
    weights = integrate(alpha, 3)[0]
    expected = [[0.6, 0.4, 0, 0], [0, 0.2, 0.1, 0.7], [0, 0, 0, 0.5]]
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)
    times = crossings(alpha, torch.tensor([4]), 3)[0]
    assert times.tolist() == pytest.approx(
        [0, 1 + 0.4 / 0.6, 3 + 0.7 / 1.2, 4]
    )  # 3 is not reached, so the end is returned


def test_cif_frame_can_hold_several_segments() -> None:
    weights = integrate(torch.tensor([[0.5, 2.7]], dtype=torch.float64), 3)[0]
    expected = torch.tensor([[0.5, 0.5], [0, 1], [0, 1]], dtype=torch.float64)
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-12)


def _with_alpha(monkeypatch: pytest.MonkeyPatch, module: IntegrateAndFire, *rows: list[float]) -> tuple[Tensor, Tensor]:
    """Return frames of ones without padding, for which the module predicts these weights."""
    values = torch.tensor(rows, dtype=torch.float64)
    monkeypatch.setattr(module, "alpha", lambda frames, padding: values.masked_fill(padding, 0.0))
    frames = torch.ones(*values.shape, DIM, dtype=torch.float64)
    return frames, torch.zeros(values.shape, dtype=torch.bool)


def test_cif_tail_fires_in_evaluation_from_one_half(monkeypatch: pytest.MonkeyPatch) -> None:
    module = _module(scaling_steps=0).eval()
    inputs = _with_alpha(monkeypatch, module, [0.9, 0.6], [0.9, 0.5], [0.3, 0.3], [0.1, 0.1])
    fired = module(*inputs)
    assert fired.mask.tolist() == [[True, True], [True, False], [True, False], [True, False]]
    # The tail is scaled up to 1. A sum that never reaches 1 is not scaled.
    assert fired.vectors[:, :, 0].tolist() == [
        pytest.approx([1, 1]), pytest.approx([1, 0]), pytest.approx([0.6, 0]), pytest.approx([0.2, 0])
    ]  # fmt: skip
    module.train()
    assert module(*inputs).mask.sum(dim=1).tolist() == [1, 1, 1, 1]


def test_cif_limits_the_number_of_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    module = _module(scaling_steps=0, most=4).eval()
    fired = module(*_with_alpha(monkeypatch, module, [0.9] * 10, [0.9, 0.9] + [0.0] * 8))
    assert fired.mask.sum(dim=1).tolist() == [4, 2]
    assert fired.segments[0, 3].tolist() == pytest.approx([3 + 0.3 / 0.9, 4 + 0.4 / 0.9])
    full = _module(scaling_steps=0).eval()
    assert full(*_with_alpha(monkeypatch, full, [0.99] * 200)).mask.shape == (1, 75)


def test_cif_target_and_quantity_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    module = _module(scaling_steps=5, frames_per_keyword=4.0).train()
    # 10 frames: 2.5 rounds to 2 (half to even); sums 5 and 1: off by 3 and 1
    inputs = _with_alpha(monkeypatch, module, [0.5] * 10, [0.1] * 10)
    fired = module(*inputs)
    assert fired.mask.sum(dim=1).tolist() == [2, 2]
    assert fired.quantity_loss.item() == pytest.approx(2.0)
    torch.testing.assert_close(fired.weights.sum(dim=2), torch.ones(2, 2))
    module.step = 5  # no more scaling, as in evaluation
    assert module(*inputs).mask.sum(dim=1).tolist() == [5, 1]
    module.step = 0
    assert module.eval()(*inputs).mask.sum(dim=1).tolist() == [5, 1]


def test_cif_short_utterance_has_one_segment() -> None:
    module = _without_dropout(_module(scaling_steps=5)).train()
    frames, padding = _batch((2, 1))
    fired = module(frames, padding)
    assert fired.mask.tolist() == [[True], [True]]
    torch.testing.assert_close(fired.vectors[1, 0], frames[1, 0])  # its only frame


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_cif_ignores_padding(training: bool, layers: int) -> None:
    module = _without_dropout(_module(frames_per_keyword=3.0, layers=layers, width=5)).train(training)
    frames, padding = _batch()
    fired, other = module(frames, padding), module(frames.masked_fill(padding[:, :, None], 1e3), padding)
    for ours, theirs in zip(fired, other, strict=True):
        assert torch.equal(ours, theirs)
    assert (fired.weights.masked_select(padding[:, None]) == 0).all()
    for row, length in enumerate((~padding).sum(dim=1).tolist()):
        alone = module(frames[row : row + 1, :length], padding[row : row + 1, :length])
        count = int(alone.mask.sum())
        assert count == int(fired.mask[row].sum())
        torch.testing.assert_close(alone.vectors[0], fired.vectors[row, :count], rtol=0, atol=1e-12)
        torch.testing.assert_close(alone.segments[0], fired.segments[row, :count], rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["scaled", "unscaled", "evaluation"])
def test_cif_gradients_in_double_precision(mode: str) -> None:
    module = _without_dropout(_module(scaling_steps=1, frames_per_keyword=3.0)).train(mode != "evaluation")
    module.step = 0 if mode == "scaled" else 1
    frames, padding = _batch((9, 4))
    names = [name for name, _ in module.named_parameters()]
    parameters = [p.detach().clone().requires_grad_() for p in module.parameters()]

    def run(speech: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
        fired = torch.func.functional_call(module, dict(zip(names, values, strict=True)), (speech, padding))
        return fired.vectors, fired.quantity_loss

    if mode == "evaluation":  # the factor of a tail has no gradient, so only fired segments are compared
        assert module(frames, padding).mask.sum() > 2
        module.tail = 1.0
    speech = frames.requires_grad_()
    assert torch.autograd.gradcheck(run, (speech, *parameters), eps=1e-7, atol=1e-5)
    vectors, quantity = run(speech, *parameters)
    gradient = torch.autograd.grad(vectors.square().sum() + quantity, [speech, *parameters])
    assert (gradient[0][padding] == 0).all()
    assert all((part != 0).any() for part in gradient)


def test_cif_counts_equally_in_half_precision() -> None:
    module = _without_dropout(_module(scaling_steps=0).float()).eval()
    frames, padding = _batch((300, 120))
    single = module(frames.float(), padding)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = module(frames.float(), padding)
    assert torch.equal(single.mask, half.mask)
    assert torch.equal(single.vectors, half.vectors)
    assert half.vectors.dtype == torch.float32


def test_cif_counts_long_sums_exactly() -> None:
    count = 3000
    alpha = torch.full((1, count), 1 / 50, dtype=torch.float64)
    weights = integrate(alpha, 60)
    torch.testing.assert_close(weights.sum(dim=2), torch.ones(1, 60, dtype=torch.float64), rtol=0, atol=1e-9)
    assert math.isclose(weights.sum().item(), 60, abs_tol=1e-8)
