"""Job files: what is read, what is refused and in which words, overrides, digests."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parse_mpi.errors import JobError
from parse_mpi.job import Job
from parse_mpi.jobfile import JobFile, changed_keys, dump_job, job_digest, load_job
from parse_mpi.yamlfile import parse_yaml, write_yaml

QUICKSTART = Path(__file__).parents[2] / "jobs" / "quickstart.yaml"
JOB = """\
name: small
data:
  source: digits
  partition: {kind: dirichlet, alpha: 0.5}
agents:
  - {modalities: [top], count: 2}
  - modalities: [top, bottom]
    count: 3
topology: {kind: ring}
method:
  name: parse
  beta: 0.5
train:
  rounds: 30
  optimiser:
    name: sgd
    lr: 1e-1
"""
COUNT = "it must be a whole number (at least 1 and at most 1,000,000)"


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Loads a text as jobs/job.yaml of an empty project; problems show paths relative to it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PARSE_MPI_DATA", raising=False)
    Path("jobs").mkdir()

    def load_text(text: str, *overrides: str) -> JobFile:
        path = Path("jobs/job.yaml")
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return load_job(path, overrides)

    return load_text


def problems(load, text, *overrides) -> list[tuple[str, str, str]]:
    with pytest.raises(JobError) as caught:
        load(text, *overrides)
    return [(problem.where, problem.what, problem.hint) for problem in caught.value.problems]


# -- good jobs -------------------------------------------------------------------------------------------------------


def test_quickstart_is_read_as_it_stands():
    job = load_job(QUICKSTART).job
    assert [(kind.modalities, kind.count) for kind in job.agents] == [
        (("top",), 10),
        (("bottom",), 10),
        (("top", "bottom"), 10),
    ]
    assert (job.data.source, job.data.partition.kind, job.data.partition.alpha) == ("digits", "dirichlet", 0.5)
    assert (job.topology.kind, job.topology.scope) == ("ring", "overlay")
    assert (job.method.name, job.method.beta, job.method.temperature) == ("parse", 0.5, 0.5)
    assert (job.train.rounds, job.train.batch_size, job.train.optimiser.lr) == (600, 32, 0.05)
    assert (job.evaluate.every, job.checkpoint.every, job.checkpoint.keep, job.seed) == (20, 50, 2, 0)


@pytest.mark.parametrize("path", sorted(QUICKSTART.parent.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_jobs_load(path):
    job = load_job(path, ["data.source=digits"]).job  # the data of some are not on every machine
    assert job.name == path.stem


@pytest.mark.parametrize("path", sorted(QUICKSTART.parents[1].glob("topologies/*.yaml")), ids=lambda path: path.stem)
def test_shipped_topologies_are_found_by_name(path):
    scope = load_job(QUICKSTART, [f"topology={path.stem}"]).job.topology.scope
    assert scope == ("induced" if path.stem.endswith("-induced") or path.stem == "edge-list" else "overlay")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1e3", 1000),
        ("-.5", -0.5),
        ("0x1f", 31),
        ("007", 7),
        ("true", True),
        ("no", "no"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2026-01-02", "2026-01-02"),
        ("'1'", "1"),
        ("~", None),
        ("", None),
    ],
)
def test_scalars_follow_the_core_schema(text, value):
    read = parse_yaml(f"key: {text}", "f").value["key"]
    assert (read, type(read)) == (value, type(value))


def test_a_whole_number_may_be_written_as_a_power(load):
    train = load(JOB, "train.rounds=1e3", "train.optimiser.lr=1e-3").job.train
    assert (train.rounds, train.optimiser.lr) == (1000, 0.001)


def test_where_names_line_or_nearest_parent(load):
    file = load(JOB, "train.batch_size=8")
    assert file.where("train", "optimiser", "lr") == "jobs/job.yaml:17"
    assert file.where("agents", 1, "count") == "jobs/job.yaml:8"
    assert file.where("train", "optimiser", "momentum") == "jobs/job.yaml:15"
    assert file.where("mode") == "jobs/job.yaml:1"
    assert file.where("train", "batch_size") == "--set train.batch_size"


# -- refused jobs ----------------------------------------------------------------------------------------------------


def test_all_problems_come_at_once_in_the_order_of_the_file(load):
    text = JOB.replace("dirichlet", "dirichle").replace("count: 2", "count: 0").replace("beta", "betta")
    text = text.replace("rounds: 30", "rounds: many").replace("name: sgd", "name: sgd\n    lr: 3")
    assert [where for where, _, _ in problems(load, text)] == [f"jobs/job.yaml:{line}" for line in (4, 6, 12, 14, 18)]


@pytest.mark.parametrize(
    ("old", "new", "line", "what", "hint"),
    [
        ("rounds", "runds", 14, "unknown key `train.runds`", "did you mean `rounds`?"),
        ("rounds", "lr", 14, "unknown key `train.lr`", "`lr` belongs to train.optimiser"),
        ("beta", "seed", 12, "unknown key `method.seed`", "`seed` belongs to the top level"),
        ("rounds: 30", "rounds: '30'", 14, f"`train.rounds` is '30'; {COUNT}", "quotes"),
        ("rounds: 30", "rounds: 2.5", 14, f"`train.rounds` is 2.5; {COUNT}", ""),
        ("rounds: 30", "rounds: true", 14, f"`train.rounds` is true; {COUNT}", ""),
        ("1e-1", ".inf", 17, "`train.optimiser.lr` is .inf; it must be a number (above 0 and at most 1000)", ""),
        ("name: small", "name: 5", 1, "`name` is 5; it must be text", "put it in quotes"),
        ("name: small\n", "", 1, "`name` is missing; it must be text", ""),
        ("[top, bottom]", "top", 7, "`agents.1.modalities` is 'top'; it must be a list of at least 1", "write [top]"),
        ("[top, bottom]", "[top, top]", 7, "`agents.1.modalities`: a modality is listed twice", ""),
        ("    count: 3\n", "", 7, f"`agents.1.count` is missing; {COUNT}", ""),
        ("dirichlet", "dirchlet", 4, "`data.partition.kind` is 'dirchlet'; it must be iid, dirichlet, ", "dirichlet?"),
        ("dirichlet", "iid", 4, "`data.partition`: alpha belongs to kind: dirichlet", ""),
        ("digits", "digit", 3, "`data.source` is 'digit'; it must be digits, {digits: ...}, {hdf5: ", "digits?"),
        ("digits", "{hdf: x}", 3, "`data.source` is {hdf: x}; it must be digits, {digits: ...}, {hdf5: ", ""),
        ("digits", "{pid: {noise: 0}}", 3, "`data.source.pid.noise` is 0; it must be a number (above 0", ""),
        ("digits", "{pid: {unique_bits: [1]}}", 3, "`data.source.pid.unique_bits.1` is missing", ""),
        ("name: parse", "name: pars", 11, "`method.name` is 'pars'; it must be parse, local, ", "did you mean parse?"),
        ("name: parse", "alpha: 1", 10, "`method.name` is missing; it must be parse, local, ", ""),
        ("name: parse", "name: local\n  taux: 1", 12, "unknown key `method.taux`", "allowed here: slices"),
        (
            "name: parse\n  beta: 0.5",
            "name: dsgd-task\n  slices: {adapt: {}}",
            12,
            "unknown key `method.slices.adapt`",
            "allowed here: unique, redundant, synergistic",
        ),
        ("{kind: ring}", "{kind: ring, probability: 1}", 9, "`topology`: probability belongs to erdos-renyi", ""),
        ("{kind: ring}", "5", 9, "`topology` is 5; it must be a name", ""),
        (
            "name: small",
            "encoders: [mlp]\nname: a",
            1,
            "`encoders` is [mlp]; it must be a mapping of names, each to a",
            "",
        ),
        ("name: small", "encoders: {top: mlp}\nname: a", 1, "`encoders.top` is 'mlp'; it must be a mapping with", ""),
        ("name: small", "encoders: {top: {kind: mpl}}\nname: a", 1, "`encoders.top.kind` is 'mpl'; it must be", "mlp?"),
        (
            "t: 2",
            "t: 2, encoders: {top: {kind: mlp, hidden: [x]}}",
            6,
            "`agents.0.encoders.top.hidden.0` is 'x'; it",
            "",
        ),
        (
            "t: 2",
            "t: 2, encoders: {top: {kind: mlp, cells: 3}}",
            6,
            "unknown key `agents.0.encoders.top.cells`",
            "conv1d",
        ),
        ("rounds: 30", "rounds: *r", 14, "the alias *r is not allowed in a job", "plain YAML"),
        ("rounds: 30", "rounds: &r 30", 14, "the anchor &r is not allowed in a job", ""),
        ("rounds: 30", "rounds: !!int 30", 14, "the tag !!int is not allowed in a job", ""),
        ("rounds: 30", "rounds: 30\n  rounds: 31", 15, "`rounds` stands here a second time; the first is at jobs/", ""),
        ("rounds: 30", "rounds: 30\n  ? [1]\n  : 2", 15, "a key must be one plain word", ""),
        ("name: small", 'name: "a\\0"', 1, "'a\\x00' holds a line break or a character that can't be seen", ""),
        ("1e-1", "9" * 5000, 17, "a number of 5000 characters is too long", ""),
        ("  rounds", "\trounds", 14, "a tab can't indent YAML", "use spaces"),
        ("[top],", "[top,", 6, "no YAML: ", "brackets"),
        ("name: small", "name: a\x07", 1, "character 0x7 is not allowed in YAML", ""),
        ("[top]", "[" * 5000, 6, "nested deeper than 20 levels", ""),
        (JOB, JOB + "---\n" + JOB, 18, "no YAML: ", ""),
        (JOB, "", 1, "the file is empty; a job is a mapping of keys", ""),
        (JOB, "- 1", 1, "the file is [1]; a job is a mapping of keys", ""),
    ],
)
def test_one_mistake_gives_one_clear_problem(load, old, new, line, what, hint):
    [(where, said, next_step)] = problems(load, JOB.replace(old, new, 1))
    assert where == f"jobs/job.yaml:{line}"
    assert what in said
    assert hint in next_step


def test_a_rule_between_keys_is_told_in_its_own_words(load):
    [(where, what, _)] = problems(load, JOB, "mode=exact", "engine=stacked")
    assert where == "--set engine"
    assert "mode: exact needs engine: loop" in what


def test_a_rule_between_keys_does_not_wait_for_other_problems(load):
    found = problems(load, JOB, "mode=exact", "engine=stacked", "train.rounds=0")
    assert [where for where, _, _ in found] == ["--set engine", "--set train.rounds"]


@pytest.mark.parametrize(
    ("key", "largest", "refused"),
    [
        ("train.optimiser.lr", "1e3", "1e39"),
        ("train.optimiser.weight_decay", "1", "2"),
        ("train.optimiser.momentum", "0.999", "0.9999999"),
        ("method.beta", "1e3", "1e39"),
        ("method.ensemble_weight", "1e3", "1e39"),
        ("method.head_weight", "1e3", "1e39"),
        ("method.temperature", "1e3", "1e39"),
        ("method.temperature", "1e-3", "1e-39"),
        ("train.batch_size", "1e6", "1000001"),
        ("train.rounds", "1e6", "1000001"),
        ("agents.0.count", "1e6", "1000001"),
        ("encoder", "{kind: mlp, hidden: [1e6]}", "{kind: mlp, hidden: [1000001]}"),
        ("seed", str(2**63 - 1), str(2**63)),
        ("data.source", "{pid: {noise: 1e3}}", "{pid: {noise: 1e39}}"),
        ("data.source", "{pid: {samples: 1e6}}", "{pid: {samples: 1000001}}"),
        ("data.source", "{pid: {features: 1e4}}", "{pid: {features: 10001}}"),
    ],
)
def test_numbers_have_limits_within_which_nothing_overflows(load, key, largest, refused):
    load(JOB, f"{key}={largest}")
    for value in (refused, ".inf", ".nan") if "[" not in refused and "{" not in refused else (refused,):
        [(where, what, _)] = problems(load, JOB, f"{key}={value}")
        assert where == f"--set {key}"
        assert "must be" in what


def test_one_of_a_thing_is_not_told_in_the_plural(load):
    [(_, _, hint)] = problems(load, JOB, "agents=[{modalities: [top], count: 5}]", "agents.2.count=3")
    assert hint == "its 1 entry is counted from 0"
    pid = "{pid: {features: 1, unique_bits: [1, 1]}}"
    [(_, what, _)] = problems(load, JOB, f"data.source={pid}")
    assert "1 dimension can't hold 3 orthonormal bits" in what


def test_aliases_are_never_expanded(load):
    bomb = "a: &a [x, x]\n" + "".join(f"a{k}: &a{k} [*a{k - 1 or ''}, *a{k - 1 or ''}]\n" for k in range(1, 60))
    assert all("not allowed in a job" in what or "unknown key" in what for _, what, _ in problems(load, JOB + bomb))


def test_unreadable_files(load, tmp_path):
    [(where, what, hint)] = problems(lambda *_: load_job(Path("jobs/jb.yaml")), load(JOB))
    assert (where, what, hint) == ("jobs/jb.yaml", "there is no such file", "did you mean jobs/job.yaml?")
    [(where, what, _)] = problems(lambda *_: load_job(tmp_path), "")
    assert what == "can't be read: Is a directory"
    [(where, what, _)] = problems(load, b"name: a\nseed: \xff\n")
    assert (where, what) == ("jobs/job.yaml:2", "byte 0xff is no UTF-8 text")
    [(where, what, _)] = problems(load, "# " + "x" * (1 << 20))
    assert "this is no job file" in what


# -- overrides -------------------------------------------------------------------------------------------------------


def test_overrides_set_any_key_and_the_last_one_counts(load):
    job = load(
        JOB,
        "agents.0.count=5",
        "train.optimiser.lr=1",
        "train.optimiser.lr=0.05",
        "evaluate.every=3",
        "method={name: local}",
    ).job
    assert job.agents[0].count == 5
    assert job.train.optimiser.lr == 0.05
    assert job.evaluate.every == 3
    assert job.method.name == "local"


@pytest.mark.parametrize(
    ("override", "where", "what"),
    [
        ("train.rnds=3", "--set train.rnds", "unknown key `train.rnds`"),
        ("trian.rounds=3", "--set trian.rounds", "unknown key `trian`"),
        ("agents.2.count=3", "--set agents.2.count", "`agents` has no entry 2"),
        ("agents.x.count=3", "--set agents.x.count", "`agents` has no entry x"),
        ("data.source.pid.noise=3", "--set data.source.pid.noise", "`data.source` is 'digits' and has no `pid`"),
        ("train.rounds=x", "--set train.rounds", f"`train.rounds` is 'x'; {COUNT}"),
        ("data={source: {pid: {noise: 0}}}", "--set data", "`data.source.pid.noise` is 0; it must be a number"),
        ("train.rounds=[", "--set train.rounds", "no YAML: "),
        ("train.rounds", "--set train.rounds", "an override is key.path=value"),
        ("=3", "--set =3", "an override is key.path=value"),
        ("train..rounds=3", "--set train..rounds=3", "an override is key.path=value"),
    ],
)
def test_problems_of_overrides_name_the_override(load, override, where, what):
    [(said_where, said_what, _)] = problems(load, JOB, override)
    assert said_where == where
    assert what in said_what


# -- files that a job names ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["jobs/topologies/hexagon.yaml", "topologies/hexagon.yaml"])
def test_a_topology_is_found_by_name(load, place):
    Path(place).parent.mkdir()
    Path(place).write_text("# six\nkind: erdos-renyi\nprobability: 0.5\n")
    file = load(JOB.replace("{kind: ring}", "hexagon"), "topology.scope=induced")
    assert (file.job.topology.probability, file.job.topology.scope) == (0.5, "induced")
    assert file.where("topology", "probability") == f"{place}:3"


def test_a_topology_is_found_by_path(load, tmp_path):
    Path("jobs/own.yaml").write_text("kind: complete\n")
    for name in ("own.yaml", "jobs/own.yaml", tmp_path / "jobs" / "own.yaml"):
        assert load(JOB.replace("{kind: ring}", str(name))).job.topology.kind == "complete"


def test_problems_of_a_topology_point_into_its_file(load):
    Path("topologies").mkdir()
    Path("topologies/bad.yaml").write_text("kind: erdos-renyi\nprobability: 2\nbase: ring\nknd: 1\n")
    text = JOB.replace("{kind: ring}", "bad")
    assert [where for where, _, _ in problems(load, text)] == ["topologies/bad.yaml:2", "topologies/bad.yaml:4"]
    [(where, what, hint)] = problems(load, JOB.replace("{kind: ring}", "baad"))
    assert (where, what, hint) == ("jobs/job.yaml:9", "there is no topology `baad`", "did you mean `bad`?")


def test_hdf5_is_found_beside_the_job_in_the_data_directory_or_here(load, tmp_path, monkeypatch):
    text = JOB.replace("digits", "{hdf5: set.h5}")
    monkeypatch.setenv("PARSE_MPI_DATA", str(tmp_path / "data"))
    Path("data").mkdir()
    [(where, what, hint)] = problems(load, text)
    assert (where, what) == ("jobs/job.yaml:3", "there is no file 'set.h5'")
    for directory in ("", "data", "jobs"):
        place = tmp_path / directory / "set.h5"
        assert str(place) in hint
        place.touch()
        assert load(text).job.data.source.hdf5 == str(place)


# -- dump, digest, changes -------------------------------------------------------------------------------------------

TEXTS = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S")), max_size=8) | st.sampled_from(
    ["no", "1e-3", "0o7", "~", "null", "1:30", "True", ".inf", "=", "<<", "a: b", "# a", ""]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
@settings(derandomize=True, deadline=None, max_examples=200)
def test_written_yaml_reads_back_equal(value):
    read = parse_yaml(write_yaml({"key": value}), "f")
    assert not read.problems
    assert read.value == {"key": value}


@pytest.mark.parametrize("overrides", [(), ("name='1e3'", "method.name=local"), ("data.source={pid: {noise: 1e-7}}",)])
def test_a_dumped_job_loads_as_an_equal_job(load, overrides):
    job = load(JOB, *overrides).job
    again = load(dump_job(job)).job
    assert again == job
    assert job_digest(again) == job_digest(job)
    assert changed_keys(job, again) == []


@pytest.mark.parametrize(
    ("override", "changes"),
    [
        ("name=other", []),
        ("train.rounds=31", []),
        ("evaluate.every=1", []),
        ("checkpoint.keep=5", []),
        ("checkpoint.shards=node", []),
        ("train.on_nonfinite=isolate", []),
        ("exchange=p2p", []),
        ("device=cpu", []),
        ("placement=minimum-cut", []),
        ("seed=1", ["seed: 0 -> 1"]),
        ("agents.1.count=4", ["agents.1.count: 3 -> 4"]),
        (
            "agents=[{modalities: [top], count: 5}]",
            ["agents: [{modalities: [top], count: 2, encoders: {}}, {modalities... -> "],
        ),
        ("train.optimiser.lr=0.2", ["train.optimiser.lr: 0.1 -> 0.2"]),
        ("method.name=local", ["method.name: 'parse' -> 'local'"]),
        ("data.source={pid: {}}", ["data.source: 'digits' -> {pid: {redundant_bits: 1, unique_bits: [1, 1], "]),
        ("mode=exact", ["mode: 'fast' -> 'exact'"]),
    ],
)
def test_the_digest_covers_what_decides_the_trajectory(load, override, changes):
    old, new = load(JOB).job, load(JOB, override).job
    found = changed_keys(old, new)
    assert len(found) == len(changes)
    assert all(said.startswith(start) for said, start in zip(found, changes, strict=True))
    assert (job_digest(old) == job_digest(new)) == (not changes)


def test_every_field_of_a_job_is_either_covered_by_the_digest_or_named_as_left_out(load):
    covered = {"seed", "data", "agents", "topology", "method", "events", "encoder", "encoders", "train"}
    covered |= {"mode", "engine", "dtype"}
    left_out = {"name", "evaluate", "checkpoint", "exchange", "placement", "device"}
    assert set(Job.model_fields) - covered == left_out


def test_beyond_256_ranks_a_node_writes_one_shard(load):
    shards = {
        kind: load(JOB, f"checkpoint.shards={kind}").job.checkpoint for kind in ("auto", "rank", "node", "single")
    }
    assert [kind for kind, checkpoint in shards.items() if checkpoint.by_node(256)] == ["node"]
    assert [kind for kind, checkpoint in shards.items() if checkpoint.by_node(257)] == ["auto", "node"]
