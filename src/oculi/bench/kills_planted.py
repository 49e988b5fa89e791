"""Defects that the kill harness must catch: each a mistake that a trainer can make, and has made.

They are patches of the functions that training calls. The harness compares a defective trainer with
its own whole run, so that only what a kill brings to light counts.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

from oculi import durable
from oculi.bench.kills import Job, Kills, Mode, Patch
from oculi.bench.kills_world import KEPT
from oculi.data import feeding
from oculi.export.hf import CARD
from oculi.training import checkpoint as ckpt
from oculi.training import loop
from oculi.training import run as run_module
from oculi.training import saver as saver_module
from oculi.training.log import RunLog
from oculi.training.monitor import Monitor
from oculi.training.optim import Optimizers, lr_factor
from oculi.training.saver import Saver


@dataclass(frozen=True)
class Defect:
    """A mistake, and where a kill should show it.

    Attributes:
        name: of the mistake.
        patched: makes the context in which the trainer has it.
        place: how the labels of places to kill at begin. mode: how.
        delay: see ``Disk``.
    """

    name: str
    patched: Patch
    place: str
    mode: Mode = "clean"
    delay: float = 0.0

    def jobs(self, kills: Kills, most: int = 5) -> list[Job]:
        """Kills at some of the places, from the last one back, where most has been saved."""
        found = [job for job in kills.jobs(self.mode) if job.label.startswith(self.place)]
        if self.place.isalpha():  # a place without a path
            found = [job for job in found if job.label.split(":")[0] == self.place]
        return found[:: -max(1, len(found) // most)][:most]


def _replaced(target: Any, name: str, value: Any) -> Patch:
    def make() -> AbstractContextManager[Any]:
        return patch.object(target, name, value)

    return make


def _nothing(*arguments: Any, **named: Any) -> None:
    return None


def _rename_alone(source: Path, target: Path) -> None:
    durable.reach("rename", target, source)
    source.rename(target)
    durable.reach("renamed", target, source)


def _from_the_start(steps: Any, start: int, *arguments: Any) -> Iterator[Any]:
    with_all = _make_loader(steps, 0, *arguments)
    yield from islice(with_all, len(steps) - start)


_make_loader = feeding.make_loader


@contextmanager
def _schedule_from_the_start() -> Iterator[None]:
    real, first = lr_factor, dict[str, int]()

    def factor(stage: Any, step: int) -> float:
        return real(stage, step - first.setdefault(stage.name, step))

    with patch.object(loop, "lr_factor", factor):
        yield


@contextmanager
def _in_place() -> Iterator[None]:
    """Written under its own name from the first byte on."""

    def move(source: Path, target: Path) -> None:
        if source != target:
            source.rename(target)

    def discard(folder: Path) -> None:
        # save() calls it for what it has just written; prune() for others.
        if folder.name != written[-1]:
            shutil.rmtree(folder)

    def save(folder: Path, state: Any, *arguments: Any) -> Any:
        written.append(f"step-{state.total_steps:07d}")
        return real(folder, state, *arguments)

    written, real = [""], ckpt.save
    with (
        patch.object(durable, "PARTIAL", ""),
        patch.object(durable, "move", move),
        patch.object(durable, "discard", discard),
        patch.object(ckpt, "save", save),
    ):
        yield


def _prune_first(self: Saver, *arguments: Any) -> None:
    ckpt.prune(self.folder, KEPT - 1, None)
    _write(self, *arguments)


_write = Saver._write


def _without_heads(self: Saver, state: Any, tensors: Any, *arguments: Any) -> None:
    _save(self, state, {k: v for k, v in tensors.items() if "objectives." not in k}, *arguments)


_save = Saver.save


def _forgetful(self: Monitor, state: Any = None) -> None:
    _make_monitor(self)


_make_monitor = Monitor.__init__


def _export_in_place(
    model: Any, processor: Any, out: Path, name: str, summary: str, *arguments: Any
) -> Path:
    out.mkdir(parents=True)
    model.save_pretrained(out)
    durable.reach("rename", out)
    processor.save_pretrained(out)
    (out / "README.md").write_text(CARD.format(name=name, version="", summary=summary))
    durable.sync_tree(out)
    return out


def _last_as_it_is(folder: Path, on_broken: Any) -> Path | None:
    return ckpt.newest(folder)


def _folder_alone(folder: Path) -> None:
    durable.sync(folder)


DEFECTS = (
    Defect("torch's dice are not set again", _replaced(loop, "seed_step", _nothing), "copied"),
    Defect("the manifest is not compared", _replaced(ckpt, "newest_valid", _last_as_it_is), "step",
           "rot"),
    Defect("files are not fsynced", _replaced(durable, "sync_tree", _folder_alone), "committed",
           "torn"),
    Defect("the folder is not fsynced after the rename", _replaced(durable, "move", _rename_alone),
           "committed", "torn"),
    Defect("the log is not fsynced with the checkpoint", _replaced(RunLog, "sync", _nothing),
           "committed", "torn"),
    Defect("checkpoints are written in place", _in_place, "write:run/checkpoints"),
    Defect("old checkpoints go before the new one is there",
           _replaced(Saver, "_write", _prune_first), "write:run/checkpoints"),
    Defect("the optimizer starts anew", _replaced(Optimizers, "load_state_dict", _nothing),
           "copied"),
    Defect("the data start anew", _replaced(loop, "make_loader", _from_the_start), "copied"),
    Defect("the schedule starts anew", _schedule_from_the_start, "copied"),
    Defect("the log keeps what is done again", _replaced(RunLog, "rewind", _nothing), "logged"),
    Defect("the save sees later weights",
           _replaced(saver_module, "copied", lambda value: value), "copied", delay=0.1),
    Defect("heads of objectives are not saved", _replaced(Saver, "save", _without_heads),
           "copied"),
    Defect("the spike window is not saved", _replaced(Monitor, "__init__", _forgetful), "copied"),
    Defect("the merged model is written in place",
           _replaced(run_module, "export", _export_in_place), "rename:run/stages"),
    Defect("the second stage resumes on the base before the merge",
           _replaced(ckpt, "stage_folder", _nothing), "step"),
)  # fmt: skip
