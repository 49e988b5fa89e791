"""A stage of training set up as a run does it, for tests of the loop."""

from typing import Any

import torch

from helpers import mixture
from oculi.data.loader import Steps
from oculi.data.sample import Sample
from oculi.objectives import build_objectives
from oculi.recipe import Recipe
from oculi.training.build import add_lora, build_model, build_processor
from oculi.training.loop import train_step
from oculi.training.module import TrainModule, canonical_parameters, freeze, learning_rates
from oculi.training.optim import lr_factor, make_optimizer, set_rates

CPU = torch.device("cpu")


class Trainer:
    """The first stage of a recipe, set up as a run does it, over samples in memory."""

    def __init__(self, recipe: Recipe, samples: list[Sample] | None = None) -> None:
        stage = self.stage = recipe.stages[0]
        processor = build_processor(recipe.model)
        model = build_model(recipe.model, processor, recipe.seed)
        add_lora(model, recipe.model, recipe.seed)
        torch.manual_seed(recipe.seed)
        self.module = TrainModule(model, build_objectives(stage.objectives, model)).train()
        names = list(canonical_parameters(self.module))
        rates = learning_rates(names, stage.trainable, stage.lr, "test")
        self.parameters = freeze(self.module, rates)
        self.optimizer = make_optimizer(self.parameters, rates, stage)
        self.steps = Steps(
            samples or mixture(),
            processor,
            seed=recipe.seed,
            steps=stage.steps,
            batch=stage.batch,
            pack_length=stage.pack_length or stage.length,
            micro_rows=stage.micro_rows,
        )

    def step(self, number: int) -> Any:
        set_rates(self.optimizer, lr_factor(self.stage, number))
        parameters = list(self.parameters.values())
        return train_step(
            self.module, self.steps[number], self.optimizer, parameters, self.stage, CPU
        )


def bits(module: TrainModule) -> dict[str, bytes]:
    return {name: p.detach().numpy().tobytes() for name, p in canonical_parameters(module).items()}
