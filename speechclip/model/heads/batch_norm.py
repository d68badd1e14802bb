"""BatchNorm with the statistics of the global batch."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


class GlobalBatchNorm(nn.BatchNorm1d):
    """BatchNorm whose batch statistics are those of all processes. torch's SyncBatchNorm does not support CPU tensors.

    In one process it is torch's BatchNorm.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise rows [N, C], or sequences [B, C, T], to the same shape."""
        if not (self.training and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(x)
        if x.dim() == 2:
            return self._forward_global(x)
        rows = x.transpose(1, 2)  # [B, T, C]
        return self._forward_global(rows.flatten(0, 1)).view_as(rows).transpose(1, 2)

    def _forward_global(self, flat: Tensor) -> Tensor:
        from torch.distributed.nn.functional import all_reduce

        flat = flat.float()  # sums over the batch need single precision
        size = torch.full_like(flat[0, :1], len(flat))
        sums = all_reduce(torch.cat([flat.sum(dim=0), size]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        variance = all_reduce((flat - mean).square().sum(dim=0)) / count
        with torch.no_grad():
            momentum = 0.1 if self.momentum is None else self.momentum
            assert (
                self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
            )
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
            self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var.dtype), momentum)
        return (flat - mean) * (variance + self.eps).rsqrt() * self.weight + self.bias
