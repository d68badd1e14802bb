"""The head fast_vgs: parameters of the published sizes, padding, gradients, and its start from a speech encoder."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from speechclip.common.errors import UserError
from speechclip.config import FastVgsConfig, HeadConfig
from speechclip.data.regions import Regions
from speechclip.model.cross_modal import score_all_pairs
from speechclip.model.encoders.front_end import fixed_frames
from speechclip.model.heads.base import HeadInputs
from speechclip.model.heads.factory import make_head
from speechclip.model.heads.fast_vgs import FastVgsHead
from speechclip.model.losses import margin_loss

SMALL = FastVgsConfig(
    dim=12, heads=3, feed_forward=16, speech_layers=3, speech_layer=2, speech_heads=2, speech_feed_forward=20,
    position_kernel=4, position_groups=2, widths=[6, 8, 12], image_layers=1, cross_layers=2, region_features=5,
)  # fmt: skip


def make_small(part: str = "convolutions", joined_frames: int = 1, cls_std: float = 1.0) -> FastVgsHead:
    torch.manual_seed(0)
    sizes = dataclasses.replace(SMALL, joined_frames=joined_frames)
    settings = HeadConfig(name="fast_vgs", fast_vgs=sizes, cls_std=cls_std)
    head = make_head(settings, HeadInputs(7, 12, fixed_seconds=(0.4, 0.5), part=part))
    assert isinstance(head, FastVgsHead)
    return head


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_published_sizes_have_the_published_parameters() -> None:
    with torch.device("meta"):
        head = make_head(HeadConfig(name="fast_vgs"), HeadInputs(512, 768, part="convolutions"))
    assert isinstance(head, FastVgsHead)
    assert count(head.scorer) == 31_891_969
    assert count(head.speech.resdavenet) == 31_064_704
    # the dual encoder also has the convolutions, the mask and the heads of pretraining, and a dead projection
    convolutions, pretraining, dead = 4_200_448, 768 + 81_920 + 328_320 + 65_792 + 196_864, 2_361_600
    assert count(head) + convolutions + pretraining + dead == 188_522_369


def test_fixed_frames_are_those_of_wav2vec() -> None:
    assert [fixed_frames(seconds) for seconds in (8.0, 10.0, 0.025)] == [399, 499, 1]


def test_sequences_do_not_depend_on_the_padding_of_a_batch() -> None:
    head = make_small().eval()
    frames = torch.randn(2, 20, 7)
    padding = torch.arange(20)[None] >= torch.tensor([[20], [13]])
    frames[1, 13:] = 0  # as a feature store pads
    both, alone = head(frames, padding), head(frames[1:, :13], padding[1:, :13])
    torch.testing.assert_close(both.embedding[1], alone.embedding[0])
    torch.testing.assert_close(both.sequence[1], alone.sequence[0])
    assert both.valid.tolist() == [[True] * 6 + [False], [True] * 4 + [False] * 3]  # [CLS], and frames // 4


@pytest.mark.parametrize("joined_frames", [1, 3])
def test_padding_of_hidden_states_does_not_count(joined_frames: int) -> None:
    """An encoder's states behind the end of an utterance depend on the other utterances of the batch."""
    head = make_small("all", joined_frames).eval()
    frames, padding = torch.randn(2, 20, 7), torch.arange(20)[None] >= torch.tensor([[20], [13]])
    whole = head(frames, padding)
    other = head(torch.where(padding[:, :, None], 9.0, frames), padding)
    alone = head(frames[1:, :13], padding[1:, :13])
    torch.testing.assert_close(other.embedding, whole.embedding)
    torch.testing.assert_close(alone.embedding[0], whole.embedding[1])
    assert whole.sequence.shape[1] == {1: 7, 3: 3}[joined_frames]  # 0.5 s are 24 frames, and 4 become 1
    states = head.frame_states(frames, padding)
    assert states.shape == (2, 20, 12) and len(head.upstream_states(frames[:, None], frames, padding)) == 4
    torch.testing.assert_close(states[:, 0], states[:, joined_frames - 1])
    assert joined_frames == 1 or not torch.allclose(states[:, 0], states[:, joined_frames])


def test_transformer_over_hidden_states_is_always_trained() -> None:
    head = make_small("all")
    assert head.train_encoder("frozen") is None
    assert all(parameter.requires_grad for parameter in head.speech.transformer.layers[0].parameters())
    inside = make_small()
    assert inside.train_encoder("frozen") == []
    assert not any(parameter.requires_grad for parameter in inside.speech.transformer.layers[0].parameters())


def test_input_dropout_reaches_both_towers() -> None:
    sizes = HeadConfig(name="fast_vgs", fast_vgs=SMALL, dropout=0, input_dropout=0.999)
    head = make_head(sizes, HeadInputs(7, 12, fixed_seconds=(0.4, 0.5)))
    assert isinstance(head, FastVgsHead)
    none, boxes, padding = torch.zeros(2, 6, 5), torch.rand(2, 6, 4), torch.zeros(2, 18, dtype=torch.bool)
    for module, inputs, zeros in (
        (head.image, (Regions(torch.randn(2, 6, 5), boxes),), (Regions(none, boxes),)),
        (head, (torch.randn(2, 18, 7), padding), (torch.zeros(2, 18, 7), padding)),
    ):  # fmt: skip
        torch.manual_seed(0)
        dropped, empty = module.train()(*inputs)[0], module(*zeros)[0]
        torch.testing.assert_close(dropped, empty)
        assert not torch.allclose(module.eval()(*inputs)[0], module(*zeros)[0])


def test_cls_std_scales_every_cls() -> None:
    published, small = make_small(), make_small(cls_std=0.05)
    for ours, theirs in ((small.image, published.image), (small.speech.transformer, published.speech.transformer)):
        torch.testing.assert_close(ours.cls, 0.05 * theirs.cls)


def test_every_used_parameter_gets_a_gradient() -> None:
    head = make_small().train()
    output = head(torch.randn(4, 18, 7), torch.zeros(4, 18, dtype=torch.bool))
    image, coarse = head.image(Regions(torch.randn(4, 6, 5), torch.rand(4, 6, 4)))
    groups = torch.tensor([0, 1, 2, 1])
    fine = score_all_pairs(head.scorer, output.sequence, output.valid, image, block=4)
    (margin_loss(fine, groups, 1.0) + 0.1 * margin_loss(output.embedding @ coarse.T, groups, 1.0)).backward()
    without = {name for name, p in head.named_parameters() if p.grad is None}
    assert without == {name for name, _ in head.named_parameters() if ".layers.2." in name and "speech" in name}


def test_margin_loss_equals_a_sum_solved_by_hand() -> None:
    scores, groups = torch.tensor([[2.0, 0.5, 1.0], [0.0, 1.0, -1.0], [1.5, 0.3, 0.7]]), torch.tensor([4, 5, 4])
    e = torch.exp
    s = scores
    rows = [
        -(s[0, 0] - 1) + torch.log(e(s[0, 0] - 1) + e(s[0, 1])),
        -(s[1, 1] - 1) + torch.log(e(s[1, 0]) + e(s[1, 1] - 1) + e(s[1, 2])),
        -(s[2, 2] - 1) + torch.log(e(s[2, 1]) + e(s[2, 2] - 1)),
    ]
    columns = [
        -(s[0, 0] - 1) + torch.log(e(s[0, 0] - 1) + e(s[1, 0])),
        -(s[1, 1] - 1) + torch.log(e(s[0, 1]) + e(s[1, 1] - 1) + e(s[2, 1])),
        -(s[2, 2] - 1) + torch.log(e(s[1, 2]) + e(s[2, 2] - 1)),
    ]
    wanted = (sum(rows) + sum(columns)) / 3
    torch.testing.assert_close(margin_loss(scores, groups, 1.0), wanted)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_transformer_equals_that_of_transformers(pre_norm: bool) -> None:
    """With equal weights and a [CLS] that no position attends to, the states are those of transformers' HuBERT."""
    from speechclip.common.compat import prepare

    prepare()
    from transformers import HubertConfig, HubertModel

    config = HubertConfig(
        hidden_size=12, num_hidden_layers=3, num_attention_heads=2, intermediate_size=20, conv_dim=[7] * 7,
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, do_stable_layer_norm=pre_norm,
        feat_extract_norm="layer", conv_bias=True, num_feat_extract_layers=7,
    )  # fmt: skip
    model = HubertModel(config).eval()
    settings = dataclasses.replace(SMALL, pre_norm=pre_norm, speech_layer=3)
    inputs = HeadInputs(7, 12, part="convolutions")
    head = make_head(HeadConfig(name="fast_vgs", fast_vgs=settings), inputs).eval()
    assert isinstance(head, FastVgsHead)
    head.start_from(model, "here")
    features = torch.randn(2, 9, 7)
    # the positional convolution reaches the [CLS], so it is part of the input that transformers' layers get
    tower = head.speech.transformer
    with torch.no_grad():
        projected = torch.cat([tower.cls.expand(2, 1, -1), model.feature_projection(features)], dim=1)
        wanted = model.encoder(projected).last_hidden_state
        found = tower(features, torch.ones(2, 9, dtype=torch.bool))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_start_from_other_sizes_is_an_error() -> None:
    from transformers import HubertConfig, HubertModel

    model = HubertModel(HubertConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, conv_dim=[7] * 7))
    with pytest.raises(UserError, match="other sizes than model.head.fast_vgs"):
        make_small().start_from(model, "here")
