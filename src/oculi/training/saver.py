"""Checkpoints written while training goes on.

The step waits for a copy of what is saved, and for the save before if that is still being written;
hashing, writing and fsync happen in a thread. The copy is what makes a checkpoint one moment: without
it the file would hold weights of later steps.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor

from oculi import durable
from oculi.errors import DiskError
from oculi.training import checkpoint as ckpt
from oculi.training.parallel import host_copy
from oculi.training.ranks import ALONE, Ranks

SPARE = 16 * 2**20  # bytes that must stay free beside a checkpoint


class Saver:
    """Writes the checkpoints of a run, one at a time.

    Args:
        folder: the run's ``checkpoints``.
        keep_last, keep_every: see ``checkpoint.prune``.
        ranks: each of them has a saver, and all save together.

    Attributes:
        waited: seconds that training has waited for saves. Memory for one copy of the trained
            parameters and of the optimizer's state is taken while a save is under way.
    """

    def __init__(
        self, folder: Path, keep_last: int | None, keep_every: int | None, ranks: Ranks = ALONE
    ) -> None:
        self.folder, self.keep_last, self.keep_every = folder, keep_last, keep_every
        self.ranks = ranks
        self.waited = 0.0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="oculi-saver")
        self._pending: Future[None] | None = None

    def save(
        self,
        state: ckpt.State,
        tensors: Mapping[str, Tensor],
        optimizer: Mapping[str, Any],
        before_commit: Callable[[], None] | None = None,
    ) -> None:
        """Copy what is given and begin to write it; arguments are those of ``checkpoint.save``.

        Raises:
            DiskError: the save before this one has failed, or there is no room for this one.
        """
        self.wait()
        began = time.monotonic()
        copy = copied(dict(tensors)), copied(dict(optimizer))
        durable.reach("copied", self.folder)
        self._pending = self._thread.submit(self._write, state, *copy, before_commit)
        self.waited += time.monotonic() - began

    def wait(self) -> None:
        """Return when the last checkpoint is on the disk; raises DiskError if it cannot be written."""
        if self._pending is None:
            return
        began = time.monotonic()
        pending, self._pending = self._pending, None
        try:
            pending.result()
        finally:
            self.waited += time.monotonic() - began

    def check(self) -> None:
        """Raise what a save has failed with in the meantime; waits for nothing."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def close(self) -> None:
        """Let a save that is under way come to its end; what fails now is not raised."""
        self._thread.shutdown(wait=True)

    def _write(
        self,
        state: ckpt.State,
        tensors: Mapping[str, Tensor],
        optimizer: Mapping[str, Any],
        before_commit: Callable[[], None] | None,
    ) -> None:
        last = ckpt.newest(self.folder)
        intact = f"; {last.name} is intact" if last else ""
        hint = f"{intact}, and --resume goes on from there" if last else ""
        what = f"checkpoint step-{state.total_steps:07d} in {self.folder}"
        partial = self.folder / f"step-{state.total_steps:07d}{durable.PARTIAL}"
        try:
            with durable.disk_errors(what, hint):
                self.folder.mkdir(parents=True, exist_ok=True)
                size = size_of(tensors) + size_of(optimizer)
                self.ranks.all_do(lambda: self._check_room(what, intact, size), saving=True)
                ckpt.save(self.folder, state, tensors, optimizer, before_commit, self.ranks)
        except Exception:
            shutil.rmtree(partial, ignore_errors=True)  # it takes room, and is of no use
            raise
        if not self.ranks.first:
            return
        # Not before: until here the old ones are all there is.
        with durable.disk_errors(f"an old checkpoint in {self.folder}"):
            ckpt.prune(self.folder, self.keep_last, self.keep_every)

    def _check_room(self, what: str, intact: str, size: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if free < size + SPARE:
            raise DiskError(
                f"{what} needs {size / 2**20:.0f} MiB, and {free / 2**20:.0f} are free: make room and "
                f"go on with --resume{intact}"
            )


def copied(value: Any) -> Any:
    """The same dictionaries and lists with tensors of their own, on the CPU."""
    if isinstance(value, Tensor):
        return host_copy(value)
    if isinstance(value, dict):
        return {key: copied(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copied(part) for part in value)
    return value


def size_of(value: Any) -> int:
    """Bytes of all tensors in nested dictionaries and lists; of what is split, of this rank's part."""
    if isinstance(value, DTensor):
        value = value.to_local()
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(size_of(part) for part in value.values())
    if isinstance(value, list | tuple):
        return sum(size_of(part) for part in value)
    return 0
