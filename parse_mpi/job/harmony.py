"""Harmony: two stages and clusters (docs/method.md, section 3)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field

from parse_mpi.job.base import Count
from parse_mpi.job.events import Event
from parse_mpi.job.method import Learner


class HarmonyMethod(Learner):
    """Harmony (MobiSys 2023) without its server.

    first_stage: share of the rounds in which unimodal learners train, one for each modality. In those after it
    multimodal agents train a head on the fused latent vectors (`fusion`, `label_head`), and move their encoders at
    `encoder_pace` times the learning rate; heads mix every `sync_every` rounds, in at most so many `clusters`.
    """

    name: Literal["harmony"]
    first_stage: Annotated[float, Field(gt=0.0, lt=1.0)] = 2 / 3
    sync_every: Count = 10
    encoder_pace: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    clusters: Annotated[int, Field(ge=1, le=1_000)] = 2
    fusion: Literal["concat", "mean"] = "concat"
    label_head: Literal["linear", "mlp"] = "linear"

    @property
    def only_averages(self) -> bool:
        """Slices come to rest and graphs change in mid-run."""
        return False

    def second_stage(self, rounds: int) -> int:
        """After how many of so many rounds the second stage begins."""
        return max(1, min(round(self.first_stage * rounds), rounds - 1))

    def stages(self, rounds: int) -> dict[int, str]:
        return {self.second_stage(rounds): "harmony: multimodal agents train their fusion, the others rest"}

    def too_late(self, events: Iterable[Event], rounds: int) -> list[Event]:
        """Events that bring newcomers when nobody would give them an encoder any more."""
        return [e for e in events if e.kind in ("gain", "join") and e.round >= self.second_stage(rounds)]
