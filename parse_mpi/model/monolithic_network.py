"""The network with one shared embedding: stems to a common width, and one trunk and head behind them (method.md 2).

Shapes as in label_network.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from parse_mpi.job import MonolithicMethod
from parse_mpi.model.fusion import weighted_mean
from parse_mpi.model.initial import seeded
from parse_mpi.model.label_network import Encoders
from parse_mpi.model.network import Output
from parse_mpi.population import Agent


class MonolithicNetwork(Encoders):
    """The mean of the stems' vectors goes through the trunk. Sub-modules: `encoders.<key>`, `trunk`, `label_head`."""

    def __init__(
        self,
        agent: Agent,
        shapes: Mapping[str, tuple[int, ...]],
        class_count: int,
        options: MonolithicMethod,
        seed: int,
    ):
        super().__init__(agent, shapes, options, seed)
        width = options.slices.total
        with seeded(seed, "trunk", *self.own):
            self.trunk = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU())
        with seeded(seed, "label_head", *self.own):
            self.label_head = nn.Linear(width, class_count)

    def forward(self, x: Mapping[str, Tensor]) -> Output:
        """x: modality -> [B, *sample]."""
        z = self.latents(x)
        share = self.share(z)
        logits = self.label_head(self.trunk(weighted_mean(z, share))).unsqueeze(0)
        return Output({"latent": z}, {}, {"label": logits}, share)
