"""What the doctor makes of what ranks tell: cores, links, limits of an MPI, GPU memory, lost ranks."""

from __future__ import annotations

import ctypes
import itertools
import os
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mpi4py import MPI

from parse_mpi.exchange import probe
from parse_mpi.exchange.host import usable_cores, usable_cpus
from parse_mpi.exchange.probe import Link, pairs_to_measure
from parse_mpi.exchange.selftest import library_family
from parse_mpi.exchange.world import World
from parse_mpi.run import doctor_ranks
from parse_mpi.run.doctor_ranks import binding, core_list, link_finding


@pytest.mark.parametrize(
    ("cores_of", "level", "text"),
    [
        ({3: [0, 1]}, "ok", "h: rank 3 on cores 0-1"),
        ({0: [0, 1], 1: [2, 3]}, "ok", "h: cores of their own: rank 0 on cores 0-1, rank 1 on cores 2-3"),
        ({0: [0, 1], 2: [0, 1], 4: [0, 1]}, "note", "h: 3 ranks, not bound: each may run on cores 0-1"),
        ({0: [0, 1], 1: [1, 2]}, "note", "h: ranks share core 1: rank 0 on cores 0-1, rank 1 on cores 1-2"),
        (
            {0: [5], 1: [5], 2: [6]},
            "note",
            "h: ranks share core 5: rank 0 on core 5, rank 1 on core 5, rank 2 on core 6",
        ),
    ],
)
def test_binding(cores_of: dict[int, list[int]], level: str, text: str) -> None:
    found = binding("h", cores_of)
    assert (found.level, found.text) == (level, text)
    assert bool(found.next_step) == (level == "note")


@given(st.sets(st.integers(0, 300), min_size=1))
def test_a_list_of_cores_names_each_core_once(numbers: set[int]) -> None:
    spans = core_list(sorted(numbers)).split(" ", 1)[1].split(", ")
    ends = [[int(end) for end in span.split("-")] for span in spans]
    assert [core for span in ends for core in range(span[0], span[-1] + 1)] == sorted(numbers)
    assert all(later[0] > earlier[-1] + 1 for earlier, later in itertools.pairwise(ends))


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not bind processes to cores")
def test_cores_are_those_of_this_process() -> None:
    assert usable_cpus() == sorted(os.sched_getaffinity(0))
    assert len(usable_cpus()) == usable_cores()


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12))
def test_pairs_are_on_one_host_or_on_two_as_they_say(hosts: list[int]) -> None:
    pairs = pairs_to_measure([hosts.index(host) for host in hosts])
    assert len(set(pairs)) == len(pairs) <= 4
    assert all(a < b and (hosts[a] != hosts[b]) == across for a, b, across in pairs)
    assert any(across for *_, across in pairs) == (len(set(hosts)) > 1)
    assert any(not across for *_, across in pairs) == (len(set(hosts)) < len(hosts))


def test_links_across_hosts_that_are_slow_are_worth_a_note() -> None:
    seconds = {8: 40e-6, 1 << 16: 500e-6, 1 << 22: 0.04}
    slow = link_finding(Link((0, 3), True, seconds))
    assert slow.level == "note"
    assert "ranks 0 and 3, on two hosts: 40.0 µs, 64 KB in 500 µs, 4 MB at 0.10 GB/s" in slow.text
    assert slow.next_step
    assert link_finding(Link((0, 3), True, seconds | {8: 2e-6})).level == "ok"
    assert link_finding(Link((0, 3), False, seconds)).level == "ok"


def test_limits_of_a_message_are_those_of_this_mpi() -> None:
    assert bool(probe.refuses_large_counts()) == (library_family() == "Open MPI")
    assert probe.refuses_large_rows() == ""


@pytest.mark.parametrize(
    ("counts", "rows", "level", "text"),
    [
        ("", "", "ok", "more than 2^31-1 items in a message"),
        ("MPI_ERR_ARG", "", "ok", "not of single items (MPI_ERR_ARG), but rows are counted whole"),
        ("MPI_ERR_ARG", "MPI_ERR_COUNT", "note", "no row above 2 GiB (MPI_ERR_COUNT)"),
    ],
)
def test_limits_that_touch_a_run_are_told_apart_from_others(
    monkeypatch: pytest.MonkeyPatch, counts: str, rows: str, level: str, text: str
) -> None:
    monkeypatch.setattr(probe, "refuses_large_counts", lambda: counts)
    monkeypatch.setattr(probe, "refuses_large_rows", lambda: rows)
    finding = next(iter(doctor_ranks._check_limits()))
    assert (finding.subject, finding.level) == ("large counts", level)
    assert finding.text.startswith(text)


@pytest.mark.parametrize(
    ("family", "version", "told", "survives"),
    [
        ("Open MPI", (5, 0, 11), "1", True),
        ("Open MPI", (5, 0, 11), "0", False),
        ("Open MPI", (5, 0, 11), None, False),
        ("Open MPI", (4, 1, 4), "1", False),
        ("MPICH", (5, 0, 2), "1", False),
    ],
)
def test_ranks_outlive_others_only_where_open_mpi_was_told_so(
    monkeypatch: pytest.MonkeyPatch, family: str, version: tuple[int, ...], told: str | None, survives: bool
) -> None:
    monkeypatch.setattr(probe, "library_family", lambda: family)
    monkeypatch.setattr(probe, "MPI", SimpleNamespace(get_vendor=lambda: (family, version)))
    environment = {} if told is None else {"OMPI_MCA_mpi_ft_enable": told}
    assert probe.survives_lost_ranks(environment) is survives


def test_whether_mpi_takes_gpu_memory_is_what_the_library_says(monkeypatch: pytest.MonkeyPatch) -> None:
    said = iter([0, 1])
    library = SimpleNamespace(MPIX_Query_cuda_support=lambda: next(said))
    with monkeypatch.context() as patched:
        patched.setattr(ctypes, "CDLL", lambda path: library)
        assert [probe.says_cuda_aware(), probe.says_cuda_aware()] == [False, True]
        patched.setattr(ctypes, "CDLL", lambda path: SimpleNamespace())
        assert probe.says_cuda_aware() is False
    monkeypatch.setattr(probe, "library_path", lambda: "")
    assert probe.says_cuda_aware() is False


@pytest.mark.parametrize(
    ("says", "gpu", "wrong", "level", "text"),
    [
        (False, True, [], "ok", "MPI takes none (not CUDA-aware)"),
        (True, False, [], "ok", "MPI says it takes it (CUDA-aware); no GPU here"),
        (True, True, [], "ok", "MPI takes it (CUDA-aware)"),
        (True, True, ["rank 1: wrong bytes"], "note", "MPI says it takes it (CUDA-aware), but: rank 1: wrong bytes"),
    ],
)
def test_gpu_memory(
    monkeypatch: pytest.MonkeyPatch, says: bool, gpu: bool, wrong: list[str], level: str, text: str
) -> None:
    monkeypatch.setattr(probe, "says_cuda_aware", lambda: says)
    monkeypatch.setattr(probe, "wrong_from_device", lambda world, device: wrong)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    finding = doctor_ranks._check_cuda(World(MPI.COMM_SELF))
    assert finding.level == level
    assert finding.text.startswith(text)
