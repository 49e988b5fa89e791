"""Mistakes in any stage, found before the first step.

A run's recipe is fixed once it trains: a misspelt glob or a missing file of the second stage would
otherwise show after the first has taken its week, when nothing can be changed any more.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from oculi.cognition.turns import cognition_of
from oculi.data.index import check_lengths
from oculi.errors import RecipeError
from oculi.eval.tasks import open_task
from oculi.model import OculiForConditionalGeneration, OculiProcessor
from oculi.objectives import build_objectives
from oculi.recipe import Recipe
from oculi.training.build import recut
from oculi.training.module import TrainModule, canonical_parameters, learning_rates
from oculi.training.optim import muon_matrices


def check_device(recipe: Recipe, device: torch.device) -> None:
    """Raises RecipeError for attention that cannot be trained there."""
    if recipe.model.attention == "flex_attention" and device.type == "cpu":
        raise RecipeError(
            "model.attention: flex_attention has no backward pass on a CPU; blocked computes the same"
        )


def check_stages(
    recipe: Recipe,
    first: int,
    model: OculiForConditionalGeneration,
    processor: OculiProcessor,
    index: Path,
    on_progress: Callable[[int, int], None],
) -> None:
    """Check globs, teachers, tasks and data of the stages from ``first`` on.

    Args:
        recipe: what will be run.
        first: number of the next stage.
        model, processor: as that stage will start from.
        index: folder for the lengths of samples.
        on_progress: told how many samples are measured.

    Raises:
        RecipeError: a glob matches nothing, a teacher does not fit, or what cognition asks is longer
            than a sample may be.
        CheckpointError: a teacher or a codebook cannot be loaded.
        DataError: a task or a data file cannot be used, or a sample is too long.
    """
    lora = True
    for number, stage in enumerate(recipe.stages):
        if number >= first:
            module = TrainModule(model, build_objectives(stage.objectives, model))
            parameters = canonical_parameters(module)
            names = [name for name in parameters if lora or ".lora_" not in name]
            rates = learning_rates(names, stage.trainable, stage.lr, f"stages.{number}.trainable")
            muon_matrices(parameters, list(rates), stage, f"stages.{number}.muon")
        lora = lora and not stage.merge_lora
    for task in recipe.evals:
        open_task(task.task)
    for number, stage in enumerate(recipe.stages[first:], first):
        cut = recut(processor, recipe.images_of(number))
        check_lengths(stage.data, cut, stage.length, index, on_progress)
        if (asking := cognition_of(stage, 0, cut)) is not None:
            asking.check(f"stages.{number}")
