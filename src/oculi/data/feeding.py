"""Steps made ahead by worker processes, of which none may hang or die unnoticed.

A step is a pure function of its number, so a worker that was killed costs nothing but time: all are
started again at the step that is due.
"""

from __future__ import annotations

import faulthandler
import io
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from oculi.data.loader import Loaded, Steps
from oculi.errors import LoaderError, OculiError

RESTARTS = 3  # of killed workers in one stage; whoever kills them more often has a reason
_SLICE = 1  # seconds after which to see whether the workers live


class _From(torch.utils.data.Sampler[int]):
    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop = start, stop

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(range(self.start, self.stop))

    def __len__(self) -> int:
        return self.stop - self.start


class _Caught(Dataset[Loaded | OculiError]):
    """Steps whose mistakes in the input are values: raised in a worker process, torch would put that
    process's traceback into the message."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps

    def __getitem__(self, step: int) -> Loaded | OculiError:
        try:
            return self.steps.load(step)
        except OculiError as error:
            return error


class _Pickler(pickle.Pickler):
    """Writes tensors as arrays: torch's own way takes ten times as long."""

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype == torch.bfloat16:  # which numpy lacks
            return NotImplemented
        return torch.from_numpy, (value.numpy(),)


def _packed(made: Any) -> Tensor:
    """A step as one tensor of bytes, so that it comes from its worker in one piece of shared memory:
    for each tensor in a piece of its own the worker would keep a file open, and may open a thousand."""
    file = io.BytesIO()
    _Pickler(file, pickle.HIGHEST_PROTOCOL).dump(made)
    return torch.frombuffer(file.getbuffer(), dtype=torch.uint8)


def _unpacked(packed: Tensor) -> Loaded | OculiError:
    made: Loaded | OculiError = pickle.loads(packed.numpy().data)
    return made


class _Killed(Exception):
    """A worker process is gone."""


def make_loader(
    steps: Steps,
    start: int,
    workers: int,
    timeout: float = 300,
    on_restart: Callable[[str], None] = lambda line: None,
) -> Generator[Loaded]:
    """Data of steps ``start`` to the end, in order, made ahead by ``workers`` processes.

    Args:
        steps: what to make.
        start: the first step.
        workers: processes; 0 makes each step when it is asked for.
        timeout: seconds to wait for a step before the workers count as hung.
        on_restart: told in a line that workers were started again.

    Raises:
        DataError: a data file is not as it was.
        LoaderError: workers hang, or were killed more than three times.
    """
    restarts = 0
    while start < len(steps):
        try:
            for loaded in _once(steps, start, workers, timeout):
                start += 1
                yield loaded
        except _Killed:
            restarts += 1
            if restarts > RESTARTS:
                raise LoaderError(
                    f"loader workers were killed {restarts} times, perhaps for want of memory: go on "
                    f"with --resume and fewer workers (stages.N.workers, now {workers})"
                ) from None
            on_restart(f"a loader worker was killed: starting {workers} anew at step {start}")


def _once(steps: Steps, start: int, workers: int, timeout: float) -> Generator[Loaded]:
    """The same until a worker is killed; raises _Killed."""
    loader = DataLoader(
        _Caught(steps),
        batch_size=None,
        sampler=_From(start, len(steps)),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        collate_fn=_packed if workers else None,
        timeout=_SLICE if workers else 0,
        worker_init_fn=_prepare_worker if workers else None,
    )
    with _workers_of(loader) as (iterator, processes):
        for step in range(start, len(steps)):
            loaded = (
                _unpacked(_next(iterator, processes, step, timeout)) if workers else next(iterator)
            )
            if isinstance(loaded, OculiError):
                raise loaded
            yield loaded


@contextmanager
def _workers_of(loader: DataLoader[Any]) -> Iterator[tuple[Iterator[Any], list[Any]]]:
    """The loader's iterator and its processes, which do not outlive the block."""
    before = set(multiprocessing.active_children())
    main = threading.current_thread() is threading.main_thread()
    child_ended = signal.getsignal(signal.SIGCHLD) if main else None
    iterator = iter(loader)
    if main:
        # torch's handler raises wherever the trainer happens to be, in the middle of an update too;
        # we ask every second while we wait instead.
        signal.signal(signal.SIGCHLD, child_ended or signal.SIG_DFL)
    processes = [p for p in multiprocessing.active_children() if p not in before]
    try:
        yield iterator, processes
    finally:
        for process in processes:
            process.kill()  # a worker that hangs does not hear a request


def _next(iterator: Iterator[Any], processes: list[Any], step: int, timeout: float) -> Any:
    """The next entry of a loader; raises _Killed and LoaderError."""
    began = time.monotonic()
    while True:
        try:
            return next(iterator)
        except RuntimeError as error:  # of our own code in a worker, or of torch about the workers
            said = str(error)
            if said.startswith("DataLoader worker"):
                raise _Killed from None
            if not said.startswith("DataLoader timed out"):
                raise
        except (OSError, EOFError):
            # Of our own code in a worker, or of a worker that was killed as it handed its memory over.
            if not wait([process.sentinel for process in processes], _SLICE):
                raise
            raise _Killed from None
        if any(not process.is_alive() for process in processes):
            raise _Killed
        if time.monotonic() - began > timeout:
            _show_stacks(processes)
            raise LoaderError(
                f"no data for step {step} in {timeout:g} seconds: the loader workers hang (their "
                "stacks are above), perhaps on a file system that does not answer; go on with "
                "--resume, or raise stages.N.worker_timeout if a step takes so long"
            )


def _prepare_worker(number: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the trainer hears it too, and ends us
    faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)  # a notebook has no sys.stderr


def _show_stacks(processes: list[Any]) -> None:
    for process in processes:
        with suppress(OSError):
            os.kill(process.pid, signal.SIGUSR1)
        time.sleep(0.5)  # one after the other: two that write at once make one heap of letters
