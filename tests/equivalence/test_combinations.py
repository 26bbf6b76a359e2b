"""Layout invariance and restarts over drawn combinations of all that a job can say."""

import os
import re
import secrets
from pathlib import Path

import pytest
from drawn_jobs import write_jobs
from rank_tests import run_rank_tests

IN_RANKS = Path(__file__).with_name("ranks_combinations.py")
SEED = "DRAWN_SEED"  # the variable of the environment that makes the soak test draw a sample again
FEWEST = 0.9  # of the drawn jobs must be valid, or the sample is not what it seems to be
HANG_S = 120.0


def check_sample(folder: Path, count: int, seed: int, limit_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw the jobs and train each of them in the ranks of one launch; what fails is named with seed and job file."""
    refused = write_jobs(folder, count, seed)
    sample = sorted(folder.glob("*.yaml"))
    assert len(sample) >= FEWEST * count, f"seed {seed}: only {len(sample)} of {count}; " + "\n".join(refused)
    monkeypatch.setenv("DRAWN_JOBS", str(folder))
    verdict = run_rank_tests([IN_RANKS], 3, folder / "logs", HANG_S, limit_s)
    under_way = set(re.findall(r"^rank .*\[(\d+)\]", verdict.text, re.MULTILINE))
    jobs = [f"--- {name}.yaml ---\n{(folder / f'{name}.yaml').read_text()}" for name in sorted(under_way)]
    assert verdict.passed, "\n".join([verdict.text, *jobs, f"{count} jobs drawn with seed {seed}"])


def test_a_sample_ends_the_same_on_any_ranks_and_after_restarts(tmp_path, monkeypatch):
    check_sample(tmp_path, 12, 40, 180, monkeypatch)


@pytest.mark.soak
def test_many_end_the_same_on_any_ranks_and_after_restarts(tmp_path, monkeypatch):
    seed = int(os.environ.get(SEED, secrets.randbits(32)))
    print(f"{SEED}={seed} draws this sample again")
    check_sample(tmp_path, 200, seed, 3600, monkeypatch)
