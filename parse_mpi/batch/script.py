"""Batch scripts: a script of slurm/ with the #SBATCH lines and settings of a job or a study put into it."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from parse_mpi.batch.site import Site, shipped
from parse_mpi.errors import BatchError, Problem, counted

FILLED_IN = re.compile(r"^# Filled in by: .*\n", re.MULTILINE)
INDEX = "{index}"
ARRAY = re.compile(r"\d+(-\d+(:\d+)?)?(,\d+(-\d+(:\d+)?)?)*(%\d+)?")
NIC = 'nics=({nics}); export {variable}="${{nics[SLURM_LOCALID % ${{#nics[@]}}]}}"; exec "$@"'


@dataclass(frozen=True)
class Allocation:
    """What a script asks Slurm for. cores: of each rank. array: task indices as for sbatch --array, "" without one."""

    nodes: int
    ranks_per_node: int
    cores: int
    time: str
    array: str = ""

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node


def allocation(site: Site, nodes: int, ranks_per_node: int | None, time: str | None, array: str = "") -> Allocation:
    """What is asked for on this site. Raises BatchError where a node has too little for so many ranks."""
    problems, node = [], site.node
    ranks = ranks_per_node or node.ranks
    if ranks > node.cores:
        hint = "say how many cores a node has: node.cores of the site file"
        problems.append(Problem("--ranks-per-node", f"{counted(ranks, 'rank')} on {counted(node.cores, 'core')}", hint))
    if node.gpus and ranks > node.gpus:
        problems.append(Problem("--ranks-per-node", f"{counted(ranks, 'rank')} on {counted(node.gpus, 'GPU')}"))
    if array and not ARRAY.fullmatch(array):
        problems.append(Problem("--array", f"{array!r} is no array", "for example 1-10, 0,3,7 or 1-100%5"))
    if problems:
        raise BatchError(problems)
    return Allocation(nodes, ranks, node.cores // ranks, time or site.time, array)


def first_index(wanted: Allocation) -> str:
    """The index of the first task of an array; "0" without one."""
    return re.match(r"\d*", wanted.array)[0] or "0"  # type: ignore[index]


def train_script(site: Site, wanted: Allocation, job: Path, name: str, out: str, settings: Iterable[str]) -> str:
    """The script that trains a job into the run directory `out`.

    settings: KEY=VALUE as after --set. `{index}` in them and in `out` is the index of an array's task.
    """
    values = {
        "job": _quoted(os.path.abspath(job)),
        "run": _quoted(os.path.abspath(out)),
        "settings": _list(word for setting in settings for word in ("--set", setting)),
        "srun_options": _list(_srun_options(site, wanted)),
        "nic": _list(_nic(site)),
        "restarts": str(site.restarts),
    }
    return _script("train.sbatch", site, wanted, name, out, values)


def study_script(site: Site, wanted: Allocation, study: Path, name: str, out: str) -> str:
    """The script of which every array task runs its share of a study into the directory `out`.

    Raises BatchError where tasks are not numbered from 1 on: their number is that of their share.
    """
    if not re.fullmatch(r"1-\d+(%\d+)?", wanted.array):
        what = f"a study is shared by tasks that count from 1 on, not by {wanted.array or 'one'}"
        raise BatchError([Problem("--array", what, "for example --array 1-20")])
    values = {
        "study": _quoted(os.path.abspath(study)),
        "out": _quoted(os.path.abspath(out)),
        "srun_options": _list(_srun_options(site, wanted, mpi=False)),
    }
    return _script("study-array.sbatch", site, wanted, name, out, values)


def point_script(site: Site, wanted: Allocation, ranks: int, command: Sequence[str], name: str, out: str) -> str:
    """The script that measures one point of a scaling study with so many ranks; out: without its ending, the log."""
    alone = site.model_copy(update={"directives": (*site.directives, "--exclusive")})
    values = {
        "command": _list(command),
        "srun_options": _list((f"--ntasks={ranks}", *_srun_options(site, wanted))),
        "nic": _list(_nic(site)),
    }
    return _script("scaling.sbatch", alone, wanted, name, out, values)


def _script(template: str, site: Site, wanted: Allocation, name: str, out: str, values: Mapping[str, str]) -> str:
    """A script of slurm/ with all that it needs in the place of the line that says who fills it in."""
    lines = [f"#SBATCH {directive}" for directive in _directives(site, wanted, name, out)]
    lines += ["", *_setup(site), f"export OMP_NUM_THREADS={wanted.cores}"]
    lines += [f"export {variable}={shlex.quote(value)}" for variable, value in site.environment.items()]
    lines += [f"{variable}={value}" for variable, value in values.items()]
    text = shipped(template).read_text("utf-8")
    return FILLED_IN.sub(lambda _: "\n".join(lines) + "\n", text, count=1)


def _directives(site: Site, wanted: Allocation, name: str, out: str) -> Iterable[str]:
    yield f"--job-name={name}"
    yield f"--nodes={wanted.nodes}"
    yield f"--ntasks-per-node={wanted.ranks_per_node}"
    yield f"--cpus-per-task={wanted.cores}"
    if site.node.gpus:
        yield f"--{site.node.gpu_option}{'=' if site.node.gpu_option == 'gpus-per-node' else ':'}{site.node.gpus}"
    yield f"--time={wanted.time}"
    for option, value in (("partition", site.partition), ("account", site.account), ("qos", site.qos)):
        if value:
            yield f"--{option}={value}"
    if wanted.array:
        yield f"--array={wanted.array}"
    number = "%A_%a" if wanted.array else "%j"
    yield f"--output={os.path.abspath(out).replace(INDEX, '%a')}.slurm-{number}.log"
    yield "--open-mode=append"  # a restart must not truncate the log
    yield "--requeue"
    yield f"--signal=USR1@{site.signal_s}"  # to the ranks; "B:" would send it to the script alone
    yield from site.directives


def _setup(site: Site) -> Iterable[str]:
    """The site's lines; without any, this interpreter's environment and where it finds its data."""
    if site.setup:
        return site.setup
    lines = [f"export PATH={shlex.quote(os.path.dirname(os.path.abspath(sys.executable)))}:$PATH"]
    if data := os.environ.get("PARSE_MPI_DATA"):
        lines.append(f"export PARSE_MPI_DATA={shlex.quote(os.path.abspath(data))}")
    return lines


def _srun_options(site: Site, wanted: Allocation, mpi: bool = True) -> Iterable[str]:
    if mpi and site.mpi:
        yield f"--mpi={site.mpi}"
    yield f"--cpus-per-task={wanted.cores}"  # srun does not take it from sbatch any more
    bind = site.bind
    for option, value in (("cpu", bind.cpu), ("mem", bind.memory), ("gpu", bind.gpu if site.node.gpus else "")):
        if value:
            yield f"--{option}-bind={value}"
    yield from site.srun


def _nic(site: Site) -> Iterable[str]:
    """A prefix of the command that gives each rank the network device nearest to it, where the site names them."""
    if not site.node.nics:
        return []
    nics = " ".join(shlex.quote(nic) for nic in site.node.nics)
    return ["bash", "-c", NIC.format(nics=nics, variable=site.node.nic_variable), "nic"]


def _list(words: Iterable[str]) -> str:
    return f"({' '.join(map(_quoted, words))})"


def _quoted(text: str) -> str:
    """A word of bash; `{index}` in it becomes the index of the array's task."""
    return '"$SLURM_ARRAY_TASK_ID"'.join(shlex.quote(part) if part else "" for part in text.split(INDEX)) or "''"
