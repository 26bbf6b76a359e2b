"""What the shape of a modality's samples says about its encoder; imports no torch, so that light commands may use it.

T time steps, F features, J joints, H and W sides of an image; a sample has one of the shapes that are named here.
"""

from __future__ import annotations

import math

from parse_mpi.job import Conv1dEncoder, Conv2dEncoder, Encoder, EncoderByShape, MlpEncoder

Shape = tuple[int, ...]

SHORTEST_SERIES = 8  # time steps
SMALLEST_IMAGE = 64  # values: below, a convolution has no room, and an MLP is as good and cheaper
ELONGATED = 4  # the longer side of a series is at least so many times the shorter one
FEW_FEATURES = 8  # fewer make [T, F] a series, however long it is
MOST_COLOURS = 4  # a longer last axis is no colour, but the width of a clip's frames


def chosen_encoder(encoder: Encoder, shape: Shape) -> Encoder:
    """The encoder itself, or what `kind: auto` means for samples of this shape (docs/method.md, section 1.2)."""
    if not isinstance(encoder, EncoderByShape):
        return encoder
    if is_series(shape):
        return Conv1dEncoder()
    if len(shape) in (2, 3) and math.prod(shape) >= SMALLEST_IMAGE:
        return Conv2dEncoder()
    return MlpEncoder()


def is_series(shape: Shape) -> bool:
    """Whether samples are taken for a series [T, F] or a skeleton [T, J, 3]; a square [H, W, 3] is an image."""
    if shape[0] < SHORTEST_SERIES:
        return False
    if len(shape) == 2:
        T, F = shape
        return F < FEW_FEATURES or max(T, F) >= ELONGATED * min(T, F)
    return len(shape) == 3 and shape[2] == 3 and shape[0] != shape[1]


def has_colours(shape: Shape) -> bool:
    """Whether the last of three axes holds the colours of an image, and not the columns of a clip's frames."""
    return len(shape) == 3 and shape[2] <= MOST_COLOURS


def misfit(encoder: Encoder, shape: Shape) -> str:
    """Why an encoder can't take samples of this shape; empty where it can."""
    if isinstance(encoder, Conv1dEncoder) and len(shape) < 2:
        return f"kind: conv1d needs samples [T, F] or [T, J, 3], and these are {list(shape)}"
    if isinstance(encoder, Conv2dEncoder) and len(shape) not in (2, 3):
        return f"kind: conv2d needs samples [H, W], [H, W, colours] or [T, H, W], and these are {list(shape)}"
    return ""
