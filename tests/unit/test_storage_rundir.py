"""The run directory: it takes in nobody else's files, loses none, and its state is always whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from parse_mpi.errors import StorageError
from parse_mpi.storage.rundir import RunDirectory, RunState

STATE_BEFORE_THE_START = '{"round": -1, "rounds": 2, "status": "running"}'
STATE_WITH_NO_EXIT_CODE = '{"round": 1, "rounds": 2, "status": "failed", "exit_code": 300}'
STATE_IN_NO_TIME = '{"round": 1, "rounds": 2, "status": "running", "time": "yesterday"}'


def started(path: Path) -> RunDirectory:
    run = RunDirectory(path)
    run.create()
    run.job_path.write_text("name: quickstart\n")
    return run


def test_create_makes_the_folders_and_leaves_a_run_as_it_is(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "deep" / "run")
    assert not run.exists()
    run.create()
    assert sorted(entry.name for entry in run.path.iterdir()) == ["checkpoints", "log", "metrics"]
    run.create()
    run.job_path.write_text("name: quickstart\n")
    (run.path / "notes of mine.txt").write_text("kept")
    run.create()
    assert run.exists()
    assert (run.path / "notes of mine.txt").read_text() == "kept"


def test_a_killed_start_can_be_repeated(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / ".job.yaml.0123abcd.tmp").write_text("half")
    RunDirectory(tmp_path).create()


@pytest.mark.parametrize("method", ["create", "fresh"])
def test_a_directory_of_something_else_is_refused(tmp_path: Path, method: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    for number in range(7):
        (home / f"thesis-{number}.tex").write_text("dear")
    with pytest.raises(StorageError, match=r"holds no run \(no job.yaml\) but thesis-0.tex, .*, \.\.\.; choose"):
        getattr(RunDirectory(home), method)()
    assert len(list(home.iterdir())) == 7
    assert list(tmp_path.iterdir()) == [home]
    with pytest.raises(StorageError, match="is a file"):
        getattr(RunDirectory(home / "thesis-0.tex"), method)()


@pytest.mark.parametrize("method", ["make", "create", "fresh"])
def test_a_job_file_beside_which_there_is_no_run_is_not_replaced(tmp_path: Path, method: str) -> None:
    (tmp_path / "job.yaml").write_text("# mine\nname: quickstart\n")  # parse-mpi run job.yaml --out .
    with pytest.raises(StorageError, match=r"holds no run but a job\.yaml.*choose an empty or a new directory"):
        getattr(RunDirectory(tmp_path), method)()
    assert [entry.name for entry in tmp_path.iterdir()] == ["job.yaml"]


def test_a_path_that_can_not_be_looked_at_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"File name too long|no such directory"):  # where isfile swallows it
        RunDirectory(tmp_path / ("x" * 300)).require()


def test_links_in_circles_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "run").symlink_to(tmp_path / "run")
    with pytest.raises(StorageError, match="no such directory"):
        RunDirectory(tmp_path / "run").require()
    with pytest.raises(StorageError, match=r"can't be made: .*move it aside"):
        RunDirectory(tmp_path / "run").make()


def test_fresh_moves_a_run_aside_and_deletes_nothing(tmp_path: Path) -> None:
    run = started(tmp_path / "run")
    for number in (1, 2):
        run.job_path.write_text(f"name: attempt-{number}\n")
        assert run.fresh() == tmp_path / f"run.previous-{number}"
        assert not run.exists()
    assert (tmp_path / "run.previous-1" / "job.yaml").read_text() == "name: attempt-1\n"
    assert (tmp_path / "run.previous-2" / "job.yaml").read_text() == "name: attempt-2\n"


def test_fresh_where_nothing_is(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    assert run.fresh() is None
    assert run.log_dir.is_dir()


def test_fresh_behind_a_symbolic_link_stays_behind_it(tmp_path: Path) -> None:
    started(tmp_path / "scratch" / "run")
    (tmp_path / "run").symlink_to(tmp_path / "scratch" / "run")
    assert RunDirectory(tmp_path / "run").fresh() == tmp_path / "scratch" / "run.previous-1"
    assert (tmp_path / "run").is_symlink()
    assert (tmp_path / "scratch" / "run" / "log").is_dir()


def test_state_comes_back(tmp_path: Path) -> None:
    run = started(tmp_path)
    assert run.read_state() is None
    state = RunState(round=50, rounds=300, status="stopped", reason="SIGUSR1", exit_code=75)
    run.write_state(state)
    assert run.read_state() == state
    assert state.time.endswith("+00:00")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        '{"round": "three"}',
        '{"round": 1, "rounds": 2, "status": "asleep"}',
        STATE_IN_NO_TIME,
        STATE_BEFORE_THE_START,
        STATE_WITH_NO_EXIT_CODE,
    ],
)
def test_a_damaged_state_is_an_error(tmp_path: Path, text: str) -> None:
    run = started(tmp_path)
    run.state_path.write_text(text)
    with pytest.raises(StorageError, match=r"state\.json: not the state of a run") as caught:
        run.read_state()
    assert "pydantic" not in str(caught.value)
    assert "Move it aside and start the same command again" in str(caught.value)


def test_a_state_that_can_not_be_read_says_why(tmp_path: Path) -> None:
    run = started(tmp_path)
    run.state_path.mkdir()
    with pytest.raises(StorageError, match=r"state\.json: is no plain file"):
        run.read_state()


def test_a_state_has_a_known_status() -> None:
    with pytest.raises(ValidationError):
        RunState.model_validate({"round": 1, "rounds": 2, "status": "asleep"})
