"""The network of DMML-KD: common and specific features, and a generator of common ones (docs/method.md, section 2).

Shapes as in network.py: M modalities of the agent, B batch, C classes; d width of the common part, K points of noise,
E width of the noise.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, relu

from parse_mpi.job import DmmlKdMethod
from parse_mpi.model.initial import seeded
from parse_mpi.model.label_network import LabelNetwork
from parse_mpi.model.network import Output
from parse_mpi.population import Agent
from parse_mpi.seeding import stream


class Generator(nn.Module):
    """Common features of every class: a class and a point of noise through one hidden layer.

    The points are drawn once and for all, the same for every class, agent, step and job.
    """

    def __init__(self, class_count: int, options: DmmlKdMethod):
        super().__init__()
        o = options.generator
        draw = stream(0, "noise of generators")
        self.noise_KE = draw.standard_normal((o.points, o.noise)).tolist()  # no tensor: skeletons have no values
        self.class_count = class_count
        self.hidden = nn.Linear(class_count + o.noise, o.hidden)
        self.out = nn.Linear(o.hidden, options.common_width)

    def forward(self) -> Tensor:
        """[C, K, d]: for every class the same points of noise."""
        bias = self.out.bias
        noise_KE = torch.tensor(self.noise_KE, dtype=bias.dtype, device=bias.device)
        label_CC = torch.eye(self.class_count, dtype=bias.dtype, device=bias.device)
        C, K = len(label_CC), len(noise_KE)
        pair_CKE = torch.cat([label_CC.unsqueeze(1).expand(C, K, C), noise_KE.expand(C, K, -1)], -1)
        made: Tensor = self.out(relu(self.hidden(pair_CKE)))
        return made


class GeneratorNetwork(LabelNetwork):
    """A head on the fused latent vector, one on common features alone, and the generator.

    Sub-modules: `encoders.<key>`, `fusion`, `label_head`, `common_head`, `generator`. Logits: "label" [1, B, C],
    "common" [M, B, C], and "generated" [C, K, C], whose gradient reaches the generator but not the head that judges it.
    """

    def __init__(
        self, agent: Agent, shapes: Mapping[str, tuple[int, ...]], class_count: int, options: DmmlKdMethod, seed: int
    ):
        super().__init__(agent, shapes, class_count, options, seed)
        self.common = options.common_width
        with seeded(seed, "common_head", *self.own):
            self.common_head = nn.Linear(self.common, class_count)
        with seeded(seed, "generator", *self.own):
            self.generator = Generator(class_count, options)

    def forward(self, x: Mapping[str, Tensor]) -> Output:
        """x: modality -> [B, *sample]."""
        z = self.latents(x)
        share = self.share(z)
        common = z[..., : self.common]
        generated = self.generator()
        judge = self.common_head
        logits = {
            "label": self.label_head(self.fusion(z, share)).unsqueeze(0),
            "common": judge(common),
            "generated": linear(generated, judge.weight.detach(), judge.bias.detach()),
        }
        return Output({"common": common, "generated": generated}, {}, logits, share)
