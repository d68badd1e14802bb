"""The momentum model: a moving average of the trained weights that embeds the batch once more, without gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from speechclip.data.dataset import Batch
from speechclip.model.network import SpeechNetwork


class MomentumModel(nn.Module):
    """A moving average of the trained parameters, as in He et al. 2020 (MoCo).

    arXiv 2408.13119 names momentum distillation with a temporal ensemble of the model. Our interpretation: the average
    embeds the unchanged features in evaluation mode, without dropout, and reads the buffers of the model itself, for
    example the statistics of BatchNorm. Images have no momentum model, because their embeddings are frozen.

    Args:
        model: the network.
        momentum: m of average = m * average + (1 - m) * parameter, in [0, 1).
    """

    def __init__(self, model: SpeechNetwork, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self._names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        parameters = dict(model.named_parameters())
        for at, name in enumerate(self._names):
            self.register_buffer(f"average{at}", parameters[name].detach().clone())

    def averages(self) -> dict[str, Tensor]:
        """Return the average of each trained parameter by its name."""
        buffers = dict(self.named_buffers())
        return {name: buffers[f"average{at}"] for at, name in enumerate(self._names)}

    @torch.no_grad()
    def update(self, model: SpeechNetwork) -> None:
        """Move the average towards the present parameters."""
        parameters = dict(model.named_parameters())
        present = [parameters[name].detach() for name in self._names]
        torch._foreach_lerp_(list(self.averages().values()), present, 1 - self.momentum)

    @torch.no_grad()
    def embed(self, model: SpeechNetwork, batch: Batch) -> dict[str, Tensor]:
        """Return the embeddings [b, J] of a batch by branch, L2-normalised."""
        training = model.training
        model.eval()
        try:
            output = functional_call(model, self.averages(), (batch,), strict=False)
        finally:
            model.train(training)
        return {name: nn.functional.normalize(rows.float(), dim=-1) for name, rows in output.branches.items()}
