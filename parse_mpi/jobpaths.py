"""Other files that a job names: topologies, edge lists, data, own encoders.

What a topology's file says is taken into the job, so that a run's own copy of it stands alone; other paths become
absolute.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from parse_mpi.errors import JobError
from parse_mpi.job.topology import parse_edges
from parse_mpi.joberrors import dotted, key_hint, show
from parse_mpi.yamlfile import Document, KeyPath, Value, place_of, read_yaml

PACKAGE_DIR = Path(__file__).parent
SHIPPED_DIRS = (PACKAGE_DIR, PACKAGE_DIR.parent)  # jobs/ and topologies/ lie in the one in a wheel, in the other here
EDGE_FILE: KeyPath = ("topology", "file")


def read_topology(document: Document, settings: dict[str, Value], job_dir: Path) -> None:
    """Put what a topology's file says in the place of its name."""
    name = settings.get("topology")
    if isinstance(name, dict):
        return
    folders = [directory / "topologies" for directory in (job_dir, job_dir.parent, *SHIPPED_DIRS)]
    known = sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})
    if not isinstance(name, str):
        what = f"`topology` is {show(name)}; it must be a name ({', '.join(known)}), a YAML file or a mapping"
        document.blame(("topology",), what)
        return
    candidates = [job_dir / name, *(folder / f"{name}.yaml" for folder in folders), Path(name)]
    file = next((candidate for candidate in candidates if os.path.isfile(candidate)), None)
    if file is None:
        document.blame(("topology",), f"there is no topology `{name}`", key_hint(name, known))
        return
    try:
        read = read_yaml(Path(os.path.normpath(file)))
    except JobError as error:
        document.problems.extend(error.problems)
        document.wrong.add(("topology",))
        return
    if isinstance(read.value, dict) and isinstance(edge_file := read.value.get("file"), str):
        beside = os.path.join(os.path.dirname(file), edge_file)
        read.value["file"] = beside if os.path.isfile(beside) else edge_file
    settings["topology"] = read.value
    document.graft(("topology",), read)


def read_edges(document: Document, settings: dict[str, Value]) -> None:
    """Put the edges that a topology's file lists in the place of its name."""
    topology = settings.get("topology")
    if not isinstance(topology, dict) or "file" not in topology or document.blamed(EDGE_FILE):
        return
    name = topology["file"]
    if not isinstance(name, str):
        document.blame(EDGE_FILE, f"`{dotted(EDGE_FILE)}` is {show(name)}; it must be the path of an edge list")
    elif "edges" in topology:
        document.blame(EDGE_FILE, "`file` and `edges` both say which agents are linked", "keep one of the two")
    else:
        try:
            edges = parse_edges(Path(name).read_text("utf-8"))
        except (OSError, ValueError) as error:
            document.blame(EDGE_FILE, f"{name}: {error}")
        else:
            del topology["file"]
            topology["edges"] = [[i, j] for i, j in edges]
            document.lines[("topology", "edges")] = place_of(document.lines, EDGE_FILE)


def find_file(document: Document, settings: dict[str, Value], keys: KeyPath, job_dir: Path) -> None:
    """Make a path absolute: beside the job file, then in $PARSE_MPI_DATA, then in the working directory."""
    section: Value = settings
    for key in keys[:-1]:
        section = section.get(str(key)) if isinstance(section, dict) else None
    name = section.get(str(keys[-1])) if isinstance(section, dict) else None
    if not isinstance(section, dict) or not isinstance(name, str):
        return
    places = [str(job_dir), os.environ.get("PARSE_MPI_DATA", ""), ""]
    candidates = list(dict.fromkeys(os.path.abspath(os.path.join(place, os.path.expanduser(name))) for place in places))
    found = next((candidate for candidate in candidates if os.path.isfile(candidate)), None)
    if found is None:
        hint = "set PARSE_MPI_DATA to the directory that holds it; looked for " + ", ".join(candidates)
        document.blame(keys, f"there is no file '{name}'", hint)
    else:
        section[str(keys[-1])] = found


def find_own_encoders(settings: dict[str, Value], job_dir: Path) -> None:
    """Say which file an own encoder's function is in: the one that is given, or that of its module beside the job."""
    for encoder in encoders_of(settings):
        file, factory = encoder.get("file"), encoder.get("factory")
        if isinstance(file, str):
            encoder["file"] = os.path.abspath(job_dir / os.path.expanduser(file))
        elif file is None and isinstance(factory, str) and encoder.get("kind") == "own":
            beside = job_dir.joinpath(*factory.split(".")[:-1]).with_suffix(".py")
            if os.path.isfile(beside):
                encoder["file"] = os.path.abspath(beside)


def encoders_of(settings: Mapping[str, Value]) -> list[dict[str, Value]]:
    """Every mapping of a job that describes an encoder."""
    by_modality = [section.get("encoders") for section in (settings, *mappings(settings.get("agents")))]
    named = [encoder for encoders in mappings(by_modality) for encoder in encoders.values()]
    return mappings([settings.get("encoder"), *named])


def mappings(values: Value) -> list[dict[str, Value]]:
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []
