"""What a run says of its model: scores after a stage, and the report while it is trained."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from oculi.errors import DataError
from oculi.eval.asked import Task
from oculi.eval.evaluate import evaluate
from oculi.eval.report import write_report
from oculi.eval.tasks import open_task
from oculi.model import OculiForConditionalGeneration, OculiProcessor
from oculi.recipe import Recipe, Stage
from oculi.training.log import RunLog
from oculi.training.precision import as_trained

SHARE = 0.01  # of the time, at most, goes into reports while a stage is trained


class Reports:
    """Keeps ``report.html`` of a run up to date, and training hardly waiting.

    Args:
        run: its folder.
        warn: told that the report cannot be written, which must not end a run.
        clock: seconds; another one for tests.
    """

    def __init__(
        self, run: Path, warn: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._run, self._warn, self._clock = run, warn, clock
        self._written, self._took = clock(), 0.0

    def renew(self) -> None:
        """Rewrite the report, unless that would keep the training waiting too often."""
        began = self._clock()
        if began - self._written < self._took / SHARE:
            return
        try:
            write_report(self._run)
        except OSError as error:
            self._warn(f"{self._run / 'report.html'} cannot be written: {error.strerror}")
        self._written = self._clock()
        self._took = self._written - began

    def close(self) -> None:
        """Rewrite it a last time; what fails here has been said before."""
        with suppress(OSError):
            write_report(self._run)


def score_stage(
    model: OculiForConditionalGeneration, processor: OculiProcessor, recipe: Recipe, stage: Stage,
    out: Path, log: RunLog,
) -> None:  # fmt: skip
    """Ask the model what the recipe's ``evals`` have for this stage, into ``out/evals/``."""
    last = stage.name == recipe.stages[-1].name
    tasks = [open_task(spec.task) for spec in recipe.evals if stage.answers]
    for spec, task, title in zip(recipe.evals, tasks, _titles(tasks), strict=False):
        if spec.only_at_end and not last:
            continue
        for blind in (False, True) if spec.blind else (False,):
            name = f"{stage.name}-{title}{'-blind' if blind else ''}"
            try:
                with as_trained(model):
                    result = evaluate(
                        model, processor, task, out / "evals" / name, blind=blind, limit=spec.limit,
                        labels={"stage": stage.name, "checkpoint": str(out)},
                    )  # fmt: skip
            except DataError as error:  # a picture of a test must not end the training
                log.warn(f"{task.name} is not scored after {stage.name}: {error}")
                log.event("not scored", stage.name, stage.steps, what=str(error))
            else:
                log.say(_said(task, stage, blind, result["exact"]))


def _titles(tasks: Sequence[Task]) -> list[str]:
    """Names of the folders that answers go into: files of one name in several folders are numbered."""
    titles: list[str] = []
    for task in tasks:
        title = task.name.replace(":", "-")
        alike = sum(1 for before in tasks[: len(titles)] if before.name == task.name)
        titles.append(f"{title}-{alike + 1}" if alike else title)
    return titles


def _said(task: Task, stage: Stage, blind: bool, score: dict[str, float]) -> str:
    return (
        f"{task.name} after {stage.name}{' (blind)' if blind else ''}: {score['score']:.1%} exact, "
        f"95 % interval {score['low']:.1%} to {score['high']:.1%}"
    )
