"""Routed LoRA in runs: stages export it, the next one goes on with it, and no command merges it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import oculi
from helpers import Tiny, as_if_killed, exported, losses, recipe_data, tiny_recipe
from oculi.errors import CheckpointError, RecipeError
from oculi.export.load import load_unmerged
from oculi.export.merge import merge_run
from oculi.recipe import Recipe, validate
from oculi.training.build import build_model, build_processor
from oculi.training.run import train
from routed import same_bits

ONLY_VISION = {"llm.*.lora_?": None, "vision.*": None}
ROUTED: dict[str, Any] = {
    "model.lora": {"rank": 4, "blocks": 3, "routed": True},
    "stages.0.merge_lora": False,
    "stages.1.trainable": ONLY_VISION,
}


@pytest.fixture(scope="module")
def recipe(tiny: Tiny) -> Recipe:
    return tiny_recipe(tiny, **ROUTED)


@pytest.fixture(scope="module")
def run(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(recipe, tmp_path_factory.mktemp("routed") / "run", quiet=True)


def test_a_stage_exports_it_and_the_next_goes_on_with_it(run: Path, tiny: Tiny) -> None:
    base = load_file(tiny.llm / "model.safetensors")
    first, second = exported(run, "0-pretrain"), exported(run)
    for weights in (first, second):
        assert all(same_bits(weights[f"llm.{name}"], base[name]) for name in base)
    trained = [name for name in second if ".lora_" in name]
    assert len(trained) == 42
    for name in trained:
        # Of images in the last block, answers read keys and values alone: nothing else can learn.
        read = ".layers.2." not in name or ".k_proj." in name or ".v_proj." in name
        assert torch.equal(first[name], second[name]) != read, name
        assert first[name].any() or not read, name


def test_after_all_training_text_is_the_llms(run: Path, tiny: Tiny) -> None:
    from transformers import AutoModelForCausalLM

    llm = AutoModelForCausalLM.from_pretrained(tiny.llm).eval()
    model, _ = oculi.load(run)
    ids = torch.arange(40)[None] * 7 % 300
    with torch.no_grad():
        assert same_bits(model(input_ids=ids).logits, llm(input_ids=ids).logits)


@pytest.mark.parametrize("step", [2, 5])
def test_a_killed_run_goes_on(run: Path, recipe: Recipe, tmp_path: Path, step: int) -> None:
    """In its first stage from the LLM, in its second from the folder of the first."""
    copy = as_if_killed(run, tmp_path / "run", step)
    train(recipe, copy, resume=True, quiet=True)
    wanted, found = exported(run), exported(copy)
    assert all(same_bits(found[name], wanted[name]) for name in wanted)
    assert losses(copy) == losses(run)


def test_a_checkpoint_of_either_stage_opens(run: Path, tmp_path: Path) -> None:
    later = shutil.ignore_patterns("stages", "step-0000005", "step-0000006")
    early = Path(shutil.copytree(run, tmp_path / "run", ignore=later))
    first = exported(run, "0-pretrain")
    model = load_unmerged(early).model
    assert all(same_bits(p.data, first[name]) for name, p in model.named_parameters())
    last = load_unmerged(run).model
    assert all(same_bits(p.data, exported(run)[name]) for name, p in last.named_parameters())


def test_a_merge_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"routed.*acts on image tokens alone") as caught:
        merge_run(run, tmp_path / "out")
    assert "stages/" in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_recipe_that_merges_it_is_refused(tiny: Tiny) -> None:
    data = recipe_data(tiny, **{**ROUTED, "stages.0.merge_lora": True})
    with pytest.raises(RecipeError, match=r"pretrain merges LoRA, but model\.lora is routed"):
        validate(data, "test")


def test_the_recipe_says_where_it_goes(recipe: Recipe, make_llm_config: Callable[..., Any]) -> None:
    processor = build_processor(recipe.model)
    model = build_model(recipe.model, processor, seed=3)
    (entry,) = model.config.routed_lora
    assert (entry["modality"], entry["rank"], entry["blocks"]) == ("image", 4, 3)
    again = build_model(recipe.model, processor, seed=3).state_dict()
    assert all(same_bits(value, again[name]) for name, value in model.state_dict().items())
    lora = recipe.model.lora
    assert lora is not None
    wrong = lora.model_copy(update={"targets": ("qkv_proj",)})
    with pytest.raises(RecipeError, match=r"model\.lora: LoRA targets qkv_proj"):
        build_model(recipe.model.model_copy(update={"lora": wrong}), processor, seed=3)
