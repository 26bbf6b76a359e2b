"""Widths of the latent slices: fixed, or adapted while agents learn (docs/method.md, section 1.2)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from parse_mpi.job.base import Count, Section


class SliceWidths(Section):
    """Widths d_u, d_r, d_s of the latent slices; the encoder's output has their sum."""

    unique: Count = 64
    redundant: Count = 64
    synergistic: Count = 64

    @property
    def total(self) -> int:
        """D, the width of an encoder's output."""
        return self.unique + self.redundant + self.synergistic

    @property
    def unique_redundant(self) -> int:
        """Values that the part of an encoder's last layer gives which every holder has."""
        return self.unique + self.redundant

    @property
    def comparable(self) -> bool:
        """Whether slices can be compared with each other as they are."""
        return self.unique == self.redundant == self.synergistic

    @property
    def widest(self) -> int:
        """The largest of the three."""
        return max(self.unique, self.redundant, self.synergistic)


class WidthAdaptation(Section):
    """How widths follow what slices tell about the label (method.md 1.2).

    penalty: what every slice is given beside what it tells. rate: length of a local step. start: rounds during which
    widths stay equal. every: rounds between two hardenings, which move boundaries to whole positions.
    """

    penalty: Annotated[float, Field(gt=0.0, le=1e3)] = 0.1
    rate: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    start: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    every: Count = 50


class AdaptiveWidths(Section):
    """`total` latent positions a modality, which its holders divide among the three slices while they learn.

    Layers are as wide as a slice could become; masks say which positions are whose.
    """

    total: Annotated[int, Field(ge=3, le=1_000_000)]
    adapt: WidthAdaptation = WidthAdaptation()

    @property
    def unique(self) -> int:
        return self.total

    @property
    def redundant(self) -> int:
        return self.total

    @property
    def synergistic(self) -> int:
        return self.total

    @property
    def unique_redundant(self) -> int:
        """Unique and redundant positions are values of one layer."""
        return self.total

    @property
    def comparable(self) -> bool:
        """Slices have no position in common, so that their cosines are 0 as they are."""
        return False

    @property
    def widest(self) -> int:
        return self.total
