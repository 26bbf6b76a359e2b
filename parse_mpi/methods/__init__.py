"""One file a method: its slice table, its loss and its predictions."""

from parse_mpi.job import (
    DmmlKdMethod,
    FedepaMethod,
    HarmonyMethod,
    Job,
    LocalMethod,
    MonolithicMethod,
    ParseMethod,
    SheafMethod,
)
from parse_mpi.methods.base import Method
from parse_mpi.methods.dmml import DmmlKd
from parse_mpi.methods.dsgd import make_dsgd
from parse_mpi.methods.fedepa import Fedepa
from parse_mpi.methods.harmony import Harmony
from parse_mpi.methods.local import Local
from parse_mpi.methods.monolithic import Monolithic
from parse_mpi.methods.parse import Parse
from parse_mpi.methods.sheaf import Sheaf


def make_method(job: Job) -> Method:
    """The method that the job names, as it is at the start."""
    options = job.method
    if isinstance(options, LocalMethod):
        return Local(options)
    if isinstance(options, ParseMethod):
        return Parse(options)
    if isinstance(options, FedepaMethod):
        return Fedepa(options)
    if isinstance(options, HarmonyMethod):
        return Harmony(options, options.second_stage(job.train.rounds))
    if isinstance(options, MonolithicMethod):
        return Monolithic(options)
    if isinstance(options, SheafMethod):
        return Sheaf(options)
    if isinstance(options, DmmlKdMethod):
        return DmmlKd(options)
    return make_dsgd(options)
