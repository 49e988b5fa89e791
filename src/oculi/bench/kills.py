"""Kill training at every numbered place, resume it, and compare all it has computed with a whole run.

A place is a call of ``durable.reach`` on the path of ``oculi train``: around every step, copy, write,
fsync, rename, removal and merge. The processes are forked from one that has everything imported; each
is killed by SIGKILL, and resumed by the code of ``oculi train --resume``. Planted defects, patched in
here and nowhere else, show that the comparison would see what it is there to see.
"""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

from oculi import durable
from oculi.bench.kills_disk import SIDE, Disk, flip
from oculi.bench.kills_world import KEPT, outcome
from oculi.recipe import Recipe
from oculi.training import checkpoint as ckpt
from oculi.training import log as run_log
from oculi.training import results
from oculi.training import run as run_module

Mode = Literal["clean", "torn", "rot"]
Patch = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Job:
    """One kill: where, how, and what is done to what it leaves.

    Attributes:
        number: of the place. label, occurrence: see ``Disk``.
        mode: ``clean`` as a killed process leaves it, ``torn`` as a power cut does, ``rot`` with one
            bit of the newest checkpoint's weights flipped.
        again: the resumed run is killed as well, at its place of this number.
    """

    number: int
    label: str
    occurrence: int
    mode: Mode
    again: int | None = None


@dataclass
class Result:
    """Kills that came to pass, and what was wrong afterwards, if anything."""

    kills: int = 0
    problem: str = ""


class Kills:
    """A world to train in, and the whole run that all others are compared with.

    Args:
        folder: to work in.
        patched: makes the context of a planted defect.
        delay: see ``Disk``.
    """

    def __init__(
        self, folder: Path, recipe: Recipe, patched: Patch = nullcontext, delay: float = 0.0
    ) -> None:
        self.folder, self.recipe, self.patched, self.delay = folder, recipe, patched, delay
        folder.mkdir(parents=True, exist_ok=True)
        whole = folder / "whole" / "run"
        ended = self._train(whole, Disk(whole, delay=delay), resume=False, tell=folder / "labels")
        if ended != 0:
            raise RuntimeError(f"the run that is not killed fails: {_tail(whole)}")
        self.wanted = outcome(whole)
        labels = json.loads((folder / "labels").read_text())
        self.places = [(name, labels[:i].count(name)) for i, name in enumerate(labels)]

    def jobs(self, mode: Mode) -> list[Job]:
        """A kill at every place that makes a difference."""
        jobs = [Job(n, label, times, mode) for n, (label, times) in enumerate(self.places)]
        # The fsync of a file changes nothing that a plain kill leaves.
        return jobs if mode == "torn" else [job for job in jobs if not _of_a_file(job.label)]

    def run(self, job: Job, lane: int) -> Result:
        """Kill, look at what is left, resume, compare."""
        run = self.folder / f"lane-{lane}" / "run"
        shutil.rmtree(run.parent, ignore_errors=True)
        run.parent.mkdir(parents=True)
        result = Result()
        torn = job.mode == "torn"
        disk = Disk(run, job.label, job.occurrence, torn=torn, seed=job.number, delay=self.delay)
        if self._train(run, disk, resume=False) != -signal.SIGKILL:
            # A defect may have taken the place away; without one, every place is reached again.
            result.problem = "" if self.patched is not nullcontext else "the place was not reached"
            return result
        result.kills = 1
        result.problem = self._left(run)
        rotten = ""
        if job.mode == "rot" and len(ckpt.checkpoints(run / "checkpoints")) > 1:
            newest = ckpt.checkpoints(run / "checkpoints")[-1]
            # Of the weights: a bit of the manifest or of an archive's padding would mislead nobody.
            flip(newest / ckpt.WHOLE[0], random.Random(job.number))
            rotten = newest.name
            _untell(run, rotten)
        if job.again is not None:
            disk = Disk(run, nth=job.again, torn=torn, seed=job.number)
            if self._train(run, disk, resume=True) == -signal.SIGKILL:
                result.kills += 1
                result.problem = result.problem or self._left(run, rotten)
        result.problem = result.problem or self._resumed(run)
        return result

    def _resumed(self, run: Path) -> str:
        """Go on to the end; the first thing in which the run then differs from the whole one."""
        if self._train(run, None, resume=True) != 0:
            return f"it does not resume: {_tail(run)}"
        try:
            return difference(self.wanted, outcome(run))
        except (OSError, ValueError, KeyError, IndexError) as error:
            return f"what it leaves cannot be read: {error!r}"

    def _left(self, run: Path, rotten: str = "") -> str:
        """What a kill must not leave behind: what has its name is whole, what was safe is there.

        ``rotten`` was made so; until it is set aside, or written again, it may be either.
        """
        found = ckpt.checkpoints(run / "checkpoints")
        for path in found:
            problem = ckpt.problem(path)
            if problem and path.name != rotten:
                return problem
        for path in run.glob("stages/*"):
            if path.suffix != durable.PARTIAL and not (path / "README.md").exists():
                return f"{path.name} has its name, but is not whole"
        told = run.parent / SIDE
        safe = told.read_text().split() if told.exists() else []
        if safe and safe[-1] not in [path.name for path in found]:
            return f"{safe[-1]} was said to be on the disk, and is not"
        # What was pruned for the sake of the rotten one does not come back.
        if len(found) < min(len(set(safe)), KEPT - bool(rotten)):
            return f"{len(set(safe))} checkpoints were written, and {len(found)} are left"
        return ""

    def _train(self, run: Path, disk: Disk | None, resume: bool, tell: Path | None = None) -> int:
        """``oculi train`` in a process of its own; its exit code, or minus the signal."""
        run.parent.mkdir(parents=True, exist_ok=True)
        resume = resume and (run / "recipe.yaml").exists()

        def child() -> None:
            with self.patched(), patch.object(durable, "observer", disk):
                run_module.train(self.recipe, run, resume=resume, quiet=True)
            if tell is not None and disk is not None:
                tell.write_text(json.dumps(disk.labels))

        return forked(child, run.parent / "output.txt")


def _untell(run: Path, name: str) -> None:
    """Forget that a checkpoint was safe: the disk has lost it."""
    told = run.parent / SIDE
    if told.exists():
        kept = [line for line in told.read_text().splitlines(keepends=True) if line.strip() != name]
        told.write_text("".join(kept))


def _of_a_file(label: str) -> bool:
    return label.startswith("sync:") and "." in label.rpartition("/")[2].replace(
        durable.PARTIAL, ""
    )


def forked(task: Callable[[], None], output: Path) -> int:
    """Run a task in a forked process, with what it prints in a file; its exit code, or -signal."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = 1
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        gc.disable()  # it would touch, and so copy, every page that is shared with the parent
        task()
        code = 0
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)  # the parent's threads, handlers and buffers are not ours


def difference(wanted: Any, found: Any, where: str = "") -> str:
    """The first place in which two results differ, or an empty string."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        keys = sorted(wanted.keys() | found.keys())
        parts = [(str(key), wanted.get(key), found.get(key)) for key in keys]
    elif isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        parts = [(str(i), *pair) for i, pair in enumerate(zip(wanted, found, strict=True))]
    else:
        return "" if wanted == found else f"{where[1:]} is {found!r:.80}, not {wanted!r:.80}"
    return next(filter(None, (difference(a, b, f"{where}.{key}") for key, a, b in parts)), "")


def _tail(run: Path) -> str:
    lines = (run.parent / "output.txt").read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no output"


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """One thread, so that forking is safe, and no TensorBoard or report, which nothing resumes from."""
    import torch

    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with (
        patch.object(run_log, "_tensorboard", lambda run: None),
        patch.object(results, "write_report", lambda run: run),
    ):
        yield
