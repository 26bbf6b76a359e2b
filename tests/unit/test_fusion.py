"""Fusion of synergistic slices, and what modalities count: against plain formulas, and how they start."""

import pytest
import torch
from torch import nn

from parse_mpi.job import MlpEncoder, ParseMethod
from parse_mpi.methods.parse import Parse
from parse_mpi.model.fusion import AttentionFusion, GatedFusion, make_fusion
from parse_mpi.model.network import AgentNetwork
from parse_mpi.model.token_network import TokenFusion
from parse_mpi.population import Agent

SHAPES = {"a": (5,), "b": (2, 3), "c": (4,)}
ENCODER = MlpEncoder(hidden=(7,))
SET_POOLED = ("mean", "gated", "attention")
EQUAL = torch.full((3,), 1 / 3, dtype=torch.float64)
LEARNT = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)


def slices(modalities=3, batch=5, width=4):
    return torch.randn(modalities, batch, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def random_values(module):
    """The module with parameters away from where they start."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        nn.init.normal_(parameter, generator=generator)
    return module.double()


def options(**changes):
    return ParseMethod(name="parse", slices={"unique": 4, "redundant": 4, "synergistic": 4}, **changes)


def network(*modalities, seed=0, id=0, **changes):
    agent = Agent(id, modalities, (ENCODER,) * len(modalities))
    return AgentNetwork(agent, SHAPES, 4, options(**changes), seed)


def samples(*modalities, count=6):
    generator = torch.Generator().manual_seed(1)
    return {m: torch.randn(count, *SHAPES[m], generator=generator) for m in modalities}


@pytest.mark.parametrize("kind", SET_POOLED)
@pytest.mark.parametrize("share", [EQUAL, LEARNT])
def test_set_pooled_fusions_start_as_the_weighted_mean(kind, share):
    z = slices()
    fusion, width = make_fusion(kind, ["a", "b", "c"], 4)
    assert width == 4
    mean = share[0] * z[0] + share[1] * z[1] + share[2] * z[2]
    torch.testing.assert_close(fusion.double()(z, share), mean)


@pytest.mark.parametrize("kind", ["gated", "attention"])
def test_zeros_are_a_start_and_no_dead_end(kind):
    """After one step no parameter's gradient is zero any more."""
    z = slices()
    fusion = make_fusion(kind, ["a", "b", "c"], 4)[0].double()
    optimiser = torch.optim.SGD(fusion.parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        (fusion(z, EQUAL) - z[0]).square().mean().backward()
        optimiser.step()
    assert all(p.grad.abs().max() > 0 for p in fusion.parameters())


def test_gates_are_a_softmax_over_modalities_at_every_position():
    z = slices()
    fusion = random_values(GatedFusion(["a", "b", "c"], 4))
    maps = list(fusion.gates.values())
    expected = torch.zeros_like(z[0])
    for sample in range(5):
        scores = torch.stack([maps[m].weight @ z[m, sample] + maps[m].bias for m in range(3)])
        odds = LEARNT[:, None] * scores.exp()
        expected[sample] = (odds / odds.sum(0) * z[:, sample]).sum(0)
    torch.testing.assert_close(fusion(z, LEARNT), expected)


def test_a_gate_needs_no_other_modality():
    """The gate of a modality gives the same score in any set, so that its parameters mean the same everywhere."""
    z = slices()
    both, all_three = (random_values(GatedFusion(names, 4)) for names in (["a", "c"], ["a", "b", "c"]))
    for key in ("m_a", "m_c"):
        all_three.gates[key].load_state_dict(both.gates[key].state_dict())
    without_b = torch.tensor([0.5, 1e-300, 0.5], dtype=torch.float64)
    alone = both(z[[0, 2]], torch.tensor([0.5, 0.5], dtype=torch.float64))
    torch.testing.assert_close(all_three(z, without_b), alone)


def test_attention_is_the_textbook_layer_with_a_residual():
    z = slices()
    fusion = random_values(AttentionFusion(4))
    a = fusion.attention
    expected = torch.zeros_like(z[0])
    for sample in range(5):
        token = z[:, sample]
        query, key, value = (token @ a[name].weight.T for name in ("query", "key", "value"))
        weight = (query @ key.T / 2).softmax(1)
        expected[sample] = (token + weight @ value @ a["output"].weight.T + a["output"].bias).mean(0)
    torch.testing.assert_close(fusion(z, EQUAL), expected)


@pytest.mark.parametrize("kind", ["mean", "attention"])
def test_fusion_of_a_set_does_not_know_an_order(kind):
    z = slices()
    fusion = random_values(make_fusion(kind, ["a", "b", "c"], 4)[0])
    torch.testing.assert_close(fusion(z[[2, 0, 1]], LEARNT[[2, 0, 1]]), fusion(z, LEARNT))


def test_concat_gives_every_modality_its_place_in_the_head():
    net = network("a", "b", "c", fusion="concat")
    out = net(samples("a", "b", "c"))
    assert net.synergy_head[0].weight.shape == (4, 12)
    torch.testing.assert_close(out.logits["synergistic"][0], net.synergy_head(torch.cat([*out.z["synergistic"]], 1)))


@pytest.mark.parametrize("kind", SET_POOLED)
def test_whatever_the_fusion_the_network_starts_equal(kind):
    x = samples("a", "b")
    torch.testing.assert_close(network("a", "b", fusion=kind)(x).logits, network("a", "b")(x).logits)


@pytest.mark.parametrize("pool", ["mean", "each"])
@pytest.mark.parametrize("kind", SET_POOLED)
def test_learnt_shares_weigh_fusion_and_pooling(pool, kind):
    net = network("a", "b", fusion=kind, pool=pool, modality_weighting="adaptive")
    x = samples("a", "b")
    torch.testing.assert_close(net(x), network("a", "b", fusion=kind, pool=pool)(x))
    with torch.no_grad():
        net.modality_logits["m_a"].logit.fill_(3.0)
    out = net(x)
    torch.testing.assert_close(out.share, torch.tensor([6.0, 0.0]).softmax(0))
    fused = (out.share[:, None, None] * out.z["synergistic"]).sum(0)
    torch.testing.assert_close(out.logits["synergistic"][0], net.synergy_head(fused))
    each = net.redundant_head(out.z["redundant"])
    pooled = (out.share[:, None, None] * each).sum(0, keepdim=True)
    torch.testing.assert_close(out.logits["redundant"], pooled if pool == "mean" else each)


def test_unimodal_agents_have_nothing_of_it():
    changes = {"fusion": "gated", "modality_weighting": "adaptive", "slices": {"unique": 2}}
    names = {name.split(".")[0] for name, _ in network_of(changes, "a").named_parameters()}
    assert names == {"encoders", "unique_heads", "redundant_head"}


def network_of(changes, *modalities):
    agent = Agent(0, modalities, (ENCODER,) * len(modalities))
    return AgentNetwork(agent, SHAPES, 4, ParseMethod(name="parse", **changes), 0)


def test_projectors_bring_unequal_widths_to_the_widest():
    widths = {"unique": 3, "redundant": 6, "synergistic": 2}
    net = network_of({"slices": widths}, "a", "b")
    out = net(samples("a", "b"))
    for t, width in widths.items():
        assert out.z[t].shape == (2, 6, width)
        torch.testing.assert_close(out.projected[t], out.z[t] @ net.projectors[t].weight.T)
        assert out.projected[t].shape == (2, 6, 6)
    for unneeded in ({"slices": widths, "hard_negatives": "none"}, {"slices": dict.fromkeys(widths, 3)}):
        assert not network_of(unneeded, "a", "b")(samples("a", "b")).projected


def test_all_holders_may_hold_synergy_rows_that_unimodal_agents_never_use():
    whole, plain = network("a", synergy_rows="all"), network("a")
    both = network("a", "b")
    assert torch.equal(whole.encoders["m_a"].synergistic.weight, both.encoders["m_a"].synergistic.weight)
    out = whole(samples("a"))
    torch.testing.assert_close(out, plain(samples("a")))
    sum(logits.sum() for logits in out.logits.values()).backward()
    assert whole.encoders["m_a"].synergistic.weight.grad is None


def test_initial_values_of_each_agents_own():
    common = [dict(network("a", "b", id=i).named_parameters()) for i in (0, 1)]
    own = [dict(network("a", "b", id=i, init="per-agent").named_parameters()) for i in (0, 1, 1)]
    for name, value in common[0].items():
        assert torch.equal(value, common[1][name])
        assert torch.equal(own[1][name], own[2][name])
        constant = len(value.unique()) == 1  # LayerNorm's start is no draw
        assert constant == torch.equal(own[0][name], own[1][name]), name


@pytest.mark.parametrize("fusion", SET_POOLED)
def test_an_agent_learns_to_mistrust_a_modality_of_pure_noise(fusion):
    """With 160 samples noise is learnt by heart where it counts as much as what is seen."""
    accuracy, share = zip(*(learn_beside_noise(fusion, how) for how in ("uniform", "adaptive")), strict=True)
    assert share[0] == 0.5
    assert share[1] < 0.1
    assert accuracy[1] > accuracy[0] + 0.01


def learn_beside_noise(fusion, modality_weighting):
    """Accuracy on fresh samples of an agent with a good modality and a useless one, and what the latter counts."""
    generator = torch.Generator().manual_seed(2)
    centres = torch.randn(4, 5, generator=generator)

    def draw(count):
        y = torch.randint(0, 4, (count,), generator=generator)
        noise = {"a": torch.randn(count, 5, generator=generator), "c": torch.randn(count, 4, generator=generator)}
        return noise | {"a": centres[y] + noise["a"]}, y

    (x, y), (fresh, fresh_y) = draw(160), draw(2000)
    method = Parse(options(fusion=fusion, modality_weighting=modality_weighting))
    net = network("a", "c", fusion=fusion, modality_weighting=modality_weighting)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for _ in range(400):
        batch = torch.randint(0, 160, (32,), generator=generator)
        output = net({m: values[batch] for m, values in x.items()})
        loss = method.loss(output, y[batch], torch.ones(32), torch.tensor(0.5))[0]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        output = net(fresh)
        ensemble = method.predictions(output, ("a", "c"))["ensemble"]
    return (ensemble.argmax(1) == fresh_y).double().mean().item(), output.share[1].item()


def test_a_token_carries_the_embedding_of_its_own_modality_and_part():
    """In the order in which the agent holds its modalities, whatever their names."""
    made = TokenFusion(("top", "bottom"), 2)  # the attention starts as the identity
    for key, values in {"m_top": [[1.0, 0], [2, 0]], "m_bottom": [[3.0, 0], [4, 0]]}.items():
        made.types[key].data = torch.tensor(values)
    for token, expected in enumerate((1, 2, 3, 4)):
        fused = made(torch.zeros(4, 1, 2), torch.eye(4)[token])
        assert fused.tolist() == [[expected, 0]]
