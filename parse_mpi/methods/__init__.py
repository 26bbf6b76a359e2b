"""One file a method: its slice table, its loss and its predictions."""

from parse_mpi.job import Job, LocalMethod, ParseMethod
from parse_mpi.methods.base import Method
from parse_mpi.methods.dsgd import make_dsgd
from parse_mpi.methods.local import Local
from parse_mpi.methods.parse import Parse


def make_method(job: Job) -> Method:
    """The method that the job names, as it is at the start."""
    options = job.method
    if isinstance(options, LocalMethod):
        return Local(options)
    if isinstance(options, ParseMethod):
        return Parse(options)
    return make_dsgd(options)
