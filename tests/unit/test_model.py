"""The network of one agent: fission, heads, initial values, and what an agent does not hold."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from parse_mpi.job import MlpEncoder, ParseMethod
from parse_mpi.methods.layout import slice_layouts
from parse_mpi.methods.parse import Parse
from parse_mpi.model.encoders import FissionEncoder, make_trunk
from parse_mpi.model.heads import ensemble, prediction_names, predictions
from parse_mpi.model.network import AgentNetwork, make_synergy_head
from parse_mpi.population import Agent

SHAPES = {"a": (5,), "b": (2, 3), "c": (4,)}
SMALL = ParseMethod(name="parse", slices={"unique": 4, "redundant": 4, "synergistic": 4})
ENCODER = MlpEncoder(hidden=(7,))


def agent(id, *modalities):
    return Agent(id, modalities, (ENCODER,) * len(modalities))


def network(*modalities, options=SMALL, seed=0):
    return AgentNetwork(agent(0, *modalities), SHAPES, 3, options, seed)


def samples(*modalities, count=6):
    generator = torch.Generator().manual_seed(1)
    return {m: torch.randn(count, *SHAPES[m], generator=generator) for m in modalities}


def test_two_linear_maps_equal_one_layer_and_a_split():
    torch.manual_seed(0)
    trunk = make_trunk(ENCODER, (5,))
    parts = FissionEncoder(trunk, nn.Linear(7, 3 + 4), 3, nn.Linear(7, 2))
    whole = nn.Linear(7, 9)
    with torch.no_grad():
        whole.weight.copy_(torch.cat([parts.unique_redundant.weight, parts.synergistic.weight]))
        whole.bias.copy_(torch.cat([parts.unique_redundant.bias, parts.synergistic.bias]))
    x = torch.randn(6, 5)
    for mine, plain in zip(parts(x), torch.split(whole(trunk(x)), [3, 4, 2], dim=1), strict=True):
        torch.testing.assert_close(mine, plain)


def test_holders_of_a_slice_start_equal_whatever_else_they_hold():
    alone, both, other_seed = network("a"), network("a", "b"), network("a", seed=1)
    shared = dict(alone.named_parameters())
    for name, value in shared.items():
        assert torch.equal(value, dict(both.named_parameters())[name]), name
    assert not torch.equal(shared["redundant_head.weight"], other_seed.redundant_head.weight)


def test_building_a_network_leaves_global_random_state_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    network("a", "b")
    assert torch.equal(torch.rand(4), expected)


def test_unimodal_agents_have_no_synergy():
    unimodal = network("a")
    assert not any("syn" in name for name, _ in unimodal.named_parameters())
    assert set(unimodal(samples("a")).logits) == {"unique", "redundant"}


@pytest.mark.parametrize("pool", ["mean", "each"])
def test_shapes_and_pooling_of_the_redundant_head(pool):
    net = network("a", "b", "c", options=SMALL.model_copy(update={"pool": pool}))
    out = net(samples("a", "b", "c"))
    assert out.z["redundant"].shape == (3, 6, 4)
    assert out.logits["unique"].shape == (3, 6, 3)
    heads = net.redundant_head(out.z["redundant"])
    expected = heads.mean(0, keepdim=True) if pool == "mean" else heads  # a linear head commutes with the mean
    torch.testing.assert_close(out.logits["redundant"], expected)
    torch.testing.assert_close(out.logits["synergistic"][0], net.synergy_head(out.z["synergistic"].mean(0)))


def test_ensembles_average_types_or_heads():
    torch.manual_seed(0)
    logits = {"unique": torch.randn(3, 2, 4), "redundant": torch.randn(1, 2, 4), "synergistic": torch.randn(1, 2, 4)}
    u, (r,), (s,) = logits.values()
    equal, learnt = torch.full((3,), 1 / 3), torch.tensor([0.7, 0.2, 0.1])
    torch.testing.assert_close(ensemble(logits, equal, "types"), (u.mean(0) + r + s) / 3)
    torch.testing.assert_close(ensemble(logits, equal, "heads"), (u.sum(0) + r + s) / 5)
    weighted_u = 0.7 * u[0] + 0.2 * u[1] + 0.1 * u[2]
    torch.testing.assert_close(ensemble(logits, learnt, "types"), (weighted_u + r + s) / 3)
    torch.testing.assert_close(ensemble(logits, learnt, "heads"), (3 * weighted_u + r + s) / 5)
    named = predictions(logits, equal, ["a", "b", "c"], "types")
    assert tuple(named) == prediction_names(["a", "b", "c"])
    torch.testing.assert_close(named["unique+synergistic"], (u.mean(0) + s) / 2)
    torch.testing.assert_close(named["unique[b]"], u[1])


def test_every_parameter_lies_in_one_slice_of_its_holders():
    agents = [agent(0, "a"), agent(1, "b"), agent(2, "a", "b"), agent(3, "a", "b", "c")]
    table = Parse(SMALL).slices(agents)
    layouts = slice_layouts([(a, network(*a.modalities)) for a in agents], table)
    holders = {spec.name: set(spec.holders) for spec in table}
    for a in agents:
        expected = sum(p.numel() for p in network(*a.modalities).parameters())
        assert expected == sum(layouts[name].width for name in layouts if a.id in holders[name])
    assert holders["encoder[a]"] == {0, 2, 3}
    assert holders["synergy[a]"] == holders["synergy_head"] == {2, 3}
    assert holders["synergy[c]"] == {3}
    assert holders["redundant_head"] == {0, 1, 2, 3}


def test_a_parameter_outside_the_table_is_refused():
    agents = [agent(0, "a")]
    table = [spec for spec in Parse(SMALL).slices(agents) if spec.name != "redundant_head"]
    with pytest.raises(ValueError, match=r"redundant_head\.\w+ lies in no slice"):
        slice_layouts([(agents[0], network("a"))], table)


@pytest.mark.parametrize(("kind", "low", "high"), [("linear", 0.45, 0.55), ("mlp", 0.999, 1.0)])
def test_only_a_nonlinear_synergy_head_learns_xor_of_a_mean(kind, low, high):
    """The label is the XOR of one bit per modality; z_s is the mean of the modalities' linear features."""
    torch.manual_seed(0)
    bits = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=2))).repeat(64, 1)
    label = (bits[:, 0] * bits[:, 1] > 0).long()
    maps = nn.ModuleList([nn.Linear(1, 8), nn.Linear(1, 8)])
    head = make_synergy_head(kind, 8, 8, 2)
    optimiser = torch.optim.Adam([*maps.parameters(), *head.parameters()], lr=0.01)
    for _ in range(500):
        logits = head(torch.stack([m(bits[:, k : k + 1]) for k, m in enumerate(maps)]).mean(0))
        optimiser.zero_grad()
        nn.functional.cross_entropy(logits, label).backward()
        optimiser.step()
    accuracy = (logits.argmax(1) == label).double().mean().item()
    assert low <= accuracy <= high


def test_alignment_weight_divides_dilution_out():
    agents = [agent(i, "a") for i in range(20)] + [agent(20 + i, "b") for i in range(5)]
    agents += [agent(25 + i, "a", "b") for i in range(5)]
    plain, scaled = (Parse(SMALL.model_copy(update={"beta": 0.5, "beta_scale": s})) for s in ("none", "holders"))
    assert plain.alignment_weight(("a",), agents) == scaled.alignment_weight(("a",), agents) == 0
    assert plain.alignment_weight(("a", "b"), agents) == 0.5
    assert scaled.alignment_weight(("a", "b"), agents) == pytest.approx(0.5 * np.mean([25 / 5, 10 / 5]))


def test_modality_names_that_modules_use_themselves_are_fine():
    names = ("values", "type", "keys", "items", "all", "multimodal")
    shapes = dict.fromkeys(names, (3,))
    net = AgentNetwork(agent(0, *names), shapes, 3, SMALL, seed=0)
    out = net({name: torch.ones(2, 3) for name in names})
    assert out.logits["unique"].shape == (6, 2, 3)
    agents = [agent(0, *names), agent(1, "all"), agent(2, "multimodal", "type")]
    graphs = {spec.graph: spec.groups for spec in Parse(SMALL).slices(agents)}
    assert graphs["all"] == ((0, 1),)
    assert graphs["all agents"] == ((0, 1, 2),)
    assert graphs["multimodal agents"] == ((0, 2),)
