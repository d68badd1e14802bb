"""The network of SpeechCLIP: frozen speech encoder, weighted sum, head, frozen CLIP (Shih et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from speechclip.common.errors import UserError
from speechclip.config import ModelConfig
from speechclip.data.dataset import Batch
from speechclip.data.vocabulary import Vocabulary
from speechclip.model.encoders.base import SpeechEncoder, SpeechFeatures
from speechclip.model.encoders.clip import OpenClip
from speechclip.model.feature_augment import FeatureNoise, TimeMask
from speechclip.model.heads.base import CASCADED, PARALLEL, Head, HeadInputs, HeadOutput, SpeechOutput
from speechclip.model.heads.factory import has_keywords, make_head
from speechclip.model.heads.weighted_sum import WeightedSum
from speechclip.model.losses import ContrastiveLoss, make_loss

ENCODER_PREFIX = "speech_encoder."  # of the names of the encoder's trained tensors


@dataclass(frozen=True)
class Dimensions:
    """Widths that depend on the frozen encoders.

    Attributes:
        speech: d, width of the hidden states.
        states: L, number of hidden states in the weighted sum.
        joint: J, width of CLIP's joint space.
    """

    speech: int
    states: int
    joint: int


class SpeechNetwork(nn.Module):
    """Everything that is computed between a batch of speech and its embeddings.

    The parts are passed in; :func:`build_network` constructs them. Without ``speech_encoder`` the network works on
    stored hidden states only. Without ``clip`` it works without keywords only. Training changes ``weighted_sum``,
    ``head`` and ``loss``, and the part of the speech encoder that :meth:`train_encoder` selects; a checkpoint holds
    their tensors.

    Args:
        config: the configuration that the network was built from.
        dimensions: the widths.
        weighted_sum: mixes the hidden states.
        head: the trained head.
        loss: the contrastive loss with its temperature.
        speech_encoder: frozen; may be None.
        clip: frozen; may be None.
        vocabulary: the reduced vocabulary of a head with keywords.
        encode_batch_size: utterances that the speech encoder takes at a time; 0 for a whole batch.
    """

    def __init__(
        self,
        config: ModelConfig,
        dimensions: Dimensions,
        *,
        weighted_sum: WeightedSum,
        head: Head,
        loss: ContrastiveLoss,
        speech_encoder: SpeechEncoder | None = None,
        clip: OpenClip | None = None,
        vocabulary: Vocabulary | None = None,
        encode_batch_size: int = 0,
    ) -> None:
        super().__init__()
        self.config = config
        self.dimensions = dimensions
        self.weighted_sum = weighted_sum
        self.head = head
        self.loss = loss
        self.speech_encoder = speech_encoder
        self.clip = clip
        self.vocabulary = vocabulary
        self.encode_batch_size = encode_batch_size
        self.time_mask = TimeMask()
        self.feature_noise = FeatureNoise()
        self._encoder_names: tuple[str, ...] = ()  # trained parameters of the speech encoder
        self._inner_names: tuple[str, ...] = ()  # of a speech transformer that the head holds

    def forward(self, batch: Batch) -> SpeechOutput:
        """Compute the embeddings of a batch, and the keywords if the head has them.

        Raises:
            UserError: the batch holds waveforms and no speech encoder is loaded, or the head needs CLIP and none is.
        """
        return self.apply_head(*self.features(batch))

    @property
    def device(self) -> torch.device:
        """The device of the trained parameters."""
        return self.weighted_sum.weights.device

    # -- parts of the forward pass -------------------------------------------------------------------------------------

    def features(self, batch: Batch) -> SpeechFeatures:
        """Return the hidden states of a batch on the network's device: the stored ones, or those of its waveforms.

        They carry a gradient if a part of the speech encoder is trained.
        """
        with torch.set_grad_enabled(bool(self._encoder_names) and torch.is_grad_enabled()):
            return self._features(batch)

    def _features(self, batch: Batch) -> SpeechFeatures:
        if batch.states is not None and batch.frames is not None:
            return SpeechFeatures(batch.states.to(self.device), batch.frames.to(self.device))
        assert batch.waves is not None
        waves = [wave.to(self.device) for wave in batch.waves]
        size = self.encode_batch_size or len(waves)
        order = sorted(range(len(waves)), key=lambda i: -len(waves[i]))  # utterances of similar length together
        parts = [order[at : at + size] for at in range(0, len(order), size)]
        if len(parts) == 1:
            return self.encode_waves(waves)
        first = self.encode_waves([waves[i] for i in parts[0]])  # the longest utterances
        states, frames = first.states.new_zeros(len(waves), *first.states.shape[1:]), first.frames.new_zeros(len(waves))
        states[parts[0]], frames[parts[0]] = first
        for part in parts[1:]:
            encoded = self.encode_waves([waves[i] for i in part])
            states[part, :, : encoded.states.shape[2]] = encoded.states
            frames[part] = encoded.frames
        return SpeechFeatures(states, frames)

    def encode_waves(self, waves: Sequence[Tensor]) -> SpeechFeatures:
        """Return the configured hidden states of 16 kHz waveforms, each [n_i].

        Raises:
            UserError: no speech encoder is loaded.
        """
        # Some encoders draw random numbers for layer drop even in eval mode. Without them, stored and online features
        # train with the same random state.
        with torch.random.fork_rng(devices=()):
            features: SpeechFeatures = self.require_speech_encoder()(waves)
        if self.config.speech_encoder.layers is None:
            return features
        return SpeechFeatures(features.states[:, self.config.speech_encoder.layers], features.frames)

    def apply_head(self, states: Tensor, frames: Tensor) -> SpeechOutput:
        """Apply the weighted sum, the head and, for keywords, CLIP's text transformer.

        Args:
            states: [B, L, T, D], hidden states.
            frames: [B], valid frames.

        Raises:
            UserError: the head has keywords and no CLIP is loaded.
        """
        mixed, padding = self._head_input(states, frames)
        output: HeadOutput = self.head(mixed, padding)
        branches = {} if output.embedding is None else {PARALLEL: output.embedding}
        if output.keywords is not None:
            counts = output.keywords.mask.sum(dim=1)
            branches[CASCADED] = self.require_clip().encode_keywords(output.keywords.quantized, counts)
        return SpeechOutput(
            branches,
            output.keywords,
            output.quantity_loss,
            output.attention,
            frames,
            output.sequence,
            output.valid,
            mixed if self.training else None,
            output.parts,
        )

    def mixed_frames(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the input of the head for a batch: the weighted sum [B, T, d] and the padding mask [B, T]."""
        return self._mix(*self.features(batch))

    def find_keywords(self, features: SpeechFeatures) -> HeadOutput:
        """Apply the weighted sum and the head alone, without CLIP's text transformer."""
        output: HeadOutput = self.head(*self._head_input(*features))
        return output

    def hidden_states(self, waves: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Return the states of the s3prl upstream for one padded batch of 16 kHz waveforms.

        Returns:
            The encoder's raw states and then the output of the head's own layer at the frames, each [B, T, d]; and the
            number of valid frames [B].

        Raises:
            UserError: no speech encoder is loaded.
        """
        states, frames = self.require_speech_encoder().encode_whole(waves)
        layers = self.config.speech_encoder.layers
        mixed, padding = self._mix(states if layers is None else states[:, layers], frames)
        return self.head.upstream_states(states, mixed, padding), frames

    def _head_input(self, states: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weighted sum [B, T, d], changed at random in training, and the padding mask [B, T]."""
        mixed, padding = self._mix(states, frames)
        return self.feature_noise(self.time_mask(mixed, frames)), padding

    def _mix(self, states: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weighted sum [B, T, d] and the padding mask [B, T]."""
        padding = torch.arange(states.shape[2], device=frames.device)[None, :] >= frames[:, None]
        return self.weighted_sum(states), padding

    # -- trained and frozen parts --------------------------------------------------------------------------------------

    def train_encoder(self, part: str | int) -> None:
        """Select the part of the speech encoder that is trained and that checkpoints hold.

        A head may hold the transformer of the encoder itself. Then the speech encoder is the waveform convolutions.

        Args:
            part: the value of ``train.encoder``, see :class:`speechclip.config.TrainConfig`.

        Raises:
            UserError: no speech encoder is loaded, or it does not have this part.
        """
        inner = self.head.train_encoder(part)
        self._inner_names = tuple(inner or ())
        if part == "frozen" or (inner is not None and part != "all"):
            return
        encoder, layers = self.require_speech_encoder(), self.config.speech_encoder.layers
        encoder.unfreeze(part, encoder.num_states if layers is None else max(layers) + 1)
        self._encoder_names = tuple(name for name, p in encoder.named_parameters() if p.requires_grad)

    def trained_modules(self) -> dict[str, nn.Module]:
        """Return the parts that training changes as a whole and that checkpoints hold."""
        return {"weighted_sum": self.weighted_sum, "head": self.head, "loss": self.loss}

    def trained_state(self) -> dict[str, Tensor]:
        """Return the tensors of the trained parts by name: parameters and statistics."""
        parts = self.trained_modules()
        state = {f"{part}.{name}": value for part in parts for name, value in parts[part].state_dict().items()}
        return state | {f"{ENCODER_PREFIX}{name}": p.detach() for name, p in self._encoder_parameters().items()}

    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        """Load tensors with the names and shapes of :meth:`trained_state`."""
        for part, module in self.trained_modules().items():
            prefix = f"{part}."
            module.load_state_dict({name[len(prefix) :]: v for name, v in state.items() if name.startswith(prefix)})
        with torch.no_grad():
            for name, parameter in self._encoder_parameters().items():
                parameter.copy_(state[f"{ENCODER_PREFIX}{name}"])

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that get gradients. Those of :meth:`encoder_parameters` come last."""
        encoder = self.encoder_parameters()
        known = {id(parameter) for parameter in encoder}
        parts = self.trained_modules().values()
        head = [p for part in parts for p in part.parameters() if p.requires_grad and id(p) not in known]
        return head + encoder

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Return the trained parameters of the speech encoder, also of the part that the head holds."""
        return [
            *(self.head.get_parameter(name) for name in self._inner_names), *self._encoder_parameters().values()
        ]  # fmt: skip

    def _encoder_parameters(self) -> dict[str, nn.Parameter]:
        if not self._encoder_names:
            return {}
        # a model for inference has merged the parametrised weights (speechclip/model/parametrizations.py)
        every = dict(self.require_speech_encoder().named_parameters())
        return {name: every[name] for name in self._encoder_names if name in every}

    def count_parameters(self) -> dict[str, int]:
        """Return the number of parameters, {"trained", "total"}. The total includes the loaded frozen encoders."""
        trained = sum(p.numel() for p in self.trained_parameters())
        return {"trained": trained, "total": sum(p.numel() for p in self.parameters())}

    def require_speech_encoder(self) -> SpeechEncoder:
        """Return the speech encoder.

        Raises:
            UserError: none is loaded.
        """
        if self.speech_encoder is None:
            raise UserError(
                "model.speech_encoder.path: this needs the speech encoder, which is not loaded."
                " Load the model with its speech encoder."
            )
        return self.speech_encoder

    def require_clip(self) -> OpenClip:
        """Return CLIP.

        Raises:
            UserError: none is loaded.
        """
        if self.clip is None:
            raise UserError("model.clip.path: this needs CLIP itself. Precomputed embeddings are not enough.")
        return self.clip


def build_network(
    config: ModelConfig,
    dimensions: Dimensions,
    *,
    speech_encoder: SpeechEncoder | None = None,
    clip: OpenClip | None = None,
    vocabulary: Vocabulary | None = None,
    subwords: tuple[Tensor, Tensor] | None = None,
) -> SpeechNetwork:
    """Build a freshly initialised network with the configured head.

    Args:
        config: of the model.
        dimensions: the widths.
        speech_encoder, clip, vocabulary: see :class:`SpeechNetwork`.
        subwords: the result of :func:`reduced_subword_embeddings`, for a head with keywords that is used without CLIP.

    Raises:
        UserError: a head with keywords without CLIP or vocabulary, a vocabulary of another CLIP, attention heads that
            do not divide the width, or layers that the encoder does not have.
    """
    settings = config.head
    _check_layers(config, dimensions, speech_encoder)
    room = settings.cif.max_keywords
    if has_keywords(settings.name) and subwords is None:
        if clip is None:
            raise UserError(
                f"model.clip.path: a {settings.name} head needs CLIP's text transformer. "
                "Precomputed embeddings are not enough."
            )
        if vocabulary is None:
            raise UserError(
                f"model.head.name: a {settings.name} head needs the reduced vocabulary."
                " Run the extraction of CLIP embeddings first, or name a vocabulary."
            )
        subwords, room = reduced_subword_embeddings(clip, vocabulary), clip.room
    embeddings, valid_mask = subwords or (None, None)
    seconds = (config.speech_encoder.train_seconds, config.speech_encoder.eval_seconds)
    inputs = HeadInputs(
        dimensions.speech, dimensions.joint, embeddings, valid_mask, room, seconds, config.speech_encoder.part
    )
    head = make_head(settings, inputs)
    return SpeechNetwork(
        config,
        dimensions,
        weighted_sum=WeightedSum(dimensions.states, state_norm=config.speech_encoder.state_norm),
        head=head,
        loss=make_loss(config.loss),
        speech_encoder=speech_encoder,
        clip=clip,
        vocabulary=vocabulary,
    )


def _check_layers(config: ModelConfig, dimensions: Dimensions, speech_encoder: SpeechEncoder | None) -> None:
    layers = config.speech_encoder.layers
    if speech_encoder is None:
        return
    if layers is not None and max(layers) >= speech_encoder.num_states:
        raise UserError(
            f"model.speech_encoder.layers: {max(layers)}; the encoder has states 0 to {speech_encoder.num_states - 1}."
            " Choose from these."
        )
    available = len(layers) if layers is not None else speech_encoder.num_states
    if available != dimensions.states:
        raise UserError(
            f"model.speech_encoder.layers: {available} hidden states, the checkpoint mixes {dimensions.states}: "
            "a checkpoint for other dimensions."
            " Use the encoder and the layers that it was trained with."
        )


def reduced_subword_embeddings(clip: OpenClip, vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
    """Return the subword embeddings of a vocabulary, [V, D], and the mask of rows that are not special tokens, [V].

    Raises:
        UserError: an id outside the text tower's vocabulary, or a text tower that cannot embed keywords.
    """
    clip.check_keywords()
    embeddings = clip.subword_embeddings
    ids = torch.tensor(vocabulary.ids, device=embeddings.device)
    if int(ids.max()) >= len(embeddings):
        raise UserError(
            f"vocabulary: has id {int(ids.max())}, but CLIP has {len(embeddings)} subwords. It belongs to another CLIP."
        )
    special = torch.tensor(clip.special_ids, device=ids.device)
    return embeddings[ids], ~torch.isin(ids, special)
