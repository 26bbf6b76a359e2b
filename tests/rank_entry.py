"""What launch.py starts as each rank: sends the rank's output to its own file, then becomes the command."""

import os
import sys

log_dir, *command = sys.argv[1:]
rank = next(os.environ[name] for name in ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK") if name in os.environ)
log = os.open(f"{log_dir}/rank-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
os.dup2(log, 1)
os.dup2(log, 2)
with open(f"{log_dir}/rank-{rank}.pid", "w") as file:
    file.write(f"{os.getpid()}\n")
os.environ["RANK_EVENTS"] = f"{log_dir}/rank-{rank}.events"
# pytest tidies up what earlier sessions left, and sessions that do so at the same time fall over each other.
os.environ["PYTEST_DEBUG_TEMPROOT"] = f"{log_dir}/rank-{rank}.tmp"
os.makedirs(os.environ["PYTEST_DEBUG_TEMPROOT"], exist_ok=True)
os.execv(command[0], command)
