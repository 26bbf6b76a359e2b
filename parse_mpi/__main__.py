"""`python -m parse_mpi` is `parse-mpi`."""

import sys

from parse_mpi.cli import main

sys.exit(main())
