"""The runs of an ablation: one after another here, or several at once in processes of their own.

Either way results come in the plan's order, and what is on disk is the same: a run that was stopped goes
on with ``resume``.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from oculi.ablate.runs import Measured, finish, folder_of, measure
from oculi.commands import quiet_libraries
from oculi.errors import AblationError, OculiError
from oculi.recipe import Recipe
from oculi.training.allocator import keep_freed_memory
from oculi.training.signals import Interrupt, Stopped, Stopper

Say = Callable[[str], None]
SPAWN = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads and CUDA


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        row, seed: whose. recipe: with that seed. runs: the folder of runs.
        extras, tasks, quick: what is measured of it, as for ``measure``.
    """

    row: str
    seed: int
    recipe: Recipe
    runs: Path
    extras: tuple[str, ...]
    tasks: Mapping[str, str]
    quick: bool

    @property
    def name(self) -> str:
        """Of the run, and of its folder unless another one is taken."""
        return f"{self.row}-seed{self.seed}"

    @property
    def folder(self) -> Path:
        """Where it is or will be, as things stand."""
        return folder_of(self.recipe, self.runs, self.name)

    def announced(self) -> str:
        """Its name, and whose run is taken for it if it is not its own."""
        taken = self.folder.name
        return self.name + (f", which is {taken}" if taken != self.name else "")

    def do(self) -> Result:
        """Train and measure what is not done yet; raises as ``finish`` and ``measure`` do."""
        folder = self.folder
        trained = finish(self.recipe, folder)
        found = measure(self.recipe, folder, self.extras, self.quick, self.tasks)
        return Result(self, found, trained)


@dataclass(frozen=True)
class Result:
    """What came of a job; ``trained`` unless the run was there."""

    job: Job
    found: Measured
    trained: bool


@dataclass(frozen=True)
class Failure:
    """A user's error in another process, as it can be sent."""

    message: str
    exit_code: int

    def raised(self) -> OculiError:
        """As an error of this process."""
        error = AblationError(self.message)
        error.exit_code = self.exit_code
        return error


def done(jobs: Sequence[Job], at_once: int, say: Say) -> Generator[Result, None, None]:
    """Do all, and yield results in order.

    Args:
        jobs: in the plan's order.
        at_once: processes; 1: here. On CUDA each has a device, in turn; on a CPU its share of the cores.
        say: told in lines which run begins.

    Raises:
        Stopped: this process was told to stop; runs that were begun have saved a checkpoint.
        AblationError: a run failed in its process, with that error's message and exit code.
        others: with one process, whatever the run raised.
    """
    if at_once == 1:
        for number, job in enumerate(jobs, 1):
            say(f"run {number} of {len(jobs)}: {job.announced()}")
            yield job.do()
        return
    with Stopper() as stopper:
        try:
            yield from _Processes(jobs, at_once, say).results()
        except Interrupt:
            message = f"stopped by {stopper.name}; go on with --resume"
            raise Stopped(message, stopper.number or signal.SIGTERM) from None


class _Processes:
    """At most so many jobs at once, each in a new process."""

    def __init__(self, jobs: Sequence[Job], at_once: int, say: Say) -> None:
        self.jobs, self.at_once, self.say = jobs, at_once, say
        self.waiting = deque(range(len(jobs)))
        self.running: dict[Connection, tuple[int, int, BaseProcess]] = {}  # job, place, process
        self.free = list(range(at_once))
        self.results_of: dict[int, Result] = {}

    def results(self) -> Iterator[Result]:
        """Of all jobs in order; whoever stops listening stops the processes."""
        try:
            for index in range(len(self.jobs)):
                while index not in self.results_of:
                    self._start()
                    for pipe in wait(list(self.running)):
                        if isinstance(pipe, Connection):
                            self._collect(pipe)
                yield self.results_of.pop(index)
        finally:
            self._stop()

    def _start(self) -> None:
        while self.free and self.waiting:
            index, place = self.waiting.popleft(), self.free.pop(0)
            self.say(f"run {index + 1} of {len(self.jobs)}: {self.jobs[index].announced()}")
            receiving, sending = SPAWN.Pipe(duplex=False)
            process = SPAWN.Process(
                target=_do, args=(self.jobs[index], place, self.at_once, sending)
            )
            process.start()
            sending.close()  # so that its end is heard when the process dies
            self.running[receiving] = (index, place, process)

    def _collect(self, pipe: Connection) -> None:
        index, place, process = self.running[pipe]
        try:
            found = pipe.recv()
        except EOFError:
            process.join()
            found = Failure(f"its process ended with exit code {process.exitcode}", 1)
        del self.running[pipe]
        process.join()
        self.free.append(place)
        if isinstance(found, Failure):
            message = f"{self.jobs[index].name}: {found.message}"
            raise Failure(message, found.exit_code).raised()
        self.results_of[index] = found

    def _stop(self) -> None:
        """Each ends its step and saves a checkpoint, as a preempted run does."""
        for _, _, process in self.running.values():
            process.terminate()
        for _, _, process in self.running.values():
            process.join()


def _do(job: Job, place: int, at_once: int, pipe: Connection) -> None:
    """The process of one job."""
    threading.Thread(target=_follow_parent, daemon=True).start()
    quiet_libraries()
    keep_freed_memory()
    own_share(place, at_once)
    try:
        found: Result | Failure = job.do()
    except OculiError as error:
        found = Failure(str(error), error.exit_code)
    pipe.send(found)


def _follow_parent() -> None:
    """Stop when the parent is gone, however it went: nobody would read the result."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


def own_share(place: int, at_once: int) -> None:
    """Give this process its CUDA device, or its share of the cores; before either is used.

    Args:
        place: from 0, of ``at_once`` processes.
        at_once: how many there are.
    """
    # Asked by NVML where it is there, so that CUDA is not initialised before the choice.
    count = torch.cuda.device_count()
    if count:
        named = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(str(n) for n in range(count))
        devices = named.split(",")
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[place % len(devices)]
    torch.set_num_threads(max(1, torch.get_num_threads() // at_once))
