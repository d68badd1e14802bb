"""Joined frames and pooled speech: values by hand, padding without influence, weights and states at the frames."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from speechclip.config import HeadConfig
from speechclip.model.heads.base import HeadInputs
from speechclip.model.heads.factory import make_head
from speechclip.model.heads.joined_frames import JoinedFrames, join_frames, repeat_positions, spread
from speechclip.model.heads.parallel import ParallelHead
from speechclip.model.heads.pooled import PooledHead
from speechclip.model.heads.summed import SummedHead

DIM, JOINT, STRIDE = 16, 6, 4
LENGTHS = (11, 3, 8)


def _frames() -> tuple[Tensor, Tensor]:
    torch.manual_seed(8)
    padding = torch.arange(max(LENGTHS))[None, :] >= torch.tensor(LENGTHS)[:, None]
    return torch.randn(len(LENGTHS), max(LENGTHS), DIM), padding


def _head() -> PooledHead:
    torch.manual_seed(3)
    return PooledHead(DIM, JOINT, stride=STRIDE, dropout=0.2).eval()


def test_positions_equal_numpy() -> None:
    frames, padding = _frames()
    joined, hidden = join_frames(frames, padding, STRIDE)
    assert joined.shape == (3, 3, STRIDE * DIM)
    assert hidden.tolist() == [[False] * 3, [False, True, True], [False, False, True]]
    module = JoinedFrames(DIM, 10, STRIDE, 0.3).eval()
    found = module(joined, hidden).detach().numpy()
    kernel, bias = module.context.weight.detach().numpy(), module.context.bias.detach().numpy()
    for row, length in enumerate(LENGTHS):
        whole = np.zeros((12, DIM))
        whole[:length] = frames[row, :length].numpy()
        projected = whole.reshape(3, -1) @ module.projection.weight.detach().numpy().T
        projected = projected + module.projection.bias.detach().numpy()
        normed = (projected - projected.mean(1, keepdims=True)) / np.sqrt(projected.var(1, keepdims=True) + 1e-5)
        count = -(-length // STRIDE)
        normed[count:] = 0
        near = np.pad(normed, ((1, 1), (0, 0)))
        for at in range(count):
            sums = sum(kernel[:, :, k] @ near[at + k] for k in range(3)) + bias
            gelu = torch.nn.functional.gelu(torch.from_numpy(sums)).numpy()
            np.testing.assert_allclose(found[row, at], normed[at] + gelu, atol=1e-4)


def test_embedding_equals_numpy() -> None:
    head, (frames, padding) = _head(), _frames()
    joined, hidden = join_frames(frames, padding, STRIDE)
    speech = head.speech
    found = head(frames, padding).embedding
    assert found is not None
    for row in range(3):
        positions = speech.joined(joined, hidden)[row][~hidden[row]].detach().numpy()
        logits = positions @ speech.weights.weight.detach().numpy().T + speech.weights.bias.detach().numpy()
        weights = np.exp(logits) / np.exp(logits).sum(axis=0)
        values = positions @ speech.values.weight.detach().numpy().T + speech.values.bias.detach().numpy()
        pooled = (weights * values).sum(axis=0)
        normed = (pooled - pooled.mean()) / np.sqrt(pooled.var() + 1e-5)
        expected = speech.projection.weight.detach().numpy() @ normed + speech.projection.bias.detach().numpy()
        np.testing.assert_allclose(found[row].detach().numpy(), expected, atol=1e-4)


def test_padding_changes_neither_embeddings_nor_states() -> None:
    head = _head()
    frames, padding = _frames()
    whole, states = head(frames, padding), head.frame_states(frames, padding)
    assert states.shape == frames.shape
    noisy = torch.where(padding[:, :, None], torch.full_like(frames, 9.0), frames)
    torch.testing.assert_close(head(noisy, padding).embedding, whole.embedding)
    for row, length in enumerate(LENGTHS):
        alone = frames[row : row + 1, :length], padding[row : row + 1, :length]
        torch.testing.assert_close(head(*alone).embedding[0], whole.embedding[row], atol=1e-5, rtol=1e-5)
        found = head.frame_states(*alone)[0]
        torch.testing.assert_close(found, states[row, :length], atol=1e-5, rtol=1e-5)
        assert torch.equal(found[0], found[min(length, STRIDE) - 1])  # the frames of a position share its state


def test_weights_of_positions_are_shared_by_their_valid_frames() -> None:
    frames, padding = _frames()
    weights = torch.tensor([[[0.5, 0.3, 0.2]], [[1.0, 0.0, 0.0]], [[0.25, 0.75, 0.0]]])
    found = spread(weights, padding, STRIDE)
    assert found.shape == (3, 1, 11)
    torch.testing.assert_close(found.sum(dim=2), torch.ones(3, 1))
    torch.testing.assert_close(found[0, 0], torch.tensor([0.125] * 4 + [0.075] * 4 + [0.2 / 3] * 3))
    torch.testing.assert_close(found[1, 0], torch.tensor([1 / 3] * 3 + [0.0] * 8))
    attention = _head()(frames, padding).attention
    assert attention is not None and attention.shape == (3, 1, 11)
    assert (attention[padding[:, None]] == 0).all()
    torch.testing.assert_close(attention.sum(dim=2), torch.ones(3, 1))


def test_positions_repeat_at_their_frames() -> None:
    positions = torch.arange(6.0).view(1, 3, 2)
    assert repeat_positions(positions, 2, 5)[0, :, 0].tolist() == [0, 0, 2, 2, 4]


def test_pooling_selects_the_head() -> None:
    for pooling, kind in (("cls", ParallelHead), ("weights", PooledHead)):
        settings = HeadConfig(name="parallel", pooling=pooling, joined_frames=2)  # type: ignore[arg-type]
        head = make_head(settings, HeadInputs(DIM, JOINT))
        assert type(head) is kind and head.branches == ("parallel",)
    assert isinstance(head, PooledHead) and head.stride == 2


def test_summed_head_is_the_mean_of_two_normalised_embeddings() -> None:
    torch.manual_seed(0)
    settings = HeadConfig(name="parallel", pooling="both", joined_frames=STRIDE)
    head, (frames, padding) = make_head(settings, HeadInputs(DIM, JOINT)).eval(), _frames()
    assert isinstance(head, SummedHead)
    assert isinstance(head.first, ParallelHead) and isinstance(head.second, PooledHead)
    output = head(frames, padding)
    rows = [part(frames, padding).embedding.detach().numpy() for part in (head.first, head.second)]
    rows = [row / np.linalg.norm(row, axis=1, keepdims=True) for row in rows]
    np.testing.assert_allclose(output.embedding.detach().numpy(), (rows[0] + rows[1]) / 2, atol=1e-6)
    assert output.parts is not None and len(output.parts) == 2
    assert output.attention.shape == (3, 1, 11)
    assert torch.equal(head.frame_states(frames, padding), head.first.frame_states(frames, padding))
