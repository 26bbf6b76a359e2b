"""Harmony against a plain reference: modules, torch.optim, the best of all partitions, and a ring written by hand."""

from itertools import product

import numpy as np
import pytest
import torch
from plain_parse import PlainParse
from small_jobs import ROOT_JOBS, finished_run, make_trainer, write_job
from torch.nn import functional

from parse_mpi.errors import JobError
from parse_mpi.jobfile import load_job
from parse_mpi.model.names import module_key
from parse_mpi.storage.metrics import read_metrics
from parse_mpi.studies.curves import accuracy_figure, consensus_figure, losses_figure
from parse_mpi.studies.recorded import RecordedRun

ROUNDS, SECOND = 12, 6
CHANGES = {
    "agents": [
        {"modalities": ["top"], "count": 2},
        {"modalities": ["bottom"], "count": 1},
        {"modalities": ["top", "bottom"], "count": 6},
    ],
    "method": {"name": "harmony", "first_stage": 0.5, "sync_every": 2, "encoder_pace": 0.3},
    "train": {"rounds": ROUNDS, "batch_size": 32, "local_steps": 2},
    "dtype": "float64",
}
METHOD = CHANGES["method"]


class PlainHarmony(PlainParse):
    """reference: the encoders of multimodal agents as they were when the second stage began. synced: the clusters of
    every round in which fusion heads mixed."""

    def __init__(self, plan, dataset):
        super().__init__(plan, dataset)
        self.reference = None
        self.synced = []

    def _enter(self, plan):
        """Multimodal agents go on with slower encoders and new optimisers, the others stop."""
        self.plan = plan
        self.reference = {i: self._encoders(i) for i, network in self.networks.items() if network.label_head}
        for i in self.reference:
            named = dict(self.networks[i].named_parameters())
            lr = self.job.train.optimiser.lr
            slow = [p for name, p in named.items() if name.startswith("encoders.")]
            head = [p for name, p in named.items() if name.startswith("label_head.")]
            groups = [{"params": slow, "lr": self.job.method.encoder_pace * lr}, {"params": head}]
            self.optimisers[i] = torch.optim.SGD(groups, lr=lr, momentum=self.job.train.optimiser.momentum)

    def _local_step(self, agent, step):
        if self.reference is not None and agent.id not in self.reference:
            return np.nan
        return super()._local_step(agent, step)

    def _loss(self, agent, step, out, y):
        """From the latent vectors on, by the parts of the network."""
        network = self.networks[agent.id]
        if self.reference is not None:
            return functional.cross_entropy(network.label_head(torch.cat([*out.z["latent"]], -1)), y)
        heads = [network.unique_heads[module_key(m)] for m in agent.modalities]
        return sum(functional.cross_entropy(head(z), y) for head, z in zip(heads, out.z["latent"], strict=True))

    @torch.no_grad()
    def _mix(self, index):
        if self.reference is None:
            super()._mix(index)
        elif (index + 1) % self.job.method.sync_every == 0:
            members = np.array(sorted(self.reference))
            label = best_partition(self._bias(members))
            self.synced.append({tuple(members[label == k].tolist()) for k in set(label)})
            for cluster in self.synced[-1]:
                heads = [list(self.networks[i].label_head.parameters()) for i in cluster]
                for rows in zip(*heads, strict=True):
                    self._average(cluster, rows)

    def _average(self, cluster, rows):
        W = torch.from_numpy(self._weights(cluster))
        for row, mean in zip(rows, torch.tensordot(W, torch.stack(rows), 1), strict=True):
            row.copy_(mean)

    def _weights(self, cluster):
        """A ring of the members with Metropolis weights, or shares of their training samples."""
        n, W = len(cluster), np.zeros((len(cluster), len(cluster)))
        if self.job.method.aggregate == "exact":
            sizes = np.array([len(self.plan.samples[i]) for i in cluster])
            return W + sizes / sizes.sum()
        for k in range(n):
            for neighbour in {(k - 1) % n, (k + 1) % n} - {k}:
                W[k, neighbour] = 1 / 3 if n > 2 else 1 / 2
            W[k, k] = 1 - W[k].sum()
        return W

    def _encoders(self, i):
        encoders = self.networks[i].encoders
        return {m: torch.cat([p.detach().flatten() for p in encoders[m].parameters()]).clone() for m in encoders}

    def _bias(self, members):
        """[A, M], every modality divided by its maximum."""
        now = {i: self._encoders(i) for i in members}
        rows = [
            [1 - float(functional.cosine_similarity(now[i][m], before, dim=0)) for m, before in encoders.items()]
            for i, encoders in ((i, self.reference[i]) for i in members)
        ]
        return np.array(rows) / np.max(rows, axis=0)


def best_partition(table):
    """Into two, with the least sum of squared distances from the means."""

    def spread(label):
        parts = [table[np.array(label) == k] for k in set(label)]
        return sum(((part - part.mean(0)) ** 2).sum() for part in parts)

    return np.array(min(product((0, 1), repeat=len(table)), key=spread))


def merged(**method):
    return CHANGES | {"method": METHOD | method}


CASES = {
    "stacked": CHANGES | {"engine": "stacked"},
    "exact": CHANGES | {"mode": "exact"},
    "exact means": merged(aggregate="exact"),
    "a head with a hidden layer": merged(label_head="mlp"),
}


@pytest.mark.parametrize("case", CASES)
def test_both_stages_equal_plain_modules(tmp_path, case):
    trainer, plan, dataset = make_trainer(tmp_path, CASES[case])
    plain, found = PlainHarmony(plan, dataset), []
    assert [era.start for era in plan.eras] == [0, SECOND]
    for k in range(ROUNDS):
        trainer.enter_era(k)
        trainer.train_round(k)
        plain.round(k)
        if k >= SECOND and (k + 1) % METHOD["sync_every"] == 0:
            found.append({cluster for e in trainer.now.exchanges for cluster in e.clusters})
    assert found == plain.synced
    assert any(len(clusters) == 2 for clusters in found)
    for name, rows in trainer.now.group.slices.items():
        mine, theirs = rows.local.numpy()[np.argsort(rows.agents)], plain.parameters(name)
        assert np.linalg.norm(mine - theirs) <= 1e-10 * np.linalg.norm(theirs), name


OPTIMISERS = {
    "momentum and decay": ("adapt-then-combine", {"weight_decay": 0.01}),
    "adamw, consensus": ("consensus", {"name": "adamw"}),
    "qg-dsgdm": ("adapt-then-combine", {"name": "qg-dsgdm"}),
}


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_who_rests_stays_to_the_bit_and_no_encoder_leaves_its_agent(tmp_path, optimiser):
    """In the second stage unimodal agents keep everything, multimodal ones their unimodal heads."""
    train = dict(zip(("order", "optimiser"), OPTIMISERS[optimiser], strict=True))
    trainer, plan, _ = make_trainer(tmp_path, CHANGES | {"train": CHANGES["train"] | train})
    for k in range(SECOND):
        trainer.enter_era(k)
        trainer.train_round(k)
    trainer.enter_era(SECOND)
    group = trainer.now.group
    before = {name: rows.local.clone() for name, rows in group.slices.items()}
    for k in range(SECOND, ROUNDS):
        losses, _ = trainer.train_round(k)
    multimodal = {agent.id for agent in plan.agents if len(agent.modalities) > 1}
    np.testing.assert_array_equal(losses.isnan().all(1), [i not in multimodal for i in group.ids])
    for name, rows in group.slices.items():
        moved = (rows.local != before[name]).any(1).tolist()
        trained = not name.startswith("unique_head")
        assert moved == [trained and i in multimodal for i in rows.agents.tolist()], name
        if "reference" in rows.state:
            assert torch.equal(rows.state["reference"][moved], before[name][moved])
    assert {spec.name for spec in plan.later[0].slices if spec.graph} == {"label_head[top+bottom]"}


def test_unimodal_heads_speak_in_the_first_stage_and_fusion_heads_in_the_second(tmp_path):
    plan = make_trainer(tmp_path, CHANGES)[1]
    agent = plan.agents[-1]
    network = plan.network(agent, plan.job.seed).double()
    output = network({m: torch.randn(3, *plan.shapes[m], dtype=torch.float64) for m in agent.modalities})
    first, second = (era.method.predictions(output, agent.modalities) for era in plan.eras)
    torch.testing.assert_close(first["ensemble"], (first["unique[top]"] + first["unique[bottom]"]) / 2)
    torch.testing.assert_close(second["ensemble"], network.label_head(torch.cat([*output.z["latent"]], -1)))
    assert list(first) == list(second) == ["ensemble", "unique[top]", "unique[bottom]"]


def test_a_run_records_clusters_and_counts_the_steps_that_were_taken(tmp_path):
    out = finished_run(write_job(tmp_path, CHANGES), tmp_path / "run", "evaluate.every=3")
    metrics = read_metrics(out)
    multimodal = np.array([kind == "top+bottom" for kind in metrics["agents/kind"]])
    np.testing.assert_array_equal(metrics["final/gradient_steps"], 2 * np.where(multimodal, ROUNDS, SECOND))
    cluster, synced = metrics["rounds/cluster"], np.zeros(ROUNDS, bool)
    synced[[7, 9, 11]] = True
    np.testing.assert_array_equal((cluster >= 0), synced[:, None] & multimodal)
    assert set(cluster[synced][:, multimodal].ravel().tolist()) == {0, 1}
    graph = dict(zip(metrics["slices/name"].tolist(), metrics["slices/graph"].tolist(), strict=True))
    assert graph["label_head[top+bottom]"] == "agents with top+bottom"
    recorded = RecordedRun.read(out)
    assert all(draw(recorded) for draw in (accuracy_figure, losses_figure, consensus_figure))


def test_events_of_the_second_stage(tmp_path):
    """Who loses its second sensor rests from then on; links that are cut carry nothing, whatever the clusters."""
    events = [
        {"kind": "lose", "round": 7, "agents": [8], "modality": "top"},
        {"kind": "cut", "round": 8, "links": [[3, k] for k in range(4, 8)]},
        {"kind": "leave", "round": 10, "agents": [4]},
    ]
    trainer, *_ = make_trainer(tmp_path, CHANGES | {"events": events})
    reference = None
    for k in range(ROUNDS):
        trainer.enter_era(k)
        losses, _ = trainer.train_round(k)
        group = trainer.now.group
        gone = ({8} if k >= 7 else set()) | ({4} if k >= 10 else set())
        learns = {3, 4, 5, 6, 7, 8} - gone if k >= SECOND else set(group.ids.tolist())
        assert set(group.ids[~losses[:, 0].isnan().numpy()].tolist()) == learns
        row = group.slices["encoder[top]"].agents.tolist().index(3)
        if k >= SECOND:
            now = group.slices["encoder[top]"].state["reference"][row]
            reference = now.clone() if reference is None else reference
            assert torch.equal(now, reference)
        exchanges = trainer.now.exchanges
        if k >= 8 and exchanges[0].clusters:
            assert exchanges[0].payload_bytes()["label_head[top+bottom]"] > 0
            (inside,) = exchanges[0]._inside
            assert 3 not in inside.graph.at(0).links()


DEGENERATE = {
    "one multimodal agent": [{"modalities": ["top"], "count": 2}, {"modalities": ["top", "bottom"], "count": 1}],
    "none": [{"modalities": ["top"], "count": 2}, {"modalities": ["bottom"], "count": 2}],
    "fewer than clusters": [{"modalities": ["top", "bottom"], "count": 2}],
}


@pytest.mark.parametrize("agents", DEGENERATE)
def test_few_agents_are_no_trouble(tmp_path, agents):
    changes = merged(clusters=3) | {"agents": DEGENERATE[agents]}
    out = finished_run(write_job(tmp_path, changes), tmp_path / "run")
    multimodal = DEGENERATE[agents][-1]["count"] if len(DEGENERATE[agents][-1]["modalities"]) > 1 else 0
    metrics = read_metrics(out)
    assert np.isfinite(metrics["evaluations/accuracy"][:, :, :, :, 0]).all()
    if multimodal:
        assert metrics["rounds/cluster"].max() == multimodal - 1


def test_encoders_that_stand_still_make_one_cluster(tmp_path):
    trainer, *_ = make_trainer(tmp_path, merged(encoder_pace=0.0))
    for k in range(SECOND + 2):
        trainer.enter_era(k)
        trainer.train_round(k)
    assert [exchange.clusters for exchange in trainer.now.exchanges] == [((3, 4, 5, 6, 7, 8),)]


@pytest.mark.parametrize("clusters", [1, 2])
def test_every_phase_of_a_cycle_has_its_turn(tmp_path, clusters):
    """Four agents on a one-peer graph have two phases, and heads mix in every other round."""
    agents = [{"modalities": ["top"], "count": 1}, {"modalities": ["top", "bottom"], "count": 4}]
    changes = merged(clusters=clusters, encoder_pace=0.0) | {"agents": agents}
    trainer, *_ = make_trainer(tmp_path, changes | {"topology": {"kind": "one-peer-exponential"}})
    partners = set()
    for k in range(ROUNDS):
        trainer.enter_era(k)
        trainer.train_round(k)
        for exchange in trainer.now.exchanges if k >= SECOND and k % 2 else ():
            (inside,) = getattr(exchange, "_inside", [exchange])
            (flight,) = inside.flights
            partners.add(tuple(flight.lane.matrix.links()[0].tolist()))
    assert partners == {(4, 1), (3, 1)}


REFUSED = {
    "a newcomer": ({"events": [{"kind": "gain", "round": 6, "agents": [0], "modality": "bottom"}]}, "up to round 6"),
    "a budget": ({"exchange": {"budget_bytes_per_link": 10_000}}, "leave budget_bytes_per_link out"),
    "D2": ({"train": {"optimiser": {"name": "d2"}}}, "choose another optimiser"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(tmp_path, case):
    changes, words = REFUSED[case]
    with pytest.raises(JobError, match=words):
        load_job(write_job(tmp_path, CHANGES | {"train": {"rounds": ROUNDS}} | changes))


def test_another_number_of_rounds_moves_the_second_stage(tmp_path):
    job = load_job(ROOT_JOBS / "quickstart.yaml", ["method={name: harmony}"]).job
    assert [list(job.method.stages(rounds)) for rounds in (1, 2, 3, 600)] == [[1], [1], [2], [400]]
    late = load_job(ROOT_JOBS / "quickstart.yaml", ["method={name: harmony, first_stage: 0.96}"]).job
    assert [list(late.method.stages(rounds)) for rounds in (2, 10, 600)] == [[1], [9], [576]]  # there are two stages
