"""ResDAVEnet: residual convolutions that reduce the number of frames (Harwath et al., ICLR 2020, arXiv 1911.09602)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from speechclip.model.heads.batch_norm import GlobalBatchNorm

KERNEL = 9  # frames
_BLOCKS = 2  # per stage


class ResidualBlock(nn.Module):
    """Two convolutions with BatchNorm, and a shortcut.

    Args:
        inner: channels of the input.
        outer: channels of the output.
        stride: of the first convolution.
        shortcut: give the shortcut a convolution of its own.
    """

    def __init__(self, inner: int, outer: int, stride: int, shortcut: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(inner, outer, KERNEL, stride, KERNEL // 2, bias=False)
        self.norm1 = GlobalBatchNorm(outer)
        self.conv2 = nn.Conv1d(outer, outer, KERNEL, 1, KERNEL // 2, bias=False)
        self.norm2 = GlobalBatchNorm(outer)
        self.shortcut: nn.Module = nn.Identity()
        if shortcut:
            self.shortcut = nn.Sequential(nn.Conv1d(inner, outer, 1, stride, bias=False), GlobalBatchNorm(outer))

    def forward(self, frames: Tensor) -> Tensor:
        """Convolve frames [B, inner, T] to [B, outer, ceil(T / stride)]."""
        inside = self.norm2(self.conv2(self.norm1(self.conv1(frames)).relu()))
        return (inside + self.shortcut(frames)).relu()


class ResDavenet(nn.Module):
    """Linear, BatchNorm and ReLU, and then stages of two residual blocks. Each stage halves the number of frames.

    Statistics of BatchNorm include padded frames, as in the code of FaST-VGS. With several processes they are those of
    the global batch; in that code they are those of each GPU.

    Args:
        dim: width of the frames.
        widths: channels after the Linear, and after each stage. Published: 128, then 128, 256, 512, 768.
    """

    def __init__(self, dim: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, widths[0])
        self.norm = GlobalBatchNorm(widths[0])
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(
                    ResidualBlock(outer if number else inner, outer, 1 if number else 2, shortcut=number == 0)
                    for number in range(_BLOCKS)
                )
            )
            for inner, outer in zip(widths, widths[1:])
        )
        for module in self.modules():
            if isinstance(module, nn.Conv1d):
                nn.init.normal_(module.weight, std=math.sqrt(2 / (module.kernel_size[0] * module.out_channels)))

    def forward(self, frames: Tensor) -> Tensor:
        """Reduce frames [B, T, dim] to [B, T', widths[-1]]."""
        x = self.norm(self.linear(frames).transpose(1, 2)).relu()
        for stage in self.stages:
            x = stage(x)
        reduced: Tensor = x.transpose(1, 2)
        return reduced
