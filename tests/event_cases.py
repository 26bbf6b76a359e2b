"""Jobs in which everything happens that events can bring about, some of it at once, listed in no order."""

from typing import Any

# Agents 0-2 hold top, 3-5 bottom, 6-9 both. The last of four ranks has agents 5 and 9, which are away after two rounds;
# after seven, nobody holds both modalities.
EVENTS: list[dict[str, Any]] = [
    {"kind": "join", "round": 4, "agents": [9]},
    {"kind": "lose", "round": 1, "agents": [6], "modality": "top"},
    {"kind": "leave", "round": 2, "agents": [0, 2, 5, 8]},
    {"kind": "join", "round": 4, "agents": [8, 2]},
    {"kind": "cut", "round": 4, "modality": "bottom"},
    {"kind": "gain", "round": 5, "agents": [3], "modality": "top"},
    {"kind": "heal", "round": 6, "modality": "bottom"},
    {"kind": "cut", "round": 6, "links": [[2, 1], [3, 8], [4, 6]]},
    {"kind": "lose", "round": 7, "agents": [3, 7, 8, 9], "modality": "bottom"},
    {"kind": "join", "round": 8, "agents": [0, 5]},
    {"kind": "gain", "round": 8, "agents": [6], "modality": "top"},
    {"kind": "gain", "round": 9, "agents": [8, 9], "modality": "bottom"},
    {"kind": "heal", "round": 10, "links": [[1, 2], [6, 4]]},
]
ROUNDS = 12

PLAIN: dict[str, Any] = {
    "mode": "exact",
    "events": EVENTS,
    "train": {"batch_size": 24, "rounds": ROUNDS},
    "checkpoint": {"keep": 100},
}
CASES: dict[str, dict[str, Any]] = {
    "ring": PLAIN,
    "everything else at once": PLAIN
    | {
        "topology": {"kind": "random-gossip"},
        "train": {
            "batch_size": 24,
            "rounds": ROUNDS,
            "order": "consensus",
            "local_steps": 2,
            "optimiser": {"name": "adamw", "lr": 0.01},
        },
        "exchange": {"budget_bytes_per_link": 2000, "turns": "priority", "reweigh_every": 2},
        "method": {"fusion": "gated", "beta_schedule": {"kind": "adaptive", "every": 2}},
    },
}
