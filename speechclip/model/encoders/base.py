"""The interface of a speech encoder, and the registry of loaders.

Frame masks, frame counts and the numbering of hidden states follow fairseq's HuBERT, with which SpeechCLIP was trained
(Shih et al. 2022, arXiv 2210.00705).
"""

from __future__ import annotations

import hashlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from speechclip.common.constants import HOP
from speechclip.common.errors import UserError
from speechclip.config import SpeechEncoderConfig


class SpeechFeatures(NamedTuple):
    """Hidden states of a batch.

    Attributes:
        states: [B, L, T, D] float. Layer 0 is the input of the first transformer layer.
        frames: [B] int64, the number of valid frames of each utterance. The other frames are padding.
    """

    states: Tensor
    frames: Tensor


class SpeechEncoder(nn.Module, ABC):
    """A speech encoder: waveforms in, every hidden state out.

    A subclass sets the attributes and implements ``forward``. Its parameters need no gradient until :meth:`unfreeze`
    is called. It stays in eval mode.

    Attributes:
        dim: D, the width of the hidden states.
        num_states: L, the number of hidden states.
        description: strings that identify the encoder. Feature stores and checkpoints refuse an encoder whose
            description differs. The key "weights" holds :func:`weights_fingerprint` of the weights before training.
        trained: whether a part of the encoder is trained. ``forward`` then keeps the graph for gradients.
    """

    dim: int
    num_states: int
    description: dict[str, str]
    trained: bool = False

    @abstractmethod
    def forward(self, waves: Sequence[Tensor]) -> SpeechFeatures:
        """Encode 16 kHz mono waveforms, each [n_i] float."""

    def encode_whole(self, waves: Sequence[Tensor]) -> SpeechFeatures:
        """Encode waveforms without a fixed length, as the s3prl upstream needs them."""
        features: SpeechFeatures = self(waves)
        return features

    def unfreeze(self, part: str | int, states: int) -> None:
        """Let a part of the encoder get gradients.

        Args:
            part: a number of transformer layers, counted from the top; "transformer"; or "all". See
                :class:`speechclip.config.TrainConfig`.
            states: number of hidden states that are used, counted from state 0. The layers above them stay frozen:
                nothing depends on them.

        Raises:
            UserError: this encoder cannot be trained, or has fewer layers.
        """
        raise UserError(f"train.encoder: {self.description['path']} cannot be trained. Set train.encoder to frozen.")

    def train(self, mode: bool = True) -> SpeechEncoder:
        """Stay in eval mode: the encoder has neither dropout nor layer drop, frozen or trained.

        The published code lets its trainer switch the encoder to train mode. This is a stated departure from it.
        """
        return super().train(False)


Loader = Callable[[SpeechEncoderConfig], SpeechEncoder]
LoaderFunction = TypeVar("LoaderFunction", bound=Loader)
_LOADERS: dict[str, Loader] = {}


def register_encoder(*kinds: str) -> Callable[[LoaderFunction], LoaderFunction]:
    """Register a function that loads an encoder.

    Args:
        kinds: the prefix of ``model.speech_encoder.path`` before a colon ("s3prl"), model types of transformers
            ("hubert"), or "file" for a path that is a file.
    """

    def register(loader: LoaderFunction) -> LoaderFunction:
        for kind in kinds:
            _LOADERS[kind] = loader
        return loader

    return register


def registered_encoders() -> dict[str, Loader]:
    """Return the registered loaders by kind. :mod:`speechclip.model.encoders.factory` imports all of them."""
    return dict(_LOADERS)


def frame_counts(num_samples: Tensor, num_frames: int) -> Tensor:
    """Return the number of valid frames: min(round(n / 320), num_frames), with halves rounded to even.

    Args:
        num_samples: [B], samples of each utterance.
        num_frames: frames of the padded batch.

    Returns:
        [B] int64.
    """
    return torch.round(num_samples.double() / HOP).long().clamp(max=num_frames)


def attention_frames(num_samples: Tensor, max_samples: int, num_frames: int) -> Tensor:
    """Return fairseq's frame mask: a frame is padding if every sample of its share of the batch is padding.

    The samples that remain after the division into ``num_frames`` equal shares are ignored.

    Args:
        num_samples: [B], samples of each utterance.
        max_samples: samples of the padded batch.
        num_frames: frames of the padded batch.

    Returns:
        [B, num_frames] bool, True at the frames that the encoder may attend to.
    """
    share = max_samples // num_frames
    starts = torch.arange(num_frames, device=num_samples.device) * share
    return starts[None, :] < num_samples[:, None]


def top_layers(layers: nn.ModuleList, part: str | int, states: int) -> list[nn.Module]:
    """Return the transformer layers that are trained.

    Args:
        layers: all layers; layer i computes state i + 1.
        part, states: see :meth:`SpeechEncoder.unfreeze`.

    Raises:
        UserError: there are fewer layers.
    """
    used = list(layers)[: states - 1]
    count = len(used) if isinstance(part, str) else part
    if not used or count > len(used):
        raise UserError(
            f"train.encoder: {part}, but the used states depend on {len(used)} layers of the encoder."
            " Choose fewer layers."
        )
    return used[len(used) - count :]


class StateRecorder:
    """Collect the input of the first layer and the raw output of every layer.

    Hooks are used instead of ``output_hidden_states``, because it depends on the version of transformers whether that
    applies the final LayerNorm of a pre-norm encoder to the last state. Each thread has its own states: servers and
    ``DataParallel`` run one encoder in several threads.
    """

    def __init__(self, layers: nn.ModuleList) -> None:
        self._states: dict[int, list[Tensor]] = {}  # by thread; unlike threading.local, it can be copied and pickled
        layers[0].register_forward_pre_hook(self._first, with_kwargs=True)
        for layer in layers:
            layer.register_forward_hook(self._output)

    def _first(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._states[threading.get_ident()] = [args[0] if args else kwargs["hidden_states"]]

    def _output(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._states[threading.get_ident()].append(output[0] if isinstance(output, tuple) else output)

    def take(self) -> Tensor:
        """Return the states of this thread's last forward pass, [B, L, T, D], and release them."""
        return torch.stack(self._states.pop(threading.get_ident()), dim=1)


def weights_fingerprint(model: nn.Module) -> str:
    """Return the first 16 hex digits of the SHA-256 over the names, shapes and values of a model's parameters."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
