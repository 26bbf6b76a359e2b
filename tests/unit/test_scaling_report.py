"""What a scaling report says, of made-up measurements whose answers are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scaling_cases import make_measured, make_scaling

from parse_mpi.run.phases import PHASES
from parse_mpi.scaling.scalingfile import Launched, Scaling, write_scaling_file
from parse_mpi.studies.scaling import error_text, scaling_tables, write_scaling_report
from parse_mpi.studies.scalingpoints import PointSummary, summaries

ROUNDS = 9


def launched(
    curve: str, ranks: int, agents: int, round_s: float, repeat: int = 0, cores: int = 64, wait: float = 0.0
) -> Launched:  # fmt: skip
    """A launch whose rounds take round_s on the slowest rank, and half of it on the others; `wait` of it is waiting."""
    seconds = np.zeros((ROUNDS, ranks, len(PHASES)))
    seconds[:, :, PHASES.index("local_steps")] = (round_s - wait) / 2
    seconds[:, 0, PHASES.index("local_steps")] = round_s - wait
    seconds[:, :, PHASES.index("wait")] = wait
    seconds[-1, :, PHASES.index("evaluate")] = 90.0  # rare, and no part of a round
    loads = {"work": agents / ranks, "bytes_within": 100.0 * (ranks > 1), "messages_within": 2.0 * (ranks > 1)}
    measured = make_measured(seconds, ["a"] * ranks, cores=cores, **loads)
    return Launched(curve, ranks, 1, agents, repeat, "finished", result=measured)


def summary(scaling: Scaling, curve: str) -> list[PointSummary]:
    return summaries(scaling)[curve]


def test_speed_up_and_efficiency_are_those_of_the_curve() -> None:
    launches = [
        launched("strong", 1, 30, 8.0), launched("strong", 2, 30, 5.0), launched("strong", 4, 30, 4.0),
        launched("weak", 2, 20, 3.0), launched("weak", 4, 40, 4.0),
        launched("agents", 1, 10, 1.0), launched("agents", 1, 40, 2.0),
    ]  # fmt: skip
    scaling = make_scaling(launches, {"strong": "strong", "weak": "weak", "agents": "group"})
    found = {curve: [(p.speed_up, p.efficiency) for p in summary(scaling, curve)] for curve in scaling.kinds}
    assert found == {
        "strong": [(1.0, 1.0), (pytest.approx(1.6), pytest.approx(0.8)), (pytest.approx(2.0), pytest.approx(0.5))],
        "weak": [(1.0, 1.0), (pytest.approx(1.5), pytest.approx(0.75))],  # 40 agents in 4 s against 20 in 3 s
        "agents": [(1.0, 1.0), (pytest.approx(2.0), pytest.approx(2.0))],
    }


def test_repeats_are_one_point_with_its_spread() -> None:
    launches = [launched("strong", 2, 30, round_s, k) for k, round_s in enumerate((1.0, 4.0, 2.0))]
    (point,) = summary(make_scaling(launches, {"strong": "strong"}), "strong")
    assert (point.launches, point.rounds) == (3, 3 * ROUNDS)
    assert (point.round_s, point.low_s, point.high_s) == pytest.approx((2.0, 1.0, 4.0))
    assert point.phase_s["local_steps"] == pytest.approx(np.mean([1.0, 4.0, 2.0]) * 0.75)
    assert point.phase_s["evaluate"] == pytest.approx(90.0 / ROUNDS)
    assert point.peak_bytes == 400_000_000


def test_traffic_and_what_was_hidden_of_it() -> None:
    alone, together = summary(
        make_scaling([launched("s", 1, 30, 2.0), launched("s", 4, 30, 2.0, wait=0.5, cores=2)], {"s": "strong"}), "s"
    )
    assert np.isnan(alone.hidden)
    assert together.hidden == pytest.approx(0.75)  # rows were under way for four times as long as anybody waited
    assert (together.round_bytes, together.busiest_bytes, together.messages) == (400.0, 100.0, 2.0)
    assert (alone.crowded, together.crowded) == (False, True)


def test_the_report_says_so(tmp_path: Path) -> None:
    launches = [
        launched("strong", 1, 30, 8.0), launched("strong", 2, 30, 5.0), launched("strong", 4, 30, 4.0, cores=2),
        Launched("strong", 8, 1, 30, 0, "failed", "exit code 1: no space left"),
        Launched("strong", 16, 1, 30, 0, "missing"),
    ]  # fmt: skip
    scaling = make_scaling(launches, {"strong": "strong"})
    tables = list(scaling_tables(scaling))
    assert [table.title.split(":")[0] for table in tables] == [
        "strong (strong scaling)", "strong", "Cost model", "Cost model against measurements", "Points that failed",
    ]  # fmt: skip
    time = dict(zip(tables[0].columns, zip(*tables[0].rows, strict=True), strict=True))
    assert time["ms a round"] == ("8,000", "5,000", "4,000*")
    assert time["efficiency"] == ("100%", "80%", "50%")
    assert "more compute threads than cores" in tables[0].note
    write_scaling_file(tmp_path / "scaling.h5", scaling)
    assert [path.name for path in write_scaling_report(tmp_path)] == ["scaling.md", "strong.png", "costmodel.png"]
    text = (tmp_path / "scaling.md").read_text()
    assert "launches: 3 of 5 measured" in text
    assert "no space left" in text


def test_nothing_measured_yet_is_a_report_too(tmp_path: Path) -> None:
    write_scaling_file(tmp_path / "scaling.h5", make_scaling([Launched("s", 2, 1, 3, 0, "missing")], {"s": "strong"}))
    assert [path.name for path in write_scaling_report(tmp_path)] == ["scaling.md"]
    assert error_text([]) == "no size could be held out"
