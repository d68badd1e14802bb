"""The masked contrastive loss, solved by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from speechclip.common.compat import prepare
from speechclip.config import LossConfig
from speechclip.model.losses import (
    ContrastiveLoss,
    SigmoidLoss,
    make_loss,
    masked_contrastive_loss,
    masked_sigmoid_loss,
    similar_parts,
)

DISTINCT = torch.tensor([0, 1, 2])


def _from_logits(rows: list[list[float]]) -> tuple[Tensor, Tensor]:
    """Return speech and targets whose product is this matrix."""
    return torch.tensor(rows), torch.eye(len(rows))


def test_loss_of_two_pairs_by_hand() -> None:
    # logits [[2, 1], [0, 3]]; rows: log(1 + e^-1), log(1 + e^-3); columns: log(1 + e^-2) twice
    speech, target = _from_logits([[2.0, 1.0], [0.0, 3.0]])
    rows = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-3))) / 2
    columns = math.log(1 + math.exp(-2))
    loss = masked_contrastive_loss(speech, target, torch.tensor([4, 9]), 1.0)
    assert float(loss) == pytest.approx((rows + columns) / 2, abs=1e-6)


def test_loss_multiplies_cosines_by_the_scale() -> None:
    speech, target = _from_logits([[0.2, 0.1], [0.0, 0.3]])
    ten_times = masked_contrastive_loss(*_from_logits([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 1]), 1.0)
    assert float(masked_contrastive_loss(speech, target, torch.tensor([0, 1]), 10.0)) == pytest.approx(float(ten_times))


def test_loss_of_three_pairs_with_a_shared_image() -> None:
    # utterances 0 and 2 have one image: their pairs (0, 2) and (2, 0) are not negatives, even if similar
    speech, target = _from_logits([[1.0, 2.0, 50.0], [3.0, 1.0, 0.0], [50.0, 1.0, 4.0]])
    rows = [math.log(1 + math.exp(1)), math.log(1 + math.exp(2) + math.exp(-1)), math.log(1 + math.exp(-3))]
    columns = [math.log(1 + math.exp(2)), math.log(1 + math.exp(1) + 1), math.log(1 + math.exp(-4))]
    expected = (sum(rows) / 3 + sum(columns) / 3) / 2
    groups = torch.tensor([7, 3, 7])
    assert float(masked_contrastive_loss(speech, target, groups, 1.0)) == pytest.approx(expected, abs=1e-6)
    assert float(masked_contrastive_loss(speech, target, DISTINCT, 1.0)) > 30  # without the mask, they dominate


def test_loss_gives_masked_pairs_no_gradient() -> None:
    speech = torch.tensor([[1.0, 2.0, 5.0], [3.0, 1.0, 0.0], [4.0, 1.0, 4.0]], requires_grad=True)
    masked_contrastive_loss(speech, torch.eye(3), torch.tensor([7, 3, 7]), 1.0).backward()
    assert speech.grad is not None
    assert torch.isfinite(speech.grad).all()
    assert ((speech.grad == 0) == torch.tensor([[0, 0, 1], [0, 0, 0], [1, 0, 0]], dtype=torch.bool)).all()


def test_loss_of_one_image_is_zero() -> None:
    speech = torch.randn(3, 4)
    assert float(masked_contrastive_loss(speech, torch.randn(3, 4), torch.tensor([5, 5, 5]), 9.0)) == 0.0


def test_loss_is_symmetric_and_ignores_order() -> None:
    torch.manual_seed(0)
    speech, target = torch.randn(2, 6, 5)
    groups = torch.tensor([0, 1, 0, 2, 3, 3])
    loss = masked_contrastive_loss(speech, target, groups, 3.0)
    torch.testing.assert_close(masked_contrastive_loss(target, speech, groups, 3.0), loss)
    order = torch.randperm(6)
    torch.testing.assert_close(masked_contrastive_loss(speech[order], target[order], groups[order], 3.0), loss)
    shuffled = masked_contrastive_loss(speech, target[torch.tensor([1, 2, 3, 4, 5, 0])], DISTINCT.repeat(2), 3.0)
    assert abs(float(shuffled) - float(loss)) > 1e-2


def test_temperature_is_fixed_or_learned() -> None:
    torch.manual_seed(0)
    speech, target = torch.nn.functional.normalize(torch.randn(2, 3, 5), dim=-1)
    for learn in (False, True):
        loss = ContrastiveLoss(0.07, learn=learn)
        assert loss.scale.item() == pytest.approx(1 / 0.07, rel=1e-6)
        value = loss(speech, target, DISTINCT)
        torch.testing.assert_close(value, masked_contrastive_loss(speech, target, DISTINCT, 1 / 0.07))
        assert value.requires_grad == learn
        assert sum(p.numel() for p in loss.parameters() if p.requires_grad) == int(learn)
    value.backward()
    assert loss.log_scale.grad is not None
    step = 1e-3  # the learned value is log(1 / tau)
    up, down = (
        masked_contrastive_loss(speech, target, DISTINCT, math.exp(math.log(1 / 0.07) + by)) for by in (step, -step)
    )
    assert float(loss.log_scale.grad) == pytest.approx(float(up - down) / (2 * step), rel=1e-2)


def test_loss_ignores_half_precision() -> None:
    torch.manual_seed(0)
    speech, target = torch.nn.functional.normalize(torch.randn(2, 8, 16), dim=-1)
    groups = torch.arange(8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        halved = masked_contrastive_loss(speech, target, groups, 1 / 0.07)
    assert torch.equal(halved, masked_contrastive_loss(speech, target, groups, 1 / 0.07))


def test_sigmoid_loss_of_two_pairs_by_hand() -> None:
    # logits [[2, 1], [0, 3]] x 0.5 - 1: true pairs 0 and 0.5, the others -0.5 and -1
    speech, target = _from_logits([[2.0, 1.0], [0.0, 3.0]])
    terms = [math.log(1 + math.exp(-z)) for z in (0.0, 0.5, 0.5, 1.0)]
    loss = masked_sigmoid_loss(speech, target, torch.tensor([4, 9]), 0.5, -1.0)
    assert float(loss) == pytest.approx(sum(terms) / 2, abs=1e-6)


def test_sigmoid_loss_equals_open_clip_with_gradients() -> None:
    prepare()
    from open_clip.loss import SigLipLoss

    torch.manual_seed(0)
    values = torch.nn.functional.normalize(torch.randn(2, 6, 5), dim=-1)
    gradients = []
    for ours in (True, False):
        speech, target = values.clone().requires_grad_()
        loss = SigmoidLoss(0.1, -10.0, learn=True)
        value = (
            loss(speech, target, torch.arange(6))
            if ours
            else SigLipLoss()(speech, target, loss.scale, loss.bias)
        )  # fmt: skip
        gradients.append((value, *torch.autograd.grad(value, [speech, target, loss.log_scale, loss.bias])))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected)


def test_sigmoid_loss_leaves_out_pairs_of_one_image() -> None:
    speech = torch.tensor([[1.0, 2.0, 50.0], [3.0, 1.0, 0.0], [50.0, 1.0, 4.0]], requires_grad=True)
    loss = masked_sigmoid_loss(speech, torch.eye(3), torch.tensor([7, 3, 7]), 1.0, 0.0)
    kept = [-1.0, 2.0, 3.0, -1.0, 0.0, 1.0, -4.0]
    assert loss.item() == pytest.approx(sum(math.log(1 + math.exp(z)) for z in kept) / 3, abs=1e-6)
    loss.backward()
    assert speech.grad is not None and speech.grad[0, 2] == speech.grad[2, 0] == 0
    assert (speech.grad != 0).sum() == 7


@pytest.mark.parametrize(
    ("name", "learn", "trained"), [("softmax", True, 1), ("sigmoid", True, 2), ("sigmoid", False, 0)]
)
def test_make_loss_counts_parameters(name: str, learn: bool, trained: int) -> None:
    loss = make_loss(LossConfig(name=name, learn_temperature=learn, bias=-7.0))  # type: ignore[arg-type]
    assert sum(p.numel() for p in loss.parameters() if p.requires_grad) == trained
    assert set(loss.state_dict()) == {"log_scale", *(["bias"] if name == "sigmoid" else [])}
    if name == "sigmoid":
        assert loss.bias.item() == -7.0


def test_similar_pairs_share_a_part() -> None:
    """By hand: 0 takes 4, the highest sum of both directions; 1 takes 5; 2 and 3 are left and share an image."""
    scores = torch.zeros(6, 6)
    scores[0, 4], scores[0, 1], scores[1, 0] = 3, 5, -4  # 0 and 4: 3, 0 and 1: 1
    scores[1, 5] = scores[5, 1] = 1
    groups = torch.tensor([0, 1, 2, 2, 4, 5])
    assert similar_parts(scores, groups, torch.arange(6), 2).tolist() == [0, 4, 1, 5, 2, 3]
    # the given order decides which pair begins: 2 and its own image never share a part if another is left
    assert similar_parts(scores, groups, torch.tensor([2, 3, 0, 1, 4, 5]), 2).tolist() == [2, 0, 3, 1, 4, 5]
    assert similar_parts(scores, groups, torch.arange(6), 4).tolist()[:1] == [0]
    assert sorted(similar_parts(torch.randn(7, 7), torch.arange(7), torch.arange(7), 3).tolist()) == list(range(7))
