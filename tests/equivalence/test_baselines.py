"""The methods that PARSE is compared with, against plain modules: rounds, few labels, events, exact means."""

import pytest
from plain_parse import PlainOneHead, PlainParse, largest_difference

WIDTHS = {"unique": 4, "redundant": 4, "synergistic": 4}
DSGD = ("dsgd-task", "dsgd-modality", "dsgd-hybrid", "centralised")
SETTINGS = {
    "dtype": "float64",
    "topology": {"kind": "complete"},
    "train": {"batch_size": 24, "local_steps": 2, "optimiser": {"lr": 0.1, "momentum": 0.9}},
}
EVENTS = [
    {"kind": "lose", "round": 2, "agents": [6], "modality": "top"},
    {"kind": "leave", "round": 2, "agents": [0]},
    {"kind": "cut", "round": 3, "modality": "bottom"},
    {"kind": "join", "round": 4, "agents": [0]},
    {"kind": "gain", "round": 4, "agents": [6], "modality": "top"},
    {"kind": "heal", "round": 4, "modality": "bottom"},
]


class ThreeHeads(PlainParse):
    """PARSE's network and its two cross-entropies, without an alignment term."""

    def _loss(self, agent, step, out, y):
        return self._classification(out, y)


@pytest.mark.parametrize("name", [*DSGD, "monolithic"])
def test_one_head(tmp_path, name):
    method = {"name": name, "slices": WIDTHS}
    gossip = SETTINGS | {"method": method, "topology": {"kind": "random-gossip"}}
    assert largest_difference(tmp_path, gossip, 4, PlainOneHead) <= 1e-10
    events = [event for event in EVENTS if name != "centralised" or event["kind"] not in ("cut", "heal")]
    changed = SETTINGS | {"method": method, "events": events, "data": {"labelled_fraction": 0.3}}
    assert largest_difference(tmp_path, changed, 6, PlainOneHead) <= 1e-10


@pytest.mark.parametrize("name", DSGD)
def test_three_heads(tmp_path, name):
    method = {"name": name, "slices": WIDTHS, "heads": "slices"}
    assert largest_difference(tmp_path, SETTINGS | {"method": method}, 4, ThreeHeads) <= 1e-10


def test_exact_means(tmp_path):
    method = {"name": "dsgd-modality", "slices": WIDTHS, "aggregate": "exact"}
    assert largest_difference(tmp_path, SETTINGS | {"method": method}, 4, PlainOneHead) <= 1e-10
