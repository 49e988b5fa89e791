"""``oculi eval``: one checkpoint, one task, seeing, blind or both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oculi.eval.asked import Task
from oculi.eval.evaluate import evaluate
from oculi.eval.score import EXACT, Scoring
from oculi.model import OculiForConditionalGeneration, OculiProcessor


@dataclass(frozen=True)
class Results:
    """What was measured; either may be missing.

    Attributes:
        seeing, blind: contents of ``result.json``.
        folder: where they and every answer are.
        scoring: the task's.
    """

    seeing: dict[str, Any] | None
    blind: dict[str, Any] | None
    folder: Path
    scoring: Scoring = EXACT

    @property
    def ok(self) -> bool:
        """False when both were measured and seeing is not clearly better: the intervals overlap."""
        if self.seeing is None or self.blind is None:
            return True
        return bool(self.seeing["exact"]["low"] > self.blind["exact"]["high"])

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        both = self.seeing is not None and self.blind is not None
        only = self.seeing or self.blind or {}
        return (
            {"seeing": self.seeing, "blind": self.blind, "above_blind": self.ok} if both else only
        )

    def lines(self) -> list[str]:
        """For the terminal."""
        lines = []
        for result in (self.seeing, self.blind):
            if result is None:
                continue
            how = "blind" if result["blind"] else "seeing"
            lines.append(f"{result['task']}, {how}: {self._percent(result['exact'])}")
            for name, group in result["groups"].items():
                lines.append(
                    f"  {name:14} {self._percent(group)}, constant {group['majority']:.1%}"
                )
            lines += [f"  {line}" for line in self.scoring.lines(result)]
            for name, found in result.get("measures", {}).items():
                inside = f"{found['low']:.3g} to {found['high']:.3g}"
                lines.append(f"  {name:14} {found['mean']:.3g} (95 % interval {inside})")
            if not result["blind"]:
                lines.append(f"  a constant answer per group: {result['majority']['score']:.1%}")
        if self.seeing is not None and self.blind is not None:
            verdict = "clearly above" if self.ok else "NOT clearly above"
            lines.append(f"seeing is {verdict} blind (95 % intervals)")
        return [*lines, f"answers: {self.folder}"]

    def _percent(self, score: dict[str, Any]) -> str:
        return (
            f"{score['score']:.1%} {self.scoring.name} ({score['correct']} of {score['n']}; 95 % "
            f"interval {score['low']:.1%} to {score['high']:.1%})"
        )


def evaluate_command(
    model: OculiForConditionalGeneration,
    processor: OculiProcessor,
    checkpoint: Path,
    task: Task,
    *,
    blind: bool,
    above_blind: bool,
    limit: int | None,
    batch: int,
    max_new_tokens: int | None,
    out: Path | None,
    on_progress: Callable[[int, int], None] | None,
) -> Results:
    """Measure and write ``result.json`` and ``answers.jsonl``; see ``evaluate`` for the errors."""
    folder = out or checkpoint / "evals" / task.name.replace(":", "-")
    if out is None:
        blind_folder = folder.with_name(folder.name + "-blind")
    else:
        blind_folder = folder / "blind" if above_blind else folder

    def run(without_images: bool) -> dict[str, Any]:
        return evaluate(
            model, processor, task, blind_folder if without_images else folder,
            blind=without_images, limit=limit, batch=batch,
            max_new_tokens=max_new_tokens, on_progress=on_progress,
            labels={"checkpoint": str(checkpoint)},
        )  # fmt: skip

    if blind and not above_blind:
        return Results(None, run(True), blind_folder, task.scoring)
    return Results(run(False), run(True) if above_blind else None, folder, task.scoring)
