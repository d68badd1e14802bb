"""The cross-modal scorer against plain tensor operations, and the scores of all pairs in blocks."""

from __future__ import annotations

import math

import pytest
import torch

from speechclip.model import candidate_scores
from speechclip.model.candidate_scores import score_listed_pairs
from speechclip.model.cross_modal import CrossModalScorer, score_all_pairs

DIM, HEADS = 12, 3


def make_scorer(dropout: float = 0.0, layers: int = 2) -> CrossModalScorer:
    torch.manual_seed(3)
    scorer = CrossModalScorer(DIM, HEADS, layers=layers, hidden=20, dropout=dropout)
    for parameter in scorer.parameters():
        torch.nn.init.normal_(parameter, std=0.8)
    return scorer


def make_inputs(count: int = 5, images: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    speech = torch.randn(count, 7, DIM, generator=generator)
    valid = torch.arange(7)[None, :] < torch.tensor([7, 4, 6, 1, 5])[:count, None]
    return speech, valid, torch.randn(images, 3, DIM, generator=generator)


def plain_attention(state: dict, name: str, tokens: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    q = tokens @ state[f"{name}.query.weight"].T + state[f"{name}.query.bias"]
    k = context @ state[f"{name}.key.weight"].T + state[f"{name}.key.bias"]
    v = context @ state[f"{name}.value.weight"].T + state[f"{name}.value.bias"]
    size = DIM // HEADS
    parts = [slice(h * size, (h + 1) * size) for h in range(HEADS)]
    return torch.cat([(q[:, p] @ k[:, p].T / math.sqrt(size)).softmax(-1) @ v[:, p] for p in parts], dim=-1)


def plain_residual(state: dict, name: str, inner: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    x = inner @ state[f"{name}.dense.weight"].T + state[f"{name}.dense.bias"] + tokens
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-12).sqrt()
    return x * state[f"{name}.norm.weight"] + state[f"{name}.norm.bias"]


def plain_score(state: dict, speech: torch.Tensor, image: torch.Tensor, layers: int) -> float:
    """Score one pair of speech [t, d], without padding, and regions [R, d]."""
    for number in range(layers):
        at = f"layers.{number}"
        s = plain_residual(state, f"{at}.cross_output", plain_attention(state, f"{at}.cross", speech, image), speech)
        i = plain_residual(state, f"{at}.cross_output", plain_attention(state, f"{at}.cross", image, speech), image)
        s, i = plain_attention(state, f"{at}.speech_self", s, s), plain_attention(state, f"{at}.image_self", i, i)
        out = []
        for side, x in (("speech", s), ("image", i)):
            inner = x @ state[f"{at}.{side}_forward.dense.weight"].T + state[f"{at}.{side}_forward.dense.bias"]
            inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
            out.append(plain_residual(state, f"{at}.{side}_forward.output", inner, x))
        speech, image = out
    x = torch.cat([speech[0], image[0]]) @ state["score.0.weight"].T + state["score.0.bias"]
    x = x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    return float(x @ state["score.2.weight"][0] + state["score.2.bias"][0])


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_scores_equal_plain_tensor_operations(layers: int) -> None:
    scorer, (speech, valid, regions) = make_scorer(layers=layers).eval(), make_inputs()
    state = scorer.state_dict()
    wanted = torch.tensor(
        [[plain_score(state, s[v], image, layers) for image in regions] for s, v in zip(speech, valid)]
    )
    assert wanted.std() > 0.1
    with torch.no_grad():
        grid = score_all_pairs(scorer, speech, valid, regions, block=6)
        pairs = scorer(speech.repeat_interleave(4, 0), valid.repeat_interleave(4, 0), regions.repeat(5, 1, 1))
    torch.testing.assert_close(grid, wanted, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(pairs.view(5, 4), wanted, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("limit", [1, 10**9])
def test_scores_of_candidates_equal_those_of_all_pairs(
    layers: int, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer, (speech, valid, regions) = make_scorer(layers=layers).eval(), make_inputs()
    wanted = score_all_pairs(scorer, speech, valid, regions, block=6).detach()
    monkeypatch.setattr(candidate_scores, "_GALLERY_BYTES", limit)  # one image at a time, and all at once
    listed = torch.cartesian_prod(torch.arange(5), torch.arange(4))[torch.randperm(20)]
    for pairs in (listed, listed[:7], listed[:0]):
        for block in (1, 3, 50):
            found = score_listed_pairs(scorer, speech, valid, regions, pairs, block)
            torch.testing.assert_close(found, wanted[pairs[:, 0], pairs[:, 1]], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("block", [1, 2, 3, 7, 20, 1000])
def test_block_changes_no_score_and_no_gradient(block: int) -> None:
    scorer, (speech, valid, regions) = make_scorer().train(), make_inputs()
    speech, regions = speech.requires_grad_(), regions.requires_grad_()
    leaves = [speech, regions, *scorer.parameters()]
    wanted = scorer.score_grid(speech, valid, regions)
    scores = score_all_pairs(scorer, speech, valid, regions, block)
    torch.testing.assert_close(scores, wanted, atol=1e-3, rtol=1e-3)
    weights = torch.randn(5, 4)
    for gradient, plain in zip(
        torch.autograd.grad((scores * weights).sum(), leaves), torch.autograd.grad((wanted * weights).sum(), leaves)
    ):
        torch.testing.assert_close(gradient, plain, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("recompute", [True, False])
def test_recomputation_changes_no_gradient(recompute: bool) -> None:
    scorer, (speech, valid, regions) = make_scorer().train(), make_inputs()
    leaves = list(scorer.parameters())
    wanted = torch.autograd.grad(scorer.score_grid(speech, valid, regions).square().sum(), leaves)
    scores = score_all_pairs(scorer, speech, valid, regions, 6, recompute)
    for gradient, plain in zip(torch.autograd.grad(scores.square().sum(), leaves), wanted):
        torch.testing.assert_close(gradient, plain, atol=1e-3, rtol=1e-3)


def test_recomputation_repeats_the_dropout_masks() -> None:
    """The gradient of a loss that is linear in one bias is known from the forward pass alone."""
    scorer, (speech, valid, regions) = make_scorer(dropout=0.5).train(), make_inputs()
    torch.manual_seed(0)
    scores = score_all_pairs(scorer, speech, valid, regions, block=4)
    (direct,) = torch.autograd.grad(scores.sum(), [scorer.score[2].weight])
    torch.manual_seed(0)
    again = score_all_pairs(scorer, speech, valid, regions, block=4)
    assert torch.equal(scores, again)
    # scores = hidden @ weight + bias, so weight * gradient + bias * pairs = sum of the scores of the forward pass
    total = (direct * scorer.score[2].weight).sum() + scorer.score[2].bias * scores.numel()
    torch.testing.assert_close(total[0], scores.sum(), atol=1e-3, rtol=1e-3)


def test_training_memory_follows_the_block() -> None:
    """Tensors kept for the backward pass, counted in bytes: none of them belongs to the pairs."""
    scorer, (speech, valid, regions) = make_scorer().train(), make_inputs()

    def kept(block: int) -> int:
        seen: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            if block:
                score_all_pairs(scorer, speech, valid, regions, block)
            else:
                scorer.score_grid(speech, valid, regions)
        return sum(seen.values())

    assert kept(2) <= kept(0) / 20
