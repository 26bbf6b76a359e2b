"""The network of one agent: an encoder per modality with feature fission, three types of heads (method.md 1.2).

Shapes: M modalities of the agent, B batch, C classes, H heads of one type, d slice widths. Engines may put an agent
dimension in front by `torch.vmap`; nothing here knows about other agents.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from parse_mpi.job import AdaptiveWidths, Network, SliceWidths
from parse_mpi.model.fusion import make_fusion, weighted_mean
from parse_mpi.model.initial import fission_encoders, seeded
from parse_mpi.model.names import module_key
from parse_mpi.model.widths import SoftWidths
from parse_mpi.population import Agent

# Under SGD the logits of the modalities' shares then move 4 times as fast as without it: a useless modality has to lose
# its share before its encoder has learnt the training samples by heart. Much faster, and good ones lose theirs.
SHARPNESS = 2.0


class Output(NamedTuple):
    """What a forward pass gives, by slice type; "synergistic" is absent for a unimodal agent.

    z: latent slices [M, B, d]. projected: the same at one width [M, B, width], where widths differ and the loss
    compares slices of different types; else empty. logits: of every head of the type, [H, B, C]. share: what each
    modality counts in averages, [M]. width_logits: of the modalities' shares of latent positions, [3] each, where
    widths are adaptive; else empty.
    """

    z: dict[str, Tensor]
    projected: dict[str, Tensor]
    logits: dict[str, Tensor]
    share: Tensor
    width_logits: tuple[Tensor, ...] = ()


class AgentNetwork(nn.Module):
    """Encoders and heads of an agent; shapes: modality -> sample shape.

    Sub-modules carry the names that methods/ cuts into slices: `encoders.<key>.trunk`, `.unique_redundant`,
    `.synergistic`, `unique_heads.<key>`, `redundant_head`, `fusion`, `synergy_head`, `projectors`,
    `modality_logits.<key>`, `widths.<key>`. Each is drawn from a random stream of its own, f(seed, slice), so that all
    holders of a slice start equal whatever else they hold, or, with `init: per-agent`, from f(seed, slice, agent id).
    """

    def __init__(
        self, agent: Agent, shapes: Mapping[str, tuple[int, ...]], class_count: int, options: Network, seed: int
    ):
        super().__init__()
        widths = options.slices
        multimodal = len(agent.modalities) > 1
        own = (agent.id,) if options.init == "per-agent" else ()
        self.modalities = agent.modalities
        self.keys = tuple(module_key(m) for m in agent.modalities)
        self.pool = options.pool
        has_rows = multimodal or options.synergy_rows == "all"
        self.encoders = fission_encoders(agent, shapes, widths, has_rows, seed, own)
        self.unique_heads = nn.ModuleDict()
        adaptive = self.keys if isinstance(widths, AdaptiveWidths) else ()
        self.widths = nn.ModuleDict({key: SoftWidths(widths.unique_redundant) for key in adaptive})
        for m, key in zip(agent.modalities, self.keys, strict=True):
            with seeded(seed, f"unique_head[{m}]", *own):
                self.unique_heads[key] = nn.Linear(widths.unique, class_count)
        with seeded(seed, "redundant_head", *own):
            self.redundant_head = nn.Linear(widths.redundant, class_count)
        self.fusion: nn.Module | None = None
        self.synergy_head: nn.Module | None = None
        self.projectors = nn.ModuleDict()
        self.modality_logits = nn.ModuleDict()
        if multimodal:
            self._add_synergy(options, class_count, seed, own)

    def _add_synergy(self, options: Network, class_count: int, seed: int, own: tuple[int, ...]) -> None:
        """What only agents with several modalities have beside the synergistic rows of their encoders."""
        widths = options.slices
        with seeded(seed, "fusion", *own):
            self.fusion, fused_width = make_fusion(options.fusion, self.modalities, widths.synergistic)
        with seeded(seed, "synergy_head", *own):
            self.synergy_head = make_synergy_head(options.synergy_head, fused_width, widths.synergistic, class_count)
        if options.projectors:
            with seeded(seed, "projectors", *own):
                self.projectors = make_projectors(widths)
        if options.modality_weighting == "adaptive":
            logits = {key: nn.ParameterDict({"logit": torch.zeros(1)}) for key in self.keys}
            self.modality_logits = nn.ModuleDict(logits)

    def forward(self, x: Mapping[str, Tensor]) -> Output:
        """x: modality -> [B, *sample]."""
        z = self.latents(x)
        share = self.share(z)
        unique = zip(self.keys, z["unique"].unbind(0), strict=True)
        pooled_r = weighted_mean(z["redundant"], share).unsqueeze(0) if self.pool == "mean" else z["redundant"]
        logits = {
            "unique": torch.stack([self.unique_heads[key](z_u) for key, z_u in unique]),
            "redundant": self.redundant_head(pooled_r),
        }
        if self.fusion is not None and self.synergy_head is not None:
            logits["synergistic"] = self.synergy_head(self.fusion(z["synergistic"], share)).unsqueeze(0)
        projected = {t: projector(z[t]) for t, projector in self.projectors.items()}
        return Output(z, projected, logits, share, tuple(self.widths.parameters()))

    def latents(self, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The latent slices of every modality, by type [M, B, d]: all that heads and losses see of the samples."""
        masks = {key: widths() for key, widths in self.widths.items()}
        cut = [self.encoders[key](x[m], masks.get(key)) for m, key in zip(self.modalities, self.keys, strict=True)]
        u, r, s = zip(*cut, strict=True)
        z = {"unique": torch.stack(u), "redundant": torch.stack(r)}
        return z if self.synergy_head is None else z | {"synergistic": torch.stack(s)}

    def share(self, z: Mapping[str, Tensor]) -> Tensor:
        """What each modality counts in averages over modalities [M], sum 1: equal, or learnt by this agent alone."""
        if self.modality_logits:
            return (SHARPNESS * torch.cat([*self.modality_logits.parameters()])).softmax(0)
        M = len(self.keys)
        return z["redundant"].new_full((M,), 1 / M)


def make_projectors(widths: SliceWidths | AdaptiveWidths) -> nn.ModuleDict:
    """A bias-free map per slice type to the widest of the widths, where nothing is lost."""
    own = {"unique": widths.unique, "redundant": widths.redundant, "synergistic": widths.synergistic}
    return nn.ModuleDict({t: nn.Linear(width, widths.widest, bias=False) for t, width in own.items()})


def make_synergy_head(kind: str, fused_width: int, hidden_width: int, class_count: int) -> nn.Module:
    """f_s behind the fusion: `mlp` has one hidden layer; `linear` can't express synergy on a mean (method.md 1.2)."""
    if kind == "linear":
        return nn.Linear(fused_width, class_count)
    return nn.Sequential(nn.Linear(fused_width, hidden_width), nn.ReLU(), nn.Linear(hidden_width, class_count))
