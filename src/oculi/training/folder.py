"""A run's folder: whose it is, what it began with, and who works in it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from oculi import durable
from oculi.errors import CheckpointError, OculiError, RecipeError
from oculi.recipe import Recipe
from oculi.recipe import load as load_recipe
from oculi.training.log import BAD_SAMPLES, EVENTS, METRICS

# What a run that failed before its first step has left; it may be started again in place.
LEFT_BY_FAILURE = (
    "recipe.yaml", METRICS, EVENTS, BAD_SAMPLES, "report.html", "index", "tensorboard",
    "trainable-*.txt",
)  # fmt: skip
# They may be another on a resume: what is learnt does not depend on them.
FREE = ("shard", "keep_last", "keep_every")
FREE_IN_STAGES = (
    "workers", "worker_timeout", "log_every", "checkpoint_every", "non_finite", "max_skips",
)  # fmt: skip


def check_folder(out: Path, resume: bool) -> None:
    """Refuse a folder that is not for this run, before anything is written into it.

    Raises:
        RecipeError: it is a file, or holds something else.
        CheckpointError: there is nothing to resume.
        OSError: it cannot be made.
    """
    if out.exists() and not out.is_dir():
        raise RecipeError(f"{out} is a file: choose another --out")
    if resume:
        if not (out / "recipe.yaml").exists():
            raise CheckpointError(f"{out} is no run to resume: it has no recipe.yaml")
        return
    found = {path.name for path in out.iterdir()} - {".lock"} if out.exists() else set()
    found = {name for name in found if not name.endswith(durable.PARTIAL)}
    metrics = out / METRICS
    stepped = metrics.exists() and metrics.stat().st_size > 0
    ours = {name for name in found for left in LEFT_BY_FAILURE if fnmatchcase(name, left)}
    if found and ("recipe.yaml" not in found or stepped or found != ours):
        raise RecipeError(f"{out} exists and is not empty: add --resume, or choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    durable.sync(out.parent)


def keep_recipe(recipe: Recipe, out: Path, resume: bool) -> None:
    """Write the recipe; on a resume only if it differs in nothing that changes what is learnt.

    Raises:
        RecipeError: it does.
        OSError: it cannot be written.
    """
    saved = out / "recipe.yaml"
    if resume:
        old, new = load_recipe(saved), recipe
        if difference := first_difference(_bound(old), _bound(new)):
            raise RecipeError(
                f"{out} began with another recipe: {difference}. Resume with the old value"
            )
        if old == new:
            return
    durable.write_text(saved, recipe.to_yaml())


def _bound(recipe: Recipe) -> dict[str, Any]:
    """A recipe without what may be another on a resume."""
    data = recipe.model_dump(mode="json", exclude=set(FREE))
    for stage in data["stages"]:
        for key in FREE_IN_STAGES:
            del stage[key]
        # The last glob that matches gives the rate, and dictionaries are equal in any order.
        stage["trainable, in its order"] = ", ".join(stage["trainable"])
    return data


def first_difference(old: object, new: object, where: str = "") -> str:
    """``key: was A, is B`` for the first place in which two recipes differ, or an empty string."""
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = [(k, old.get(k), new.get(k)) for k in {**old, **new}]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = [(str(i), a, b) for i, (a, b) in enumerate(zip(old, new, strict=True))]
    else:
        return "" if old == new else f"{where}: was {old}, is {new}"
    for key, a, b in pairs:
        if found := first_difference(a, b, f"{where}.{key}" if where else str(key)):
            return found
    return ""


@contextmanager
def lock(out: Path) -> Iterator[None]:
    """Two trainers must not write one run; raises RecipeError while another holds it."""
    with (out / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RecipeError(f"{out} is being trained by another process") from None
        yield


@contextmanager
def writable(out: Path) -> Iterator[None]:
    """Whatever cannot be written in a run's folder is one line; raises DiskError instead."""
    try:
        yield
    except OculiError:
        raise
    except Exception as error:
        library = type(error).__name__ == "SafetensorError"
        if library or (isinstance(error, OSError) and _concerns(out, error.filename)):
            hint = ", and go on with --resume" if os.path.isdir(out / "checkpoints") else ""
            durable.raise_disk_error(error, f"the run folder {out}", hint)
        raise


def _concerns(out: Path, name: object) -> bool:
    """Whether it is in the folder or one above it; other files are only read, by other parts."""
    if not isinstance(name, str):
        return True
    path, folder = Path(os.path.abspath(name)), Path(os.path.abspath(out))
    return path.is_relative_to(folder) or folder.is_relative_to(path)
