"""The speech tower of FaST-VGS (Peng and Harwath, ICASSP 2022): transformer with [CLS], ResDAVEnet, one BERT layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from speechclip.common.errors import UserError
from speechclip.config import FastVgsConfig
from speechclip.model.bert import BertLayer, init_bert
from speechclip.model.dropout import Dropout
from speechclip.model.encoders.base import top_layers
from speechclip.model.heads.resdavenet import ResDavenet

_EPSILON = 1e-5  # of wav2vec 2.0


class FrameTransformer(nn.Module):
    """The transformer of wav2vec 2.0 with a [CLS] before the frames, before the positional convolution.

    Args:
        settings: sizes.
        inputs: C, width of the speech features.
        dropout: probability of dropout.
        cls_std: standard deviation of the first [CLS] vector.
    """

    def __init__(self, settings: FastVgsConfig, inputs: int, dropout: float, cls_std: float) -> None:
        super().__init__()
        dim = settings.dim
        self.input_norm, self.projection = nn.LayerNorm(inputs, eps=_EPSILON), nn.Linear(inputs, dim)
        self.cls = nn.Parameter(torch.randn(dim) * cls_std)
        position = nn.Conv1d(
            dim, dim, settings.position_kernel, padding=settings.position_kernel // 2, groups=settings.position_groups
        )
        nn.init.normal_(position.weight, std=(4 / (settings.position_kernel * dim)) ** 0.5)
        self.position = weight_norm(position, dim=2)
        self.norm = nn.LayerNorm(dim, eps=_EPSILON)  # before the layers if they are post-norm, else after them
        self.layers = nn.ModuleList(
            BertLayer(
                dim, settings.speech_heads, settings.speech_feed_forward, dropout, epsilon=_EPSILON,
                pre_norm=settings.pre_norm,
            )
            for _ in range(settings.speech_layers)
        )  # fmt: skip
        self.dropout = Dropout(dropout)
        self.used, self.pre_norm = settings.speech_layer, settings.pre_norm
        for layer in list(self.layers)[self.used :]:
            layer.requires_grad_(False)  # nothing reads them in training

    def states(self, features: Tensor, valid: Tensor, layers: int) -> list[Tensor]:
        """Return the input of the first layer and the raw output of the next ones.

        Args:
            features: [B, T, C], output of the waveform convolutions.
            valid: [B, T] bool, False for padding, which no position attends to.
            layers: number of layers to run.

        Returns:
            ``layers`` + 1 tensors [B, 1 + T, dim], [CLS] first.
        """
        x = self.dropout(self.projection(self.input_norm(features)))
        x = torch.cat([self.cls.expand(len(x), 1, -1), x], dim=1)
        position = self.position(x.transpose(1, 2))[..., : x.shape[1]]  # an even kernel gives one frame too many
        x = x + nn.functional.gelu(position).transpose(1, 2)
        if not self.pre_norm:
            x = self.norm(x)
        x, mask = self.dropout(x), nn.functional.pad(valid, (1, 0), value=True)
        found = [x]
        for layer in list(self.layers)[:layers]:
            found.append(layer(found[-1], mask))
        return found

    def forward(self, features: Tensor, valid: Tensor) -> Tensor:
        """Return the output of the used layer, [B, 1 + T, dim]. See :meth:`states`."""
        x = self.states(features, valid, self.used)[-1]
        return self.norm(x) if self.pre_norm else x

    def train_part(self, part: str | int) -> list[str]:
        """Let a part of the transformer get gradients, and return the names of its parameters.

        Args:
            part: "frozen"; a number of layers, counted from the used one downwards; "transformer" or "all" for
                everything.

        Raises:
            UserError: there are fewer layers.
        """
        modules: list[nn.Module] = [] if part == "frozen" else top_layers(self.layers, part, self.used + 1)
        if part in ("transformer", "all"):
            modules += [self.input_norm, self.projection, self.position, self.norm]
        self.requires_grad_(False)
        for module in modules:
            module.requires_grad_(True)
        names = [name for name, parameter in self.named_parameters() if parameter.requires_grad]
        self.cls.requires_grad_(True)
        return names

    def start_from(self, model: Any, source: str) -> None:
        """Copy the weights of a HuBERT or wav2vec 2.0 of transformers. The [CLS] stays as it is.

        Args:
            model: the transformers model.
            source: its path, for errors.

        Raises:
            UserError: it has other sizes, or fewer layers.
        """
        encoder, projection = model.encoder, model.feature_projection
        if len(encoder.layers) < len(self.layers):
            raise UserError(
                f"{source}: has {len(encoder.layers)} layers, but model.head.fast_vgs.speech_layers is "
                f"{len(self.layers)}."
                " Change the setting."
            )
        if bool(getattr(model.config, "do_stable_layer_norm", False)) != self.pre_norm:
            raise UserError(f"{source}: model.head.fast_vgs.pre_norm does not fit: set it to {not self.pre_norm}")
        if model.config.num_attention_heads != self.layers[0].attention.heads:  # type: ignore[union-attr]
            raise UserError(
                f"{source}: has {model.config.num_attention_heads} attention heads. "
                "Set model.head.fast_vgs.speech_heads to it."
            )
        position = encoder.pos_conv_embed.conv
        pairs: list[tuple[nn.Module, nn.Module]] = [
            (self.input_norm, projection.layer_norm), (self.projection, projection.projection),
            (self.norm, encoder.layer_norm), (self.position, position),
        ]  # fmt: skip
        for ours, theirs in zip(self.layers, encoder.layers):
            assert isinstance(ours, BertLayer)
            pairs += [
                (ours.attention.query, theirs.attention.q_proj), (ours.attention.key, theirs.attention.k_proj),
                (ours.attention.value, theirs.attention.v_proj), (ours.output.dense, theirs.attention.out_proj),
                (ours.output.norm, theirs.layer_norm),
                (ours.feed_forward.dense, theirs.feed_forward.intermediate_dense),
                (ours.feed_forward.output.dense, theirs.feed_forward.output_dense),
                (ours.feed_forward.output.norm, theirs.final_layer_norm),
            ]  # fmt: skip
        for to, origin in pairs:
            _copy(to, origin, source)


def _copy(to: nn.Module, origin: nn.Module, source: str) -> None:
    """Copy all parameters of a module."""
    state = origin.state_dict()
    for name, value in to.state_dict().items():
        if name not in state or state[name].shape != value.shape:
            raise UserError(
                f"{source}: other sizes than model.head.fast_vgs: {name} is not {list(value.shape)}."
                " Change the setting."
            )
    to.load_state_dict(state)


class SpeechTower(nn.Module):
    """[CLS] and frames for the cross-modal layers, and the coarse vector.

    Args:
        settings: sizes.
        inputs: C, width of the speech features.
        dropout: probability of dropout.
        frames: the fixed number of frames in training and in evaluation. Features are cut, or padded with zeros.
        cls_std: standard deviation of the first [CLS] vector.
    """

    def __init__(
        self, settings: FastVgsConfig, inputs: int, dropout: float, frames: tuple[int, int], cls_std: float
    ) -> None:
        super().__init__()
        dim = settings.dim
        self.transformer = FrameTransformer(settings, inputs, dropout, cls_std)
        self.resdavenet = ResDavenet(dim, settings.widths)
        self.cls_projection = make_mlp(dim)
        self.layer = BertLayer(dim, settings.heads, settings.feed_forward, dropout)
        self.projection = nn.Linear(dim, dim)
        self.train_frames, self.eval_frames = frames
        init_bert(self, dim)

    def fixed(self, features: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        """Return features [B, T, C] and their mask [B, T], True at valid frames, at the fixed number of frames."""
        count = self.train_frames if self.training else self.eval_frames
        missing = max(0, count - features.shape[1])
        features = nn.functional.pad(features[:, :count], (0, 0, 0, missing))
        return features, ~nn.functional.pad(padding[:, :count], (0, missing), value=True)

    def forward(self, features: Tensor, padding: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode the output of the waveform convolutions.

        Args:
            features: [B, T, C].
            padding: [B, T] bool, True at padding.

        Returns:
            The sequence [B, 1 + T', dim] with [CLS] first; its mask [B, 1 + T'], True at positions that count; and the
            coarse vectors [B, dim].
        """
        features, valid = self.fixed(features, padding)
        states = self.transformer(features, valid)
        frames = self.resdavenet(states[:, 1:])
        ratio = round(features.shape[1] / frames.shape[1])
        counts = valid.sum(dim=1) // ratio
        mask = torch.arange(frames.shape[1], device=frames.device)[None, :] < counts[:, None]
        mask = nn.functional.pad(mask, (1, 0), value=True)
        sequence = torch.cat([self.cls_projection(states[:, :1]), frames], dim=1)
        sequence = self.layer(sequence, mask)
        return sequence, mask, self.projection(sequence[:, 0])


def make_mlp(dim: int) -> nn.Sequential:
    """Return the MLP d -> 2 d -> d (GELU) that both towers apply to a [CLS]."""
    return nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
