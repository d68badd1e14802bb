"""The parallel and the cascaded head: torch's own layer, values by hand, and published numbers of parameters."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from speechclip.model.heads.cascaded import CascadedHead
from speechclip.model.heads.keyword_head import KeywordBatchNorm
from speechclip.model.heads.parallel import ParallelHead
from speechclip.model.heads.weighted_sum import WeightedSum
from speechclip.model.losses import ContrastiveLoss

DIM, JOINT = 16, 6
FRAMES = (7, 3, 5)


def _shaken(module: nn.Module) -> nn.Module:
    with torch.no_grad():  # biases and norms away from zero and one
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return module


def _parallel() -> ParallelHead:
    torch.manual_seed(3)
    head = ParallelHead(DIM, JOINT, heads=8, dropout=0.1, input_dropout=0.1)
    _shaken(head)
    return head.eval()


def _cascaded(layers: int = 1) -> CascadedHead:
    torch.manual_seed(3)
    table, valid_mask = torch.randn(12, JOINT), torch.arange(12) > 1
    head = CascadedHead(
        DIM, table, valid_mask, keywords=4, heads=2, dropout=0.1, projection_layers=layers, input_dropout=0.1
    )
    _shaken(head)
    return head.eval()


def _frames() -> tuple[Tensor, Tensor]:
    torch.manual_seed(8)
    padding = torch.arange(max(FRAMES))[None, :] >= torch.tensor(FRAMES)[:, None]
    return torch.randn(len(FRAMES), max(FRAMES), DIM), padding


def _torch_layer(head: ParallelHead) -> nn.TransformerEncoderLayer:
    """Build torch's transformer layer with the head's weights."""
    layer = nn.TransformerEncoderLayer(DIM, 8, 4 * DIM, 0.1, "gelu", batch_first=True, norm_first=False)
    layer.self_attn.load_state_dict(head.attention.attention.state_dict())
    pairs = (
        (layer.norm1, head.norm_attention), (layer.norm2, head.norm_feed_forward),
        (layer.linear1, head.feed_forward[0]), (layer.linear2, head.feed_forward[3]),
    )  # fmt: skip
    for target, source in pairs:
        target.load_state_dict(source.state_dict())
    return layer.eval()


def test_parallel_head_equals_torch_transformer_layer() -> None:
    head, (frames, padding) = _parallel(), _frames()
    layer = _torch_layer(head)
    tokens = torch.cat([head.cls.expand(len(frames), -1, -1), frames], dim=1)
    mask = torch.cat([torch.zeros(len(frames), 1, dtype=torch.bool), padding], dim=1)
    states = layer(tokens, src_key_padding_mask=mask)
    output = head(frames, padding)
    assert output.keywords is None
    assert output.embedding.shape == (3, JOINT)
    torch.testing.assert_close(output.embedding, head.projection(head.norm(states[:, 0])), rtol=0, atol=2e-6)
    own = head.frame_states(frames, padding)
    assert own.shape == frames.shape
    torch.testing.assert_close(own[~padding], states[:, 1:][~padding], rtol=0, atol=2e-6)


def test_parallel_head_gradients_equal_torch_transformer_layer() -> None:
    head, (frames, padding) = _parallel(), _frames()
    layer, cls = _torch_layer(head), head.cls.detach().clone().requires_grad_()
    into = torch.randn(3, JOINT)
    (head(frames, padding).embedding * into).sum().backward()
    tokens = torch.cat([cls.expand(len(frames), -1, -1), frames], dim=1)
    mask = torch.cat([torch.zeros(len(frames), 1, dtype=torch.bool), padding], dim=1)
    own = {name: parameter.grad for name, parameter in head.named_parameters()}
    head.zero_grad()
    (head.projection(head.norm(layer(tokens, src_key_padding_mask=mask)[:, 0])) * into).sum().backward()
    pairs = {
        "cls": cls, "attention.attention.in_proj_weight": layer.self_attn.in_proj_weight,
        "attention.attention.out_proj.weight": layer.self_attn.out_proj.weight, "norm_attention.bias": layer.norm1.bias,
        "feed_forward.0.weight": layer.linear1.weight, "feed_forward.3.bias": layer.linear2.bias,
        "norm_feed_forward.weight": layer.norm2.weight,
    }  # fmt: skip
    for name, parameter in pairs.items():
        torch.testing.assert_close(own[name], parameter.grad, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("make", [_parallel, _cascaded], ids=["parallel", "cascaded"])
def test_head_ignores_padding(make) -> None:
    head, (frames, padding) = make(), _frames()
    elsewhere = frames.masked_fill(padding[:, :, None], 1e4)
    ours, theirs = head(frames, padding), head(elsewhere, padding)
    vectors = [item.embedding if item.keywords is None else item.keywords.vectors for item in (ours, theirs)]
    torch.testing.assert_close(*vectors, rtol=0, atol=0)
    states = [head.frame_states(item, padding)[~padding] for item in (frames, elsewhere)]
    torch.testing.assert_close(*states, rtol=0, atol=0)
    for row, count in enumerate(FRAMES):  # without padding, equal up to the order of sums
        alone = head(frames[row : row + 1, :count], padding[row : row + 1, :count])
        vector = alone.embedding if alone.keywords is None else alone.keywords.vectors
        torch.testing.assert_close(vector[0], vectors[0][row], rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", [_parallel, _cascaded, lambda: _cascaded(2)], ids=["parallel", "cascaded", "two"])
def test_head_has_dropout_only_in_training(make) -> None:
    head, (frames, padding) = make(), _frames()

    def states() -> Tensor:
        output = head(frames, padding)
        return output.embedding if output.keywords is None else output.keywords.vectors

    assert torch.equal(states(), states())
    head.train()
    assert not torch.equal(states(), states())


def test_cascaded_head_cls_vectors_attend_differently() -> None:
    head, (frames, padding) = _cascaded(), _frames()
    keywords = head(frames, padding).keywords
    assert keywords.vectors.shape == keywords.quantized.shape == (3, 4, JOINT)
    assert keywords.rows.shape == (3, 4)
    assert keywords.attention.shape == (3, 4, max(FRAMES))
    assert (keywords.rows > 1).all()
    assert torch.equal(keywords.quantized, head.quantizer.subword_embeddings[keywords.rows])
    assert not torch.allclose(keywords.attention[:, 0], keywords.attention[:, 1])


def test_cascaded_head_equals_its_parts() -> None:
    head, (frames, padding) = _cascaded(), _frames()
    tokens = torch.cat([head.cls.expand(len(frames), -1, -1), frames], dim=1)
    mask = torch.cat([torch.zeros(len(frames), 4, dtype=torch.bool), padding], dim=1)
    attended, _ = head.attention.attention(tokens, tokens, tokens, key_padding_mask=mask)
    states = head.norm(tokens + attended)  # residual, LayerNorm, no feed-forward
    projected = head.projection(states[:, :4]).flatten(1)
    norm = head.batch_norm
    vectors = (projected - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    keywords = head(frames, padding).keywords
    torch.testing.assert_close(keywords.vectors.flatten(1), vectors, rtol=0, atol=2e-6)
    own = head.frame_states(frames, padding)
    assert own.shape == frames.shape
    torch.testing.assert_close(own[~padding], states[:, 4:][~padding], rtol=0, atol=2e-6)


def test_keyword_batch_norm_starts_at_all_rows() -> None:
    # all rows, special tokens included: mean (3, 20), unbiased standard deviation (2, sqrt(300))
    table = torch.tensor([[1.0, 10.0], [3.0, 10.0], [5.0, 40.0]])
    valid_mask = torch.tensor([False, True, True])
    head = CascadedHead(4, table, valid_mask, keywords=3, heads=1, dropout=0.0)
    assert head.batch_norm.weight.tolist() == pytest.approx([2, 300**0.5] * 3)
    assert head.batch_norm.bias.tolist() == pytest.approx([3, 20] * 3)
    states = torch.randn(500, 3, 2) * torch.tensor([[1.0], [5.0], [0.2]])
    normed = head.batch_norm.train()(states)  # every keyword gets the statistics of the table
    torch.testing.assert_close(normed.mean(dim=0), torch.tensor([3.0, 20.0]).expand(3, -1), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(normed.std(dim=0), torch.tensor([2.0, 300**0.5]).expand(3, -1), rtol=1e-2, atol=1e-2)


def test_keyword_batch_norm_statistics_by_mode() -> None:
    norm = KeywordBatchNorm(2, torch.tensor([[0.0], [2.0]]))  # mean 1, standard deviation sqrt(2)
    batch = torch.tensor([[[1.0], [10.0]], [[3.0], [30.0]]])  # [B, K, D]: means 2, 20; variances 1, 100
    root = 2**0.5
    expected = torch.tensor([[[1 - root], [1 - root]], [[1 + root], [1 + root]]])
    torch.testing.assert_close(norm(batch), expected, rtol=0, atol=1e-4)
    assert norm.running_mean.tolist() == pytest.approx([0.2, 2.0])  # momentum 0.1
    assert norm.running_var.tolist() == pytest.approx([0.9 + 0.1 * 2, 0.9 + 0.1 * 200])  # unbiased
    norm.eval()
    alone = norm(batch[:1])
    wanted = [(1 - 0.2) / 1.1**0.5 * root + 1, (10 - 2) / 20.9**0.5 * root + 1]
    assert alone.flatten().tolist() == pytest.approx(wanted, rel=1e-4)
    assert norm.running_mean.tolist() == pytest.approx([0.2, 2.0])


def test_cls_vectors_start_from_the_normal_distribution() -> None:
    torch.manual_seed(0)
    table, valid_mask = torch.randn(5, JOINT), torch.ones(5, dtype=torch.bool)
    heads = (
        ParallelHead(8192, JOINT, heads=1, dropout=0.0),
        CascadedHead(1024, table, valid_mask, keywords=8, heads=1, dropout=0.0),
    )
    for head in heads:
        values = head.cls.detach().flatten()
        assert len(values) == 8192
        assert abs(float(values.mean())) < 0.05 and float(values.std()) == pytest.approx(1.0, abs=0.03)
        assert float(values.abs().max()) > 3  # a uniform distribution has no tails


def _trained(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters() if p.requires_grad)


@pytest.mark.parametrize(("dim", "joint", "states", "count"), [(768, 512, 13, 7_483_917), (1024, 768, 25, 13_386_521)])
def test_parallel_head_has_the_published_size(dim: int, joint: int, states: int, count: int) -> None:
    with torch.device("meta"):
        head, mix = ParallelHead(dim, joint, heads=8, dropout=0.1), WeightedSum(states)
    assert _trained(head, mix) == count
    assert _trained(head, mix, ContrastiveLoss(0.07, learn=False)) == count
    assert _trained(head, mix, ContrastiveLoss(0.07, learn=True)) == count + 1


@pytest.mark.parametrize(
    ("dim", "width", "states", "layers", "count"),
    [(768, 512, 13, 1, 2_771_981), (1024, 768, 25, 1, 5_008_153), (1024, 768, 25, 2, 6_057_753)],
)
def test_cascaded_head_has_the_published_size(dim: int, width: int, states: int, layers: int, count: int) -> None:
    head = CascadedHead(
        dim, torch.randn(5, width), torch.ones(5, dtype=torch.bool), keywords=8, heads=1, dropout=0.1,
        projection_layers=layers,
    )  # fmt: skip
    assert _trained(head, WeightedSum(states)) == count
    assert not {"quantizer.subword_embeddings", "quantizer.normalized"} & set(head.state_dict())  # CLIP holds them
