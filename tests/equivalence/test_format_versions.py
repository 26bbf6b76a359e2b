"""A run directory of the first format version is read, checked and continued as if nothing had changed.

tests/format_1/run was written by `mpiexec -n 2 parse-mpi run job.yaml --out run --stop-after 4` at commit 6276a29.
"""

import shutil
from pathlib import Path

import numpy as np
from real_runs import LAYOUT_GROUPS, result, train

from parse_mpi.storage.manifest import FORMAT_VERSION, read_manifest

FIRST = Path(__file__).parents[1] / "format_1"


def test_a_run_of_the_first_format_goes_on_on_other_ranks(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(FIRST / "run", old)
    assert read_manifest(old / "checkpoints" / "round-000004").format_version == 1
    train(FIRST / "job.yaml", old, 3)
    train(FIRST / "job.yaml", new, 1)
    assert read_manifest(old / "checkpoints" / "round-000006").format_version == FORMAT_VERSION
    continued, whole = result(old), result(new)
    assert continued.keys() == whole.keys()
    for name, values in whole.items():
        assert not name.startswith(LAYOUT_GROUPS)
        if values.dtype.kind == "f":  # another machine than the one that wrote the files may round otherwise
            np.testing.assert_allclose(continued[name], values, rtol=1e-4, atol=1e-6, err_msg=name)
        else:
            np.testing.assert_array_equal(continued[name], values, err_msg=name)
