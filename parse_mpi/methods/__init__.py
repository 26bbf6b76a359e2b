"""One file a method: its slice table, its loss and its predictions."""

from parse_mpi import job
from parse_mpi.methods.base import Method
from parse_mpi.methods.local import Local
from parse_mpi.methods.parse import Parse


def make_method(options: job.Method) -> Method:
    """The method that the job names."""
    return Local(options) if isinstance(options, job.LocalMethod) else Parse(options)
