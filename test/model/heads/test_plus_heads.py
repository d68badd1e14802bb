"""The hybrid, cascaded+ and hybrid+ heads: equal to their parts, and their numbers of parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from speechclip.common.errors import UserError
from speechclip.config import PUBLISHED_HEADS, CIFConfig, HeadConfig
from speechclip.model.heads.base import HeadInputs, registered_heads
from speechclip.model.heads.factory import has_keywords, make_head
from speechclip.model.heads.keyword_head import KeywordBatchNorm, KeywordHead
from speechclip.model.heads.weighted_sum import WeightedSum

DIM, JOINT, SUBWORD = 16, 6, 5
FRAMES = (23, 3, 12)
NEW = ("hybrid", "cascaded_plus", "hybrid_plus")


def _head(name: str, **changes: Any) -> Any:
    torch.manual_seed(3)
    cif = CIFConfig(frames_per_keyword=3.0, dropout=0.0)
    settings = {"attention_heads": 2, "keywords": 4, "cif": cif, "input_dropout": 0.1, **changes}
    table, valid_mask = torch.randn(12, SUBWORD), torch.arange(12) > 1
    head = make_head(HeadConfig(name=name, **settings), HeadInputs(DIM, JOINT, table, valid_mask))  # type: ignore[arg-type]
    with torch.no_grad():  # biases and norms away from zero and one
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return head.eval()


def _frames() -> tuple[Tensor, Tensor]:
    torch.manual_seed(8)
    padding = torch.arange(max(FRAMES))[None, :] >= torch.tensor(FRAMES)[:, None]
    return torch.randn(len(FRAMES), max(FRAMES), DIM), padding


def _block(head: KeywordHead, frames: Tensor, padding: Tensor) -> Tensor:
    """Compute attention over [CLS] and frames, residual and LayerNorm with torch's own layer."""
    cls = frames[0, :0] if head.cls is None else head.cls
    tokens = torch.cat([cls.expand(len(frames), -1, -1), frames], dim=1)
    mask = torch.cat([torch.zeros(len(frames), len(cls), dtype=torch.bool), padding], dim=1)
    return head.norm(tokens + head.attention.attention(tokens, tokens, tokens, key_padding_mask=mask)[0])


def test_make_head_lists_the_known_heads() -> None:
    for call in (lambda: has_keywords("choir"), lambda: make_head(HeadConfig(name="choir"), HeadInputs(8, 4))):
        with pytest.raises(
            UserError,
            match=r"model.head.name: unknown head 'choir' \(known: cascaded, .*parallel.*\)\. Choose a known one\.$",
        ):
            call()


def _normed(norm: KeywordBatchNorm, flat: Tensor) -> Tensor:
    return (flat - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias


def test_make_head_builds_every_head() -> None:
    assert set(PUBLISHED_HEADS) == {"parallel", "cascaded", *NEW} < set(registered_heads())
    for name in PUBLISHED_HEADS:
        head = _head(name)
        output = head(*_frames())
        assert (output.keywords is not None) == has_keywords(name) == head.has_keywords == isinstance(head, KeywordHead)
        assert (output.embedding is not None) == (name not in ("cascaded", "cascaded_plus"))
        assert (output.quantity_loss is not None) == name.endswith("plus")


def test_hybrid_head_equals_its_parts() -> None:
    head, (frames, padding) = _head("hybrid"), _frames()
    states = _block(head, frames, padding)
    output = head(frames, padding)
    expected = states[:, 0] @ head.parallel_projection.weight.T + head.parallel_projection.bias
    torch.testing.assert_close(output.embedding, expected, rtol=0, atol=2e-6)
    projected = head.projection(states[:, 1:5]).flatten(1)
    vectors = _normed(head.batch_norm, projected).view(3, 4, SUBWORD)
    torch.testing.assert_close(output.keywords.vectors, vectors, rtol=0, atol=3e-6)
    assert output.keywords.mask.all()
    assert output.keywords.segments is None
    assert output.keywords.attention.shape == (3, 4, max(FRAMES))
    torch.testing.assert_close(head.frame_states(frames, padding)[~padding], states[:, 5:][~padding], rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", ["cascaded_plus", "hybrid_plus"])
def test_plus_heads_equal_their_parts(name: str) -> None:
    head, (frames, padding) = _head(name), _frames()
    states = _block(head, frames, padding)
    if name == "hybrid_plus":
        expected = states[:, 0] @ head.parallel_projection.weight.T + head.parallel_projection.bias
        torch.testing.assert_close(head(frames, padding).embedding, expected, rtol=0, atol=2e-6)
        states = states[:, 1:]
    output = head(frames, padding)
    fired = head.cif(states, padding)
    counts = fired.mask.sum(dim=1).tolist()
    assert len(set(counts)) > 1
    for row, count in enumerate(counts):
        projected = head.projection(fired.vectors[row, :count])
        vectors = output.keywords.vectors[row]
        torch.testing.assert_close(vectors[:count], _normed(head.batch_norm, projected), rtol=0, atol=3e-6)
        assert (vectors[count:] == 0).all()
    got = (output.keywords.segments, output.keywords.attention, output.quantity_loss)
    for ours, parts in zip(got, (fired.segments, fired.weights, fired.quantity_loss), strict=True):
        torch.testing.assert_close(ours, parts, rtol=0, atol=1e-4)
    assert (output.keywords.rows[fired.mask] > 1).all()
    torch.testing.assert_close(head.frame_states(frames, padding)[~padding], states[~padding], rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", PUBLISHED_HEADS)
def test_heads_return_attention_only_in_evaluation(name: str) -> None:
    head = _head(name)
    for training in (False, True):
        output = head.train(training)(*_frames())
        weights = output.attention if output.keywords is None else output.keywords.attention
        assert (weights is None) == training
        if name.endswith("plus"):  # the time of a keyword is always known
            assert output.keywords.segments is not None


@pytest.mark.parametrize("name", NEW)
def test_plus_heads_ignore_padding(name: str) -> None:
    head, (frames, padding) = _head(name), _frames()
    ours, theirs = head(frames, padding), head(frames.masked_fill(padding[:, :, None], 1e4), padding)
    assert torch.equal(ours.keywords.vectors, theirs.keywords.vectors)
    assert ours.embedding is None or torch.equal(ours.embedding, theirs.embedding)
    for row, length in enumerate(FRAMES):  # without padding, equal up to the order of sums
        alone = head(frames[row : row + 1, :length], padding[row : row + 1, :length])
        count = int(alone.keywords.mask.sum())
        assert count == int(ours.keywords.mask[row].sum())
        wanted = ours.keywords.vectors[row, :count]
        torch.testing.assert_close(alone.keywords.vectors[0, :count], wanted, rtol=0, atol=1e-5)
        if ours.embedding is not None:
            torch.testing.assert_close(alone.embedding[0], ours.embedding[row], rtol=0, atol=1e-5)


def test_batch_norm_counts_only_existing_keywords() -> None:
    head, (frames, padding) = _head("cascaded_plus"), _frames()
    head.train()
    head.input_dropout.p = head.attention.attention.dropout = 0.0
    fired = head.cif(_block(head, frames, padding), padding)
    assert 0 < fired.mask.sum() < fired.mask.numel()
    projected = head.projection(fired.vectors[fired.mask])  # [N, D]
    mean, variance = projected.mean(dim=0), projected.var(dim=0, unbiased=False)
    wanted = (projected - mean) / (variance + 1e-5).sqrt() * head.batch_norm.weight + head.batch_norm.bias
    before = head.batch_norm.running_mean.clone()
    keywords = head(frames, padding).keywords
    torch.testing.assert_close(keywords.vectors[keywords.mask], wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(head.batch_norm.running_mean, 0.9 * before + 0.1 * mean)


def test_shared_batch_norm_starts_at_the_table() -> None:
    norm = KeywordBatchNorm(1, torch.tensor([[1.0, 10.0], [3.0, 10.0], [5.0, 40.0]]))
    assert norm.weight.tolist() == pytest.approx([2, 300**0.5])
    assert norm.bias.tolist() == pytest.approx([3, 20])
    rows = norm(torch.tensor([[[1.0, 0.0], [3.0, 2.0]], [[5.0, 4.0], [7.0, 6.0]]]))
    assert rows.shape == (2, 2, 2)
    torch.testing.assert_close(rows.mean(dim=(0, 1)), torch.tensor([3.0, 20.0]))  # over utterances and positions


@pytest.mark.parametrize("name", NEW)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    head, (frames, padding) = _head(name, projection_layers=2, parallel_layers=2), _frames()
    head.train()
    output = head(frames, padding)
    into = torch.randn_like(output.keywords.quantized)
    loss = (output.keywords.quantized * into).sum()
    loss = loss if output.embedding is None else loss + (output.embedding * torch.randn_like(output.embedding)).sum()
    (loss if output.quantity_loss is None else loss + output.quantity_loss).backward()
    without = [n for n, p in head.named_parameters() if p.grad is None or not (p.grad != 0).any()]
    assert without == []


def test_set_step_reaches_integrate_and_fire() -> None:
    for name in NEW:
        head = _head(name)
        head.set_step(17)
        if name.endswith("plus"):
            assert head.cif.step == 17


def test_text_tower_limits_the_keywords() -> None:
    table, valid_mask = torch.randn(5, SUBWORD), torch.ones(5, dtype=torch.bool)
    for room, most in ((30, 30), (100, 75)):
        head: Any = make_head(HeadConfig(name="cascaded_plus"), HeadInputs(DIM, JOINT, table, valid_mask, room))
        assert head.cif.most == most


def _trained(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("name", "base", "large"),
    [
        # the cascaded head, one more [CLS], and the Linear of the parallel branch
        ("hybrid", 2_771_981 + 768 + 769 * 512, 6_057_753 + 1024 + 1025 * 768),
        # attention, norm; keyword projection (Large: two layers); BatchNorm; convolution; Linear; weighted sum
        (
            "cascaded_plus",
            4 * 769 * 768 + 2 * 768 + 769 * 512 + 2 * 512 + (3 * 768 + 1) * 768 + 769 + 13,
            4 * 1025 * 1024 + 2 * 1024 + 1025 * (1024 + 768) + 2 * 768 + (3 * 1024 + 1) * 1024 + 1025 + 25,
        ),
        ("hybrid_plus", 4_529_678 + 768 + 769 * 512, 9_186_586 + 1024 + 1025 * 768),
    ],
)
def test_plus_heads_have_the_expected_size(name: str, base: int, large: int) -> None:
    for dim, width, states, layers, count in ((768, 512, 13, 1, base), (1024, 768, 25, 2, large)):
        settings = HeadConfig(name=name, attention_heads=1, projection_layers=layers)  # type: ignore[arg-type]
        subwords = torch.randn(3, width), torch.ones(3, dtype=torch.bool)
        assert _trained(make_head(settings, HeadInputs(dim, width, *subwords)), WeightedSum(states)) == count
