"""Decentralised algorithms on rows against their published recursions in dense NumPy, and against what theory promises.

Agent i minimises f_i(x) = 1/2 |A_i x - b_i|^2, with A_i and b_i of its own, so that no two agents want the same x.
"""

from dataclasses import dataclass

import networkx as nx
import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from recursions import d2, dsgd, gradient_tracking, qg_dsgdm

from parse_mpi.agents.optimisers import make_optimiser
from parse_mpi.agents.rows import SliceRows
from parse_mpi.job import Train
from parse_mpi.methods.layout import ParameterSpan, SliceLayout

AGENTS, WIDTH, MEASUREMENTS = 10, 6, 12
CONSENSUS = {"order": "consensus"}


def metropolis(graph: nx.Graph) -> np.ndarray:
    W = np.zeros((len(graph), len(graph)))
    for i, j in graph.edges:
        W[i, j] = W[j, i] = 1 / (1 + max(graph.degree[i], graph.degree[j]))
    return W + np.diag(1 - W.sum(1))


MATRICES = {
    "ring": metropolis(nx.cycle_graph(AGENTS)),
    "lazy ring": (metropolis(nx.cycle_graph(AGENTS)) + np.eye(AGENTS)) / 2,
    "complete": metropolis(nx.complete_graph(AGENTS)),
    "erdos-renyi": metropolis(nx.gnp_random_graph(AGENTS, 0.4, seed=3)),
}


@dataclass(frozen=True)
class Quadratic:
    """The agents' problems; gradients of round k carry the same Gaussian noise in every call."""

    A: np.ndarray
    b: np.ndarray
    noise: float = 0.0

    @staticmethod
    def draw(noise: float = 0.0) -> "Quadratic":
        draw = np.random.default_rng(0)
        A = draw.normal(size=(AGENTS, MEASUREMENTS, WIDTH)) / np.sqrt(MEASUREMENTS)
        return Quadratic(A, draw.normal(size=(AGENTS, MEASUREMENTS)) * 3, noise)

    def gradients(self, x: np.ndarray, step: int) -> np.ndarray:
        residual = np.einsum("amp,ap->am", self.A, x) - self.b
        noise = np.random.default_rng(step).normal(size=x.shape) * self.noise
        return np.einsum("amp,am->ap", self.A, residual) + noise

    def optimum(self) -> np.ndarray:
        return np.linalg.solve(np.einsum("amp,amq->pq", self.A, self.A), np.einsum("amp,am->p", self.A, self.b))

    def error(self, x: np.ndarray) -> float:
        """The largest distance of an agent from the minimum of the mean of all f_i."""
        return float(np.linalg.norm(x - self.optimum(), axis=1).max())


def start() -> np.ndarray:
    """Agents start apart, which no algorithm here may depend on being otherwise."""
    return np.random.default_rng(1).normal(size=(AGENTS, WIDTH))


class OnRows:
    """The optimiser of a job on slice rows, mixed by a dense matrix, phase by phase as the trainer does it."""

    def __init__(self, keys: dict, problem: Quadratic, W: np.ndarray):
        self.train = TypeAdapter(Train).validate_python(keys)
        self.optimiser = make_optimiser(self.train)
        self.problem = problem
        self.W = torch.from_numpy(W)
        self.rows = SliceRows(
            "x",
            SliceLayout((ParameterSpan("x", (WIDTH,), 0, WIDTH),)),
            range(AGENTS),
            0,
            torch.float64,
            torch.device("cpu"),
            copies=self.train.optimiser.copies,
            apart=self.train.order == "consensus",
            state=self.optimiser.state(WIDTH),
        )
        self.rows.local.copy_(torch.from_numpy(start()))
        self.steps = 0

    def run(self, rounds: int) -> np.ndarray:
        rows = self.rows
        for _ in range(rounds):
            rows.hold()
            self.optimiser.before_round(rows)
            for _ in range(self.train.local_steps):
                gradients = self.problem.gradients(rows.local.numpy(), self.steps)
                rows.gradients.copy_(torch.from_numpy(gradients))
                self.optimiser.step(rows)
                self.steps += 1
            rows.mixed.add_(self.W @ rows.source - rows.source)
            self.optimiser.after_mix(rows)
        return rows.local.numpy().copy()


CASES = {
    "dsgd": ({"optimiser": {"name": "sgd", "lr": 0.1, "momentum": 0.0}}, dsgd, {"lr": 0.1}),
    "dsgdm": ({"optimiser": {"name": "sgd", "lr": 0.05}}, dsgd, {"lr": 0.05, "mu": 0.9}),
    "nesterov": (
        {"optimiser": {"name": "sgd", "lr": 0.05, "nesterov": True}, "local_steps": 2},
        dsgd,
        {"lr": 0.05, "mu": 0.9, "nesterov": True, "local_steps": 2},
    ),
    "d-psgd": (
        CONSENSUS | {"optimiser": {"name": "sgd", "lr": 0.1, "momentum": 0.0}},
        dsgd,
        {"lr": 0.1, "consensus": True},
    ),
    "d-psgd with momentum and local steps": (
        CONSENSUS | {"optimiser": {"name": "sgd", "lr": 0.05}, "local_steps": 3},
        dsgd,
        {"lr": 0.05, "mu": 0.9, "local_steps": 3, "consensus": True},
    ),
    "qg-dsgdm": ({"optimiser": {"name": "qg-dsgdm", "lr": 0.1}}, qg_dsgdm, {"lr": 0.1}),
    "qg-dsgdm with local steps": (
        {"optimiser": {"name": "qg-dsgdm", "lr": 0.05, "beta": 0.8, "mu": 0.7}, "local_steps": 3},
        qg_dsgdm,
        {"lr": 0.05, "beta": 0.8, "mu": 0.7, "local_steps": 3},
    ),
    "gradient tracking": (
        CONSENSUS | {"optimiser": {"name": "gradient-tracking", "lr": 0.1}},
        gradient_tracking,
        {"lr": 0.1},
    ),
    "d2": ({"optimiser": {"name": "d2", "lr": 0.1}}, d2, {"lr": 0.1}),
}


@pytest.mark.parametrize("topology", ["lazy ring", "complete", "erdos-renyi"])
@pytest.mark.parametrize("case", CASES)
def test_rows_follow_the_published_recursion(case, topology):
    keys, reference, options = CASES[case]
    problem, W = Quadratic.draw(noise=0.3), MATRICES[topology]
    expected = reference(problem.gradients, W, start(), 100, **options)
    assert np.abs(expected).max() < 100  # nothing diverges here, or the comparison would say little
    np.testing.assert_allclose(OnRows(keys, problem, W).run(100), expected, rtol=0, atol=1e-10)


# -- what theory promises --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("topology", ["lazy ring", "erdos-renyi"])
def test_gradient_tracking_and_d2_are_exact_where_dsgd_stalls(topology):
    problem, W = Quadratic.draw(), MATRICES[topology]
    for case in ("gradient tracking", "d2"):
        assert problem.error(OnRows(CASES[case][0], problem, W).run(3000)) < 1e-8
    for case in ("dsgd", "d-psgd"):
        stalling = OnRows(CASES[case][0], problem, W)
        floor = problem.error(stalling.run(2000))
        assert floor > 0.1
        assert problem.error(stalling.run(1000)) == pytest.approx(floor, rel=1e-6)


def test_the_tracker_follows_the_mean_gradient():
    problem = Quadratic.draw(noise=0.3)
    tracking = OnRows(CASES["gradient tracking"][0], problem, MATRICES["ring"])
    for k in range(30):
        mean = problem.gradients(tracking.rows.local.numpy(), k).mean(0)
        tracking.run(1)
        np.testing.assert_allclose(tracking.rows.tracker.mean(0).numpy(), mean, rtol=0, atol=1e-12)


def test_d2_needs_eigenvalues_above_minus_a_third_where_dsgd_needs_them_above_minus_one():
    W = 1.2 * MATRICES["ring"] - 0.2 * np.eye(AGENTS)
    assert np.linalg.eigvalsh(W).min() == pytest.approx(-0.6)
    problem = Quadratic.draw()
    assert problem.error(OnRows(CASES["d2"][0], problem, W).run(100)) > 1e6
    assert problem.error(OnRows(CASES["dsgd"][0], problem, W).run(100)) < 10


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_quasi_global_momentum_does_not_amplify_heterogeneity(noise):
    """Heavy-ball momentum multiplies the pull of an agent's own gradient by ten; the change of mixed rows does not."""
    problem = Quadratic.draw(noise)

    def mean_error(optimiser):
        run = OnRows({"optimiser": optimiser | {"lr": 0.02}}, problem, MATRICES["lazy ring"])
        run.run(800)
        return np.mean([problem.error(run.run(1)) for _ in range(200)])

    heavy_ball, quasi_global = mean_error({"name": "sgd", "momentum": 0.9}), mean_error({"name": "qg-dsgdm"})
    assert quasi_global < 0.5 * heavy_ball
