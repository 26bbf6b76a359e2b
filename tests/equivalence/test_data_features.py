"""What agents learn from and are measured on, against the same worked out plainly: poor sensors, missing labels,
samples that arrive, and files read sample by sample."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_jobs import make_trainer, write_dataset, write_job

from parse_mpi.data.dataset import TEST, TRAIN, VALIDATION
from parse_mpi.data.labels import known_labels
from parse_mpi.data.sensors import Sensor

POOR = [
    {"agents": [1, 7], "modality": "a", "noise": 0.8},
    {"agents": [8], "modality": "a", "missing": 0.5},
    {"agents": {"fraction": 0.3}, "modality": "b", "noise": 0.5, "missing": 0.2},
]
STREAM = {"start": 0.3, "rounds": 6}


def job(folder, reading="memory", **data):
    path = folder / "set.h5"
    if not path.exists():
        write_dataset(path, {"a": (6,), "b": (3, 4)}, count=400)
    kinds = [{"modalities": ["a"], "count": 3}, {"modalities": ["b"], "count": 3}]
    return {
        "data": {"source": {"hdf5": str(path), "reading": reading}, **data},
        "agents": [*kinds, {"modalities": ["a", "b"], "count": 4}],
        "topology": {"kind": "complete"},
        "train": {"batch_size": 8},
    }


def rows(trainer):
    return {name: rows.local.clone() for name, rows in trainer.now.group.slices.items()}


def standardised(plan, dataset, m, first):
    """float32 [N, ...] from the pooled training samples that the holders have at the start: the first so many."""
    held = np.concatenate([plan.samples[a.id][: first[a.id]] for a in plan.agents if m in a.modalities])
    x = dataset.modalities[m]
    wide = x[held].astype(np.float64)
    return ((x - wide.mean(0).astype(np.float32)) / wide.std(0).astype(np.float32)).clip(-10, 10)


def seen(plan, agent, m, x, index):
    sensor = plan.sensors.get((agent.id, m), Sensor(agent.id, m, 0.0, 0.0))
    return sensor.distort(x[index], index, plan.job.seed)


@pytest.mark.parametrize("reading", ["memory", "lazy"])
def test_batches_hold_what_sensors_deliver_and_labels_that_are_known(tmp_path, reading):
    changes = job(tmp_path, reading, poor=POOR, labelled_fraction=0.4)
    trainer, plan, _ = make_trainer(tmp_path, changes)
    _, _, dataset = make_trainer(tmp_path, job(tmp_path))
    group = trainer.now.group
    x_of = {m: standardised(plan, dataset, m, plan.sizes()) for m in ("a", "b")}
    assert len(plan.sensors) >= 4
    for k, agent in enumerate(group.agents):
        position = torch.arange(len(plan.samples[agent.id])).roll(3)
        x, y = group.samples.gather(torch.tensor(k), agent.modalities, position)
        index = plan.samples[agent.id][position]
        for m in agent.modalities:
            expected = seen(plan, agent, m, x_of[m], index)
            np.testing.assert_allclose(x[m].numpy(), expected, rtol=1e-5, atol=1e-6)
            assert np.array_equal(x[m].numpy() == 0, expected == 0)
        own = plan.samples[agent.id]
        known = known_labels(dataset.labels[own], own, agent.id, 0.4, plan.job.seed)
        np.testing.assert_array_equal(y.numpy(), known[position])
        assert (y < 0).any()


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_agents_are_evaluated_through_their_own_sensors(tmp_path, engine):
    changes = job(tmp_path, poor=POOR, labelled_fraction=0.4) | {"engine": engine, "dtype": "float64"}
    trainer, plan, dataset = make_trainer(tmp_path, changes)
    for k in range(6):
        trainer.train_round(k)
    group, evaluator = trainer.now.group, trainer.now.evaluator
    made = evaluator.accuracy()
    x_of = {m: standardised(plan, dataset, m, plan.sizes()) for m in ("a", "b")}
    for k, agent in enumerate(group.agents):
        network = plan.network(agent, seed=0).double()
        values = {}
        for held in group.slices.values():
            if agent.id in held.agents:
                values |= held.parameters(held.agents.tolist().index(agent.id))
        for split, index in enumerate((dataset.indices(VALIDATION), dataset.indices(TEST))):
            x = {m: torch.from_numpy(seen(plan, agent, m, x_of[m], index)).double() for m in agent.modalities}
            with torch.no_grad():
                output = torch.func.functional_call(network, values, (x,))
            logits = plan.method.predictions(output, agent.modalities)["ensemble"]
            right = logits.argmax(1).numpy() == dataset.labels[index]
            counts = np.bincount(dataset.labels[plan.samples[agent.id]], minlength=plan.class_count)
            recall = np.array([right[dataset.labels[index] == c].mean() for c in range(plan.class_count)])
            expected = [right.mean(), (recall * counts).sum() / counts.sum()]
            np.testing.assert_allclose(made[k, split, :, evaluator.names.index("ensemble")], expected, rtol=1e-12)


def test_a_poor_sensor_costs_accuracy_and_only_its_owner_sees_worse(tmp_path):
    sound, _, _ = make_trainer(tmp_path, job(tmp_path))
    blind, _, _ = make_trainer(tmp_path, job(tmp_path, poor=[{"agents": [1], "modality": "a", "missing": 1.0}]))
    for trainer in (sound, blind):
        for k in range(20):
            trainer.train_round(k)
    test = [trainer.now.evaluator.accuracy()[:, 1, 0, 0] for trainer in (sound, blind)]
    assert test[1][1] < 0.45 < test[0][1]  # four classes, and nothing to tell them apart by
    assert test[1][[0, 2]].min() > test[1][1] + 0.1


@pytest.mark.parametrize("engine", ["loop", "stacked"])
@pytest.mark.parametrize("more", [{}, {"poor": POOR, "labelled_fraction": 0.5, "stream": STREAM}])
def test_a_file_read_sample_by_sample_trains_to_the_same_bits(tmp_path, engine, more):
    whole, lazy = (
        make_trainer(tmp_path, job(tmp_path, how, **more) | {"engine": engine})[0] for how in ("memory", "lazy")
    )
    for k in range(8):
        assert torch.equal(whole.train_round(k)[0], lazy.train_round(k)[0])
    for name, values in rows(whole).items():
        assert torch.equal(values, rows(lazy)[name])
    np.testing.assert_array_equal(whole.now.evaluator.accuracy(), lazy.now.evaluator.accuracy())


def test_engines_agree_on_all_of_it_together(tmp_path):
    changes = job(tmp_path, poor=POOR, labelled_fraction=0.5, stream=STREAM | {"order": "by-class"})
    trainers = [make_trainer(tmp_path, changes | {"engine": e, "dtype": "float64"})[0] for e in ("loop", "stacked")]
    for k in range(8):
        for trainer in trainers:
            trainer.train_round(k)
    one, other = map(rows, trainers)
    for name, values in one.items():
        assert float((values - other[name]).norm() / values.norm()) < 1e-10


def test_a_stream_starts_with_few_samples_and_ends_with_all(tmp_path):
    trainer, plan, dataset = make_trainer(tmp_path, job(tmp_path, stream=STREAM) | {"train": {"local_steps": 2}})
    dealt, _, _ = make_trainer(tmp_path, job(tmp_path))
    for mine, everything in zip(plan.samples, dealt.plan.samples, strict=True):
        assert sorted(mine.tolist()) == everything.tolist()
    assert np.concatenate(plan.samples).size == len(dataset.indices(TRAIN))
    sizes = plan.sizes()
    first = np.maximum(2, np.round(0.3 * sizes)).astype(int)
    for m in ("a", "b"):
        agent = next(k for k, a in enumerate(trainer.now.group.agents) if m in a.modalities)
        x, _ = trainer.now.group.samples.gather(torch.tensor(agent), (m,), torch.arange(3))
        expected = standardised(plan, dataset, m, first)[plan.samples[trainer.now.group.agents[agent].id][:3]]
        np.testing.assert_allclose(x[m].numpy(), expected, rtol=1e-5, atol=1e-6)
    largest = []
    for step in range(16):
        position, mask = trainer.now.group.sampler.batch(step)
        largest.append(np.where(mask, position, -1).max(1) - sizes[trainer.now.group.ids])
    assert (np.array(largest)[:2] < (first - sizes)[trainer.now.group.ids]).all()
    assert (np.diff(np.array(largest).max(1)) >= -sizes.max()).all()
    assert np.array(largest)[12:].max() == -1


TRAIN_AND_TELL = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from small_jobs import trainer_of
folder = Path(sys.argv[2])
trainer, _, dataset = trainer_of(folder / "job.yaml", folder, f"data.source.reading={sys.argv[3]}")
losses = [trainer.train_round(k)[0].tolist() for k in range(2)]
accuracy = trainer.now.evaluator.accuracy()[:, 1, 0, 0].tolist()
status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
print(json.dumps([losses, accuracy, int(status["VmHWM"].split()[0]) * 1024]))
"""


def test_a_file_is_not_held_in_memory(tmp_path):
    """80 MB: read as a whole they lie there, and most of them again as agents' samples; lazily, a few blocks do."""
    count = 10_000
    write_dataset(tmp_path / "set.h5", {"a": (1000,), "b": (1000,)}, count=count)
    write_job(tmp_path, job(tmp_path))
    told = {}
    for reading in ("memory", "lazy"):
        command = [sys.executable, "-c", TRAIN_AND_TELL, str(Path(__file__).parents[1]), str(tmp_path), reading]
        made = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True)
        told[reading] = json.loads(made.stdout)
    assert told["memory"][:2] == told["lazy"][:2]
    assert told["memory"][2] - told["lazy"][2] > count * 2000 * 4
