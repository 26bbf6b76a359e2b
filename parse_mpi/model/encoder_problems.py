"""What is wrong with the encoders of a job, once its data are known; imports torch only where there is an own one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING

from parse_mpi.data.memory import available_bytes
from parse_mpi.errors import JobError, Problem
from parse_mpi.job import Encoder, Job, OwnEncoder
from parse_mpi.jobfile import JobFile
from parse_mpi.model.names import module_key
from parse_mpi.model.shapes import Shape, misfit
from parse_mpi.population import Agent, encoder_key, encoder_of
from parse_mpi.yamlfile import KeyPath

if TYPE_CHECKING:
    from torch import nn


def encoder_problems(jobfile: JobFile, agents: Iterable[Agent], shapes: Mapping[str, Shape]) -> list[Problem]:
    """One problem for each key that names an encoder which can't serve, or a modality that the data do not have.

    agents: all that there ever are; shapes: modality -> shape of a sample, for every modality of the data.
    """
    job = jobfile.job
    problems = [
        Problem(jobfile.where(*keys), f"no data for modality {keys[-1]!r}", _nearest(str(keys[-1]), list(shapes)))
        for keys in _named(job)
        if keys[-1] not in shapes
    ]
    entry_of = _entries(job)
    used = dict.fromkeys((entry_of[agent.id], m) for agent in agents for m in agent.modalities)
    found: dict[tuple[KeyPath, str], str] = {}
    for k, m in used:
        keys = encoder_key(job, k, m)
        if (keys, m) not in found:
            found[keys, m] = _fault(encoder_of(job, job.agents[k], m), shapes[m], job)
    return problems + [
        Problem(jobfile.where(*keys), f"`{'.'.join(map(str, keys))}` can't serve for modality {m!r}: {what}")
        for (keys, m), what in found.items()
        if what
    ]


def require_room(job: Job, agent: Agent, network: nn.Module) -> None:
    """Raise JobError where this machine has no memory for one network of an agent: at the key that asks for most of it.

    network: on the meta device, where it takes none.
    """
    entry, asked = _entries(job)[agent.id], Counter[KeyPath]()
    for name, parameter in network.named_parameters():
        trunk_of = [m for m in agent.modalities if name.startswith(f"encoders.{module_key(m)}.trunk.")]
        keys = encoder_key(job, entry, trunk_of[0]) if trunk_of else ("method", "slices")
        asked[keys] += parameter.numel() * parameter.element_size()
    size_bytes, free_bytes = asked.total(), available_bytes()
    if size_bytes > free_bytes:
        ((keys, most_bytes),) = asked.most_common(1)
        what = (
            f"the parameters of one agent with {agent.kind} take {size_bytes / 1e9:,.1f} GB, {most_bytes / 1e9:,.1f} "
            f"GB of it because of this key, and {free_bytes / 1e9:,.1f} GB of memory are free here"
        )
        next_step = "choose smaller layers, or a machine with more memory"
        raise JobError([Problem(".".join(map(str, keys)), what, next_step)])


def own_sources(encoders: Iterable[Encoder]) -> list[str]:
    """Digests of the Python files that own encoders come from, each once, in order."""
    own = {encoder: None for encoder in encoders if isinstance(encoder, OwnEncoder)}
    if not own:
        return []
    from parse_mpi.model.own import source_digest

    return [source_digest(encoder) for encoder in own]


def _fault(encoder: Encoder, shape: Shape, job: Job) -> str:
    if not isinstance(encoder, OwnEncoder):
        return misfit(encoder, shape)
    from parse_mpi.model.own import fault

    return fault(encoder, shape, dtype=job.dtype, stacked=job.mode == "fast" and job.engine != "loop")


def _entries(job: Job) -> list[int]:
    """Index of the entry of the job's list that each agent comes from, by agent id."""
    return [k for k, entry in enumerate(job.agents) for _ in range(entry.count)]


def _named(job: Job) -> list[KeyPath]:
    """Key paths of all encoders that the job gives to a modality by name."""
    of_entries = [("agents", k, "encoders", m) for k, entry in enumerate(job.agents) for m in entry.encoders]
    return [*(("encoders", m) for m in job.encoders), *of_entries]


def _nearest(name: str, known: Sequence[str]) -> str:
    close = get_close_matches(name, known, 1)
    return (f"did you mean {close[0]!r}? " if close else "") + f"the data hold {', '.join(known)}"
