"""Encoders: every kind on every shape, alone and many at once; families of one modality; own encoders."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from plain_parse import PlainParse
from small_jobs import make_trainer, write_dataset, write_job
from torch import nn
from torch.func import functional_call

from parse_mpi.data.sources import load_dataset
from parse_mpi.errors import JobError
from parse_mpi.job import Conv1dEncoder, Conv2dEncoder, EncoderByShape, MlpEncoder, OwnEncoder
from parse_mpi.jobfile import changed_keys, dump_job, job_digest, load_job
from parse_mpi.model.encoders import make_trunk
from parse_mpi.model.shapes import chosen_encoder
from parse_mpi.plan import make_plan
from parse_mpi.studies.memory import values_of_a_sample

AGENTS, BATCH = 3, 5
CASES = {
    "vector": (MlpEncoder(), (76,), 256),
    "mlp of an image": (MlpEncoder(hidden=(9, 7)), (4, 8), 7),
    "series": (Conv1dEncoder(), (64, 6), 128),
    "short series": (Conv1dEncoder(), (8, 2), 128),
    "one step": (Conv1dEncoder(channels=(2, 6), cells=3, width=5), (1, 4), 5),
    "skeleton": (Conv1dEncoder(kernel=3, width=20), (32, 20, 3), 20),
    "image": (Conv2dEncoder(), (28, 28), 128),
    "odd image": (Conv2dEncoder(channels=(4, 18, 3), cells=2, kernel=1), (5, 9), 128),
    "colours": (Conv2dEncoder(), (16, 16, 3), 128),
    "clip": (Conv2dEncoder(), (8, 32, 32), 128),
}


def trunk_and_samples(case):
    encoder, shape, width = CASES[case]
    torch.manual_seed(0)
    return make_trunk(encoder, shape), torch.randn(AGENTS, BATCH, *shape), width


@pytest.mark.parametrize("case", CASES)
def test_a_trunk_gives_a_vector_of_its_width_and_gradients_reach_every_parameter(case):
    trunk, x, width = trunk_and_samples(case)
    out = trunk(x[0])
    assert out.shape == (BATCH, trunk.width) == (BATCH, width)
    (out * torch.randn_like(out)).sum().backward()
    assert all(p.grad is not None for p in trunk.parameters())
    assert not list(trunk.buffers())
    assert any(isinstance(module, nn.LayerNorm) for module in trunk.modules())
    stages = sum(isinstance(module, nn.Conv1d | nn.Conv2d) for module in trunk.modules())
    assert sum(isinstance(module, nn.GroupNorm) for module in trunk.modules()) == stages


@pytest.mark.parametrize("shared", [False, True], ids=["own samples", "the same samples"])
@pytest.mark.parametrize("case", CASES)
def test_many_agents_at_once_equal_one_after_another(case, shared):
    trunk, x, _ = trunk_and_samples(case)
    parameters = {
        name: torch.randn(AGENTS, *p.shape).mul_(0.3).requires_grad_() for name, p in trunk.named_parameters()
    }
    samples = x[0] if shared else x

    def call(p, x):
        return functional_call(trunk, p, (x,))

    stacked = torch.vmap(call, in_dims=(0, None if shared else 0))(parameters, samples)
    weight = torch.randn(stacked.shape)
    (stacked * weight).sum().backward()
    for k in range(AGENTS):
        own = {name: p[k].detach().requires_grad_() for name, p in parameters.items()}
        alone = call(own, samples if shared else x[k])
        torch.testing.assert_close(stacked[k], alone, rtol=1e-5, atol=1e-5)
        (alone * weight[k]).sum().backward()
        for name, p in own.items():
            torch.testing.assert_close(parameters[name].grad[k], p.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_a_sample_does_not_depend_on_the_others_in_its_batch(case):
    trunk, x, _ = trunk_and_samples(case)
    torch.testing.assert_close(trunk(x[0])[2:3], trunk(x[0, 2:3]), rtol=1e-5, atol=1e-5)


def test_a_series_trunk_is_what_its_description_says():
    encoder = Conv1dEncoder(channels=(4, 16), kernel=3, cells=2, width=5)
    trunk = make_trunk(encoder, (11, 2, 3))
    p = list(trunk.parameters())
    x = torch.randn(7, 11, 2, 3)
    h = x.reshape(7, 11, 6).movedim(1, 2)
    for k, groups in ((0, 1), (4, 4)):
        h = nn.functional.conv1d(h, p[k], p[k + 1], stride=2, padding=1)
        h = nn.functional.group_norm(h, groups, p[k + 2], p[k + 3]).relu()
    assert h.shape == (7, 16, 3)
    cells = torch.stack([h[..., :2].amax(-1), h[..., 1:].amax(-1)], -1).flatten(1)  # adaptive pooling of 3 into 2
    expected = nn.functional.layer_norm(nn.functional.linear(cells, p[8], p[9]), (5,), p[10], p[11]).relu()
    torch.testing.assert_close(trunk(x), expected)


def test_default_encoders_are_small():
    for shape in ((64, 6), (32, 20, 3), (62, 3), (8, 2), (32, 32), (28, 28), (8, 32, 32)):
        assert sum(p.numel() for p in make_trunk(EncoderByShape(), shape).parameters()) <= 100_000


@pytest.mark.parametrize(
    ("kind", "shapes"),
    [
        ("mlp", [(76,), (1,), (4, 8), (4, 4), (3, 4), (7, 1), (2, 3, 3), (3, 3, 3), (2, 3, 4, 5)]),
        ("conv1d", [(64, 6), (62, 3), (8, 2), (20, 6), (8, 1), (128, 32), (10, 64), (32, 20, 3)]),
        ("conv2d", [(32, 32), (28, 28), (8, 8), (40, 16), (32, 32, 3), (64, 48, 1), (8, 32, 32)]),
    ],
)
def test_auto_chooses_by_shape(kind, shapes):
    assert {shape: chosen_encoder(EncoderByShape(), shape).kind for shape in shapes} == dict.fromkeys(shapes, kind)


# -- families --------------------------------------------------------------------------------------------------------

ENTRIES = [
    {"modalities": ["series"], "count": 2},
    {"modalities": ["series"], "count": 2, "encoders": {"series": {"kind": "mlp", "hidden": [6]}}},
    {"modalities": ["series", "image"], "count": 2, "encoders": {"series": {"kind": "mlp", "hidden": [6]}}},
    {"modalities": ["series", "image"], "count": 2},
]


def family_job(folder: Path, **changes):
    """Changes for a small job with two kinds of encoder for one modality, and one for the other."""
    path = write_dataset(folder / "data.h5", {"series": (12, 2), "image": (8, 9)})
    return {
        "data": {"source": {"hdf5": str(path)}},
        "agents": ENTRIES,
        "encoders": {
            "series": {"kind": "conv1d", "channels": [4], "width": 8},
            "image": {"kind": "conv2d", "channels": [4], "width": 8},
        },
        **changes,
    }


def plan_of(path: Path):
    jobfile = load_job(path)
    return make_plan(jobfile, load_dataset(jobfile.job.data, jobfile.job.seed), 1)


def test_families_of_a_modality_share_heads_and_no_trunk(tmp_path):
    plan = plan_of(write_job(tmp_path, family_job(tmp_path)))
    table = {spec.name: spec for spec in plan.slices}
    assert {name: spec.holders for name, spec in table.items()} == {
        "encoder[image]": (4, 5, 6, 7),
        "encoder[series]": (0, 1, 6, 7),
        "encoder[series#2]": (2, 3, 4, 5),
        "synergy[image]": (4, 5, 6, 7),
        "synergy[series]": (6, 7),
        "synergy[series#2]": (4, 5),
        "unique_head[image]": (4, 5, 6, 7),
        "unique_head[series]": tuple(range(8)),
        "redundant_head": tuple(range(8)),
        "synergy_head": (4, 5, 6, 7),
    }
    assert all(spec.groups == (spec.holders,) for spec in table.values())
    assert plan.layouts["encoder[series]"] != plan.layouts["encoder[series#2]"]
    assert {name for name, spec in table.items() if "#" in spec.graph} == {
        "encoder[series]", "encoder[series#2]", "synergy[series]", "synergy[series#2]",
    }  # fmt: skip


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_families_equal_plain_modules(tmp_path, engine):
    trainer, plan, dataset = make_trainer(tmp_path, family_job(tmp_path, engine=engine, dtype="float64"))
    plain = PlainParse(plan, dataset)
    before = {name: rows.local.clone() for name, rows in trainer.now.group.slices.items()}
    for k in range(6):
        trainer.train_round(k)
        plain.round(k)
    for name, rows in trainer.now.group.slices.items():
        assert not torch.equal(before[name], rows.local)
        mine = rows.local.numpy()[np.argsort(rows.agents)]
        np.testing.assert_allclose(mine, plain.parameters(name), rtol=1e-9, atol=1e-11)


def test_initial_values_of_a_family_do_not_depend_on_other_families(tmp_path):
    both = plan_of(write_job(tmp_path, family_job(tmp_path)))
    one = plan_of(write_job(tmp_path, family_job(tmp_path, agents=ENTRIES[2:])))
    for there, here in ((both.agents[4], one.agents[0]), (both.agents[6], one.agents[2])):
        pairs = zip(both.network(there, 5).parameters(), one.network(here, 5).parameters(), strict=True)
        assert all(torch.equal(p, q) for p, q in pairs)


def test_a_family_keeps_its_name_when_the_first_one_leaves(tmp_path):
    events = [{"kind": "leave", "round": 3, "agents": [0, 1, 6, 7]}]
    plan = plan_of(write_job(tmp_path, family_job(tmp_path, events=events)))
    later = {spec.name: spec.holders for spec in plan.at(3).slices}
    assert later["encoder[series#2]"] == (2, 3, 4, 5)
    assert "encoder[series]" not in later
    assert plan.at(3).layouts["encoder[series#2]"] == plan.layouts["encoder[series#2]"]


def test_memory_counts_what_every_layer_gives(tmp_path):
    plan = plan_of(write_job(tmp_path, family_job(tmp_path)))
    series = 24 + 3 * 4 * 6 + 4 * 4 * 2 + 3 * 8  # sample; conv, norm, ReLU; pooled and flattened; dense, norm, ReLU
    heads = 8 + 8 + 2 * 4  # u and r of one map, and a head on each; 4 classes
    assert values_of_a_sample(plan, plan.agents[0]) == (series + heads, 24)


# -- what is refused -------------------------------------------------------------------------------------------------


def problems(path: Path) -> list[tuple[str, str, str]]:
    with pytest.raises(JobError) as caught:
        plan_of(path)
    return [(problem.where, problem.what, problem.hint) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("changes", "where", "what", "hint"),
    [
        (
            {"encoders": {"image": {"kind": "conv3d"}}},
            "kind: conv3d",
            "`encoders.image.kind` is 'conv3d'; it must be auto, mlp, conv1d, conv2d or own",
            "did you mean conv",
        ),
        ({"encoders": {"image": {"hidden": [3]}}}, "image:", "`encoders.image.kind` is missing", ""),
        (
            {"encoders": {"image": "mlp"}},
            "image:",
            "`encoders.image` is 'mlp'; it must be a mapping with kind: auto",
            "",
        ),
        ({"encoders": ["image"]}, "encoders:", "`encoders` is [image]; it must be a mapping of names, each to", ""),
        (
            {"encoders": {"image": {"kind": "mlp", "channels": [3]}}},
            "channels:",
            "unknown key `encoders.image.channels`",
            "with kind: conv1d or conv2d",
        ),
        (
            {"encoders": {"image": {"kind": "conv2d", "kernel": 4}}},
            "kernel:",
            "`encoders.image.kernel`: 4 is even; a kernel has a middle: 3, 5, 7, ...",
            "",
        ),
        (
            {"encoders": {"image": {"kind": "own", "factory": "make"}}},
            "factory:",
            "'make' is no dotted name; my_encoders.make is",
            "",
        ),
        ({"encoders": {"imag": {"kind": "mlp"}}}, "imag:", "no data for modality 'imag'", "did you mean 'image'?"),
        (
            {"agents": [{**ENTRIES[0], "encoders": {"sries": {"kind": "mlp"}}}]},
            "sries:",
            "no data for modality 'sries'",
            "did you mean 'series'?",
        ),
        (
            {"agents": [{"modalities": ["vector"], "count": 2, "encoders": {"vector": {"kind": "conv1d"}}}]},
            "vector:",
            "`agents.0.encoders.vector` can't serve for modality 'vector': kind: conv1d needs samples [T, F]",
            "",
        ),
    ],
)
def test_wrong_encoders_are_told_with_their_line(tmp_path, changes, where, what, hint):
    source = write_dataset(tmp_path / "data.h5", {"series": (12, 2), "image": (8, 9), "vector": (5,)})
    path = write_job(tmp_path, {"data": {"source": {"hdf5": str(source)}}, "agents": ENTRIES[:1], **changes})
    [(said_where, said, said_hint)] = problems(path)
    line = int(said_where.rpartition(":")[2])
    assert where in path.read_text().splitlines()[line - 1]
    assert what in said
    assert hint in said_hint


# -- own encoders ----------------------------------------------------------------------------------------------------

OWN = """
import itertools

import torch
from torch import nn

COUNT = itertools.count()

class Flat(nn.Module):
    def __init__(self, values, width, **wrong):
        super().__init__()
        self.map, self.norm, self.width = nn.Linear(values, width), nn.LayerNorm(width), width
        self.wrong = wrong
        if "buffer" in wrong:
            self.norm = nn.BatchNorm1d(width)
        if "batch" in wrong:
            self.norm = nn.BatchNorm1d(width, track_running_stats=False)
        if "dropout" in wrong:
            self.norm = nn.Dropout(0.5)
        if "frozen" in wrong:
            self.map.bias.requires_grad_(False)
        if "random" in wrong:
            self.map.bias.data.fill_(next(COUNT))
        if "width" in wrong:
            self.width = wrong["width"]
        if "lazy" in wrong:
            self.map = nn.LazyLinear(width)
        self.scale = torch.ones(width) if "constant" in wrong else 1.0
        self.recurrent = nn.GRU(values, width) if "recurrent" in wrong else None

    def forward(self, x):
        if "detach" in self.wrong:
            return self.norm(self.map(x.flatten(1))).detach()
        if "branch" in self.wrong and float(x.sum()) == 0:
            return x
        if "mean" in self.wrong:
            x = x - x.mean(0)
        if self.recurrent is not None:
            return self.recurrent(x.flatten(1).unsqueeze(0))[0].squeeze(0)
        return self.norm(self.map(x.flatten(1)) * self.scale).relu()

def make(shape, width=6, **wrong):
    if "error" in wrong:
        raise ValueError("no such thing")
    return "none" if "nothing" in wrong else Flat(torch.Size(shape).numel(), width, **wrong)
"""


def own_job(folder: Path, factory="my_encoders.make", text=OWN, **options) -> Path:
    (folder / "my_encoders.py").write_text(text)
    own = {"kind": "own", "factory": factory, "options": options}
    return write_job(folder, {"encoders": {"top": own}})


def test_an_own_encoder_trains_like_plain_modules(tmp_path):
    own_job(tmp_path)
    own = {"kind": "own", "factory": "my_encoders.make", "options": {"width": 6}}
    for engine in ("loop", "stacked"):
        trainer, plan, dataset = make_trainer(
            tmp_path, {"encoders": {"top": own}, "engine": engine, "dtype": "float64"}
        )
        plain = PlainParse(plan, dataset)
        for k in range(3):
            trainer.train_round(k)
            plain.round(k)
        rows = trainer.now.group.slices["encoder[top]"]
        assert rows.layout.width == (32 * 6 + 6) + 2 * 6 + (6 * 16 + 16)
        mine = rows.local.numpy()[np.argsort(rows.agents)]
        np.testing.assert_allclose(mine, plain.parameters("encoder[top]"), rtol=1e-9, atol=1e-11)


def test_the_file_is_found_beside_the_job_and_stands_in_the_resolved_one(tmp_path):
    job = load_job(own_job(tmp_path)).job
    assert job.encoders["top"] == OwnEncoder(
        kind="own", factory="my_encoders.make", file=str(tmp_path / "my_encoders.py")
    )
    elsewhere = tmp_path / "run"
    elsewhere.mkdir()
    (elsewhere / "job.yaml").write_text(dump_job(job))
    assert load_job(elsewhere / "job.yaml").job == job


def test_the_digest_covers_what_the_file_says_and_not_where_it_lies(tmp_path):
    plans = []
    for name, text in (("a", OWN), ("b", OWN), ("c", OWN + "# changed")):
        (tmp_path / name).mkdir()
        plans.append(plan_of(own_job(tmp_path / name, text=text)))
    assert plans[0].digest == plans[1].digest != plans[2].digest
    assert job_digest(plans[0].job) == job_digest(plans[1].job)
    assert changed_keys(plans[0].job, plans[1].job) == []


def test_a_function_of_an_installed_module_will_do(tmp_path, monkeypatch):
    (tmp_path / "installed_here.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "job").mkdir()
    path = write_job(tmp_path / "job", {"encoders": {"top": {"kind": "own", "factory": "installed_here.make"}}})
    assert load_job(path).job.encoders["top"].file is None
    assert plan_of(path).layouts["encoder[top]"].width == (32 * 6 + 6) + 2 * 6 + (6 * 16 + 16)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"error": 1}, "my_encoders.make((4, 8), error=...) raises ValueError: no such thing"),
        ({"nothing": 1}, "gives str; it must give a torch.nn.Module"),
        ({"width": None}, "raises TypeError"),
        ({"width": 7.5}, "raises TypeError"),
        ({"buffer": 1}, "has buffers (norm.running_mean, norm.running_var, norm.num_batches_tracked)"),
        ({"frozen": 1}, "its parameter map.bias asks for no gradient"),
        ({"random": 1}, "its parameter map.bias starts elsewhere each time"),
        ({"lazy": 1}, "its parameter map.weight has no shape before it has seen samples"),
        ({"constant": 1}, "keeps tensors that are no parameters (RuntimeError: "),
        ({"dropout": 1}, "other values for the same samples the second time: leave dropout and noise out"),
        ({"batch": 1}, "on one of them: ValueError: Expected more than 1 value per channel when training"),
        ({"mean": 1}, "depends on the others in the batch: normalise each by itself"),
        ({"detach": 1}, "no gradient reaches the parameters"),
        ({"branch": 1}, "can't run for many agents at once (RuntimeError: vmap: "),
    ],
)
def test_an_own_encoder_that_can_not_serve_is_refused(tmp_path, options, what):
    [(where, said, _)] = problems(own_job(tmp_path, **options))
    line = int(where.rpartition(":")[2])
    assert "top:" in (tmp_path / "job.yaml").read_text().splitlines()[line - 1]
    assert said.startswith("`encoders.top` can't serve for modality 'top': ")
    assert what in said


def test_layers_may_give_several_tensors(tmp_path):
    own = {"kind": "own", "factory": "my_encoders.make", "options": {"recurrent": 1}}
    own_job(tmp_path)
    trainer, plan, _ = make_trainer(tmp_path, {"encoders": {"top": own}, "engine": "loop"})
    trainer.train_round(0)
    assert values_of_a_sample(plan, plan.agents[0])[1] == 32  # the sample itself; the GRU gives 6 and a state of 6


@pytest.mark.parametrize(
    ("changes", "key", "most"),
    [
        ({"encoder": {"kind": "mlp", "hidden": [10**6, 10**6]}}, "encoder", "4,000.2"),
        ({"encoders": {"top": {"kind": "mlp", "hidden": [10**6, 10**6]}}}, "encoders.top", "4,000.2"),
        ({"method": {"slices": {"unique": 10**6, "redundant": 4, "synergistic": 4}}}, "method.slices", "1,024.0"),
    ],
)
def test_a_network_that_no_memory_can_hold_is_refused_at_the_key_that_asks_for_it(tmp_path, changes, key, most):
    encoder = {"encoder": {"kind": "mlp", "hidden": [256_000]}} if key == "method.slices" else {}
    plan = plan_of(write_job(tmp_path, {**encoder, **changes}))
    with pytest.raises(JobError, match=rf" {key}: the parameters of one agent with top take .* {most} GB of it"):
        _ = plan.layouts


def test_one_agent_at_a_time_may_branch(tmp_path):
    path = own_job(tmp_path, branch=1)
    path.write_text(path.read_text() + "engine: loop\n")
    assert plan_of(path).layouts["encoder[top]"].width


@pytest.mark.parametrize(
    ("factory", "text", "what"),
    [
        ("my_encoders.mak", OWN, "my_encoders.py has no function 'mak'; did you mean 'make'?"),
        ("my_encoders.make", "import nothing_of_this_name", "can't be imported: ModuleNotFoundError: No module named"),
        ("my_encoders.make", "def make(", "can't be imported: SyntaxError: "),
        ("your_encoders.make", OWN, "the module your_encoders can't be imported: ModuleNotFoundError"),
        (
            "my_encoders.make",
            OWN.replace("self.norm, self.width", "self.norm, self.wide"),
            "needs an attribute `width`",
        ),
        ("my_encoders.make", OWN.replace("x.flatten(1)", "x"), "its module fails on samples [4, 4, 8]"),
        (
            "my_encoders.make",
            OWN.replace(".relu()", "[:, :2]"),
            "gives [4, 2] for 4 samples; with its width it is [4, 6]",
        ),
    ],
)
def test_a_file_that_can_not_serve_is_refused(tmp_path, factory, text, what):
    [(_, said, _)] = problems(own_job(tmp_path, factory, text))
    assert what in said


def test_the_example_of_the_documentation_works(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "encoders.md").read_text()
    module, job = (
        re.search(rf"```{kind}\n(.*?)```", page[page.index("## An encoder") :], re.S) for kind in ("python", "yaml")
    )
    (tmp_path / "my_encoders.py").write_text(module[1])
    path = write_job(tmp_path)
    path.write_text(path.read_text() + job[1])
    plan = plan_of(path)
    assert plan.network(plan.agents[0], 0).encoders["m_top"].trunk.width == 32
