"""Optimisers on rows against torch.optim, the guard that keeps a bad row from being sent or saved, refused jobs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from small_jobs import write_job

from parse_mpi.agents.optimisers import LARGEST_GRADIENT, LARGEST_PARAMETER, guarded_step, make_optimiser
from parse_mpi.agents.rows import SliceRows
from parse_mpi.data.sources import load_dataset
from parse_mpi.errors import JobError
from parse_mpi.job import Train
from parse_mpi.jobfile import dump_job, load_job
from parse_mpi.methods.layout import ParameterSpan, SliceLayout
from parse_mpi.plan import make_plan

LAYOUT = SliceLayout((ParameterSpan("w", (2, 3), 0, 6), ParameterSpan("b", (2,), 6, 8)))
EVERY = {
    "sgd": {"name": "sgd", "momentum": 0.0},
    "heavy ball": {"name": "sgd", "weight_decay": 0.1},
    "nesterov": {"name": "sgd", "nesterov": True},
    "adamw": {"name": "adamw"},
    "qg-dsgdm": {"name": "qg-dsgdm"},
    "gradient-tracking": {"name": "gradient-tracking", "weight_decay": 0.1},
    "d2": {"name": "d2"},
}


def make_train(options):
    order = "consensus" if options["name"] == "gradient-tracking" else "adapt-then-combine"
    return TypeAdapter(Train).validate_python({"optimiser": options, "order": order})


def make_rows(options, agents=3, ghosts=2, dtype=torch.float64, seed=0, blank=False):
    """An optimiser and rows for it with random values everywhere; `blank`: with the optimiser's state at its start."""
    train = make_train(options)
    optimiser = make_optimiser(train)
    rows = SliceRows(
        "slice",
        LAYOUT,
        range(agents),
        ghosts,
        dtype,
        torch.device("cpu"),
        copies=train.optimiser.copies,
        apart=train.order == "consensus",
        state=optimiser.state(8),
    )
    generator = torch.Generator().manual_seed(seed)
    filled = [rows.source, rows.local] if blank else [rows.source, *rows.matrices().values()]
    for matrix in (*filled, rows.gradients):
        matrix.copy_(torch.rand(matrix.shape, generator=generator, dtype=dtype))
    optimiser.before_round(rows)
    return optimiser, rows


# -- against torch.optim ---------------------------------------------------------------------------------------------

TORCH = {
    "plain": ({"name": "sgd", "momentum": 0.0}, torch.optim.SGD),
    "heavy ball": ({"name": "sgd", "momentum": 0.9}, torch.optim.SGD),
    "heavy ball with decay": ({"name": "sgd", "momentum": 0.5, "weight_decay": 0.1}, torch.optim.SGD),
    "nesterov": ({"name": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}, torch.optim.SGD),
    "adamw": ({"name": "adamw"}, torch.optim.AdamW),
    "adamw, other keys": (
        {"name": "adamw", "lr": 0.05, "betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.2},
        torch.optim.AdamW,
    ),
    "adamw without memory": ({"name": "adamw", "betas": (0.0, 0.0), "weight_decay": 0.0}, torch.optim.AdamW),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", TORCH)
def test_rows_step_like_torch(case, dtype):
    options, reference = TORCH[case]
    optimiser, rows = make_rows(options, dtype=dtype, blank=True)
    plain = torch.nn.Parameter(rows.local.clone())
    keys = make_train(options).optimiser.model_dump(exclude={"name"})
    reference = reference([plain], **keys)
    for k in range(50):
        target = torch.sin(torch.arange(24.0, dtype=dtype).view(3, 8) + k)  # each agent's, and of any size and sign
        rows.gradients.copy_((rows.local - target) * 10.0 ** (k % 3 - 1))
        plain.grad = (plain.detach() - target) * 10.0 ** (k % 3 - 1)
        optimiser.step(rows)
        reference.step()
    difference = (rows.local - plain.detach()).norm() / plain.detach().norm()
    assert difference <= (1e-5 if dtype == torch.float32 else 1e-10)


def test_a_row_that_joins_later_takes_its_first_adamw_step_as_it_would_alone():
    optimiser, rows = make_rows({"name": "adamw"}, blank=True)
    for _ in range(20):
        rows.gradients.fill_(0.3)
        optimiser.step(rows)
    newcomer, alone = make_rows({"name": "adamw"}, seed=1, blank=True)
    for name, matrix in rows.matrices().items():
        matrix[1] = alone.matrices()[name][1]
    for every in (rows, alone):
        every.gradients.fill_(-0.2)
    optimiser.step(rows)
    newcomer.step(alone)
    assert torch.equal(rows.local[1], alone.local[1])
    assert rows.state["steps"].flatten().tolist() == [21, 1, 21]


def test_adamw_in_float32_counts_its_first_steps_exactly():
    """1 - beta^steps in float32 would be wrong in the fifth digit at the first step; |step| is lr there."""
    optimiser, rows = make_rows({"name": "adamw", "weight_decay": 0.0, "eps": 1e-12}, dtype=torch.float32, blank=True)
    rows.local.zero_()
    rows.gradients.fill_(0.7)
    optimiser.step(rows)
    torch.testing.assert_close(rows.local, torch.full_like(rows.local, -1e-3), rtol=5e-7, atol=0)


# -- the guard -------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    case=st.sampled_from(sorted(EVERY)),
    agents=st.integers(1, 5),
    bad=st.dictionaries(
        st.tuples(st.integers(0, 4), st.integers(0, 7)),
        st.sampled_from([float("nan"), float("inf"), -float("inf"), 2 * LARGEST_GRADIENT, -1e38]),
        max_size=4,
    ),
    lost=st.sets(st.integers(0, 4)),
)
def test_bad_agents_keep_every_bit_and_the_others_step_as_without_them(case, agents, bad, lost):
    optimiser, rows = make_rows(EVERY[case], agents, dtype=torch.float32)
    _, before = make_rows(EVERY[case], agents, dtype=torch.float32)
    undisturbed, after = make_rows(EVERY[case], agents, dtype=torch.float32)
    undisturbed.step(after)
    for (agent, column), value in bad.items():
        rows.gradients[min(agent, agents - 1), column] = value
    finite = torch.tensor([agent not in lost for agent in range(agents)])
    expected = finite.clone()
    expected[[min(agent, agents - 1) for agent, _ in bad]] = False
    guarded_step([(optimiser, rows, torch.arange(agents))], finite)
    assert torch.equal(finite, expected)
    for name, matrix in rows.matrices().items():
        assert torch.equal(matrix[~finite], before.matrices()[name][~finite])
        assert torch.equal(matrix[finite], after.matrices()[name][finite])
    moved = "tracker" if case == "gradient-tracking" else "parameters"
    assert (after.matrices()[moved] != before.matrices()[moved]).any(1).all()


def test_an_agent_whose_loss_was_not_finite_is_kept_in_every_slice():
    optimiser, first = make_rows(EVERY["heavy ball"])
    (_, second), (_, before) = make_rows(EVERY["heavy ball"]), make_rows(EVERY["heavy ball"])
    finite = torch.tensor([True, True, False])
    guarded_step([(optimiser, first, torch.arange(3)), (optimiser, second, torch.tensor([2, 0, 1]))], finite)
    assert torch.equal(first.local[2], before.local[2])
    assert torch.equal(second.local[0], before.local[0])
    assert not torch.equal(second.local[2], before.local[2])


@pytest.mark.parametrize("weight_decay", [0.0, 1.0])
@pytest.mark.parametrize("lr", [1e-9, 1e3])
@pytest.mark.parametrize("case", EVERY)
def test_the_largest_values_that_are_let_through_leave_everything_finite(case, lr, weight_decay):
    """Momentum adds gradients up; where a loss feels nothing of a parameter, weight decay alone can make it grow."""
    fastest = {"sgd": {"momentum": 0.999}, "qg-dsgdm": {"beta": 0.999, "mu": 0.999}}
    options = EVERY[case] | {"lr": lr} | (fastest.get(EVERY[case]["name"], {}) if case != "sgd" else {})
    optimiser, rows = make_rows(options | {"weight_decay": weight_decay}, dtype=torch.float32)
    went = torch.zeros(3, dtype=torch.bool)
    for k in range(60):
        if not k % 15:
            rows.local[1], rows.local[2] = LARGEST_PARAMETER, -LARGEST_PARAMETER
        optimiser.before_round(rows)
        rows.gradients.copy_(torch.tensor([[0.0], [1.0], [-1.0 if k % 2 else 1.0]]).expand(3, 8) * LARGEST_GRADIENT)
        finite = torch.ones(3, dtype=torch.bool)
        guarded_step([(optimiser, rows, torch.arange(3))], finite)
        optimiser.after_mix(rows)
        assert all(torch.isfinite(matrix).all() for matrix in rows.matrices().values()), k
        went |= finite
    assert went.all()


@pytest.mark.parametrize("value", [2 * LARGEST_PARAMETER, -3e38, float("inf"), float("nan")])
def test_an_agent_whose_parameters_are_too_large_takes_no_step(value):
    optimiser, rows = make_rows(EVERY["heavy ball"], dtype=torch.float32)
    rows.local[1, 3] = value
    before = rows.local.clone()
    finite = torch.ones(3, dtype=torch.bool)
    guarded_step([(optimiser, rows, torch.arange(3))], finite)
    assert finite.tolist() == [True, False, True]
    assert rows.local[1].numpy().tobytes() == before[1].numpy().tobytes()
    assert not rows.local[0].equal(before[0])


# -- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["heavy ball", "gradient-tracking"])
def test_leaves_view_the_rows_and_backward_fills_the_gradient_matrix(case):
    _, rows = make_rows(EVERY[case])
    tracker = rows.tracker.clone()
    rows.change.zero_()
    stacked, single = rows.parameters(slice(0, 2)), rows.parameters(2)
    assert stacked["w"].shape == (2, 2, 3)
    assert single["w"].shape == (2, 3)
    ((stacked["w"] ** 2).sum() + (3 * single["b"]).sum()).backward()
    torch.testing.assert_close(rows.gradients[:2, :6], 2 * rows.local[:2, :6])
    assert rows.gradients[2].tolist() == [0.0] * 6 + [3.0, 3.0]
    assert not rows.change[:, 8:].any()
    rows.local[2, 6] = 7.0
    assert float(single["b"][0].detach()) == 7.0
    assert torch.equal(rows.tracker, tracker)


def test_rows_apart_travel_as_they_were_at_the_start_of_the_round():
    optimiser, rows = make_rows(EVERY["gradient-tracking"])
    rows.hold()
    start = rows.mixed.clone()
    optimiser.step(rows)
    assert torch.equal(rows.source[:3], start)
    assert not torch.equal(rows.mixed, start)


def test_what_a_checkpoint_keeps_of_each_optimiser():
    kept = {case: {name: m.shape[1] for name, m in make_rows(EVERY[case])[1].matrices().items()} for case in EVERY}
    assert kept == {
        "sgd": {"parameters": 8},
        "heavy ball": {"parameters": 8, "momentum": 8},
        "nesterov": {"parameters": 8, "momentum": 8},
        "adamw": {"parameters": 8, "mean": 8, "mean_square": 8, "steps": 1},
        "qg-dsgdm": {"parameters": 8, "momentum": 8},
        "gradient-tracking": {"parameters": 8, "tracker": 8, "gradient": 8},
        "d2": {"parameters": 8, "correction": 8},
    }


# -- jobs ------------------------------------------------------------------------------------------------------------


def planned(folder, *overrides):
    file = load_job(write_job(folder), overrides)
    return make_plan(file, load_dataset(file.job.data, 0), ranks=2)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["{name: adamw, momentum: 0.9}"], "`momentum` belongs to train.optimiser with name: sgd"),
        (["{betas: [0.9, 0.99]}"], "`betas` belongs to train.optimiser with name: adamw"),
        (["{name: adamw, betas: 0.9}"], "`train.optimiser.betas` is 0.9; it must be a list of 2 entries"),
        (["{name: adamw, betas: [0.9, 1]}"], "`train.optimiser.betas.1` is 1; it must be a number"),
        (["{name: adam}"], "it must be sgd, adamw, qg-dsgdm, gradient-tracking or d2"),
        (["adamw"], "it must be a mapping with name: sgd, adamw, qg-dsgdm, gradient-tracking or d2"),
        (["{nesterov: true, momentum: 0}"], "nesterov: true needs momentum above 0"),
        (["{name: qg-dsgdm, lr: 1e-12}"], "momentum is a change of rows divided by lr"),
        (["{name: qg-dsgdm}", "train.order=consensus"], "qg-dsgdm needs train.order: adapt-then-combine"),
        (["{name: d2}", "train.order=consensus"], "d2 needs train.order: adapt-then-combine"),
        (["{name: d2}", "train.local_steps=2"], "d2 needs train.local_steps: 1"),
        (
            ["{name: gradient-tracking}", "train.local_steps=2"],
            "gradient-tracking needs train.order: consensus and train.local_steps: 1",
        ),
        (["{name: d2}", "topology.kind=random-gossip"], "topology.kind random-gossip has none"),
        (["{name: d2}", "topology={kind: static-exponential, directed: true}"], "static-exponential has none"),
        (["{name: d2}", "topology={kind: base-k, k: 29}"], "topology.kind base-k has none"),
        (["{name: d2}", "method={name: parse, aggregate: exact}"], "method.aggregate: exact has none"),
        (["{name: d2}"], "the smallest eigenvalue of its W is -0.333, it must be above -1/3"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, overrides, said):
    optimiser, *others = overrides
    with pytest.raises(JobError) as caught:
        planned(tmp_path, f"train.optimiser={optimiser}", *others)
    assert said in str(caught.value)


def test_what_goes_together_is_planned_and_survives_being_written(tmp_path):
    for overrides in (
        ["train.optimiser={name: d2}", "topology.lazy=true"],
        ["train.optimiser={name: d2}", "topology.kind=complete"],
        ["train.optimiser={name: adamw, betas: [0.8, 0.99]}", "train.order=consensus"],
        ["train.optimiser={name: gradient-tracking}", "train.order=consensus", "topology.kind=random-gossip"],
    ):
        plan = planned(tmp_path, *overrides)
        (tmp_path / "again.yaml").write_text(dump_job(plan.job))
        assert load_job(tmp_path / "again.yaml").job == plan.job
        once = sum(plan.layouts[spec.name].width for spec in plan.slices if spec.graph == "top") * 4
        assert plan.row_bytes("top") == once * (2 if plan.job.train.optimiser.name == "gradient-tracking" else 1)
