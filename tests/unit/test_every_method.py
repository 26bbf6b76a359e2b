"""What holds for every method: its slice table, its initial values, its loss, its predictions, and both engines."""

import pytest
import torch
from method_cases import METHODS, method_of
from small_jobs import make_trainer, write_dataset, write_job

from parse_mpi.data.sources import load_dataset
from parse_mpi.jobfile import load_job
from parse_mpi.methods.base import LOSS_TERMS
from parse_mpi.model.heads import prediction_names
from parse_mpi.plan import make_plan

# Sets of one, two and three modalities, one of them with encoders of another family.
KINDS = [
    {"modalities": ["a"], "count": 2},
    {"modalities": ["c"], "count": 1},
    {"modalities": ["a", "b"], "count": 2},
    {"modalities": ["b", "c"], "count": 1},
    {"modalities": ["a", "b", "c"], "count": 2},
    {"modalities": ["a", "b"], "count": 2, "encoders": {"a": {"kind": "mlp", "hidden": [4]}}},
]
ROUNDS = 6
BATCH = 7


@pytest.fixture(scope="module")
def data_file(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "abc.h5")


def changes_of(case, data_file):
    """Changes of the small job: the case among all kinds of agents, with labels missing and batches of all lengths."""
    return {
        "data": {
            "source": {"hdf5": str(data_file)},
            "partition": {"kind": "dirichlet", "alpha": 1.0},
            "labelled_fraction": 0.6,
        },
        "agents": KINDS,
        "method": method_of(case),
        "encoder": {"kind": "mlp", "hidden": [5]},
        "train": {"rounds": ROUNDS, "batch_size": 16, "optimiser": {"lr": 0.1, "momentum": 0.5}},
        "dtype": "float64",
    }


@pytest.fixture(params=METHODS)
def plan(request, data_file, tmp_path):
    jobfile = load_job(write_job(tmp_path, changes_of(request.param, data_file)))
    return make_plan(jobfile, load_dataset(jobfile.job.data, jobfile.job.seed), 1)


def batches(plan, count):
    """For every model in every era: its era, a network with values, and samples with labels of which some are -1."""
    draw = torch.Generator().manual_seed(3)
    for era in plan.eras:
        for agent in era.models:
            x = {m: torch.randn(count, *plan.shapes[m], generator=draw, dtype=torch.float64) for m in agent.modalities}
            y = torch.randint(-1, plan.class_count, (count,), generator=draw)
            yield era, agent, era.network(agent, plan.job.seed).double(), x, y


def test_every_parameter_of_every_agent_lies_in_one_slice(plan):
    """`layouts` refuses parameters in no slice and in two; groups are cuts of the holders."""
    for era in plan.eras:
        for agent in era.agents:
            held = sum(era.layouts[spec.name].width for spec in era.slices if agent.id in spec.holders)
            assert held == sum(p.numel() for p in era.skeletons[agent.blueprint].parameters())
        for spec in era.slices:
            assert not spec.groups or sorted(i for group in spec.groups for i in group) == list(spec.holders)
            assert bool(spec.graph) == bool(spec.groups)


def test_encoders_start_as_those_of_parse(plan, data_file, tmp_path):
    jobfile = load_job(write_job(tmp_path, changes_of("parse", data_file)))
    parse = make_plan(jobfile, load_dataset(jobfile.job.data, jobfile.job.seed), 1)
    for agent in plan.models:
        theirs = dict(parse.network(agent, plan.job.seed).named_parameters())
        mine = dict(plan.network(agent, plan.job.seed).named_parameters())
        shared = [name for name in mine if name in theirs and name.startswith("encoders.")]
        assert any(".trunk." in name for name in shared)
        for name in shared:
            assert torch.equal(mine[name], theirs[name]), name


def test_padding_and_what_it_holds_change_nothing(plan):
    """Loss terms, and gradients of every parameter, are those of the batch alone."""
    for era, agent, network, x, y in batches(plan, BATCH):
        weight = torch.tensor(0.7, dtype=torch.float64) if era.alignment_weights[agent.modalities] else None
        padded = {m: torch.cat([values, torch.full_like(values[:3], 9)]) for m, values in x.items()}
        cases = [(x, y, torch.ones(BATCH)), (padded, torch.cat([y, y.new_tensor([0, 1, -1])]), torch.ones(BATCH + 3))]
        cases[1][2][BATCH:] = 0
        found = []
        for samples, labels, mask in cases:
            terms = era.method.loss(network(samples), labels, mask.double(), weight)
            assert terms.shape == (len(LOSS_TERMS),)
            gradients = torch.autograd.grad(terms[0], [*network.parameters()], materialize_grads=True)
            found.append([terms.detach(), *gradients])
        torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-12)


def test_a_batch_without_labels_is_no_trouble(plan):
    for era, agent, network, x, y in batches(plan, BATCH):
        weight = torch.tensor(0.7, dtype=torch.float64) if era.alignment_weights[agent.modalities] else None
        terms = era.method.loss(network(x), torch.full_like(y, -1), torch.ones(BATCH).double(), weight)
        gradients = torch.autograd.grad(terms[0], [*network.parameters()], materialize_grads=True)
        assert all(values.isfinite().all() for values in (terms, *gradients))


def test_predictions_have_known_names_and_the_ensemble_is_one_of_them(plan):
    known = prediction_names(list(plan.shapes))
    for era, agent, network, x, _ in batches(plan, BATCH):
        made = era.method.predictions(network(x), agent.modalities)
        assert "ensemble" in made
        assert set(made) <= set(known)
        assert {tuple(logits.shape) for logits in made.values()} == {(BATCH, plan.class_count)}


@pytest.mark.parametrize("case", METHODS)
def test_the_stacked_engine_does_what_the_loop_does(case, data_file, tmp_path):
    """Losses and rows after every round to the end, in whatever stages the method has."""
    changes = changes_of(case, data_file)
    loop, stacked = (make_trainer(tmp_path, changes | {"engine": engine})[0] for engine in ("loop", "stacked"))
    assert not all(loop.now.group.sampler.batch(step)[1].all() for step in range(3))
    for done in range(ROUNDS):
        losses = []
        for trainer in (loop, stacked):
            trainer.enter_era(done)
            losses.append(trainer.train_round(done)[0])
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-9, atol=1e-12, equal_nan=True)  # nan: who rests
        for name, rows in loop.now.group.slices.items():
            others = stacked.now.group.slices[name].matrices()
            torch.testing.assert_close(rows.matrices(), others, rtol=1e-9, atol=1e-12, msg=f"{name}, round {done + 1}")
