"""Worker processes that are killed are started again; those that hang are noticed and ended."""

import multiprocessing
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import mixture
from oculi.data.feeding import RESTARTS, make_loader
from oculi.data.loader import Loaded, Steps
from oculi.data.sample import Sample
from oculi.errors import DataError, LoaderError


class Trouble(list[Sample]):
    """Samples of which one does something to the worker process that asks for it.

    Args:
        at: its number.
        what: what is done; it may look into the folder that counts how often.
    """

    def __init__(self, at: int, what: Callable[[int], None], counted: Path) -> None:
        super().__init__(mixture())
        self.at, self.what, self.counted, self.trainer = at, what, counted, os.getpid()

    def __getitem__(self, index: Any) -> Any:
        if index == self.at and os.getpid() != self.trainer:
            times = len(list(self.counted.iterdir()))
            (self.counted / f"{os.getpid()}-{time.monotonic_ns()}").touch()
            self.what(times)
        return super().__getitem__(index)


def kill(times: int, most: int) -> None:
    if times < most:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def make_steps(make_processor: Callable[..., Any], tmp_path: Path) -> Callable[..., Steps]:
    def make(what: Callable[[int], None] | None = None, steps: int = 6) -> Steps:
        (counted := tmp_path / "counted").mkdir(exist_ok=True)
        source = Trouble(3, what, counted) if what else mixture()
        return Steps(
            source, make_processor(), seed=3, steps=steps, batch=3, pack_length=90, micro_rows=2
        )

    return make


def ids(found: list[Loaded]) -> list[list[str]]:
    return [[name for batch in loaded.batches for name in batch.sample_ids] for loaded in found]


@pytest.fixture
def few_files() -> Iterator[None]:
    """A process may open no more than some dozens of files besides those that are open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 64, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_step_of_many_micro_batches_needs_few_files(
    make_processor: Callable[..., Any], few_files: None
) -> None:
    """Each of its tensors in shared memory of its own would keep a file open."""
    steps = Steps(
        mixture(), make_processor(), seed=3, steps=6, batch=36, pack_length=90, micro_rows=1
    )
    found, wanted = list(make_loader(steps, 0, 1, 60)), list(make_loader(steps, 0, 0))
    assert len(wanted[0].batches) > 12
    assert ids(found) == ids(wanted)
    for batch, other in zip(found[0].batches, wanted[0].batches, strict=True):
        for field in fields(batch):
            value, its = getattr(batch, field.name), getattr(other, field.name)
            assert torch.equal(value, its) if isinstance(its, torch.Tensor) else value == its


def test_a_killed_worker_costs_nothing_but_time(make_steps: Callable[..., Steps]) -> None:
    said: list[str] = []
    began = time.monotonic()
    found = list(
        make_loader(make_steps(lambda times: kill(times, 1)), 1, 2, on_restart=said.append)
    )
    assert ids(found) == ids(list(make_loader(make_steps(), 1, 0)))
    assert len(said) == 1 and said[0].startswith("a loader worker was killed: starting 2 anew at")
    assert time.monotonic() - began < 60
    assert signal.getsignal(signal.SIGCHLD) in (signal.SIG_DFL, signal.SIG_IGN, None)


def test_workers_that_are_killed_again_and_again(make_steps: Callable[..., Steps]) -> None:
    said: list[str] = []
    with pytest.raises(LoaderError, match=f"were killed {RESTARTS + 1} times") as caught:
        list(make_loader(make_steps(lambda times: kill(times, 99)), 0, 1, on_restart=said.append))
    assert len(said) == RESTARTS and caught.value.exit_code == 7
    assert "--resume and fewer workers" in str(caught.value)


def test_a_kill_is_not_raised_where_the_trainer_happens_to_be(
    make_steps: Callable[..., Steps],
) -> None:
    """torch's own handler would: in the middle of an update, if a worker dies then."""
    before = set(multiprocessing.active_children())
    loader = make_loader(make_steps(steps=40), 0, 1)
    next(loader)
    (worker,) = set(multiprocessing.active_children()) - before
    os.kill(worker.pid or 0, signal.SIGKILL)
    worker.join(10)
    for _ in range(1000):  # bytecodes at which a handler would run
        time.sleep(0)
    found = list(loader)
    assert len(found) == 39


@pytest.mark.parametrize("error", [ConnectionResetError, EOFError, FileNotFoundError])
def test_a_worker_that_is_killed_as_it_hands_over(
    make_steps: Callable[..., Steps], monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """Its memory is asked for, and nobody answers; torch raises that if the process looks alive yet."""
    real, done = torch.multiprocessing.reductions.rebuild_storage_fd, []

    @wraps(real)  # it goes through the pipe by its name
    def rebuild(*given: Any) -> Any:
        if done:
            return real(*given)
        (worker,) = set(multiprocessing.active_children()) - before
        done.append(threading.Timer(0.3, os.kill, (worker.pid, signal.SIGKILL)))
        done[0].start()
        raise error

    monkeypatch.setattr(torch.multiprocessing.reductions, "rebuild_storage_fd", rebuild)
    before = set(multiprocessing.active_children())
    said: list[str] = []
    assert len(list(make_loader(make_steps(), 0, 1, on_restart=said.append))) == 6
    assert len(said) == 1


def test_an_error_of_the_system_in_a_worker_is_raised_here(
    make_steps: Callable[..., Steps],
) -> None:
    def bug(times: int) -> None:
        raise FileNotFoundError("no such file")

    with pytest.raises(FileNotFoundError, match="no such file"):
        list(make_loader(make_steps(bug), 0, 1))


def test_workers_that_hang_are_noticed(
    make_steps: Callable[..., Steps], capfd: pytest.CaptureFixture[str]
) -> None:
    before = set(multiprocessing.active_children())
    began = time.monotonic()
    with pytest.raises(LoaderError) as caught:
        list(make_loader(make_steps(lambda times: time.sleep(300)), 0, 2, timeout=2))
    assert time.monotonic() - began < 60
    assert "in 2 seconds: the loader workers hang" in str(caught.value)
    assert "in __getitem__" in capfd.readouterr().err  # where they hang
    deadline = time.monotonic() + 10
    while set(multiprocessing.active_children()) - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert set(multiprocessing.active_children()) <= before  # they do not outlive the loader


def test_slow_is_not_hung(make_steps: Callable[..., Steps]) -> None:
    """A step may take longer than the looks in between."""
    found = list(make_loader(make_steps(lambda times: time.sleep(1.5), steps=2), 0, 1, timeout=60))
    assert len(found) == 2


def test_a_mistake_in_the_data_is_raised_here(make_steps: Callable[..., Steps]) -> None:
    def changed(times: int) -> None:
        raise DataError("the file is not as it was")

    with pytest.raises(DataError, match="not as it was") as caught:
        list(make_loader(make_steps(changed), 0, 1))
    assert "\n" not in str(caught.value)


def test_a_bug_in_a_worker_keeps_its_traceback(make_steps: Callable[..., Steps]) -> None:
    def bug(times: int) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        list(make_loader(make_steps(bug), 0, 1))


def test_it_works_outside_of_the_main_thread(make_steps: Callable[..., Steps]) -> None:
    found: list[Loaded] = []
    thread = threading.Thread(target=lambda: found.extend(make_loader(make_steps(), 4, 1)))
    thread.start()
    thread.join(60)
    assert len(found) == 2
