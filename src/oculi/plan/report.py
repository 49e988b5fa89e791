"""The plan of a whole recipe, as JSON and as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from oculi.errors import RecipeError
from oculi.plan.build import meta_stages
from oculi.plan.gpus import Gpu, find_gpu
from oculi.plan.sample import picture_grid
from oculi.plan.stage import StagePlan, plan_stage
from oculi.plan.text import duration, si, stage_lines
from oculi.recipe import Recipe
from oculi.training.parallel import part_of

DEFAULT_GPU = "h200"
TEXT_TOKENS = 128


@dataclass(frozen=True)
class Plan:
    """Numbers of a recipe on GPUs.

    Attributes:
        recipe: what was planned. stages: its stages, in order.
        gpu, gpus: what they run on, and how many of them.
    """

    recipe: Recipe
    gpu: Gpu
    gpus: int
    stages: Sequence[StagePlan]

    @property
    def days(self) -> float:
        """The least time for all stages."""
        return sum(stage.days for stage in self.stages)

    @property
    def assumptions(self) -> list[str]:
        """What the numbers hold for, a sentence each."""
        grids = dict.fromkeys(
            f"{rows} x {columns}" for rows, columns in (s.grid for s in self.stages)
        )
        said = [
            f"every sample is one picture of {' or '.join(grids)} patches and "
            f"{self.stages[0].text_tokens} text tokens, all learnt; a data set's own lengths are not "
            "looked at",
            "every token goes through every block; training leaves out what nothing reads of the last",
            "time is that of matrix products alone, at the rate of large ones; all else adds to it",
            "memory is at the end of a forward pass; temporary results, fragments and the driver's own "
            "come on top",
        ]
        if not self.gpu.measured:
            said.append(
                f"no measurement of {self.gpu.name} is known here: 80 % of its data sheet are taken"
            )
        if self.gpus > 1:
            share = self.stages[0].memory.share
            held = "everything" if share == 1 else f"1/{share} of all but teachers, as shard says"
            said.append(f"each of {self.gpus} GPUs holds {held}, and exchange takes no time")
        if (attention := self.recipe.model.attention) in ("eager", "blocked"):
            said.append(
                f"attention is a fused kernel, not the {attention} one, which keeps "
                "the scores that it computes"
            )
        if single := [s.name for s in self.recipe.stages if s.precision == "float32"]:
            said.append(
                f"{', '.join(single)}: the recipe computes in float32; the rate is that of bfloat16"
            )
        return said

    def to_json(self) -> dict[str, Any]:
        """For programs. The top level describes the first stage, ``stages`` all of them."""
        stages = [stage.to_json() for stage in self.stages]
        gpu = {
            "name": self.gpu.name, "count": self.gpus, "memory": self.gpu.memory,
            "peak_flops_per_second": self.gpu.peak, "matmul_flops_per_second": self.gpu.matmul,
            "measured": self.gpu.measured,
        }  # fmt: skip
        return {
            "recipe": self.recipe.name,
            "gpu": gpu,
            **stages[0],
            "days": self.days,
            "stages": stages,
            "assumptions": self.assumptions,
        }

    def lines(self) -> Iterator[str]:
        """For people."""
        count = "one" if self.gpus == 1 else str(self.gpus)
        yield (
            f"{self.recipe.name} on {count} {self.gpu.name}: {si(self.gpu.matmul)}FLOP/s in large "
            f"bfloat16 products (data sheet {si(self.gpu.peak)}FLOP/s), {si(self.gpu.memory)}B"
        )
        for number, stage in enumerate(self.stages):
            yield ""
            yield from stage_lines(number, stage)
        yield ""
        if len(self.stages) > 1:
            yield f"the whole run: at least {duration(self.days)}"
        yield "assumed:"
        yield from (f"- {sentence}" for sentence in self.assumptions)


def plan(
    recipe: Recipe,
    gpu: str = DEFAULT_GPU,
    gpus: int = 1,
    text_tokens: int = TEXT_TOKENS,
    image: tuple[int, int] | None = None,
) -> Plan:
    """What a recipe holds, computes and needs at least, from configurations alone.

    Args:
        recipe: what to plan.
        gpu: name of an entry of ``GPUS``. gpus: their number, each with a part of every batch.
        text_tokens: of a sample, all learnt.
        image: width and height of the sample's picture in pixels; None: the largest it takes.

    Raises:
        RecipeError: there is no such GPU, the recipe's shard does not divide their number, a sample is
            too long for a stage, or parts do not fit.
        CheckpointError: a configuration is neither shipped with oculi nor in a folder.
    """
    chosen = find_gpu(gpu)
    if gpus < 1 or text_tokens < 1 or (image is not None and min(image) < 1):
        raise RecipeError(
            "a plan needs at least one GPU, one text token, and a picture of one pixel"
        )
    share = part_of(recipe.shard, gpus)
    patch = recipe.model.vision.patch_size
    grids = [picture_grid(patch, recipe.images_of(n), image) for n in range(len(recipe.stages))]
    stages = [
        plan_stage(meta, recipe.model, number, grids[number], text_tokens, chosen, gpus, share)
        for number, meta in enumerate(meta_stages(recipe))
    ]
    return Plan(recipe, chosen, gpus, stages)
