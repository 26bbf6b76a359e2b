"""Adaptive widths on generated data: the slice with most of the planted bits becomes the widest."""

import numpy as np
import pytest
from small_jobs import ADAPTIVE, make_trainer

ROUNDS, TOTAL = 200, 24


@pytest.mark.parametrize(("unique", "redundant", "synergistic"), [(2, 1, 1), (1, 2, 1), (1, 1, 2)])
def test_the_slice_with_most_bits_becomes_the_widest(tmp_path, unique, redundant, synergistic):
    """At every agent, unimodal ones too, which know it from their neighbours only."""
    bits = {"redundant_bits": redundant, "unique_bits": [unique, unique], "synergistic_bits": synergistic}
    source = {"pid": bits | {"noise": 0.3, "features": 8, "samples": 12_000}}
    changes = {
        "data": {"source": source, "partition": {"kind": "iid", "alpha": None}},
        "agents": [{"modalities": held, "count": 2} for held in (["first"], ["second"], ["first", "second"])],
        "topology": {"kind": "random-gossip"},
        "method": {"beta": 0.1, "slices": ADAPTIVE | {"total": TOTAL, "adapt": None}},
        "encoder": {"hidden": [64]},
        "train": {"batch_size": 64},
    }
    trainer, _, _ = make_trainer(tmp_path, changes)
    for k in range(ROUNDS):
        trainer.train_round(k)
    found = trainer.now.group.widths()
    print(np.nanmean(found, 0).round(1).tolist())
    most = int(np.argmax([unique, redundant, synergistic]))
    others = np.delete(found, most, axis=2).max(2)
    held = ~np.isnan(others)
    assert held.sum() == 8
    assert (found[..., most][held] > others[held] + 0.5).all()
    np.testing.assert_allclose(np.nansum(found, 2)[held], TOTAL, atol=1e-4)
