"""README and the list of modules keep to the truth: files, links, commands."""

import re

from launch import ROOT

from parse_mpi.batch.site import read_site
from parse_mpi.cli import make_parser

README = (ROOT / "README.md").read_text("utf-8")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
PACKAGE = ROOT / "parse_mpi"


def test_it_names_every_folder_once():
    tree = README[README.index("    parse_mpi/ ") : README.index("    tests/ ")]
    named = [line.split()[0] for line in tree.splitlines()[1:]]
    assert sorted(named) == sorted(f"{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py"))


def test_the_architecture_names_every_module_once():
    tree = ARCHITECTURE[ARCHITECTURE.index("    parse_mpi/\n") : ARCHITECTURE.index("Further rules")]
    named, folder = [], ""
    for line in tree.strip("\n").splitlines()[1:]:
        name = line.split()[0]
        if line.startswith(" " * 6) and line[6] != " ":
            folder = name if name.endswith("/") else ""
        if not name.endswith("/"):
            named.append(f"{folder}{name}")
    modules = [path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if not path.name.startswith("__")]
    assert sorted(named) == sorted(modules)


def test_what_it_links_to_is_there():
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert len(links) > 8
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_its_commands_parse():
    lines = re.findall(r"^    (?:mpiexec -n 4 |srun -K1 --mpi=pmi2 -n 4 )?parse-mpi (.+?)(?:\s+#.*)?$", README, re.M)
    assert len(lines) >= 7
    for line in lines:
        assert make_parser().parse_args(line.split()).command


def test_its_site_file_knows_the_network(tmp_path):
    script, source, path = re.search(r"^    sed '(.+)' (\S+) > (\S+)$", README, re.M).groups()
    assert f"--site {path}" in README
    _, pattern, replacement, _ = script.split("/")
    site = tmp_path / "site.yaml"
    site.write_text(re.sub(pattern, replacement, (ROOT / source).read_text(), flags=re.M))
    network = read_site(site).network
    assert (network.latency_us, network.bandwidth_gb_s) == (1.5, 12)
    assert "1.5 µs and 12 GB/s" in README
