"""The contrastive loss with a queue and soft targets equals NumPy; the queue is a ring; off is the plain loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from speechclip.model.losses import masked_contrastive_loss
from speechclip.train.objectives.contrastive import distilled_contrastive_loss
from speechclip.train.objectives.queue import EmbeddingQueue, QueueRows

Array = np.ndarray


def _unit(rng: np.random.Generator, rows: int, width: int = 6) -> Array:
    values = rng.standard_normal((rows, width))
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def _softmax(logits: Array) -> Array:
    shifted = np.exp(logits - logits.max())
    return shifted / shifted.sum()


def _reference(
    speech: Array, target: Array, groups: Array, scale: float, queue: tuple[Array, Array, Array], teacher: Array,
    share: float, image_share: float, image_scale: float, gallery: Array | None = None,
) -> float:  # fmt: skip
    """Return the loss row by row, without masks: columns of the same image are left out."""
    others = np.concatenate([groups, queue[2]]).astype(int)
    images, seen_images = np.concatenate([target, queue[1]]), others
    if gallery is not None:
        absent = [at for at in range(len(gallery)) if at not in others]
        images, seen_images = np.concatenate([images, gallery[absent]]), np.concatenate([others, absent])
    spoken, taught = np.concatenate([speech, queue[0]]), np.concatenate([teacher, queue[0]])
    total = 0.0
    for row, group in enumerate(groups):
        for query, keys, asked, answers, owners in (
            (speech[row], images, teacher[row], images, seen_images),
            (target[row], spoken, target[row], taught, others),
        ):
            used = [at for at in range(len(owners)) if at == row or owners[at] != group]
            place = used.index(row)
            seen = _softmax(image_scale * images[used] @ target[row])
            soft = share * _softmax(scale * answers[used] @ asked) + image_share * seen
            soft[place] += 1 - share - image_share
            total -= soft @ np.log(_softmax(scale * keys[used] @ query))
    return total / len(groups) / 2


GROUPS = np.array([0, 1, 1, 2, 0])
CASES = [(0, 0.0, 0.0), (4, 0.0, 0.0), (0, 0.4, 0.0), (4, 0.4, 0.0), (4, 0.0, 0.3), (4, 0.25, 0.5), (4, 1.0, 0.0)]


@pytest.mark.parametrize(("rows", "share", "image_share"), CASES)
def test_distilled_loss_equals_numpy(rows: int, share: float, image_share: float) -> None:
    rng = np.random.default_rng(rows)
    speech, target, teacher = (_unit(rng, 5) for _ in range(3))
    queue = _unit(rng, rows), _unit(rng, rows), np.array([1, 7, 8, 2])[:rows]
    expected = _reference(speech, target, GROUPS, 8.0, queue, teacher, share, image_share, 3.0)
    tensors = [torch.from_numpy(part) for part in queue]
    loss = distilled_contrastive_loss(
        torch.from_numpy(speech), torch.from_numpy(target), torch.from_numpy(GROUPS), 8.0,
        queue=QueueRows(tensors[0].float(), tensors[1].float(), tensors[2]) if rows else None,
        teacher=torch.from_numpy(teacher), share=share, image_share=image_share, image_scale=3.0,
    )  # fmt: skip
    assert loss.item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("rows", "share", "image_share"), [(0, 0.0, 0.0), (4, 0.0, 0.0), (4, 0.25, 0.5)])
def test_all_images_are_negatives_of_the_utterances(rows: int, share: float, image_share: float) -> None:
    rng = np.random.default_rng(rows)
    speech, teacher, gallery = _unit(rng, 5), _unit(rng, 5), _unit(rng, 9)
    target = gallery[GROUPS]
    owners = np.array([1, 7, 8, 2])[:rows]
    queue = _unit(rng, rows), gallery[owners], owners
    expected = _reference(speech, target, GROUPS, 8.0, queue, teacher, share, image_share, 3.0, gallery)
    tensors = [torch.from_numpy(part) for part in queue]
    loss = distilled_contrastive_loss(
        torch.from_numpy(speech), torch.from_numpy(target), torch.from_numpy(GROUPS), 8.0,
        queue=QueueRows(tensors[0].float(), tensors[1].float(), tensors[2]) if rows else None,
        gallery=torch.from_numpy(gallery), teacher=torch.from_numpy(teacher), share=share, image_share=image_share,
        image_scale=3.0,
    )  # fmt: skip
    assert loss.item() == pytest.approx(expected, abs=1e-5)


def test_distilled_loss_without_options_is_the_plain_loss() -> None:
    rng = np.random.default_rng(2)
    speech, target = (torch.from_numpy(_unit(rng, 5)).float() for _ in range(2))
    groups = torch.from_numpy(GROUPS)
    ours, plain = (speech.clone().requires_grad_() for _ in range(2))
    first, second = (
        distilled_contrastive_loss(ours, target, groups, 14.0),
        masked_contrastive_loss(plain, target, groups, 14.0),
    )
    first.backward()
    second.backward()
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(ours.grad, plain.grad)


def test_soft_targets_have_no_gradient() -> None:
    rng = np.random.default_rng(3)
    speech, target, teacher = (torch.from_numpy(_unit(rng, 5)).float() for _ in range(3))
    scale = torch.tensor(8.0, requires_grad=True)
    teacher.requires_grad_()
    speech.requires_grad_()
    distilled_contrastive_loss(
        speech, target, torch.from_numpy(GROUPS), scale, teacher=teacher, share=0.5, image_share=0.2
    ).backward()
    assert teacher.grad is None
    assert speech.grad is not None and scale.grad is not None


def test_queue_keeps_the_newest_rows() -> None:
    queue = EmbeddingQueue(5, 2, ("parallel",))
    assert len(queue.rows("parallel").groups) == 0
    pushed = []
    for batch in range(3):  # 2, 4 and 5 of 5 rows are filled
        rows = torch.full((2, 2), float(batch)) + torch.tensor([[0.0], [0.5]])
        queue.push({"parallel": rows}, -rows, torch.tensor([2 * batch, 2 * batch + 1]))
        pushed += [2 * batch, 2 * batch + 1]
        found = queue.rows("parallel")
        assert sorted(found.groups.tolist()) == pushed[-5:]
        assert torch.equal(found.speech[:, 0], found.groups / 2)
        assert torch.equal(found.images, -found.speech)
    rows = torch.arange(14.0).view(7, 2)  # a batch that is larger than the queue
    queue.push({"parallel": rows}, rows, torch.arange(10, 17))
    assert sorted(queue.rows("parallel").groups.tolist()) == [12, 13, 14, 15, 16]


def test_queue_keeps_a_row_for_each_branch() -> None:
    queue = EmbeddingQueue(3, 2, ("parallel", "cascaded"))
    first, second = torch.rand(2, 2), torch.rand(2, 2)
    queue.push({"parallel": first, "cascaded": second}, first, torch.tensor([4, 5]))
    assert torch.equal(queue.rows("parallel").speech, first)
    assert torch.equal(queue.rows("cascaded").speech, second)
