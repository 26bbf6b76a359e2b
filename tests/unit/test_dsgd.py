"""DSGD baselines: who shares what, what their networks are, and exact means as a server would give them."""

import copy

import numpy as np
import pytest
import torch
from small_jobs import make_trainer, write_job
from torch.nn import functional

from parse_mpi.errors import JobError
from parse_mpi.job import CentralisedMethod, DsgdMethod, MlpEncoder, ParseMethod
from parse_mpi.jobfile import load_job
from parse_mpi.methods.dsgd import make_dsgd
from parse_mpi.methods.parse import Parse
from parse_mpi.population import Agent
from parse_mpi.topology.slice_graph import slice_graph

SHAPES = {"a": (5,), "b": (2, 3), "c": (4,)}
SETS = [("a",), ("b",), ("a", "b"), ("a", "b"), ("a",), ("a", "b", "c")]
AGENTS = [Agent(i, held, (MlpEncoder(hidden=(7,)),) * len(held)) for i, held in enumerate(SETS)]
WIDTHS = {"unique": 2, "redundant": 3, "synergistic": 4}
BY_SET = ((0, 4), (1,), (2, 3), (5,))
EVERYBODY = ((0, 1, 2, 3, 4, 5),)


def method(name, **options):
    schema = CentralisedMethod if name == "centralised" else DsgdMethod
    return make_dsgd(schema(name=name, slices=WIDTHS, **options))


def groups(name, **options):
    return {spec.name: spec.groups for spec in method(name, **options).slices(AGENTS)}


def test_policies_with_one_head():
    task, modality, hybrid = (groups(f"dsgd-{name}") for name in ("task", "modality", "hybrid"))
    assert task["encoder[a]"] == ((0, 4), (2, 3), (5,))
    assert modality["encoder[a]"] == hybrid["encoder[a]"] == ((0, 2, 3, 4, 5),)
    assert task["label_head"] == modality["label_head"] == BY_SET
    assert hybrid["label_head"] == groups("centralised")["label_head"] == EVERYBODY


def test_policies_with_the_heads_of_parse():
    task, modality, hybrid = (groups(f"dsgd-{name}", heads="slices") for name in ("task", "modality", "hybrid"))
    assert task["encoder[b]"] == ((1,), (2, 3), (5,))
    assert modality["encoder[b]"] == hybrid["encoder[b]"] == ((1, 2, 3, 5),)
    assert task["redundant_head"] == modality["redundant_head"] == BY_SET
    assert modality["unique_head[a]"] == ((0, 4), (2, 3), (5,))
    assert modality["synergy_head"] == ((2, 3), (5,))
    assert hybrid["redundant_head"] == EVERYBODY
    assert hybrid["synergy_head"] == ((2, 3, 5),)


def test_a_scope_can_be_set_apart():
    changed = groups("dsgd-modality", heads="slices", sharing={"redundant_head": "holders", "unique_head": "none"})
    assert changed["redundant_head"] == EVERYBODY
    assert changed["unique_head[a]"] == ()
    assert changed["encoder[a]"] == ((0, 2, 3, 4, 5),)


def test_what_sharing_leaves_out_is_as_the_method_has_it():
    own = groups("dsgd-task", heads="slices")
    assert groups("dsgd-task", heads="slices", sharing={"redundant_head": "set"}) == own  # as it is anyway
    changed = groups("dsgd-task", heads="slices", sharing={"redundant_head": "holders"})
    assert {name for name in own if own[name] != changed[name]} == {"redundant_head"}


def test_hybrid_with_all_of_parse_s_options_shares_as_parse_does():
    ours = method("dsgd-hybrid", heads="slices", synergy_rows="multimodal").slices(AGENTS)
    assert ours == Parse(ParseMethod(name="parse", slices=WIDTHS, hard_negatives="none")).slices(AGENTS)


def test_a_concatenating_head_belongs_to_a_set():
    heads = {name: found for name, found in groups("dsgd-task", fusion="concat").items() if "head" in name}
    assert heads == {
        "label_head[a]": ((0, 4),),
        "label_head[b]": ((1,),),
        "label_head[a+b]": ((2, 3),),
        "label_head[a+b+c]": ((5,),),
    }
    for agents in (AGENTS, AGENTS[:2]):  # heads of one width, too, would each belong to a set
        (problem,) = method("dsgd-hybrid", fusion="concat").problems(agents)
        assert problem.startswith("dsgd-hybrid shares one head among a, b")
    assert not method("dsgd-hybrid", fusion="concat").problems(AGENTS[2:4])


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"pool": "each"}, "pool belongs to heads: slices"),
        ({"heads": "slices", "label_head": "mlp"}, "label_head belongs to heads: label"),
    ],
)
def test_keys_belong_to_their_heads(options, what):
    with pytest.raises(ValueError, match=what):
        DsgdMethod(name="dsgd-task", **options)


@pytest.mark.parametrize("fusion", ["mean", "concat", "attention"])
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_a_plain_network_is_encoders_fusion_and_one_head(fusion, head):
    network = method("dsgd-task", fusion=fusion, label_head=head).network(AGENTS[2], SHAPES, 3, 0)
    x = {m: torch.randn(4, *SHAPES[m]) for m in ("a", "b")}
    output = network(x)
    whole = []
    for m in ("a", "b"):
        encoder = network.encoders[f"m_{m}"]
        last = [encoder.unique_redundant, encoder.synergistic]
        weight, bias = (torch.cat([getattr(layer, part) for layer in last]) for part in ("weight", "bias"))
        whole.append(functional.linear(encoder.trunk(x[m]), weight, bias))
    assert torch.allclose(output.z["latent"], torch.stack(whole), atol=1e-6)
    fused = torch.cat(whole, -1) if fusion == "concat" else torch.stack(whole).mean(0)  # attention begins as the mean
    head_layers = network.label_head if head == "mlp" else [network.label_head]
    for layer in head_layers:
        fused = layer(fused)
    assert torch.allclose(output.logits["label"][0], fused, atol=1e-6)


def test_the_loss_is_the_cross_entropy_of_the_head():
    dsgd = method("dsgd-task")
    network = dsgd.network(AGENTS[0], SHAPES, 3, 0)
    x, y = {"a": torch.randn(6, 5)}, torch.tensor([0, 1, 2, -1, 1, 0])
    terms = dsgd.loss(network(x), y, torch.tensor([1.0, 1, 1, 1, 1, 0]), None)
    counted = torch.tensor([0, 1, 2, 4])
    logits = network(x).logits["label"][0]
    assert torch.allclose(terms[0], functional.cross_entropy(logits[counted], y[counted]))
    assert terms.tolist()[2:] == [0, 0]


def test_an_exact_mean_is_the_weighted_mean_of_each_group():
    weights = np.array([3, 1, 4, 1, 5, 9])
    graph = slice_graph("graph", [[0, 2, 5], [1, 3]], None, 0, 6, weights=weights)
    W = graph.at(7).dense()
    expected = np.zeros((5, 5))  # of agents 0, 1, 2, 3, 5
    for group in ([0, 2, 4], [1, 3]):
        share = weights[np.array([0, 1, 2, 3, 5])[group]]
        expected[np.ix_(group, group)] = share / share.sum()
    np.testing.assert_allclose(W, expected, atol=1e-15)
    assert graph.spectral_gap() == graph.exact_after() == 1
    assert graph.static


def test_one_model_needs_means_of_what_was_learnt(tmp_path):
    with pytest.raises(JobError, match="centralised as it is set here needs train"):
        load_job(write_job(tmp_path, {"method": {"name": "centralised"}, "train": {"order": "consensus"}}))


def test_centralised_is_one_learner_on_the_pooled_batches(tmp_path):
    """Exact means of equal starts are SGD with momentum on the mean of all agents' losses, on what each has."""
    changes = {
        "method": {"name": "centralised", "slices": {"unique": 4, "redundant": 4, "synergistic": 4}},
        "train": {"optimiser": {"momentum": 0.5}},
    }
    trainer, plan, _ = make_trainer(tmp_path, changes)
    share = plan.sizes() / plan.sizes().sum()
    networks = {agent.id: plan.network(agent, plan.job.seed) for agent in plan.agents}
    one = {}  # a single copy of every parameter
    for network in networks.values():
        one |= {name: p.detach().clone() for name, p in network.named_parameters()}
    momentum = {name: torch.zeros_like(p) for name, p in one.items()}
    group = trainer.now.group
    for k in range(3):
        total = {name: torch.zeros_like(p) for name, p in one.items()}
        weight = dict.fromkeys(one, 0.0)
        position, mask = group.sampler.batch(k)
        for row, agent in enumerate(group.agents):
            network = copy.deepcopy(networks[agent.id])
            network.load_state_dict({name: one[name] for name in network.state_dict()})
            index = torch.from_numpy(position[row][mask[row]])
            x, y = group.samples.gather(torch.tensor(row), agent.modalities, index)
            functional.cross_entropy(network(x).logits["label"][0], y).backward()
            for name, p in network.named_parameters():
                total[name] += share[agent.id] * p.grad
                weight[name] += share[agent.id]
        for name, p in one.items():
            momentum[name].mul_(0.5).add_(total[name] / weight[name])
            p.sub_(plan.job.train.optimiser.lr * momentum[name])
        trainer.train_round(k)
    for rows in group.slices.values():
        for span in rows.layout.spans:
            found = rows.local[:, span.start : span.stop]
            assert torch.allclose(found, one[span.name].reshape(1, -1).expand_as(found), rtol=1e-4, atol=1e-6)
