"""Encoder: the network of one modality."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, JsonValue

from parse_mpi.job.base import Count, Section

Channels = Annotated[tuple[Annotated[int, Field(ge=2, le=4096)], ...], Field(min_length=1)]

DOTTED_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


def _odd(kernel: int) -> int:
    if kernel % 2 == 0:
        raise ValueError(f"{kernel} is even; a kernel has a middle: 3, 5, 7, ...")
    return kernel


def _dotted(name: str) -> str:
    if not DOTTED_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no dotted name; my_encoders.make is the function make of my_encoders.py")
    return name


class EncoderByShape(Section):
    """One of the kinds below with its defaults, by the shape of the modality's samples (docs/method.md, 1.2)."""

    kind: Literal["auto"] = "auto"


class MlpEncoder(Section):
    """Samples of any shape: flatten, then Linear, LayerNorm and ReLU per entry of `hidden`."""

    kind: Literal["mlp"] = "mlp"
    hidden: Annotated[tuple[Count, ...], Field(min_length=1)] = (256,)


class ConvolutionEncoder(Section):
    """A stage per entry of `channels`: convolution with stride 2, GroupNorm, ReLU.

    The largest values on a grid of at most `cells` an axis then go through Linear, LayerNorm and ReLU to `width`.
    """

    channels: Channels
    kernel: Annotated[int, Field(ge=1, le=31), AfterValidator(_odd)] = 5
    cells: Annotated[int, Field(ge=1, le=64)] = 4
    width: Count = 128


class Conv1dEncoder(ConvolutionEncoder):
    """Convolutions over time, for series [T, F] and skeletons [T, J, 3]."""

    kind: Literal["conv1d"] = "conv1d"
    channels: Channels = (32, 64)


class Conv2dEncoder(ConvolutionEncoder):
    """Convolutions over the plane, for images [H, W] and [H, W, 1 to 4], and clips [T, H, W], a channel a frame."""

    kind: Literal["conv2d"] = "conv2d"
    channels: Channels = (16, 32)


class OwnEncoder(Section):
    """What a function of the user's makes: factory(sample_shape, **options) (docs/encoders.md).

    factory: its dotted name. file: the Python file of that module; where it is left out, the one beside the job file,
    and if there is none, an installed module.
    """

    kind: Literal["own"]
    factory: Annotated[str, AfterValidator(_dotted)]
    options: dict[str, JsonValue] = Field(default_factory=dict)
    file: str | None = None

    def __hash__(self) -> int:
        return hash(self.model_dump_json())


Encoder = Annotated[
    EncoderByShape | MlpEncoder | Conv1dEncoder | Conv2dEncoder | OwnEncoder, Field(discriminator="kind")
]
