"""Globs on canonical names: which parameters train, at which rate, and what is frozen."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from helpers import make_tower
from oculi.errors import RecipeError
from oculi.model.lora import inject_lora, merge_lora
from oculi.objectives import Distill, LanguageModelling
from oculi.objectives.teacher import Teacher
from oculi.recipe import DistillSpec, LmSpec
from oculi.training.module import TrainModule, canonical_parameters, freeze, learning_rates

NAMES = [
    "llm.model.layers.0.mlp.up_proj.weight",
    "llm.model.layers.0.mlp.up_proj.lora_A",
    "llm.model.layers.0.mlp.up_proj.lora_B",
    "llm.model.layers.1.mlp.up_proj.weight",
    "llm.lm_head.weight",
    "vision.patch.weight",
    "vision.position",
    "objectives.distill.heads.0.1.weight",
]


def rates(trainable: dict[str, float | None], default: float = 0.5) -> dict[str, float]:
    return learning_rates(NAMES, trainable, default, "stages.0.trainable")


def test_what_no_glob_matches_is_frozen() -> None:
    assert rates({"vision.*": None}) == {"vision.patch.weight": 0.5, "vision.position": 0.5}
    assert rates({"llm.*.lora_?": 0.1}) == {NAMES[1]: 0.1, NAMES[2]: 0.1}


def test_the_last_glob_wins_whatever_is_more_special() -> None:
    assert rates({"llm.*": 0.1, "llm.lm_head.*": 0.2, "vision.position": None}) == {
        NAMES[0]: 0.1, NAMES[1]: 0.1, NAMES[2]: 0.1, NAMES[3]: 0.1, NAMES[4]: 0.2, NAMES[6]: 0.5,
    }  # fmt: skip
    assert set(rates({"llm.lm_head.*": 0.2, "llm.*": 0.1}).values()) == {0.1}


def test_the_order_is_that_of_the_model() -> None:
    assert list(rates({"vision.*": None, "llm.*": None})) == [*NAMES[:5], *NAMES[5:7]]


@pytest.mark.parametrize(
    ("glob", "hint"),
    [
        ("vision.positions", 'did you mean "vision.position"?'),
        ("LLM.lm_head.weight", 'did you mean "llm.lm_head.weight"?'),
        ("xyz", "there are llm.*, objectives.*, vision.*"),
        ("vision", "there are llm.*, objectives.*, vision.*"),
    ],
)
def test_a_glob_that_matches_nothing_is_an_error(glob: str, hint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        rates({"llm.*": None, glob: None})
    said = str(caught.value)
    assert said.startswith(f'stages.0.trainable: the glob "{glob}" matches no parameter')
    assert hint in said and "\n" not in said


@pytest.fixture
def module(make_model: Callable[..., Any]) -> TrainModule:
    model = make_model()
    distill = Distill(DistillSpec(teacher="x"), Teacher(make_tower("aimv2")), 32, 3)
    return TrainModule(model, [LanguageModelling(LmSpec()), distill])


def test_names_are_the_same_before_and_after_lora(module: TrainModule) -> None:
    plain = set(canonical_parameters(module))
    inject_lora(module.model.llm, 2, 2, ("q_proj", "up_proj"))
    wrapped = set(canonical_parameters(module))
    assert plain < wrapped
    assert wrapped - plain == {
        f"llm.model.layers.{i}.{linear}.lora_{x}"
        for i in (0, 1)
        for linear in ("self_attn.q_proj", "mlp.up_proj")
        for x in "AB"
    }
    merge_lora(module.model.llm)
    assert set(canonical_parameters(module)) == plain
    assert {name.split(".")[0] for name in plain} == {"llm", "vision", "objectives"}


def test_only_the_named_get_gradients_and_are_float32(module: TrainModule) -> None:
    module.to(torch.bfloat16)
    chosen = freeze(module, {"vision.position": 0.1, "llm.model.norm.weight": 0.1})
    assert list(chosen) == ["vision.position", "llm.model.norm.weight"]
    for name, parameter in canonical_parameters(module).items():
        wanted = (True, torch.float32) if name in chosen else (False, torch.bfloat16)
        assert (parameter.requires_grad, parameter.dtype) == wanted, name
    assert chosen["vision.position"] is module.model.vision.position
    freeze(module, {"vision.patch.bias": 0.1})  # the next stage trains something else
    assert not module.model.vision.position.requires_grad


def test_nothing_counts_zero(module: TrainModule) -> None:
    assert module.counts([]) == {"lm": 0, "distill": 0}
