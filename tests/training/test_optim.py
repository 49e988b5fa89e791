"""Rates per glob, decay for matrices alone, and the schedules."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import nn

from oculi.errors import RecipeError
from oculi.recipe import Stage
from oculi.training.optim import lr_factor, make_optimizer, muon_matrices, set_rates


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


RATES = {"a.weight": 0.1, "a.bias": 0.1, "b.weight": 0.1, "norm": 0.1}


def test_muon_takes_its_matrices_and_makes_their_update_orthogonal() -> None:
    """All singular values of a first update are alike, and its entries about as large as AdamW's."""
    torch.manual_seed(0)
    made = {"w": nn.Parameter(torch.zeros(32, 32)), "v": nn.Parameter(torch.zeros(32, 32))}
    optimizer = make_optimizer(made, {"w": 0.1, "v": 0.1}, stage(muon=["w"]))
    assert [type(part).__name__ for part in optimizer.parts] == ["AdamW", "Muon"]
    for parameter in made.values():
        parameter.grad = torch.randn(32, 32)
    optimizer.step()
    values = torch.linalg.svdvals(made["w"].detach())
    assert values.min() > 0.5 * values.max()
    assert torch.linalg.svdvals(made["v"].detach()).min() < 0.1 * values.max()
    assert made["w"].detach().square().mean().sqrt() == pytest.approx(0.2 * 0.1, rel=0.25)


def test_one_optimizer_where_the_other_has_nothing_to_do() -> None:
    made = {"w": nn.Parameter(torch.zeros(2, 2))}
    assert len(make_optimizer(made, {"w": 0.1}, stage(muon=["w"])).parts) == 1
    assert len(make_optimizer(made, {"w": 0.1}, stage()).parts) == 1


def test_state_comes_back_for_both_optimizers() -> None:
    def one(steps: int) -> tuple[Any, dict[str, nn.Parameter]]:
        made = parameters()
        optimizer = make_optimizer(made, RATES, stage(muon=["b.weight"]))
        for _ in range(steps):
            for parameter in made.values():
                parameter.grad = parameter.detach() + torch.arange(parameter.shape[-1])
            optimizer.step()
        return optimizer, made

    whole, goal = one(3)
    first, half = one(2)
    again, made = one(0)
    again.load_state_dict(first.state_dict())
    for name, parameter in made.items():
        parameter.data = half[name].data.clone()
        parameter.grad = parameter.detach() + torch.arange(parameter.shape[-1])
    again.step()
    assert all(torch.equal(made[name], goal[name]) for name in goal)
    with pytest.raises(ValueError, match="of 2 optimizers, not of 1"):
        make_optimizer(parameters(), RATES, stage()).load_state_dict(whole.state_dict())


def test_a_glob_for_muon_that_fits_nothing_or_no_matrix() -> None:
    made = parameters()
    with pytest.raises(RecipeError, match=r'here: the glob "c\.\*" matches no parameter'):
        muon_matrices(made, list(made), stage(muon=["c.*"]), "here")
    with pytest.raises(RecipeError, match=r"matches a\.bias, which has 1 dimensions; Muon updates"):
        muon_matrices(made, list(made), stage(muon=["a.*"]), "here")
    with pytest.raises(RecipeError, match="matches no parameter"):  # frozen
        muon_matrices(made, ["a.weight"], stage(muon=["b.weight"]), "here")
