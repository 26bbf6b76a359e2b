"""The slice table of PARSE: who holds which parameters and who mixes with whom, for any mix of modality sets."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_jobs import write_dataset, write_job

from parse_mpi.data.sources import load_dataset
from parse_mpi.errors import JobError
from parse_mpi.job import LocalMethod, MlpEncoder, ParseMethod
from parse_mpi.jobfile import load_job
from parse_mpi.methods.layout import slice_layouts
from parse_mpi.methods.local import Local
from parse_mpi.methods.parse import Parse
from parse_mpi.plan import make_plan
from parse_mpi.population import Agent

ENCODERS = (MlpEncoder(hidden=(3,)), MlpEncoder(hidden=(5, 4)))
SHAPES = {"a": (5,), "ab": (2, 3), "c": (4,)}  # one name begins like another
SETS = [s for size in (1, 2, 3) for s in itertools.combinations(SHAPES, size)]
CHOICES = {
    "fusion": ("mean", "gated", "concat", "attention"),
    "synergy_scope": ("pooled", "set"),
    "synergy_rows": ("multimodal", "all"),
    "modality_weighting": ("uniform", "adaptive"),
    "slices": ({"unique": 2, "redundant": 2, "synergistic": 2}, {"unique": 1, "redundant": 3, "synergistic": 2}),
}


def agents_with(*sets, family=0):
    return [Agent(i, tuple(s), (ENCODERS[family],) * len(s)) for i, s in enumerate(sets)]


def table_of(agents, method=Parse, **changes):
    schema = LocalMethod if method is Local else ParseMethod
    return {spec.name: spec for spec in method(schema(name=schema.__name__[:5].lower(), **changes)).slices(agents)}


@st.composite
def populations(draw):
    sets = draw(st.lists(st.sampled_from(SETS), min_size=1, max_size=7))
    return [Agent(i, s, tuple(draw(st.sampled_from(ENCODERS)) for _ in s)) for i, s in enumerate(sets)]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(populations(), st.fixed_dictionaries({key: st.sampled_from(values) for key, values in CHOICES.items()}))
def test_every_parameter_of_every_agent_lies_in_one_slice_of_one_shape(agents, changes):
    """slice_layouts refuses anything else; groups are cuts of the holders."""
    method = Parse(ParseMethod(name="parse", **changes))
    if method.problems(agents):
        changes["synergy_scope"] = "set"
        method = Parse(ParseMethod(name="parse", **changes))
        assert not method.problems(agents)
    table = method.slices(agents)
    with torch.device("meta"):
        networks = [method.network(agent, SHAPES, 3, 0) for agent in agents]
    layouts = slice_layouts(zip(agents, networks, strict=True), table)
    for agent, network in zip(agents, networks, strict=True):
        held = sum(layouts[spec.name].width for spec in table if agent.id in spec.holders)
        assert held == sum(p.numel() for p in network.parameters())
    for spec in table:
        assert not spec.groups or sorted(i for group in spec.groups for i in group) == list(spec.holders)
        assert bool(spec.graph) == bool(spec.groups)


AGENTS = agents_with("a", "c", ("a", "c"), ("a", "ab"), ("a", "c"), ("a", "ab", "c"))


def test_pooled_synergy_mixes_among_all_multimodal_agents():
    table = table_of(AGENTS, fusion="gated")
    assert table["synergy_head"].groups == ((2, 3, 4, 5),)
    assert table["gate[c]"].groups == table["synergy[c]"].groups == ((2, 4, 5),)


@pytest.mark.parametrize("fusion", ["mean", "gated", "attention"])
def test_synergy_by_set_mixes_among_equal_sets(fusion):
    table = table_of(AGENTS, fusion=fusion, synergy_scope="set")
    assert table["synergy_head"].groups == ((2, 4), (3,), (5,))
    assert table["synergy[ab]"].groups == ((3,), (5,))
    assert table["encoder[a]"].groups == ((0, 2, 3, 4, 5),)
    assert table["redundant_head"].groups == ((0, 1, 2, 3, 4, 5),)
    if fusion == "gated":
        assert table["gate[c]"].groups == ((2, 4), (5,))


def test_concat_has_a_head_per_set():
    table = table_of(AGENTS, fusion="concat", synergy_scope="set")
    assert {name: spec.groups for name, spec in table.items() if name.startswith("synergy_head")} == {
        "synergy_head[a+c]": ((2, 4),),
        "synergy_head[a+ab]": ((3,),),
        "synergy_head[a+ab+c]": ((5,),),
    }


def test_with_two_modalities_both_scopes_coincide():
    agents = agents_with("a", "c", ("a", "c"), ("a", "c"))
    pooled, by_set = (table_of(agents, synergy_scope=scope) for scope in ("pooled", "set"))
    assert {n: s.groups for n, s in pooled.items()} == {n: s.groups for n, s in by_set.items()}
    assert not Parse(ParseMethod(name="parse", fusion="concat")).problems(agents)


@pytest.mark.parametrize(("sync", "every"), [("every-round", 1), (7, 7)])
def test_gates_mix_as_often_as_they_are_told(sync, every):
    table = table_of(AGENTS, fusion="gated", gate_sync=sync)
    assert table["gate[a]"].every == every
    assert {spec.every for name, spec in table.items() if not name.startswith("gate")} == {1}


def test_what_is_private_has_no_graph():
    table = table_of(AGENTS, fusion="gated", gate_sync="local", modality_weighting="adaptive")
    private = {name for name, spec in table.items() if not spec.groups}
    assert private == {f"{kind}[{m}]" for kind in ("gate", "modality_weight") for m in SHAPES}
    assert table["modality_weight[c]"].holders == (2, 4, 5)
    assert not any(spec.groups or spec.graph for spec in table_of(AGENTS, Local, fusion="gated").values())


def test_whole_encoders_hold_the_synergy_rows_of_all_holders():
    table = table_of(AGENTS, synergy_rows="all")
    assert not any(name.startswith("synergy[") for name in table)
    assert "encoders.m_a.synergistic." in table["encoder[a]"].parameters
    assert table["encoder[a]"].holders == (0, 2, 3, 4, 5)


def test_families_mix_their_trunks_apart_and_their_gates_together():
    agents = [*agents_with(("a", "c"), ("a", "c")), Agent(2, ("a", "c"), (ENCODERS[1], ENCODERS[0]))]
    table = table_of(agents, fusion="gated")
    assert table["encoder[a]"].groups == table["synergy[a]"].groups == ((0, 1),)
    assert table["encoder[a#2]"].groups == table["synergy[a#2]"].groups == ((2,),)
    assert table["gate[a]"].groups == ((0, 1, 2),)


def test_an_agent_that_is_away_holds_nothing():
    agents = [*agents_with("a", ("a", "c")), Agent(2, (), ())]
    assert all(2 not in spec.holders for spec in table_of(agents, fusion="gated").values())


def test_concat_among_different_sets_is_refused_with_its_line(tmp_path):
    data = {"source": {"hdf5": str(write_dataset(tmp_path / "abc.h5"))}}
    agents = [{"modalities": list(s), "count": 1} for s in ("a", "ab", "ab", "abc", "abc")]
    path = write_job(tmp_path, {"data": data, "agents": agents, "method": {"fusion": "concat"}})
    jobfile = load_job(path)
    line = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if text.startswith("method"))
    with pytest.raises(JobError, match=rf"{path}:{line}.*multimodal agents hold a\+b, a\+b\+c: say synergy_scope: set"):
        make_plan(jobfile, load_dataset(jobfile.job.data, 0), 1)
    by_set = load_job(path, ["method.synergy_scope=set"])
    assert "agents with a+b+c" in make_plan(by_set, load_dataset(by_set.job.data, 0), 1).graphs
