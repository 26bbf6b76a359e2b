"""The data section of a job: each mistake gives one problem, at its line, that says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_jobs import write_dataset

from parse_mpi.data.sources import load_dataset
from parse_mpi.errors import JobError, Problem
from parse_mpi.jobfile import JobFile, changed_keys, job_digest, load_job
from parse_mpi.plan import Plan, make_plan

JOB = """\
name: small
agents:
  - {modalities: [top], count: 3}
  - {modalities: [bottom], count: 3}
  - {modalities: [top, bottom], count: 4}
topology: {kind: complete}
method: {name: parse}
data:
"""
POOR = "poor: [{modality: top, noise: 1, agents: "


def write(folder: Path, *lines: str) -> Path:
    path = folder / "job.yaml"
    path.write_text(JOB + "".join(f"  {line}\n" for line in lines))
    return path


def plan_of(path: Path, *overrides: str) -> tuple[JobFile, Plan]:
    jobfile = load_job(path, overrides)
    return jobfile, make_plan(jobfile, load_dataset(jobfile.job.data, jobfile.job.seed), ranks=1)


def problems_of(path: Path) -> tuple[Problem, ...]:
    with pytest.raises(JobError) as caught:
        plan_of(path)
    return caught.value.problems


@pytest.mark.parametrize(
    ("line", "what", "hint"),
    [
        ("source: {digits: {cut: thirds}}", "`data.source.digits.cut` is 'thirds'; it must be halves or quadrants", ""),
        ("source: {digits: {}}", "`data.source.digits.cut` is missing; it must be halves or quadrants", ""),
        ("source: {hdf5: job.yaml, reading: lasy}", "reading` is 'lasy'; it must be auto, memory or lazy", "lazy?"),
        ("partition: {kind: shard}", "it must be iid, dirichlet, label-shard, by-group or explicit", "label-shard"),
        ("partition: {kind: label-shard}", "`data.partition`: kind: label-shard needs shards (per agent; with 2", ""),
        ("partition: {kind: iid, shards: 2}", "`data.partition`: shards belongs to kind: label-shard", ""),
        ("partition: {kind: explicit}", "kind: explicit needs file (a text file with one agent id per", ""),
        ("partition: {kind: explicit, file: no.txt}", "there is no file 'no.txt'", "PARSE_MPI_DATA"),
        (
            "partition: {kind: explicit, file: job.yaml}",
            "job.yaml: has 9 lines, the data set 1258 training samples",
            "",
        ),
        ("partition: {kind: by-group}", "by-group needs the data set's /groups", ""),
        ("partition: {kind: label-shard, shards: 100, min_per_agent: 126}", "need 1260 training samples", ""),
        ("labelled_fraction: 0", "`data.labelled_fraction` is 0; it must be a number (above 0 and at most 1)", ""),
        ("stream: {start: 2}", "`data.stream.start` is 2; it must be a number (above 0 and at most 1)", ""),
        ("stream: {order: class}", "`data.stream.order` is 'class'; it must be random or by-class", "by-class?"),
        ("poor: [{agents: [0], modality: top}]", "`data.poor.0`: say how poor the sensor is: noise above 0", ""),
        (POOR + "[]}]", "`data.poor.0.agents` is []; it must be a list of at least 1", ""),
        (POOR + "3}]", "`data.poor.0.agents` is 3; it must be a list of at least 1", "{fraction: ..., holding: ...}"),
        (POOR + "{fraction: 2}}]", "`data.poor.0.agents.fraction` is 2; it must be a number", ""),
        (POOR + "[0, 10]}]", "there is no agent 10; ids go from 0 to 9", ""),
        (POOR + "[0, 4, 5]}]", "agent 4 does not hold the modality 'top'", ""),
        (POOR + "{holding: [bottom]}}]", "no agent holds exactly bottom", ""),
        (
            "poor: [{modality: tpo, noise: 1, agents: {}}]",
            "no agent holds the modality 'tpo'; held are bottom, top",
            "",
        ),
        (
            POOR + "[0, 6]}, {modality: top, missing: 0.5, agents: [6]}]",
            "agent 6's sensor of top is poor by another",
            "",
        ),
    ],
)
def test_one_mistake_gives_one_clear_problem(tmp_path: Path, line: str, what: str, hint: str) -> None:
    [problem] = problems_of(write(tmp_path, line))
    assert problem.where == f"{tmp_path / 'job.yaml'}:9"
    assert what in problem.what
    assert hint in problem.hint or hint in problem.what


def test_agents_in_doubt_make_no_further_problems_of_poor_sensors(tmp_path: Path) -> None:
    path = write(tmp_path, POOR + "[9]}]")
    path.write_text(path.read_text().replace("count: 4", "count: four"))
    [problem] = problems_of(path)
    assert problem.where.endswith(":5")


def test_files_may_move_and_be_read_in_either_way_without_a_new_job(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_dataset(tmp_path / folder / "set.h5", {"top": (3,), "bottom": (2, 2)})
        (tmp_path / folder / "owners.txt").write_text("\n".join(str(n % 10) for n in range(144)))
    lines = ("source: {hdf5: set.h5, reading: %s}", "partition: {kind: explicit, file: owners.txt}")
    (one, plan), (other, lazy) = (
        plan_of(write(tmp_path / folder, lines[0] % reading, lines[1]))
        for folder, reading in (("a", "memory"), ("b", "lazy"))
    )
    assert one.job.data.partition.file == str(tmp_path / "a" / "owners.txt")
    assert job_digest(one.job) == job_digest(other.job)
    assert changed_keys(one.job, other.job) == []
    assert plan.digest == lazy.digest
    (tmp_path / "b" / "owners.txt").write_text("\n".join(str(9 - n % 10) for n in range(144)))
    assert plan_of(tmp_path / "b" / "job.yaml")[1].digest != plan.digest


def test_a_share_of_poor_sensors_is_drawn_among_those_that_have_one(tmp_path: Path) -> None:
    _, plan = plan_of(write(tmp_path, POOR + "{fraction: 0.5}}, {modality: bottom, missing: 1, agents: [3]}]"))
    tops = [agent for agent, modality in plan.sensors if modality == "top"]
    assert len(tops) == 4  # half of seven, rounded to even
    assert set(tops) <= {0, 1, 2, 6, 7, 8, 9}
    sensor = plan.sensors[3, "bottom"]
    assert (sensor.noise, sensor.missing) == (0.0, 1.0)
    assert len(plan.sensors) == 5
