"""The network of one agent: an encoder per modality with feature fission, three types of heads (method.md 1.2).

Shapes: M modalities of the agent, B batch, C classes, H heads of one type, d slice widths. Engines may put an agent
dimension in front by `torch.vmap`; nothing here knows about other agents.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from parse_mpi.job import Network
from parse_mpi.model.encoders import FissionEncoder, make_trunk
from parse_mpi.model.names import module_key
from parse_mpi.population import Agent
from parse_mpi.seeding import derive_seed


class Output(NamedTuple):
    """What a forward pass gives, by slice type; "synergistic" is absent for a unimodal agent.

    z: latent slices [M, B, d]. logits: of every head of the type, [H, B, C].
    """

    z: dict[str, Tensor]
    logits: dict[str, Tensor]


class AgentNetwork(nn.Module):
    """Encoders and heads of an agent; shapes: modality -> sample shape.

    Sub-modules carry the names that methods/ cuts into slices: `encoders.<key>.trunk`, `.unique_redundant`,
    `.synergistic`, `unique_heads.<key>`, `redundant_head`, `synergy_head`. Each is drawn from a random stream of its
    own, f(seed, slice), so that all holders of a slice start equal whatever else they hold.
    """

    def __init__(
        self, agent: Agent, shapes: Mapping[str, tuple[int, ...]], class_count: int, options: Network, seed: int
    ):
        super().__init__()
        widths = options.slices
        multimodal = len(agent.modalities) > 1
        self.modalities = agent.modalities
        self.keys = tuple(module_key(m) for m in agent.modalities)
        self.pool = options.pool
        self.encoders = nn.ModuleDict()
        self.unique_heads = nn.ModuleDict()
        for m, encoder, key in zip(agent.modalities, agent.encoders, self.keys, strict=True):
            with seeded(seed, f"encoder[{m}]"):
                trunk = make_trunk(encoder, shapes[m])
                unique_redundant = nn.Linear(trunk.width, widths.unique + widths.redundant)
            with seeded(seed, f"synergy[{m}]"):
                synergistic = nn.Linear(trunk.width, widths.synergistic) if multimodal else None
            with seeded(seed, f"unique_head[{m}]"):
                self.unique_heads[key] = nn.Linear(widths.unique, class_count)
            self.encoders[key] = FissionEncoder(trunk, unique_redundant, widths.unique, synergistic)
        with seeded(seed, "redundant_head"):
            self.redundant_head = nn.Linear(widths.redundant, class_count)
        with seeded(seed, "synergy_head"):
            self.synergy_head = (
                make_synergy_head(options.synergy_head, widths.synergistic, class_count) if multimodal else None
            )

    def forward(self, x: Mapping[str, Tensor]) -> Output:
        """x: modality -> [B, *sample]."""
        u, r, s = zip(
            *(self.encoders[key](x[m]) for m, key in zip(self.modalities, self.keys, strict=True)), strict=True
        )
        z = {"unique": torch.stack(u), "redundant": torch.stack(r)}
        pooled_r = z["redundant"].mean(0, keepdim=True) if self.pool == "mean" else z["redundant"]
        logits = {
            "unique": torch.stack([self.unique_heads[key](z_u) for key, z_u in zip(self.keys, u, strict=True)]),
            "redundant": self.redundant_head(pooled_r),
        }
        if self.synergy_head is not None:
            z["synergistic"] = torch.stack(s)
            logits["synergistic"] = self.synergy_head(z["synergistic"].mean(0)).unsqueeze(0)
        return Output(z, logits)


def make_synergy_head(kind: str, width: int, class_count: int) -> nn.Module:
    """f_s behind the fusion: `mlp` has one hidden layer; `linear` can't express synergy on a mean (method.md 1.2)."""
    if kind == "linear":
        return nn.Linear(width, class_count)
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, class_count))


@contextmanager
def seeded(seed: int, purpose: str) -> Iterator[None]:
    """Modules built inside draw their initial values from the stream (seed, "init", purpose).

    PyTorch's layers draw from its default CPU generator; that is borrowed and given back as it was.
    """
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(derive_seed(seed, f"init:{purpose}"))
    try:
        yield
    finally:
        generator.set_state(state)
