"""Matching and denoising equal NumPy; hard negatives are near and never of the same image."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from speechclip.train.objectives.pairs import (
    CrossEncoder,
    Negatives,
    SpeechTokens,
    denoising_loss,
    hard_negatives,
    matching_loss,
    mine,
    pool_frames,
)

DIM, JOINT = 16, 6


def _speech(count: int, places: int = 4, seed: int = 0) -> SpeechTokens:
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.nn.functional.normalize(torch.randn(count, JOINT, generator=generator), dim=1)
    padding = torch.arange(places)[None, :] >= torch.arange(count)[:, None] % places + 1
    return SpeechTokens(embedding, torch.randn(count, places, DIM, generator=generator), padding)


def _images(count: int, seed: int = 1) -> torch.Tensor:
    rows = torch.randn(count, JOINT, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=1)


def _norm(x: np.ndarray, module: torch.nn.LayerNorm) -> np.ndarray:
    scaled = (x - x.mean()) / np.sqrt(x.var() + module.eps)
    return scaled * module.weight.detach().numpy() + module.bias.detach().numpy()


def _linear(x: np.ndarray, module: torch.nn.Linear) -> np.ndarray:
    return x @ module.weight.detach().numpy().T + module.bias.detach().numpy()


def _reference(encoder: CrossEncoder, image: np.ndarray, speech: SpeechTokens, row: int) -> np.ndarray:
    """Return the output for one image and one utterance, in NumPy, without padding."""
    valid = ~speech.padding[row].numpy()
    query = _linear(image * np.sqrt(JOINT), encoder.image)
    first = _linear(speech.embedding[row].numpy() * np.sqrt(JOINT), encoder.speech)
    tokens = np.concatenate([first[None], _linear(speech.frames[row].numpy()[valid], encoder.frames)])
    attention = encoder.attention
    weights, biases = attention.in_proj_weight.detach().numpy(), attention.in_proj_bias.detach().numpy()
    q, k, v = (x @ w.T + b for x, w, b in zip((query, tokens, tokens), np.split(weights, 3), np.split(biases, 3)))
    size = DIM // attention.num_heads
    parts = []
    for at in range(0, DIM, size):
        scores = np.exp(k[:, at : at + size] @ q[at : at + size] / np.sqrt(size))
        parts.append(scores / scores.sum() @ v[:, at : at + size])
    state = _norm(query + _linear(np.concatenate(parts), attention.out_proj), encoder.norm)
    hidden = torch.nn.functional.gelu(torch.from_numpy(_linear(state, encoder.feed_forward[0]))).numpy()
    return _linear(_norm(state + _linear(hidden, encoder.feed_forward[2]), encoder.last_norm), encoder.out)


def test_cross_encoder_equals_numpy() -> None:
    torch.manual_seed(0)
    encoder, speech, images = CrossEncoder(DIM, JOINT, 3), _speech(5), _images(10).view(5, 2, JOINT)
    found = encoder(images, speech).detach().numpy()
    for row in range(5):
        for at in range(2):
            expected = _reference(encoder, images[row, at].numpy(), speech, row)
            np.testing.assert_allclose(found[row, at], expected, atol=1e-5)


def test_matching_loss_equals_numpy() -> None:
    torch.manual_seed(0)
    encoder, speech, images = CrossEncoder(DIM, JOINT, 1), _speech(3), _images(3)
    others, rows = _images(3, seed=5), torch.tensor([1, 2, 0])
    has_image, has_utterance = torch.tensor([True, True, False]), torch.tensor([True, False, True])
    found = matching_loss(encoder, speech, images, Negatives(others, has_image, rows, has_utterance)).item()
    losses = []
    for at in range(3):
        losses.append(-np.log(1 / (1 + np.exp(-_reference(encoder, images[at].numpy(), speech, at)[0]))))
        if has_image[at]:
            losses.append(-np.log(1 - 1 / (1 + np.exp(-_reference(encoder, others[at].numpy(), speech, at)[0]))))
        if has_utterance[at]:
            logit = _reference(encoder, images[at].numpy(), speech, int(rows[at]))[0]
            losses.append(-np.log(1 - 1 / (1 + np.exp(-logit))))
    assert len(losses) == 7
    assert found == pytest.approx(np.mean(losses), abs=1e-5)


def test_denoising_loss_equals_numpy() -> None:
    torch.manual_seed(0)
    encoder, speech, images = CrossEncoder(DIM, JOINT, JOINT), _speech(4), _images(4)
    torch.manual_seed(7)
    found = denoising_loss(encoder, speech, images, 2.0).item()
    torch.manual_seed(7)
    noisy = (images + 2.0 * torch.randn_like(images) / np.sqrt(JOINT)).numpy()
    cosines = []
    for at in range(4):
        clean = _reference(encoder, noisy[at] / np.linalg.norm(noisy[at]), speech, at)
        cosines.append(clean @ images[at].numpy() / np.linalg.norm(clean))
    assert found == pytest.approx(1 - np.mean(cosines), abs=1e-5)


def test_mine_draws_by_similarity_and_never_the_same_image() -> None:
    similarities = torch.log(torch.tensor([[9.0, 1.0, 3.0], [5.0, 5.0, 5.0]])).repeat(4000, 1)
    same = torch.tensor([[True, False, False], [True, True, True]]).repeat(4000, 1)
    torch.manual_seed(0)
    drawn, found = mine(similarities, same)
    assert found.tolist() == [True, False] * 4000
    shares = np.bincount(drawn[::2].numpy(), minlength=3) / 4000
    np.testing.assert_allclose(shares, [0, 0.25, 0.75], atol=0.03)


def test_hard_negatives_find_the_nearest() -> None:
    speech, pool = _images(6), torch.cat([_images(6), _images(6, seed=9)])
    groups, pool_groups = torch.arange(6), torch.arange(12)
    found = hard_negatives(speech, pool[:6], groups, pool, pool_groups, 1e4)
    cosines = (speech @ pool.T).numpy()
    cosines[np.arange(6), np.arange(6)] = -2
    assert torch.equal(found.images, pool[torch.from_numpy(cosines.argmax(axis=1))])
    assert (found.utterances != groups).all() and found.has_image.all() and found.has_utterance.all()


def test_pool_frames_averages_valid_frames() -> None:
    frames = torch.randn(2, 7, 3)
    pooled, padding = pool_frames(frames, torch.tensor([7, 4]), 3)
    assert padding.tolist() == [[False, False, False], [False, False, True]]
    torch.testing.assert_close(pooled[0, 2], frames[0, 6])
    torch.testing.assert_close(pooled[1, 1], frames[1, 3])
    torch.testing.assert_close(pooled[1, 0], frames[1, :3].mean(dim=0))
    assert not pooled[1, 2].any()
