"""A stage on the meta device is the stage that training builds: the same names, shapes, dtypes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers import PATCH, Tiny, llava_data, recipe_data, save_teacher
from oculi.errors import OculiError
from oculi.plan.build import meta_stages
from oculi.recipe import Recipe, validate
from oculi.training.module import canonical_parameters

Built = Callable[..., Any]


def shapes(module: Any) -> dict[str, tuple[Any, ...]]:
    return {
        name: (tuple(p.shape), p.dtype, p.requires_grad)
        for name, p in canonical_parameters(module).items()
    }


def same(recipe: Recipe, built: Built) -> None:
    for number, stage in enumerate(meta_stages(recipe)):
        module = built(recipe, number)
        assert shapes(stage.module) == shapes(module)
        assert all(p.is_meta for p in stage.module.parameters())
        for real in module.terms():
            if real.name == "distill":
                meta = stage.teachers["distill"]
                wanted = [(n, p.shape, p.dtype) for n, p in real.teacher.model.named_parameters()]
                assert [(n, p.shape, p.dtype) for n, p in meta.named_parameters()] == wanted


@pytest.mark.parametrize(
    ("rank", "blocks", "dtype"), [(1, 3, "float32"), (4, 2, "bfloat16"), (7, 1, "bfloat16")]
)
def test_rank_and_blocks(tiny: Tiny, built: Built, rank: int, blocks: int, dtype: str) -> None:
    lora = {"rank": rank, "blocks": blocks}
    same(validate(recipe_data(tiny, **{"model.lora": lora, "model.dtype": dtype}), "test"), built)


@pytest.mark.parametrize("mode", ["none", "last"])
def test_distillation(tiny: Tiny, built: Built, mode: str) -> None:
    trainable = {"llm.*.lora_?": None, "vision.*": None}
    changes = {"stages.0.objectives.1.mode": mode, "stages.0.trainable": trainable}
    same(validate(recipe_data(tiny, **changes), "test"), built)


@pytest.mark.parametrize("family", ["aimv2", "clip", "siglip2"])
def test_every_family_of_vits(tiny: Tiny, built: Built, tmp_path: Path, family: str) -> None:
    """As the start of a patch embedding with its teacher, and as a tower."""
    folder = str(save_teacher(tmp_path / "vit", family))
    changes = {"model.vision.init_from": folder, "stages.0.objectives.1.teacher": folder}
    same(validate(recipe_data(tiny, **changes), "test"), built)
    same(validate(llava_data(tiny, Path(folder)), "test"), built)


def test_a_patch_embedding_that_no_vit_starts(tiny: Tiny, built: Built) -> None:
    vision = {"kind": "patch_embed", "patch_size": PATCH, "width": 10, "grid": [3, 5]}
    same(validate(recipe_data(tiny, **{"model.vision": vision}), "test"), built)


def test_lora_that_is_not_merged_stays(tiny: Tiny, built: Built) -> None:
    changes = {"stages.0.merge_lora": False, "stages.1.trainable": {"llm.*.lora_B": None}}
    same(validate(recipe_data(tiny, **changes), "test"), built)


WRONG: dict[str, dict[str, Any]] = {
    "nowhere/here is no folder here, and its configuration does not come": {"llm": "nowhere/here"},
    "model.vision.patch_size: 7 here but 4 in TEACHER": {"vision.patch_size": 7},
    "model.vision.width: 8 here but 24 in TEACHER": {"vision.width": 8},
    "model.vision.grid: (3, 3) here but (4, 4) in TEACHER": {"vision.grid": [3, 3]},
    "LLM is a qwen2, no vision tower; known are aimv2": {"vision.init_from": "LLM"},
    "model.lora: LoRA on the first 9 blocks": {"lora": {"rank": 2, "blocks": 9}},
    "TEACHER has states -3 to 2, none at 3": {
        "vision": {"kind": "tower", "patch_size": PATCH, "init_from": "TEACHER", "layer": 3}
    },
}


@pytest.mark.parametrize("said", WRONG)
def test_what_does_not_fit_is_one_line(tiny: Tiny, said: str) -> None:
    places = {"TEACHER": str(tiny.teacher), "LLM": str(tiny.llm)}
    changes = json.loads(json.dumps(WRONG[said]))
    for short, path in places.items():
        said = said.replace(short, path)
        changes = json.loads(json.dumps(changes).replace(f'"{short}"', json.dumps(path)))
    recipe = validate(
        recipe_data(tiny, **{f"model.{key}": value for key, value in changes.items()}), "test"
    )
    with pytest.raises(OculiError) as caught:
        list(meta_stages(recipe))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_globs_are_checked_in_every_stage(tiny: Tiny) -> None:
    for key, value in [("trainable", {"lm.*": None}), ("muon", ["vision.norm.*"])]:
        recipe = validate(recipe_data(tiny, **{f"stages.1.{key}": value}), "test")
        with pytest.raises(OculiError, match=f"stages.1.{key}: the glob"):
            list(meta_stages(recipe))
