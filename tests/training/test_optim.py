"""Rates per glob, decay for matrices alone, and the schedules."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import nn

from oculi.recipe import Stage
from oculi.training.optim import lr_factor, make_optimizer, set_rates


def stage(**changes: Any) -> Stage:
    data = {
        "name": "x", "data": [{"kind": "playroom", "level": 1, "samples": 1}], "steps": 10,
        "batch": 1, "length": 8, "lr": 0.1, "trainable": {"*": None},
    }  # fmt: skip
    return Stage.model_validate({**data, **changes})


def test_warm_up_then_constant() -> None:
    factors = [lr_factor(stage(warmup_steps=4), step) for step in range(10)]
    assert factors == [0.25, 0.5, 0.75, 1.0, *[1.0] * 6]
    assert lr_factor(stage(), 0) == 1.0


def test_warm_up_then_cosine_to_nearly_zero() -> None:
    factors = [lr_factor(stage(warmup_steps=2, schedule="cosine"), step) for step in range(10)]
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert factors[6] == pytest.approx(0.5)
    assert factors[9] == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 8)))
    assert all(a > b for a, b in itertools.pairwise(factors[2:]))
    assert factors[-1] > 0


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_warm_up_longer_than_the_stage(schedule: str) -> None:
    made = stage(warmup_steps=20, schedule=schedule)
    assert [lr_factor(made, step) for step in (0, 9)] == [0.05, 0.5]
    assert lr_factor(stage(steps=1, schedule=schedule), 0) == 1.0


def parameters() -> dict[str, nn.Parameter]:
    shapes = {"a.weight": (3, 2), "a.bias": (3,), "b.weight": (2, 2), "norm": (2,)}
    return {name: nn.Parameter(torch.ones(shape)) for name, shape in shapes.items()}


def test_every_parameter_is_in_the_group_of_its_rate_and_decay() -> None:
    made = parameters()
    rates = {"a.weight": 0.1, "a.bias": 0.1, "b.weight": 0.2, "norm": 0.1}
    optimizer = make_optimizer(made, rates, stage(weight_decay=0.01, betas=(0.8, 0.95)))
    names = {id(p): name for name, p in made.items()}
    groups = {
        (group["lr"], group["weight_decay"]): sorted(names[id(p)] for p in group["params"])
        for group in optimizer.param_groups
    }
    assert groups == {
        (0.1, 0.0): ["a.bias", "norm"],
        (0.1, 0.01): ["a.weight"],
        (0.2, 0.01): ["b.weight"],
    }
    assert {group["betas"] for group in optimizer.param_groups} == {(0.8, 0.95)}


def test_groups_do_not_depend_on_the_order_of_globs() -> None:
    """A resume loads the optimizer's state by the number of the group."""
    made = parameters()
    one = {"a.weight": 0.2, "a.bias": 0.1, "b.weight": 0.1, "norm": 0.2}
    found = [
        [group["lr"] for group in make_optimizer(made, rates, stage()).param_groups]
        for rates in (one, dict(reversed(one.items())))
    ]
    assert found[0] == found[1] == [0.1, 0.2]


def test_the_schedule_scales_every_rate_and_can_come_back() -> None:
    made = parameters()
    rates = {"a.weight": 0.4, "a.bias": 0.1, "b.weight": 0.2, "norm": 0.1}
    optimizer = make_optimizer(made, rates, stage())
    assert set_rates(optimizer, 0.5) == 0.2
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.1, 0.2]
    assert set_rates(optimizer, 1.0) == 0.4
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2, 0.4]


def test_a_rate_of_zero_moves_nothing() -> None:
    made = parameters()
    rates = {"a.weight": 0.0, "a.bias": 0.1, "b.weight": 0.1, "norm": 0.1}
    optimizer = make_optimizer(made, rates, stage(weight_decay=0.1))
    for parameter in made.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moved = {name: not torch.equal(p, torch.ones_like(p)) for name, p in made.items()}
    assert moved == {"a.weight": False, "a.bias": True, "b.weight": True, "norm": True}
