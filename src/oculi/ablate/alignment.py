"""How closely each block follows the teacher's, on pictures that were not trained on.

VoRA's figure 6 shows the distillation loss averaged over blocks; this is the same cosine block by
block, through the heads that training has made.
"""

from __future__ import annotations

from pathlib import Path

import torch

from oculi.data.loader import Steps
from oculi.data.source import PlayroomRows
from oculi.export.load import load_unmerged
from oculi.objectives import Distill
from oculi.recipe import DistillSpec, PlayroomSource, Recipe
from oculi.training import checkpoint as ckpt

BATCH = 32
_HEADS = "objectives.distill."


def distilled(recipe: Recipe) -> DistillSpec | None:
    """The distillation of a recipe's first stage, or None."""
    found = [spec for spec in recipe.stages[0].objectives if isinstance(spec, DistillSpec)]
    return found[0] if found and found[0].mode != "none" else None


@torch.inference_mode()
def block_cosines(run: Path, pictures: int) -> dict[int, float]:
    """Mean cosine over vision tokens by LLM block, for the blocks that have a head.

    Args:
        run: a run of one stage, finished, whose last checkpoint is still there.
        pictures: of Playroom's test split, at the level that the stage was trained on.

    Raises:
        CheckpointError: the checkpoint is missing or damaged.
    """
    unmerged = load_unmerged(run)
    spec, stage = distilled(unmerged.recipe), unmerged.recipe.stages[0]
    if spec is None:
        return {}
    model = unmerged.model.eval()
    distill = Distill.from_spec(spec, model)
    step = ckpt.newest(run / "checkpoints")
    assert step is not None  # load_unmerged has just read it
    _, tensors = ckpt.load(step, verified=True)
    heads = {k.removeprefix(_HEADS): v for k, v in tensors.items() if k.startswith(_HEADS)}
    ckpt.restore(dict(distill.named_parameters()), heads, step)
    steps = Steps(
        PlayroomRows(_test_pictures(unmerged.recipe, pictures)), unmerged.processor, seed=0,
        steps=-(-pictures // BATCH), batch=min(BATCH, pictures),
        pack_length=stage.pack_length or stage.length, micro_rows=stage.micro_rows,
    )  # fmt: skip
    sums: dict[int, float] = {}
    tokens = 0
    for number in range(len(steps)):
        for batch in steps[number]:
            taps = distill.taps(distill.prepare(batch))
            found = model(**batch.model_inputs(), taps=taps).taps
            for block, distance in (found or {}).items():
                sums[block] = sums.get(block, 0.0) + float(distance)
            tokens += distill.count(batch)
    return {block: 1 - total / tokens for block, total in sorted(sums.items())}


def _test_pictures(recipe: Recipe, pictures: int) -> PlayroomSource:
    source = recipe.stages[0].data[0]
    level = source.level if isinstance(source, PlayroomSource) else 1
    return PlayroomSource(level=level, samples=pictures, split="test")
