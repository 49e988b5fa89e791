"""``oculi bench train``: our step beside two peers, on the same weights and samples, in one run.

Counters decide; seconds are advice, taken in turns and the least of several. A frozen teacher's pass is
the same for all and left out.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from tempfile import TemporaryDirectory
from typing import Any

from oculi.bench import sides
from oculi.bench.counters import count
from oculi.bench.goals import Goal, table
from oculi.bench.inference import Merged, merged_beside_base
from oculi.bench.masks import MaskCost, mask_cost
from oculi.bench.report import versions
from oculi.bench.shapes import ANCHOR, Shapes, make_batch, teacher_states
from oculi.bench.sides import Side

COUNTERS = ("flops", "ops", "host_syncs", "saved_bytes", "logits_rows")
CHECKPOINTED, PLAIN = "official_style", "official_style_no_checkpointing"
# How each line of the table is called there.
NAMES = {
    "ours": "oculi",
    "ours_selective": "oculi, checkpointing=selective",
    "ours_full": "oculi, checkpointing=full",
    CHECKPOINTED: "(a) official style, checkpointing as configured",
    PLAIN: "(a) official style, no checkpointing",
    "peft_trainer": "(b) PEFT + Trainer",
}


@dataclass(frozen=True)
class TrainReport:
    """What was measured.

    Attributes:
        shapes: of the model and its samples.
        measured: by side, its counters, the loss of its first step and ``seconds`` of a step.
        mask, merged: of our model.
    """

    shapes: Shapes
    measured: dict[str, dict[str, float]]
    mask: MaskCost
    merged: Merged

    def ratio(self, side: str, other: str) -> dict[str, float]:
        """Each counter and the seconds of ``side`` as a multiple of those of ``other``."""
        one, two = self.measured[side], self.measured[other]
        return {key: one[key] / two[key] for key in (*COUNTERS, "seconds")}

    def goals(self) -> list[Goal]:
        """The promises of this benchmark; their numbers hold at the default shapes."""
        configured, plain = self.ratio("ours", CHECKPOINTED), self.ratio("ours", PLAIN)
        selective = self.ratio("ours_selective", CHECKPOINTED)
        return [
            Goal("FLOPs / (a) as configured", configured["flops"], 0.61),
            Goal("FLOPs / (a) without checkpointing", plain["flops"], 0.80),
            Goal("operations / (a) as configured", configured["ops"], 0.5),
            Goal("operations / (a) without checkpointing", plain["ops"], 0.61),
            Goal("host synchronisations a step", self.measured["ours"]["host_syncs"], 2),
            Goal("saved bytes / (a) without checkpointing", plain["saved_bytes"], 0.8),
            Goal("selective: saved bytes / (a) as configured", selective["saved_bytes"], 1.0),
            Goal("selective: FLOPs / (a) as configured", selective["flops"], 0.7),
            Goal("FLOPs / (b)", self.ratio("ours", "peft_trainer")["flops"], 1.0),
            Goal(
                "label rows / logits rows",
                self.shapes.samples * self.shapes.answer / self.measured["ours"]["logits_rows"],
                1.0,
                at_least=True,
            ),
            *self.mask.goals(),
            *self.merged.goals(),
        ]

    @property
    def ok(self) -> bool:
        """Whether every promise that a counter decides is kept."""
        return all(goal.met or goal.advice for goal in self.goals())

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "shapes": asdict(self.shapes),
            "versions": versions(),
            **self.measured,
            "ratio_to_official_style": self.ratio("ours", CHECKPOINTED),
            "ratio_to_official_style_no_checkpointing": self.ratio("ours", PLAIN),
            "ratio_to_peft_trainer": self.ratio("ours", "peft_trainer"),
            "mask": self.mask.to_dict(),
            "merged": self.merged.to_dict(),
            "goals": [goal.to_dict() for goal in self.goals()],
            "ok": self.ok,
        }

    def lines(self) -> list[str]:
        """For the terminal and for Markdown."""
        heads = ["step", "GFLOP", "operations", "syncs", "saved MB", "logits rows", "seconds"]
        rows = [
            [
                NAMES[name], f"{one['flops'] / 1e9:.2f}", f"{one['ops']:.0f}",
                f"{one['host_syncs']:.0f}", f"{one['saved_bytes'] / 1e6:.1f}",
                f"{one['logits_rows']:.0f}", f"{one['seconds']:.2f}",
            ]
            for name, one in self.measured.items()
        ]  # fmt: skip
        return [*table(heads, rows), "", *(f"- {goal.line()}" for goal in self.goals())]


def bench_train(
    shapes: Shapes = ANCHOR,
    repeats: int = 9,
    progress: Callable[[int, int], None] | None = None,
) -> TrainReport:
    """Measure all sides on the CPU in float32.

    Args:
        shapes: of the model and its samples.
        repeats: steps of each side that are timed beside the first, one side after the other.
        progress: told how much is done.
    """
    say = progress or (lambda done, total: None)
    with TemporaryDirectory() as folder:
        built = build_sides(shapes, folder)
        total, measured = len(built) + repeats, {}
        for done, (name, side) in enumerate(built.items()):
            say(done, total)
            measured[name] = _counted(side)
            gc.collect()
        for done in range(repeats):
            say(len(built) + done, total)
            for name, side in built.items():
                began = time.perf_counter()
                side.step()
                taken = time.perf_counter() - began
                measured[name]["seconds"] = min(taken, measured[name]["seconds"])
    report = TrainReport(shapes, measured, mask_cost(), merged_beside_base(shapes))
    say(total, total)
    return report


def _counted(side: Side) -> dict[str, float]:
    """Loss and seconds of its first step, and the counters of its second.

    All start from the same values, so the losses agree; the optimizer makes its state in the first.
    """
    began = time.perf_counter()
    loss = side.step()
    taken = time.perf_counter() - began
    return {"loss": loss, **count(side.step, side.head).to_dict(), "seconds": taken}


def build_sides(shapes: Shapes, folder: str) -> dict[str, Side]:
    """All sides, starting from the same values, by their names in the report."""
    batch = make_batch(shapes)
    teacher = sides.GivenTeacher(teacher_states(shapes, batch))
    ours = sides.ours(shapes, batch, teacher)
    return {
        "ours": ours,
        "ours_selective": sides.ours(shapes, batch, teacher, checkpointing="selective"),
        "ours_full": sides.ours(shapes, batch, teacher, checkpointing="full"),
        CHECKPOINTED: sides.official(shapes, batch, teacher, ours),
        PLAIN: sides.official(shapes, batch, teacher, ours, checkpointing=False),
        "peft_trainer": sides.peft_trainer(shapes, batch, teacher, folder, ours),
    }
