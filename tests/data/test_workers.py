"""Processes for the pieces of one job, however they are started: they work, and end with the command."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from oculi.data.fingerprint import fingerprint_all
from oculi.data.workers import run_all
from oculi.errors import DataError

METHODS = multiprocessing.get_all_start_methods()


class Noting:
    """Leaves a file named by the worker for each piece."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def note(self, piece: int) -> None:
        (self.folder / f"{piece}-{os.getpid()}").touch()
        time.sleep(0.05)

    def die(self, piece: int) -> None:
        os._exit(9)


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Iterator[str]:
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.usefixtures("method")
def test_all_pieces_are_done_by_others(tmp_path: Path) -> None:
    assert list(run_all(Noting(tmp_path), "note", range(6), 2)) == list(range(6))
    pieces, workers = zip(*(file.name.split("-") for file in tmp_path.iterdir()), strict=True)
    assert sorted(pieces) == list("012345")
    assert str(os.getpid()) not in workers


@pytest.mark.usefixtures("method")
def test_a_worker_that_dies_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a worker was killed, perhaps for want of memory"):
        list(run_all(Noting(tmp_path), "die", range(6), 2))


@pytest.mark.usefixtures("method")
def test_pictures_are_read_by_others() -> None:
    assert list(fingerprint_all([[]] * 20, 2)) == [[]] * 20


KILLED = """
import multiprocessing, os, sys, time
from pathlib import Path
from oculi.data.workers import run_all
class Noting:
    def note(self, piece):
        Path(sys.argv[2], str(os.getpid())).touch()
        time.sleep(0.05)
if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    list(run_all(Noting(), "note", range(10_000), 3))
"""


@pytest.mark.parametrize("how", METHODS)
def test_none_outlives_a_killed_command(how: str, tmp_path: Path) -> None:
    script, notes = tmp_path / "killed.py", tmp_path / "notes"
    script.write_text(KILLED)
    notes.mkdir()
    started = subprocess.Popen([sys.executable, str(script), how, str(notes)])
    deadline = time.monotonic() + 60
    workers: set[str] = set()
    while len(workers) < 3 and started.poll() is None and time.monotonic() < deadline:
        workers = {file.name for file in notes.iterdir()}
        time.sleep(0.02)
    started.send_signal(signal.SIGKILL)
    started.wait()
    assert len(workers) == 3
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert time.monotonic() < deadline
