"""Job files damaged at random: each is read or refused with the lines that are wrong, and nothing else happens."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parse_mpi.errors import JobError
from parse_mpi.job import Job
from parse_mpi.jobfile import dump_job, load_job

QUICKSTART = Path(__file__).parents[2] / "jobs" / "quickstart.yaml"
LINES = QUICKSTART.read_text().splitlines()
WORDS = [
    "x",
    "5",
    "-1",
    "1e9",
    "0.5",
    "true",
    "~",
    "[]",
    "{}",
    "[a, 3]",
    "{name: parse}",
    "*x",
    "&y 1",
    "!!set 1",
    "'",
    "\t",
    "]",
]


@st.composite
def damaged_jobs(draw) -> str:
    """The quickstart with one to three lines deleted, doubled, moved, misspelt or given another value."""
    lines = list(LINES)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(lines) - 1))
        kind = draw(st.sampled_from(["delete", "double", "move", "indent", "character", "value", "values"]))
        line = lines[at]
        if kind == "delete":
            del lines[at]
        elif kind == "double":
            lines.insert(at, line)
        elif kind == "move":
            lines.insert(draw(st.integers(0, len(lines) - 1)), lines.pop(at))
        elif kind == "indent":
            lines[at] = " " + line
        elif kind == "character" and line:
            column = draw(st.integers(0, len(line) - 1))
            lines[at] = line[:column] + draw(st.characters()) + line[column + 1 :]
        elif kind == "value":
            lines[at] = line.partition(":")[0] + ": " + draw(st.sampled_from(WORDS))
        else:
            lines[at] = re.sub(r"(?<=: )[^,}]*", lambda _: draw(st.sampled_from(WORDS)), line)
    return "\n".join(lines)


def load_or_refuse(path: Path, text: str) -> Job | JobError:
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        return load_job(path).job
    except JobError as error:
        return error


def check_damage(path: Path, text: str) -> None:
    outcome = load_or_refuse(path, text)
    if isinstance(outcome, Job):
        assert load_or_refuse(path, dump_job(outcome)) == outcome
        return
    assert outcome.problems
    for problem in outcome.problems:
        assert re.search(r"(damaged|ring)\.yaml:[0-9]+$", problem.where), problem
        assert "Input should" not in problem.what, problem


@given(damaged_jobs())
@settings(derandomize=True, deadline=None, max_examples=400)
def test_damage_gives_a_job_or_problems_with_lines_and_nothing_else(tmp_path_factory, text):
    check_damage(tmp_path_factory.getbasetemp() / "damaged.yaml", text)


@pytest.mark.soak
@given(damaged_jobs())
@settings(derandomize=False, deadline=None, max_examples=20_000)
def test_much_damage(tmp_path_factory, text):
    check_damage(tmp_path_factory.getbasetemp() / "damaged.yaml", text)
