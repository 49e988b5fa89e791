"""Configurations: shipped ones have the published sizes, folders need no weights."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from helpers import Tiny
from oculi.errors import CheckpointError, RecipeError
from oculi.plan.configs import find_config, llm_config, shipped, tower_config
from oculi.recipe import DistillSpec
from oculi.recipes import BUILTIN

# Parameters as the model cards give them (Qwen2.5: 7.61B, 3.09B, 1.54B, 0.49B; Vicuna is LLaMA-7B), and
# for vision towers as their checkpoints hold them without a projection or a text tower.
PUBLISHED = {
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen2.5-3B": 3_085_938_688,
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "lmsys/vicuna-7b-v1.5": 6_738_415_616,
    "meta-llama/Meta-Llama-3-8B-Instruct": 8_030_261_248,
    "apple/aimv2-huge-patch14-448": 682_031_616,
    "openai/clip-vit-large-patch14-336": 303_507_456,
    "google/siglip2-so400m-patch16-naflex": 427_888_064,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_shipped_configurations_have_the_published_sizes(name: str) -> None:
    config = find_config(name)
    kind = AutoModelForCausalLM if config.model_type in ("qwen2", "llama") else AutoModel
    with torch.device("meta"):
        model = kind.from_config(config)
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[name]


def test_what_built_in_recipes_name_is_shipped() -> None:
    for build in BUILTIN.values():
        recipe = build()
        if recipe.model.start is not None:  # for any model
            continue
        names = {recipe.model.llm, recipe.model.vision.init_from}
        for stage in recipe.stages:
            names |= {o.teacher for o in stage.objectives if isinstance(o, DistillSpec)}
        for name in names:
            assert name.startswith("testbed:") or name in shipped(), name


def test_instruction_tuned_models_have_the_shape_of_their_base() -> None:
    for name, file in shipped().items():
        base = shipped().get(name.removesuffix("-Instruct"), file)
        assert json.loads(file.read_text()) == json.loads(base.read_text())


def test_a_folder_needs_its_configuration_only(tiny: Tiny, tmp_path: Path) -> None:
    shutil.copy(tiny.llm / "config.json", tmp_path)
    assert llm_config(str(tmp_path)).hidden_size == 32
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        find_config(str(tmp_path))
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        find_config(str(tmp_path))


def test_a_folder_goes_before_what_is_shipped(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in training, where a folder of a hub id's name is read."""
    name = "Qwen/Qwen2.5-7B-Instruct"
    assert llm_config(name).hidden_size == 3584
    shutil.copytree(tiny.llm, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert llm_config(name).hidden_size == 32


def test_the_tower_of_a_two_tower_model(tmp_path: Path) -> None:
    from transformers import CLIPConfig

    CLIPConfig(vision_config={"hidden_size": 24, "patch_size": 4}).save_pretrained(tmp_path)
    config = tower_config(str(tmp_path))
    assert config.model_type == "clip_vision_model" and config.hidden_size == 24


def test_a_model_that_can_see_is_refused(tmp_path: Path) -> None:
    from oculi.model import OculiConfig

    OculiConfig().save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match="can see already"):
        llm_config(str(tmp_path))


@pytest.mark.parametrize("name", ["Qwen/Qwen3-8B", "mine", "/nowhere", "./here"])
def test_an_unknown_name_says_what_to_do(name: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        find_config(name)
    said = str(caught.value)
    assert said.startswith(f"{name} is no folder here") and "Qwen/Qwen2.5-7B-Instruct" in said
    assert "\n" not in said
