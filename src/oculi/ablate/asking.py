"""Tasks asked of a finished model, beside the evaluations that its recipe makes after every stage."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from oculi.ablate.metrics import json_lines
from oculi.eval.evaluate import evaluate
from oculi.eval.tasks import open_task
from oculi.export.exported import load_exported
from oculi.model import OculiForConditionalGeneration, OculiProcessor


class Asking:
    """Asks tasks of one exported model, which is loaded for the first of them.

    Args:
        stage: the exported folder, as ``RUN/stages/1-finetune``.
        out: where each task gets a folder of answers, named as a run names its evaluations.
        limit: questions of each task; None: as many as it has.
    """

    def __init__(self, stage: Path, out: Path, limit: int | None) -> None:
        self.stage, self.out, self.limit = stage, out, limit

    @cached_property
    def _loaded(self) -> tuple[OculiForConditionalGeneration, OculiProcessor]:
        return load_exported(self.stage)

    def __call__(self, name: str) -> dict[str, Any]:
        """``score``, ``correct`` question by question, ``tokens``: of vision, mean over pictures.

        Raises:
            DataError: there is no such task, or a picture of it cannot be read.
            CheckpointError: the folder is no exported model.
        """
        model, processor = self._loaded
        task = open_task(name)
        folder = evaluation(self.out, self.stage.name.split("-", 1)[1], name)
        labels = {"stage": self.stage.name, "checkpoint": str(self.stage)}
        result = evaluate(model, processor, task, folder, limit=self.limit, labels=labels)
        sizes = [image.size() for asked in task.load(self.limit) for image in asked.images]
        cutter = processor.image_processor
        tokens = [cutter.tokens(cutter.grid(*size)) for size in sizes]
        return {
            "score": result["exact"]["score"],
            "correct": right(folder),
            "tokens": fmean(tokens) if tokens else 0.0,
        }


def evaluation(evals: Path, stage: str, task: str) -> Path:
    """The folder of a seeing evaluation, as a run names it."""
    return evals / f"{stage}-{task.replace(':', '-')}"


def right(folder: Path) -> list[bool]:
    """Whether each answer of an evaluation is right, in the order of the questions."""
    return [bool(row["correct"]) for row in json_lines(folder / "answers.jsonl")]
