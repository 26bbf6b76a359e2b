"""Events make eras: against a replay in which the last word about a fact counts; and what of them is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_jobs import write_job

from parse_mpi.eras import Era, make_eras
from parse_mpi.job import Job
from parse_mpi.population import make_agents

ORDER = ("a", "b", "c")  # modalities of the data set
HELD = (("a",), ("b", "a"), ("a", "b", "c"), ("c",), ("a", "c"))
AGENTS = range(len(HELD) - 1)  # that the drawn events are about: the last one is always there
LINKS = ((0, 1), (2, 3))

Fact = tuple[object, ...]
Entry = dict[str, Any]  # of the list `events`
Word = tuple[int, Fact, bool]  # after so many rounds this is so, or it is not


def make_job(events: list[Entry], **changes: object) -> Job:
    base = {
        "name": "eras",
        "agents": [{"modalities": held, "count": 1} for held in HELD],
        "topology": {"kind": "ring"},
        "method": {"name": "parse"},
        "events": events,
    }
    return Job.model_validate(base | changes)


def eras_of(events: list[Entry], **changes: object) -> tuple[tuple[Era, ...], dict[int, str]]:
    job = make_job(events, **changes)
    return make_eras(job, make_agents(job, ORDER), ORDER)


def held_in(era: Era) -> list[tuple[str, ...]]:
    return [agent.modalities for agent in era.agents]


@st.composite
def courses(draw: st.DrawFn) -> tuple[list[Entry], list[Word], set[int]]:
    """Events in any order, what each says, and the indices of those whose opposite would have been right."""
    rounds = draw(st.lists(st.integers(0, 4), max_size=7))
    facts = st.one_of(
        st.tuples(st.just("holds"), st.sampled_from(AGENTS), st.sampled_from(ORDER)),
        st.tuples(st.just("here"), st.sampled_from(AGENTS)),
        st.tuples(st.just("graph"), st.sampled_from(ORDER)),
        st.tuples(st.just("link"), st.sampled_from(LINKS)),
    )
    so: dict[Fact, bool] = {("holds", i, m): m in HELD[i] for i in AGENTS for m in ORDER}
    words, wrong = {}, set()
    for k in sorted(range(len(rounds)), key=lambda k: rounds[k]):
        fact = draw(facts)
        adds = not so.get(fact, False)
        if fact[0] == "here" and fact not in so:
            adds = draw(st.booleans())  # the first event says what was so before
        elif draw(st.integers(0, 9)) == 0:
            adds = not adds
            wrong.add(k)
        so[fact] = adds
        words[k] = (rounds[k], fact, adds)
    listed = [words[k] for k in range(len(rounds))]
    return [as_event(*word) for word in listed], listed, wrong


def as_event(when: int, fact: Any, adds: bool) -> Entry:
    sort, *about = fact
    if sort == "holds":
        return {"round": when, "kind": "gain" if adds else "lose", "agents": [about[0]], "modality": about[1]}
    if sort == "here":
        return {"round": when, "kind": "join" if adds else "leave", "agents": about}
    names = {"modality": about[0]} if sort == "graph" else {"links": [about[0][::-1]]}
    return {"round": when, "kind": "cut" if adds else "heal", **names}


def is_so(words: list[Word], done: int, fact: Fact, at_first: bool) -> bool:
    """As the last word about a fact in the first `done` rounds says; sorting keeps the list's order in a round."""
    return [at_first, *(adds for when, f, adds in sorted(words, key=lambda w: w[0]) if f == fact and when <= done)][-1]


def holds(words: list[Word], done: int, i: int) -> tuple[str, ...]:
    return tuple(m for m in ORDER if is_so(words, done, ("holds", i, m), m in HELD[i]))


def is_here(words: list[Word], done: int, i: int) -> bool:
    said = [adds for _, fact, adds in sorted(words, key=lambda w: w[0]) if fact == ("here", i)]
    return is_so(words, done, ("here", i), not (said and said[0]))


@given(courses())
def test_the_last_word_about_everything_counts(course: tuple[list[Entry], list[Word], set[int]]) -> None:
    events, words, wrong = course
    eras, problems = eras_of(events)
    assert [era.start for era in eras] == sorted({0, *(when for when, *_ in words)})
    for era in eras:
        done = era.start
        assert held_in(era) == [holds(words, done, i) if is_here(words, done, i) else () for i in range(len(HELD))]
        assert era.cut_modalities == {m for m in ORDER if is_so(words, done, ("graph", m), False)}
        assert era.cut_links == {link for link in LINKS if is_so(words, done, ("link", link), False)}
        assert len(era.what) == sum(when == done for when, *_ in words)
    lost = {
        k for k, (when, f, adds) in enumerate(words) if f[0] == "holds" and not adds and not holds(words, when, f[1])
    }
    assert list(problems) == sorted(wrong | lost)


def test_no_events_are_one_era() -> None:
    (era,), problems = eras_of([])
    assert (era.start, era.what, problems) == (0, (), {})
    assert held_in(era) == [("a",), ("a", "b"), ("a", "b", "c"), ("c",), ("a", "c")]


def test_events_of_a_round_happen_in_their_order_and_are_judged_together() -> None:
    """An agent may change its only sensor for another, and all may leave as others come."""
    swap = [
        {"kind": "lose", "round": 3, "agents": [0], "modality": "a"},
        {"kind": "gain", "round": 3, "agents": [0], "modality": "c"},
        {"kind": "leave", "round": 3, "agents": [1, 2, 3, 4]},
        {"kind": "leave", "round": 5, "agents": [0]},
        {"kind": "join", "round": 5, "agents": [3, 4]},
    ]
    eras, problems = eras_of(swap)
    assert not problems
    assert [held_in(era) for era in eras[1:]] == [[("c",), (), (), (), ()], [(), (), (), ("c",), ("a", "c")]]
    assert eras[1].what == ("lose a: agent 0", "gain c: agent 0", "leave: agents 1, 2, 3, 4")
    backwards, problems = eras_of(
        [{"kind": "heal", "round": 2, "modality": "a"}, {"kind": "cut", "round": 2, "modality": "a"}]
    )
    assert problems == {0: "after round 2 the graph of a is not cut"}
    assert backwards[1].cut_modalities == {"a"}


def test_events_at_round_0_are_so_from_the_start() -> None:
    (era,), problems = eras_of([{"kind": "gain", "round": 0, "agents": [0], "modality": "b"}])
    assert (held_in(era)[0], era.what, problems) == (("a", "b"), ("gain b: agent 0",), {})


def test_who_joins_first_is_away_until_then_and_may_get_a_sensor_meanwhile() -> None:
    events = [
        {"kind": "leave", "round": 9, "agents": [2]},
        {"kind": "gain", "round": 2, "agents": [3], "modality": "a"},
        {"kind": "join", "round": 4, "agents": [2, 3]},
    ]
    eras, problems = eras_of(events)
    assert not problems
    assert [[held_in(era)[i] for i in (2, 3)] for era in eras] == [
        [(), ()],
        [(), ()],
        [("a", "b", "c"), ("a", "c")],
        [(), ("a", "c")],
    ]


def test_a_share_means_the_same_agents_every_time_and_a_larger_one_means_them_too() -> None:
    agents = [{"modalities": ["a", "b"], "count": 40}, {"modalities": ["a"], "count": 20}]
    some = {"fraction": 0.25, "holding": ["b", "a"]}
    events = [
        {"kind": "lose", "round": 1, "agents": some, "modality": "a"},
        {"kind": "gain", "round": 2, "agents": some, "modality": "a"},
        {"kind": "lose", "round": 3, "agents": some | {"fraction": 0.5}, "modality": "a"},
    ]
    eras, problems = eras_of(events, agents=agents, seed=5)
    assert not problems
    without = [{agent.id for agent in era.agents if agent.modalities == ("b",)} for era in eras]
    assert [len(ids) for ids in without] == [0, 10, 0, 20]
    assert without[1] < without[3] <= set(range(40))
    assert eras[1].what[0].endswith(f"{sorted(without[1])[7]}, … (10 in all)")
    others, _ = eras_of(events, agents=agents, seed=6)
    assert {agent.id for agent in others[1].agents if agent.modalities == ("b",)} != without[1]


WRONG = {
    "agents: [5, 9], kind: leave, round: 1": "there is no agent 9; ids go from 0 to 5",
    "agents: [0], kind: gain, round: 1, modality: tpo": "no data for modality 'tpo'; there is top, bottom",
    "kind: cut, round: 1, modality: tpo": "no data for modality 'tpo'; there is top, bottom",
    "kind: cut, round: 1, links: [[0, 1], [2, 6]]": "there is no agent 6; ids go from 0 to 5",
    "agents: {holding: [tpo]}, kind: leave, round: 1": "no agent holds exactly tpo",
}
OUT_OF_TURN = {
    "agents: [4], kind: lose, round: 1, modality: top": "",
    "agents: [2, 3], kind: lose, round: 1, modality: top": "after round 1 agent 2 can't lose top: it does not hold it",
    "agents: [4, 5], kind: gain, round: 2, modality: top": "after round 2 agent 5 can't gain top: it holds it already",
    "agents: [0], kind: lose, round: 3, modality: top": "after round 3 agent 0 is left without a modality;",
    "agents: [1], kind: join, round: 5": "",
    "agents: [1], kind: join, round: 6": "after round 6 agent 1 can't join: it is here already",
    "agents: [1], kind: leave, round: 4": "",
    "agents: [1, 2], kind: leave, round: 4": "after round 4 agent 1 can't leave: it is away",
    "kind: cut, round: 4, links: [[0, 1]]": "",
    "kind: cut, round: 5, links: [[1, 0]]": "after round 5 the link 0-1 is cut already",
    "kind: heal, round: 4, modality: top": "after round 4 the graph of top is not cut",
    "agents: [2], kind: join, round: 6": "",
    "agents: {}, kind: leave, round: 7": "after round 7 no agent is left",
}


TOO_FEW = {
    "agents: [0, 1, 2, 3, 4], kind: join, round: 2": "",
    "agents: [5], kind: join, round: 1": "every agent joins later, so that nobody is there at the start",
}
FIXED_WEIGHTS = {
    "kind: cut, round: 1, links: [[0, 1]]": "topology.kind: one-peer-exponential has fixed weights: ",
    "kind: cut, round: 1, modality: top": "",
}


def six_agents(folder: Path, events: list[str], **changes: object) -> Path:
    """A job whose events stand in lines of their own."""
    agents = [{"modalities": held, "count": 2} for held in (["top"], ["bottom"], ["top", "bottom"])]
    path = write_job(folder, {"agents": agents, **changes})
    path.write_text(path.read_text() + "events:\n" + "".join(f"  - {{{event}}}\n" for event in events))
    return path


@pytest.mark.parametrize(
    ("cases", "topology"),
    [(WRONG, "ring"), (OUT_OF_TURN, "ring"), (TOO_FEW, "ring"), (FIXED_WEIGHTS, "one-peer-exponential")],
    ids=["names", "order", "nobody", "weights"],
)
def test_everything_wrong_is_told_at_once_with_its_line(tmp_path: Path, cases: dict[str, str], topology: str) -> None:
    path = six_agents(tmp_path, list(cases), topology={"kind": topology})
    first = path.read_text().splitlines().index("events:") + 2
    done = subprocess.run([sys.executable, "-m", "parse_mpi", "check", path], capture_output=True, text=True)
    assert done.returncode == 2
    told = done.stderr.splitlines()
    expected = [f"{path}:{first + k}: {what}" for k, what in enumerate(cases.values()) if what]
    assert f" {len(expected)} problem" in told[0]
    assert [line.strip().startswith(what) for line, what in zip(told[1:], expected, strict=True)] == [True] * len(
        expected
    )
