"""The processes that train together: who is who, and what they agree on.

    torchrun --nproc-per-node 8 -m oculi train ...

Rank 0 alone writes the run's folder and speaks. Whatever one rank finds (a signal, a bad sample, no
data) is told to all before a step, so that none waits in a collective for one that has left.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from oculi.errors import ELSEWHERE, OculiError, RecipeError

T = TypeVar("T")
# The first rank merges, exports and evaluates while the others wait.
PATIENCE = timedelta(days=1)


class ElsewhereError(OculiError):
    """Raised where another rank has failed, and has said why."""

    code = ELSEWHERE

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Ranks:
    """One of ``count`` processes.

    Attributes:
        rank: 0 to count - 1. count: how many there are.
        device: where this one computes.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _host: Any = None  # gloo: what is agreed on lies in host memory, and no device waits for it
    _saving: Any = None  # another, for the thread that saves while the steps go on

    @property
    def alone(self) -> bool:
        """Whether there is only this one."""
        return self.count == 1

    @property
    def first(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def gather(self, value: T, saving: bool = False) -> list[T]:
        """What each rank gives, by rank; every rank must call it.

        ``saving``: from the thread that saves, which has a process group of its own.
        """
        if self.alone:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value, group=self._saving if saving else self._host)
        return found

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all ranks of a tensor on their devices, in place; every rank must call it."""
        if not self.alone:
            dist.all_reduce(value)
        return value

    def first_does(self, work: Callable[[], T], saving: bool = False) -> T:
        """Rank 0's result of ``work``, on every rank.

        Raises:
            ElsewhereError: on the others, when rank 0 raises anything.
        """
        if self.alone:
            return work()
        failed: Exception | None = None
        said: list[Any] = [None, None]
        if self.first:
            try:
                said[0] = work()
            except Exception as error:
                failed, said[1] = error, _told(error)
        dist.broadcast_object_list(said, src=0, group=self._saving if saving else self._host)
        if failed is not None:
            raise failed
        if said[1] is not None:
            raise ElsewhereError(*said[1])
        result: T = said[0]
        return result

    def all_do(self, work: Callable[[], T], saving: bool = False) -> T:
        """This rank's result of ``work``, once every rank has one.

        Raises:
            ElsewhereError: another rank has raised anything.
        """
        failed: Exception | None = None
        result: Any = None
        try:
            result = work()
        except Exception as error:
            failed = error
        said = _told(failed) if failed is not None else None
        problems = [(rank, p) for rank, p in enumerate(self.gather(said, saving)) if p is not None]
        if failed is not None:
            raise failed
        if problems:
            rank, (message, code) = problems[0]
            raise ElsewhereError(f"rank {rank}: {message}", code)
        done: T = result
        return done

    @property
    def saving_group(self) -> Any:
        """The process group of the saver's thread."""
        return self._saving


ALONE = Ranks()


def _told(error: Exception) -> tuple[str, int]:
    return str(error) or type(error).__name__, getattr(error, "exit_code", 1)


@contextmanager
def ranks_of_launcher() -> Iterator[Ranks]:
    """The ranks that ``torchrun`` (or whatever sets its variables) has started; alone without it.

    Raises:
        RecipeError: this machine has fewer GPUs than processes.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    gpus = torch.cuda.device_count()
    if count == 1:
        yield Ranks(device=torch.device("cuda" if gpus else "cpu"))
        return
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    if gpus and local >= gpus:
        raise RecipeError(
            f"process {local} of this machine has no GPU of its own, there are {gpus}: start as many "
            "processes as GPUs (torchrun --nproc-per-node)"
        )
    device = torch.device("cuda", local) if gpus else torch.device("cpu")
    began = not dist.is_initialized()  # a test, or a caller's own program, may have done it
    if began:
        if gpus:
            torch.cuda.set_device(device)
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
    host, saving = (dist.new_group(backend="gloo", timeout=PATIENCE) for _ in range(2))
    try:
        yield Ranks(rank, count, device, host, saving)
    finally:
        if began:
            dist.destroy_process_group()
