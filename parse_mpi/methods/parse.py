"""PARSE: feature fission, alignment of the redundant slices, slice-level partial sharing (arXiv 2601.10012)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from parse_mpi.job import AdaptiveWidths, Encoder, ParseMethod
from parse_mpi.job.method import BetaSchedule
from parse_mpi.methods.base import (
    ALL,
    MULTIMODAL,
    Method,
    SliceSpec,
    by_set,
    equal_sets,
    private,
    scoped,
    shared,
)
from parse_mpi.model.names import module_key
from parse_mpi.population import Agent, families

if TYPE_CHECKING:
    from torch import Tensor

    from parse_mpi.model.network import AgentNetwork, Output


@dataclass(frozen=True)
class Parse(Method):
    """The method of the paper; see docs/method.md for each choice."""

    options: ParseMethod

    def slices(self, agents: Sequence[Agent], roster: Sequence[Agent] = ()) -> tuple[SliceSpec, ...]:
        """Encoders and unique heads over each modality's graph, synergy among multimodal agents, f_r among all.

        Trunks of different families differ in shape: what depends on them mixes inside a family only.
        """
        modalities = sorted({m for agent in agents for m in agent.modalities})
        multimodal = [agent for agent in agents if len(agent.modalities) > 1]
        table = [
            spec for m in modalities for spec in self._of_modality(m, agents, multimodal, families(roster or agents, m))
        ]
        here = [agent for agent in agents if agent.modalities]
        redundant = shared("redundant_head", ("redundant_head.",), here, ALL)
        table.append(scoped(redundant, self.options.sharing.redundant_head, here))
        table += self._synergy_heads(multimodal)
        if self.options.projectors:
            table.append(shared("projectors", ("projectors.",), multimodal, MULTIMODAL))
        return tuple(spec for spec in table if spec.holders)

    def _of_modality(
        self, m: str, agents: Sequence[Agent], multimodal: Sequence[Agent], encoders: Sequence[Encoder]
    ) -> Iterator[SliceSpec]:
        """The slices that belong to one modality; encoders: one for each of its families."""
        o, key = self.options, module_key(m)
        encoder = (f"encoders.{key}.trunk.", f"encoders.{key}.unique_redundant.")
        synergy = (f"encoders.{key}.synergistic.",)
        holders = [agent for agent in agents if m in agent.modalities]
        several = [agent for agent in multimodal if m in agent.modalities]
        for number, family in enumerate(encoders, 1):
            label = m if number == 1 else f"{m}#{number}"
            graph = m if len(encoders) == 1 else f"{m}#{number}"
            members = [agent for agent in holders if agent.encoder(m) == family]
            if o.synergy_rows == "all":
                whole = shared(f"encoder[{label}]", encoder + synergy, members, graph, m)
                yield scoped(whole, o.sharing.encoder, members)
            else:
                both = [agent for agent in members if len(agent.modalities) > 1]
                yield scoped(shared(f"encoder[{label}]", encoder, members, graph, m), o.sharing.encoder, members)
                yield self._synergy(f"synergy[{label}]", synergy, both, f"multimodal holders of {graph}", m)
        unique = shared(f"unique_head[{m}]", (f"unique_heads.{key}.",), holders, m, m)
        yield scoped(unique, o.sharing.unique_head, holders)
        if isinstance(o.slices, AdaptiveWidths):
            yield replace(shared(f"widths[{m}]", (f"widths.{key}.",), holders, m, m), rate=o.slices.adapt.rate)
        if o.fusion == "gated":
            gate = self._synergy(f"gate[{m}]", (f"fusion.gates.{key}.",), several, f"multimodal holders of {m}", m)
            if o.gate_sync == "local":
                yield private(gate)
            else:
                yield replace(gate, every=1 if o.gate_sync == "every-round" else o.gate_sync)
        if o.modality_weighting == "adaptive":
            yield private(shared(f"modality_weight[{m}]", (f"modality_logits.{key}.",), several, m))

    def _synergy_heads(self, multimodal: Sequence[Agent]) -> Iterator[SliceSpec]:
        """f_s with an attention layer before it. Behind `concat` its shape, and so the slice, belongs to one set."""
        parameters = ("fusion.attention.", "synergy_head.")
        if self.options.fusion != "concat":
            yield self._synergy("synergy_head", parameters, multimodal, MULTIMODAL)
            return
        for members in equal_sets(multimodal):
            kind = members[0].kind
            yield shared(f"synergy_head[{kind}]", parameters, members, f"agents with {kind}")

    def _synergy(
        self, name: str, parameters: tuple[str, ...], holders: Sequence[Agent], graph: str, modality: str = ""
    ) -> SliceSpec:
        """A slice that `synergy_scope` governs: among all its holders, or among those with equal modality sets."""
        spec = shared(name, parameters, holders, graph, modality)
        return spec if self.options.synergy_scope == "pooled" else by_set(spec, holders)

    def problems(self, agents: Sequence[Agent], roster: Sequence[Agent] = ()) -> list[str]:
        """`concat` gives every modality a place in f_s, so that agents who share it must hold the same.

        Nobody but a multimodal agent can tell unique from redundant.
        """
        sets = list(dict.fromkeys(agent.kind for agent in agents if len(agent.modalities) > 1))
        alone = all(len(agent.modalities) < 2 for agent in roster or agents)
        if alone and isinstance(self.options.slices, AdaptiveWidths):
            return ["slices.adapt learns from multimodal agents, and there is none: give slices fixed widths"]
        if self.options.fusion != "concat" or self.options.synergy_scope == "set" or len(sets) < 2:
            return []
        return [
            f"fusion: concat has a place for every modality, and multimodal agents hold {', '.join(sets)}: "
            "say synergy_scope: set, or choose fusion: mean, gated or attention"
        ]

    @property
    def schedule(self) -> BetaSchedule:
        """How the weight of the alignment term goes over the rounds."""
        return self.options.beta_schedule

    def network(self, agent: Agent, shapes: Mapping[str, tuple[int, ...]], class_count: int, seed: int) -> AgentNetwork:
        from parse_mpi.model.network import AgentNetwork

        return AgentNetwork(agent, shapes, class_count, self.options, seed)

    def alignment_weight(self, kind: tuple[str, ...], agents: Sequence[Agent]) -> float:
        """beta for multimodal agents, 0 for the others (method.md 1.3).

        Only multimodal holders align, so that on a modality's graph beta is diluted to beta * n_multimodal / n_m;
        `beta_scale: holders` divides that out, averaged over the agent's modalities.
        """
        if len(kind) < 2:
            return 0.0
        if self.options.beta_scale == "none":
            return self.options.beta
        holders = [[agent for agent in agents if m in agent.modalities] for m in kind]
        shares = [sum(len(agent.modalities) > 1 for agent in held) / len(held) for held in holders]
        return self.options.beta * sum(1 / share for share in shares) / len(shares)

    def loss(self, output: Output, y: Tensor, mask: Tensor, alignment_weight: Tensor | None) -> Tensor:
        import torch

        from parse_mpi.model.heads import ensemble, type_weights
        from parse_mpi.model.losses import contrastive, cross_entropy
        from parse_mpi.model.widths import width_loss

        o = self.options
        of_ensemble = cross_entropy(ensemble(output.logits, output.share, o.ensemble), y, mask)
        weights = type_weights(output.logits, o.ensemble)
        of_heads = torch.zeros_like(of_ensemble)
        for t, logits in output.logits.items():
            of_heads = of_heads + weights[t] * cross_entropy(logits, y.unsqueeze(-2), mask.unsqueeze(-2)).mean(-1)
        total = o.ensemble_weight * of_ensemble + o.head_weight * of_heads
        if isinstance(o.slices, AdaptiveWidths) and "synergistic" in output.logits:
            penalty = o.slices.adapt.penalty
            arguments = output.width_logits, output.logits, output.share, y, mask
            total = total + width_loss(*arguments, penalty=penalty, how=o.ensemble)
        if alignment_weight is None:
            return torch.stack([total, of_ensemble, of_heads, torch.zeros_like(total)], -1)
        alignment = contrastive(
            output.z,
            output.projected,
            y,
            mask,
            temperature=o.temperature,
            hard_negatives=o.hard_negatives,
            mask_same_label=o.mask_same_label,
        )
        return torch.stack([total + alignment_weight * alignment, of_ensemble, of_heads, alignment], -1)

    def after_mix(self, rows: Mapping[str, Tensor], done: int) -> None:
        """Widths begin equal, and every so many rounds they become whole numbers (method.md 1.2)."""
        widths = self.options.slices
        if not isinstance(widths, AdaptiveWidths) or (done > widths.adapt.start and done % widths.adapt.every):
            return
        import torch

        from parse_mpi.model.widths import harden

        for name, values in rows.items():
            if name.startswith("widths["):
                logits = values.double().cpu().numpy()
                start = done <= widths.adapt.start
                values.copy_(torch.from_numpy(harden(0 * logits if start else logits, widths.total)))

    def predictions(self, output: Output, modalities: Sequence[str]) -> dict[str, Tensor]:
        from parse_mpi.model.heads import predictions

        return predictions(output.logits, output.share, modalities, self.options.ensemble)

    def shared_latent(self, output: Output) -> Tensor | None:
        return output.z["redundant"]
