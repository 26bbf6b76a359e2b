"""A communicator that notes all that is handed to MPI: which function of parse_mpi called, and the bytes that it sends.

`watched(comm)` stands in for a communicator; what it makes (graph communicators, duplicates) is watched too.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

# Which argument of a call is sent; None: nothing is. Any other call is unknown here and an error.
SENT = {
    "Allgather": 0, "Allgatherv": 0, "Gatherv": 0, "Alltoall": 0, "Alltoallv": 0, "Ineighbor_alltoallv": 0, "Isend": 0,
    "Allreduce": 1, "Iallreduce": 1, "Bcast": 0, "Irecv": None, "Barrier": None,
    "Create_dist_graph_adjacent": None, "Split_type": None, "Free": None,
}  # fmt: skip
JSON_METHODS = ("gather_json", "broadcast_json")
JSON_LIMIT_BYTES = 1 << 16
NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


@dataclass(frozen=True)
class Call:
    """One call of MPI. caller: the function that wanted it, World and this file left out; via: World's method or ""."""

    method: str
    caller: str
    via: str
    sent: bytes


@dataclass
class Watch:
    """What was seen. made, freed: communicators that calls returned, and those given back; most: at a time."""

    calls: list[Call] = field(default_factory=list)
    made: int = 0
    freed: int = 0
    most: int = 0

    def note(self, method: str, arguments: tuple[Any, ...], rank: int) -> None:
        """Keep a call of a communicator's method; AssertionError for one that this file does not know."""
        assert method in SENT, f"comm.{method}: say in {__name__} what it sends"
        position = SENT[method]
        if method in ("Allreduce", "Iallreduce"):
            assert arguments[0] is MPI.IN_PLACE
        if method == "Bcast" and rank:
            position = None
        sent = b"" if position is None else _bytes(arguments[position])
        caller, via = _who(sys._getframe(2))
        self.calls.append(Call(method, caller, via, sent))


class WatchedComm:
    """A communicator whose calls a Watch notes."""

    def __init__(self, comm: MPI.Comm, watch: Watch):
        self._comm, self._watch = comm, watch

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._comm, name)
        if not callable(value):
            return value

        def call(*arguments: Any, **named: Any) -> Any:
            self._watch.note(name, arguments, self._comm.rank)
            made = value(*arguments, **named)
            self._watch.freed += name == "Free"
            if not isinstance(made, MPI.Comm):
                return made
            self._watch.made += 1
            self._watch.most = max(self._watch.most, self._watch.made - self._watch.freed)
            return WatchedComm(made, self._watch)

        return call


def _who(frame: FrameType | None) -> tuple[str, str]:
    """The innermost function of parse_mpi outside exchange/world.py, and the method of World that it called."""
    via = ""
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module == "parse_mpi.exchange.world":
            via = via or frame.f_code.co_name
        elif module != __name__ and not frame.f_code.co_name.startswith("<"):
            return f"{module.removeprefix('parse_mpi.')}.{frame.f_code.co_name}", via
        frame = frame.f_back
    return "", via


def _bytes(message: Any) -> bytes:
    """All bytes of the buffer of a message, counts and data types aside."""
    buffer = message[0] if isinstance(message, list) else message
    return b"" if buffer is None else np.ascontiguousarray(buffer).tobytes()


class Secrets:
    """What must not travel: values of samples, float32 [n, features] each, and agents' labels in order.

    Two neighbouring features of a sample betray it, as float32 or as float64, unless one of them is 0.
    """

    def __init__(self, samples: list[NDArray[np.float32]], labels: list[NDArray[np.int64]]):
        pairs = [x[:, k : k + 2] for x in samples for k in range(x.shape[1] - 1)]
        told = np.concatenate([pair[(pair != 0).all(1)] for pair in pairs])
        self.narrow = np.unique(told.astype("<f4").view("<u8").ravel())
        wide = told.astype("<f8").view("<u8")
        self.first, self.pairs = np.unique(wide[:, 0]), set(map(tuple, wide.tolist()))
        self.labels = [own for own in labels if len(own) >= 6]

    def found_in(self, call: Call) -> str:
        """What of it a call sends, or ""."""
        numbers, whole = call.sent, call.sent
        if call.via in JSON_METHODS and call.method != "Allgather":
            read = np.array([float(text) for text in NUMBER.findall(call.sent)], "<f8")
            read = read[np.abs(read) < 2.0**53]
            numbers, whole = read[read != np.round(read)].tobytes(), read.astype("<i8").tobytes()
        if self._has_values(numbers):
            return "values of a sample"
        forms = ("<i8", "<i4", "u1", "<f4", "<f8")
        if any(own.astype(form).tobytes() in whole for own in self.labels for form in forms):
            return "the labels of an agent"
        return ""

    def _has_values(self, sent: bytes) -> bool:
        for offset in range(0, min(8, len(sent)), 4):
            words = np.frombuffer(sent, "<u8", (len(sent) - offset) // 8, offset)
            if _known(words, self.narrow).any():
                return True
            begin = np.flatnonzero(_known(words[:-1], self.first))
            if self.pairs.intersection(zip(words[begin].tolist(), words[begin + 1].tolist(), strict=True)):
                return True
        return False


def _known(words: NDArray[np.uint64], known: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which words are among the known ones, which ascend."""
    return known[np.searchsorted(known, words).clip(max=len(known) - 1)] == words


def is_small_json(call: Call) -> bool:
    """Whether a call of a method of World for JSON sends that, or its size, and not much of it."""
    if call.method in ("Allgather",) or len(call.sent) == 8 or not call.sent:
        return len(call.sent) <= 8
    json.loads(call.sent)
    return len(call.sent) <= JSON_LIMIT_BYTES
