"""Sheaf coupling: against the gradient of its energy, plain modules, and a Laplacian where maps are the identity."""

import numpy as np
import pytest
import torch
from plain_parse import PlainOneHead, largest_difference
from small_jobs import Quiet, make_trainer, write_job

from parse_mpi.data.sources import load_dataset
from parse_mpi.errors import JobError
from parse_mpi.exchange.sheaf import reach
from parse_mpi.jobfile import load_job
from parse_mpi.plan import make_plan
from parse_mpi.studies.memory import first_routes, sent_bytes

WIDTHS = {"unique": 1, "redundant": 2, "synergistic": 1}
METHOD = {"name": "sheaf-dmfl", "slices": WIDTHS, "edge_width": 3, "coupling": 0.05, "map_rate": 0.02}
CHANGES = {
    "topology": {"kind": "random-gossip"},
    "method": METHOD,
    "train": {"batch_size": 16, "optimiser": {"lr": 0.1, "momentum": 0.8}},
    "dtype": "float64",
}


def coupled(tmp_path, changes=None, **method):
    """(trainer, the coupling of the heads) of a small job."""
    trainer, _, _ = make_trainer(tmp_path, CHANGES | {"method": METHOD | method} | (changes or {}))
    (coupling,) = trainer.now.couplings
    return trainer, coupling


def mix(coupling, index):
    """One round of the coupling alone."""
    coupling.start(index)
    coupling.mix_interior()
    coupling.wait()
    coupling.mix_boundary()


def heads(coupling):
    return {member.agent: member.rows.local[member.row].clone() for member in coupling.members}


def maps(coupling):
    return {(m.agent, j): m.maps[slot].clone() for m in coupling.members for j, slot in m.slots.items()}


def energy(x, P, links):
    """Half the squared gaps of all edges, each of which is two links."""
    return sum((P[i, j] @ x[i] - P[j, i] @ x[j]).square().sum() for i, j in links if i < j) / 2


def stepped(x, P, links, rate, map_rate):
    """x and P after a gradient step of each on the energy, by autograd."""
    x, P = ({k: v.clone().requires_grad_() for k, v in values.items()} for values in (x, P))
    if len(links):
        energy(x, P, links).backward()
    return [
        {k: (v - r * v.grad if v.grad is not None else v).detach() for k, v in values.items()}
        for values, r in ((x, rate), (P, map_rate))
    ]


@pytest.mark.parametrize("kind", ["ring", "random-gossip", "complete"])
def test_a_round_is_a_gradient_step_on_the_gaps(tmp_path, kind):
    _, coupling = coupled(tmp_path, {"topology": {"kind": kind}}, coupling=0.01)
    for index in range(3):
        links = coupling.graph.at(index).links().tolist()
        expected_x, expected_P = stepped(heads(coupling), maps(coupling), links, 0.01, 0.02)
        mix(coupling, index)
        torch.testing.assert_close(heads(coupling), expected_x, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(maps(coupling), expected_P, rtol=1e-12, atol=1e-14)
    assert len({len(values) for values in heads(coupling).values()}) == 2
    assert coupling.payload_bytes().keys() == {"label_head[top]", "label_head[bottom]", "label_head[top+bottom]"}
    assert sum(coupling.payload_bytes().values()) == len(links) * METHOD["edge_width"] * 8
    assert coupling.sent_bytes() == {}


@pytest.mark.parametrize("fusion", ["concat", "attention"])
def test_plan_counts_what_ranks_send_each_other(tmp_path, fusion):
    method = METHOD | {"fusion": fusion}
    jobfile = load_job(write_job(tmp_path, CHANGES | {"method": method, "topology": {"kind": "complete"}}))
    plan = make_plan(jobfile, load_dataset(jobfile.job.data, jobfile.job.seed), 2)
    expected = sum(  # a complete graph has every row cross once, and a message for every pair
        8 * plan.layouts[spec.name].width for spec in plan.slices if spec.graph for i in spec.holders
        if plan.rank_of[i] == 0
    ) + 5 * 5 * METHOD["edge_width"] * 8  # fmt: skip
    assert sent_bytes(plan, 0, first_routes(plan, 0)) == expected


class PlainSheaf(PlainOneHead):
    """Encoders by dense matrices; heads by autograd on the energy, from given maps."""

    maps = None

    def _mix(self, index):
        super()._mix(index)
        tied = [spec for spec in self.plan.slices if spec.coupling]
        holder = {i: spec for spec in tied for i in spec.holders}
        x = {i: self._row(i, spec).detach() for i, spec in holder.items()}
        links = self.plan.graphs["all agents"].at(index).links().tolist()
        x, self.maps = stepped(x, self.maps, links, METHOD["coupling"], METHOD["map_rate"])
        with torch.no_grad():
            for i, spec in holder.items():
                self._write(i, spec, x[i])


def test_rounds_are_those_of_plain_modules(tmp_path):
    PlainSheaf.maps = maps(coupled(tmp_path)[1])
    assert largest_difference(tmp_path, CHANGES, 8, PlainSheaf) <= 1e-10


def test_in_the_order_of_consensus_gaps_are_those_before_the_local_steps(tmp_path):
    learning = CHANGES["train"] | {"optimiser": {"lr": 0.1, "momentum": 0.0}}
    alone, both = (
        coupled(tmp_path, {"train": learning | {"order": "consensus"}}, coupling=rate) for rate in (0.0, 0.05)
    )
    links = both[1].graph.at(0).links().tolist()
    before = heads(both[1])
    pulled, _ = stepped(before, maps(both[1]), links, 0.05, 0.0)
    for trainer, _ in (alone, both):
        trainer.train_round(0)
    learnt = heads(alone[1])
    expected = {i: learnt[i] + pulled[i] - before[i] for i in before}
    torch.testing.assert_close(heads(both[1]), expected, rtol=1e-9, atol=1e-12)


def test_identities_between_equal_heads_make_a_laplacian_step(tmp_path):
    alike = [{"modalities": ["top"], "count": 6}]
    width = 10 * (sum(WIDTHS.values()) + 1)
    ring = {"topology": {"kind": "ring"}, "agents": alike}
    _, coupling = coupled(tmp_path, ring, edge_width=width, coupling=0.2, map_rate=0.0)
    draw = torch.Generator().manual_seed(1)
    for member in coupling.members:
        member.rows.local[member.row] = torch.randn(width, generator=draw, dtype=torch.float64)
        member.maps[:] = torch.eye(width)
    x = np.stack(list(heads(coupling).values()))
    laplacian = 2 * np.eye(6) - sum(np.eye(6, k=k) for k in (1, -1, 5, -5))
    mix(coupling, 0)
    mixed = np.stack(list(heads(coupling).values()))
    np.testing.assert_allclose(mixed, x - 0.2 * laplacian @ x, rtol=1e-12, atol=1e-13)


def test_the_bound_on_maps_is_one_and_sharp_for_orthonormal_rows():
    drawn = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 3, 9)))
    assert reach(drawn) >= torch.linalg.matrix_norm(drawn, 2).square().sum()
    orthonormal = torch.linalg.qr(drawn.mT)[0].mT
    torch.testing.assert_close(reach(orthonormal), torch.tensor(4.0, dtype=torch.float64))


@pytest.mark.parametrize("rates", [(1000.0, 0.0), (0.0, 1000.0), (1000.0, 1000.0)])
def test_however_long_the_steps_are_said_to_be_gaps_do_not_grow(tmp_path, rates):
    _, coupling = coupled(tmp_path, {"topology": {"kind": "complete"}}, coupling=rates[0], map_rate=rates[1])
    for member in coupling.members:
        member.maps.mul_(30)
        member.rows.local[member.row] *= 10
    links = coupling.graph.at(0).links().tolist()
    gaps = [float(energy(heads(coupling), maps(coupling), links))]
    for index in range(40):
        mix(coupling, index)
        gaps.append(float(energy(heads(coupling), maps(coupling), links)))
    assert max(gaps) <= gaps[0]
    assert gaps[-1] < 0.9 * gaps[0]


def test_a_head_on_its_way_out_of_bounds_leaves_what_is_finite_finite(tmp_path, monkeypatch):
    """Its maps grow with it, and the product of maps and gap may be beyond single precision where the pull is not."""
    monkeypatch.setattr(Quiet, "warn", lambda self, text: None)  # of the agents that are isolated
    learning = {"batch_size": 16, "on_nonfinite": "isolate", "optimiser": {"lr": 0.1, "momentum": 0.9}}
    method = {"name": "sheaf-dmfl", "slices": {"unique": 8, "redundant": 8, "synergistic": 8}}
    trainer, *_ = make_trainer(tmp_path, {"topology": {"kind": "complete"}, "method": method, "train": learning})
    for index in range(5):
        (coupling,) = trainer.now.couplings
        if index == 3:
            coupling.members[4].rows.local[coupling.members[4].row] = 1e15
        trainer.enter_era(index)
        trainer.train_round(index)
        assert all(torch.isfinite(head).all() for head in heads(trainer.now.couplings[0]).values()), index


def test_events_keep_the_maps_of_links_that_stay(tmp_path):
    events = [
        {"kind": "lose", "round": 1, "agents": [8], "modality": "top"},
        {"kind": "leave", "round": 1, "agents": [1]},
    ]
    trainer, coupling = coupled(tmp_path, {"events": events, "topology": {"kind": "complete"}})
    fresh = maps(coupling)
    trainer.train_round(0)
    learnt = maps(coupling)
    trainer.enter_era(1)
    now = maps(trainer.now.couplings[0])
    assert now.keys() == {(i, j) for i, j in learnt if 1 not in (i, j)}
    for (i, j), values in now.items():
        if i == 8:  # its head is another one now
            assert values.shape != learnt[i, j].shape
        else:
            assert torch.equal(values, learnt[i, j])
    assert any(not torch.equal(learnt[link], fresh[link]) for link in learnt)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"topology": {"kind": "one-peer-exponential"}}, "one-peer-exponential is directed"),
        ({"method": {"edge_width": 4096, "label_head": "mlp"}, "topology": {"kind": "complete"}}, "MB of maps"),
        ({"train": {"order": "consensus", "optimiser": {"name": "gradient-tracking", "lr": 0.1}}}, "average rows"),
        ({"exchange": {"budget_bytes_per_link": 1000}}, "leave budget_bytes_per_link out"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, changes, what):
    method = {"name": "sheaf-dmfl", "slices": None} | changes.get("method", {})
    with pytest.raises(JobError, match=what):
        make_trainer(tmp_path, changes | {"method": method})
