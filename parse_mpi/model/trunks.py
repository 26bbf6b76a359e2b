"""Trunks: the part of an encoder before feature fission, one sample of one modality to a vector.

A trunk has no BatchNorm: its running statistics are no parameters, so they would neither mix nor be checkpointed.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from itertools import pairwise

from torch import Tensor, nn

from parse_mpi.job import Conv1dEncoder, Conv2dEncoder
from parse_mpi.job.encoder import ConvolutionEncoder
from parse_mpi.model.shapes import Shape, has_colours

GROUPS = 4  # of GroupNorm, where they divide the channels and leave each group several
FEWEST_CHANNELS = 16  # that are normalised in groups


class Trunk(nn.Module):
    """[B, *sample] to [B, width]."""

    width: int


class MlpTrunk(Trunk):
    """Flatten, then Linear, LayerNorm and ReLU per hidden width.

    Without the norm the largest stable learning rate falls with the number of input features.
    """

    def __init__(self, shape: Shape, hidden: tuple[int, ...]):
        super().__init__()
        widths = [math.prod(shape), *hidden]
        self.layers = nn.Sequential(nn.Flatten(), *(layer for pair in pairwise(widths) for layer in _dense(*pair)))
        self.width = widths[-1]

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.layers(x)
        return h


class ConvolutionTrunk(Trunk, ABC):
    """Stages of convolution with stride 2, GroupNorm and ReLU; the maxima on a coarse grid; a dense layer.

    Maxima over a few stretches of time or regions keep what happened and roughly where, at a few parameters; the mean
    over everything loses too much, and a finer grid only costs. Nothing depends on other samples of the batch.
    """

    def __init__(self, options: ConvolutionEncoder, channels: int, sizes: Shape):
        super().__init__()
        conv = nn.Conv1d if len(sizes) == 1 else nn.Conv2d
        layers: list[nn.Module] = []
        for wider in options.channels:
            layers += [conv(channels, wider, options.kernel, stride=2, padding=options.kernel // 2)]
            layers += [nn.GroupNorm(_groups(wider), wider), nn.ReLU()]
            channels = wider
            sizes = tuple(-(-size // 2) for size in sizes)
        cells = tuple(min(size, options.cells) for size in sizes)
        layers += [nn.AdaptiveMaxPool1d(cells[0]) if len(cells) == 1 else nn.AdaptiveMaxPool2d(cells), nn.Flatten()]
        self.layers = nn.Sequential(*layers, *_dense(channels * math.prod(cells), options.width))
        self.width = options.width

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.layers(self.channels_first(x))
        return h

    @abstractmethod
    def channels_first(self, x: Tensor) -> Tensor:
        """[B, *sample] to [B, channels, *sizes], contiguous: under vmap GroupNorm takes nothing else."""


class SeriesTrunk(ConvolutionTrunk):
    """[T, F]: F channels; [T, J, 3]: 3 J channels."""

    def __init__(self, options: Conv1dEncoder, shape: Shape):
        super().__init__(options, math.prod(shape[1:]), shape[:1])

    def channels_first(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2).contiguous()


class ImageTrunk(ConvolutionTrunk):
    """[H, W]: one channel; [H, W, colours]: one for each colour; [T, H, W]: one for each frame.

    Frames as channels are the cheapest way to read a short clip, and on depth clips of eight frames a better one than
    convolutions over time as well.
    """

    def __init__(self, options: Conv2dEncoder, shape: Shape):
        colours, frames = has_colours(shape), 1 if len(shape) == 2 else shape[0]
        super().__init__(options, *((shape[2], shape[:2]) if colours else (frames, shape[-2:])))
        self.colours = colours

    def channels_first(self, x: Tensor) -> Tensor:
        if self.colours:
            return x.movedim(-1, 1).contiguous()
        return x.unsqueeze(1) if x.dim() == 3 else x


def _dense(width_in: int, width_out: int) -> tuple[nn.Module, ...]:
    return nn.Linear(width_in, width_out), nn.LayerNorm(width_out), nn.ReLU()


def _groups(channels: int) -> int:
    return math.gcd(GROUPS, channels) if channels >= FEWEST_CHANNELS else 1
