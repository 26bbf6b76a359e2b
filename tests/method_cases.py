"""Every method, each in the forms that differ in more than a number: what the tests of all methods run through."""

from __future__ import annotations

from typing import Any

Section = dict[str, Any]

WIDTHS = {"unique": 2, "redundant": 3, "synergistic": 4}

# Section `method` of a job, by a name that says what is special about it.
METHODS: dict[str, Section] = {
    "local": {"name": "local"},
    "parse": {"name": "parse"},
    "dsgd-task": {"name": "dsgd-task"},
    "dsgd-task-slices": {"name": "dsgd-task", "heads": "slices"},
    "dsgd-modality": {"name": "dsgd-modality", "fusion": "concat"},
    "dsgd-modality-slices": {"name": "dsgd-modality", "heads": "slices"},
    "dsgd-modality-exact": {"name": "dsgd-modality", "aggregate": "exact"},
    "dsgd-hybrid": {"name": "dsgd-hybrid", "label_head": "mlp", "fusion": "attention"},
    "dsgd-hybrid-slices": {"name": "dsgd-hybrid", "heads": "slices"},
    "harmony": {"name": "harmony", "first_stage": 0.7, "sync_every": 1},
    "harmony-mean-exact": {
        "name": "harmony",
        "first_stage": 0.7,
        "sync_every": 1,
        "fusion": "mean",
        "label_head": "mlp",
        "aggregate": "exact",
    },
    "monolithic": {"name": "monolithic"},
    "monolithic-pcgrad": {"name": "monolithic", "surgery": "pcgrad"},
    "sheaf-dmfl": {"name": "sheaf-dmfl", "edge_width": 3},
    "sheaf-dmfl-attention": {"name": "sheaf-dmfl", "fusion": "attention", "label_head": "mlp", "edge_width": 2},
    "centralised": {"name": "centralised"},
    "centralised-slices": {"name": "centralised", "heads": "slices"},
    "fedepa": {"name": "fedepa", "weights": {"rate": 100.0, "first_steps": 12, "steps": 2}},
    "fedepa-fixed": {
        "name": "fedepa",
        "weights": 0.5,
        "fusion": "mean",
        "independence": {"kind": "hsic"},
        "aligned": 2,
    },
    "dmml-kd": {"name": "dmml-kd"},
    "dmml-kd-concat": {"name": "dmml-kd", "common": 2, "fusion": "concat", "label_head": "mlp", "kd_weight": 0.3},
    "dmml-kd-balance": {"name": "dmml-kd", "balance": {"decay": 0.5, "least": 0.2}},
}


def method_of(case: str) -> Section:
    """The section of a case with small slices, no two of the same width."""
    return {"slices": WIDTHS} | METHODS[case]
