"""The shared tiny checkpoints, and a stage as training builds it from their weights."""

from collections.abc import Callable

import pytest
import torch

from helpers import tiny
from oculi.model.lora import has_lora, merge_lora
from oculi.objectives import build_objectives
from oculi.recipe import Recipe
from oculi.training.build import DTYPES, add_lora, build_model, build_processor, cast
from oculi.training.module import TrainModule, canonical_parameters, freeze, learning_rates
from oculi.training.precision import compute_in

__all__ = ["tiny"]


@pytest.fixture(scope="session")
def built() -> Callable[..., TrainModule]:
    """The module of a recipe's stage ``last`` before its first step, with weights."""

    def build(recipe: Recipe, last: int = 0) -> TrainModule:
        model = build_model(recipe.model, build_processor(recipe.model), 0)
        if recipe.model.lora is not None:
            add_lora(model, recipe.model, 0)
        for number, stage in enumerate(recipe.stages):
            terms = build_objectives(stage.objectives, model)
            module = TrainModule(model, terms, stage.checkpointing)
            names = list(canonical_parameters(module))
            freeze(module, learning_rates(names, stage.trainable, stage.lr, "test"))
            compute_in(stage, model)
            module.place(torch.device("cpu"), DTYPES[stage.precision])
            if number == last:
                return module.train()
            if stage.merge_lora:
                merge_lora(model.llm)
            if not has_lora(model):
                cast(model, DTYPES[recipe.model.dtype])
        raise AssertionError(f"the recipe has no stage {last}")

    return build
