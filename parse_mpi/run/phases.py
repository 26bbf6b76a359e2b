"""Where the time of a round goes, per rank."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

PHASES = ("local_steps", "pack", "mix", "wait", "evaluate", "checkpoint", "record", "agree")


class PhaseTimer:
    """Seconds per phase since the last `take`. On a GPU each phase ends with a synchronise, so that it is its own."""

    def __init__(self, device: torch.device):
        self._device = device
        self._seconds = dict.fromkeys(PHASES, 0.0)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._seconds[phase] += time.perf_counter() - start

    def take(self) -> NDArray[np.float64]:
        """Seconds [phase] in the order of PHASES, and start again at 0."""
        seconds = np.array(list(self._seconds.values()))
        self._seconds = dict.fromkeys(PHASES, 0.0)
        return seconds
