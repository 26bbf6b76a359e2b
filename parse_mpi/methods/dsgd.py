"""DSGD on whole models: agents average with those that hold the same modalities, or all holders do (method.md 2).

Also the centralised ceiling, which is DSGD with the exact mean of all agents in every round.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from parse_mpi.job import CentralisedMethod, DsgdMethod, ParseMethod, Sharing
from parse_mpi.job.baselines import POLICIES
from parse_mpi.job.method import Scope
from parse_mpi.methods.base import ALL, Method, SliceSpec, equal_sets, scoped, shared
from parse_mpi.methods.parse import Parse
from parse_mpi.model.names import module_key
from parse_mpi.population import Agent, families

if TYPE_CHECKING:
    from torch import Tensor, nn

    from parse_mpi.model.network import Output


def make_dsgd(options: DsgdMethod | CentralisedMethod) -> Method:
    """The method with one head, or PARSE's network under the same policy."""
    return Dsgd(options) if options.heads == "label" else Parse(with_slices(options))


def with_slices(options: DsgdMethod) -> ParseMethod:
    """PARSE's network and heads without its alignment term, averaged as the method says."""
    encoder, head = POLICIES[options.name]
    return ParseMethod(
        name="parse",
        slices=options.slices,
        init=options.init,
        aggregate=options.aggregate,
        sharing=options.sharing or Sharing(encoder=encoder, unique_head=head, redundant_head=head),
        fusion=options.fusion,
        synergy_scope="set" if head == "set" or options.fusion == "concat" else "pooled",
        synergy_head=options.synergy_head,
        synergy_rows=options.synergy_rows,
        pool=options.pool,
        ensemble=options.ensemble,
        ensemble_weight=options.ensemble_weight,
        head_weight=options.head_weight,
        beta=0.0,
        hard_negatives="none",
    )


class OneHead(Method):
    """What methods with a single head have in common: its logits are the loss and the prediction."""

    def loss(self, output: Output, y: Tensor, mask: Tensor, alignment_weight: Tensor | None) -> Tensor:
        import torch

        from parse_mpi.model.losses import cross_entropy

        total = cross_entropy(output.logits["label"].squeeze(-3), y, mask)
        nothing = torch.zeros_like(total)
        return torch.stack([total, total, nothing, nothing], -1)

    def predictions(self, output: Output, modalities: Sequence[str]) -> dict[str, Tensor]:
        return {"ensemble": output.logits["label"].squeeze(-3)}

    def shared_latent(self, output: Output) -> Tensor | None:
        return output.z["latent"]


@dataclass(frozen=True)
class Dsgd(OneHead):
    """Encoders and one head on the fused latent vector."""

    options: DsgdMethod

    def slices(self, agents: Sequence[Agent], roster: Sequence[Agent] = ()) -> tuple[SliceSpec, ...]:
        scope, head_scope = POLICIES[self.options.name]
        here = [agent for agent in agents if agent.modalities]
        heads = label_head_slices(here, self.options.fusion, head_scope)
        return (*encoder_slices(agents, roster or agents, scope), *heads)

    def problems(self, agents: Sequence[Agent], roster: Sequence[Agent] = ()) -> list[str]:
        """`concat` has a place for every modality, so that only agents with the same set can share a head behind it."""
        if self.options.fusion != "concat" or POLICIES[self.options.name][1] == "set":
            return []
        kinds = dict.fromkeys(agent.kind for agent in agents if agent.modalities)
        if len(kinds) < 2:
            return []
        what = f"{self.options.name} shares one head among {', '.join(kinds)}"
        return [f"{what}, and behind fusion: concat they can't: use mean or attention"]

    def network(self, agent: Agent, shapes: Mapping[str, tuple[int, ...]], class_count: int, seed: int) -> nn.Module:
        from parse_mpi.model.label_network import LabelNetwork

        return LabelNetwork(agent, shapes, class_count, self.options, seed)


def encoder_slices(agents: Sequence[Agent], roster: Sequence[Agent], scope: Scope) -> Iterator[SliceSpec]:
    """Whole encoders, a slice for each family of a modality."""
    for m in sorted({m for agent in agents for m in agent.modalities}):
        found = families(roster, m)
        for number, family in enumerate(found, 1):
            label = m if number == 1 else f"{m}#{number}"
            graph = m if len(found) == 1 else f"{m}#{number}"
            members = [agent for agent in agents if m in agent.modalities and agent.encoder(m) == family]
            encoder = shared(f"encoder[{label}]", (f"encoders.{module_key(m)}.",), members, graph, m)
            if members:
                yield scoped(encoder, scope, members)


def label_head_slices(here: Sequence[Agent], fusion: str, scope: Scope) -> Iterator[SliceSpec]:
    """One head with the fusion before it. Behind `concat` its shape, and so the slice, belongs to one set."""
    parameters = ("fusion.", "label_head.")
    if fusion != "concat":
        yield scoped(shared("label_head", parameters, here, ALL), scope, here)
        return
    for members in equal_sets(here):
        kind = members[0].kind
        yield shared(f"label_head[{kind}]", parameters, members, f"agents with {kind}")
