"""Initial values: every part of a network draws from a random stream of its own, f(seed, slice).

So all holders of a slice start equal whatever else they hold, and so do methods where their shapes agree. With
`init: per-agent` it is f(seed, slice, agent id).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from parse_mpi.job import AdaptiveWidths, SliceWidths
from parse_mpi.model.encoders import FissionEncoder, make_trunk
from parse_mpi.model.names import module_key
from parse_mpi.population import Agent
from parse_mpi.seeding import derive_seed


def fission_encoders(
    agent: Agent,
    shapes: Mapping[str, tuple[int, ...]],
    widths: SliceWidths | AdaptiveWidths,
    synergistic: bool,
    seed: int,
    own: tuple[int, ...],
) -> nn.ModuleDict:
    """The encoders of an agent by module key; synergistic: whether they have synergistic rows. own: its id, or ()."""
    encoders = nn.ModuleDict()
    for m, encoder in zip(agent.modalities, agent.encoders, strict=True):
        with seeded(seed, f"encoder[{m}]", *own):
            trunk = make_trunk(encoder, shapes[m])
            unique_redundant = nn.Linear(trunk.width, widths.unique_redundant)
        with seeded(seed, f"synergy[{m}]", *own):
            rows = nn.Linear(trunk.width, widths.synergistic) if synergistic else None
        encoders[module_key(m)] = FissionEncoder(trunk, unique_redundant, widths.unique, rows)
    return encoders


@contextmanager
def seeded(seed: int, purpose: str, *indices: int) -> Iterator[None]:
    """Modules built inside draw their initial values from the stream (seed, "init", purpose, indices).

    PyTorch's layers draw from its default CPU generator; that is borrowed and given back as it was.
    """
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(derive_seed(seed, f"init:{purpose}", *indices))
    try:
        yield
    finally:
        generator.set_state(state)
