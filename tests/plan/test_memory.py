"""Weights, gradients and optimizer states are those of a trained step."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from helpers import PATCH, Tiny, recipe_data
from oculi.plan import plan
from oculi.plan.memory import Memory, PartMemory, gathered_bytes
from oculi.plan.sample import sample_batch
from oculi.recipe import validate
from oculi.training.loop import train_step
from oculi.training.module import canonical_parameters
from oculi.training.optim import make_optimizer
from oculi.training.parallel import split
from oculi.training.ranks import ranks_of_launcher
from ranks import on_ranks

Built = Callable[..., Any]


def test_a_step_holds_what_is_planned(tiny: Tiny, built: Built) -> None:
    changes = {
        "stages.0.muon": ["*.lora_?"],
        "stages.0.precision": "bfloat16",
        "model.dtype": "bfloat16",
    }
    recipe = validate(recipe_data(tiny, **changes), "test")
    stage, planned = recipe.stages[0], plan(recipe, text_tokens=7).stages[0]
    module = built(recipe, 0)
    parameters = {n: p for n, p in canonical_parameters(module).items() if p.requires_grad}
    optimizer = make_optimizer(parameters, dict.fromkeys(parameters, 1e-3), stage)
    batch = sample_batch(planned.grid, 7, PATCH, "cpu")
    train_step(module, [batch], optimizer, list(parameters.values()), stage, torch.device("cpu"))
    sizes = [
        sum(
            value.nbytes
            for state in part.state.values()
            for value in state.values()
            if isinstance(value, torch.Tensor) and value.ndim  # a step's number is not counted
        )
        for part in optimizer.parts
    ]
    assert [planned.memory.adamw, planned.memory.muon] == sizes and min(sizes) > 0
    parts = planned.memory.parts
    assert sum(part.optimizer for part in parts.values()) == sum(sizes)
    assert sum(part.gradients for part in parts.values()) == sum(
        p.nbytes for p in parameters.values()
    )
    frozen = module.objectives["distill"].teacher.model
    weights = sum(p.nbytes for p in [*module.parameters(), *frozen.parameters()])
    assert sum(part.weights for part in parts.values()) == weights
    assert parts["lora"].weights == parts["lora"].gradients > 0 and parts["llm"].gradients == 0


def test_room_for_samples() -> None:
    parts = {"llm": PartMemory(weights=100), "lora": PartMemory(10, 10, 20)}
    memory = Memory(parts, adamw=20, muon=0, copies=5, per_sample=30, samples=2)
    assert (memory.fixed, memory.total) == (145, 205)
    assert [memory.samples_in(available) for available in (0, 144, 174, 175, 204, 205)] == [
        0, 0, 0, 1, 1, 2,
    ]  # fmt: skip


def test_a_split_module_holds_what_is_planned(tiny: Tiny, built: Built) -> None:
    """Two ranks after a step: their parts together are all, each about half of it."""
    recipe = validate(recipe_data(tiny, **{"stages.0.precision": "bfloat16"}), "test")
    stage = recipe.stages[0]
    memory = plan(recipe, gpus=2, text_tokens=7).stages[0].memory
    module = built(recipe, 0)
    batch = sample_batch((3, 3), 7, PATCH, "cpu")

    def held() -> int:
        with ranks_of_launcher() as ranks:
            split(module, ranks, recipe.shard, torch.bfloat16)
            trained = {n: p for n, p in canonical_parameters(module).items() if p.requires_grad}
            optimizer = make_optimizer(trained, dict.fromkeys(trained, 1e-3), stage)
            members = list(trained.values())
            train_step(module, [batch], optimizer, members, stage, torch.device("cpu"), ranks)
            states = [state for part in optimizer.parts for state in part.state.values()]
            moments = [value for state in states for name, value in state.items() if name != "step"]
            kept = [*module.parameters(), *moments]
            assert all(isinstance(tensor, DTensor) for tensor in kept)
            gradients = sum(p.to_local().nbytes for p in members)  # as long as a step is taken
            return gradients + sum(tensor.to_local().nbytes for tensor in kept)

    found = on_ranks(2, held)
    whole = sum(part.total for name, part in memory.parts.items() if name != "teacher")
    assert memory.share == 2 and sum(found) == whole
    assert found == pytest.approx([memory.own] * 2, rel=0.05)


def test_what_is_gathered_at_once() -> None:
    """The two largest blocks in bfloat16 where that is less, and all else as it is."""
    blocks = nn.ModuleList(nn.Linear(4, size, bias=False) for size in (2, 8, 5))
    blocks[2].bfloat16()
    rest = nn.Linear(4, 3, bias=False)
    module = nn.ModuleList([blocks, rest])
    assert gathered_bytes(list(blocks), module, low=True) == 2 * 4 * (8 + 5) + 4 * 12
    assert gathered_bytes(list(blocks), module, low=False) == 4 * 4 * 8 + 2 * 4 * 5 + 4 * 12
