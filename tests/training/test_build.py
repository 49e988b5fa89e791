"""From a recipe's spec to a model: the right weights in the right places, or one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import PATCH, Drawn, Tiny, make_tower, save_llm, save_teacher, tiny_recipe
from oculi.errors import CheckpointError, OculiError, RecipeError
from oculi.model.lora import lora_layers
from oculi.objectives.teacher import Teacher
from oculi.recipe import ModelSpec
from oculi.training.build import add_lora, build_model, build_processor


def spec(tiny: Tiny, **changes: Any) -> ModelSpec:
    return tiny_recipe(tiny, **{f"model.{key}": value for key, value in changes.items()}).model


def build(spec: ModelSpec, seed: int = 0) -> Any:
    return build_model(spec, build_processor(spec), seed)


def test_the_llm_has_its_own_weights(tiny: Tiny) -> None:
    from transformers import AutoModelForCausalLM

    wanted = AutoModelForCausalLM.from_pretrained(tiny.llm).state_dict()
    found = build(spec(tiny)).llm.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    half = build(spec(tiny, dtype="bfloat16"))
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_the_vision_part_starts_from_the_teacher(tiny: Tiny) -> None:
    vision, teacher = build(spec(tiny)).vision, make_tower("aimv2").embeddings
    assert torch.equal(vision.patch.weight, teacher.patch_embed.weight.flatten(1))
    assert torch.equal(vision.position, teacher.position_embedding.weight)
    assert torch.equal(vision.norm.weight, teacher.rms_norm.weight)
    assert vision.grid == (4, 4) and vision.projection.weight.shape == (32, 24)


def test_pixels_are_normalised_as_the_start_was_trained(tiny: Tiny, tmp_path: Path) -> None:
    """SigLIP's mean is 0.5; with CLIP's its projection would see other numbers."""
    folder = save_teacher(tmp_path / "siglip2", "siglip2")
    config = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.4, 0.3]}
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    made = spec(tiny, **{"vision.init_from": str(folder)})
    processor = build_processor(made)
    model = build_model(made, processor, 0)
    patches, grid = processor.image_processor.patches(Drawn(16, 16).load())
    patches, grids = torch.from_numpy(patches), torch.tensor([grid])
    with torch.no_grad():
        found = model.vision.patch(model.vision.normalise(patches))
        found = found + model.vision.interpolate(grids, 16)
    wanted = Teacher.load(str(folder)).features(patches, grids)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert processor.image_processor.image_mean == [0.5, 0.5, 0.5]
    assert model.config.vision_config["image_std"] == [0.5, 0.4, 0.3]


@pytest.mark.parametrize("attention", ["eager", "blocked", "sdpa", "flex_attention"])
def test_attention_is_the_llms(tiny: Tiny, tmp_path: Path, attention: str) -> None:
    """A tower needs no mask, SigLIP 2 has no flex attention, and flex would compile for every grid."""
    folder = save_teacher(tmp_path / "tower", "siglip2")
    vision = {"kind": "tower", "patch_size": PATCH, "init_from": str(folder)}
    model = build(spec(tiny, vision=vision, attention=attention))
    assert model.llm.config._attn_implementation == attention
    assert model.config.text_config._attn_implementation == attention
    assert model.vision.tower.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("family", ["aimv2", "clip", "siglip2"])
def test_a_tower_attends_as_its_own_setting_says(tiny: Tiny, tmp_path: Path, family: str) -> None:
    """In training alone: what is exported knows nothing of it."""
    folder = save_teacher(tmp_path / "tower", family)
    vision = {"kind": "tower", "patch_size": PATCH, "init_from": str(folder)}
    models = {
        attention: build(spec(tiny, vision={**vision, "attention": attention}))
        for attention in ("sdpa", "eager")
    }
    tokens = []
    for attention, model in models.items():
        assert model.vision.tower.config._attn_implementation == attention
        assert model.llm.config._attn_implementation == "sdpa"
        assert "attention" not in model.config.vision_config
        patches, grid = build_processor(spec(tiny, vision=vision)).image_processor.patches(
            Drawn(16, 16).load()
        )
        with torch.no_grad():
            seen = model.look(torch.from_numpy(patches), torch.tensor([grid]))
        tokens.append(seen.tokens_SD)
    torch.testing.assert_close(*tokens, rtol=1e-5, atol=1e-5)


def test_new_weights_depend_on_the_seed_alone(tiny: Tiny) -> None:
    made = spec(tiny)
    found = []
    for drawn, seed in enumerate((0, 0, 1)):
        torch.rand(drawn)  # whatever was drawn before
        model = build(made, seed)
        before = model.vision.projection.weight.clone()
        torch.rand(drawn)
        add_lora(model, made, seed)
        found.append([before, *(layer.lora_A["default"].weight for _, layer in lora_layers(model))])
    assert len(found[0]) == 1 + 2 * 7
    assert all(torch.equal(a, b) for a, b in zip(found[0], found[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(found[0], found[2], strict=True))


def test_lora_is_where_the_spec_says(tiny: Tiny) -> None:
    made = spec(tiny, lora={"rank": 3, "blocks": 1, "targets": ["q_proj", "up_proj"]})
    model = build(made)
    add_lora(model, made, 0)
    names = [name for name, _ in lora_layers(model.llm)]
    assert names == ["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj"]


WRONG: dict[str, dict[str, Any]] = {
    "LoRA on the first 9 blocks, but the LLM has 3": {"lora": {"rank": 2, "blocks": 9}},
    "LoRA targets qproj": {"lora": {"rank": 2, "blocks": 1, "targets": ["qproj"]}},
    "patch.weight is (24, 147) here but (24, 48)": {"vision.patch_size": 7},
    "patch.weight is (8, 48) here but (24, 48)": {"vision.width": 8},
    "position is (9, 24) here but (16, 24)": {"vision.grid": [3, 3]},
    "nowhere is no folder": {"llm": "nowhere"},
    "nothing is no folder": {"vision.init_from": "nothing"},
}


TOWERS: dict[str, dict[str, Any]] = {
    "model.vision.layer: TEACHER has states -3 to 2, none at 3": {"layer": 3},
    "model.vision.layer: TEACHER has states -3 to 2, none at -4": {"layer": -4},
    "nothing is no folder": {"init_from": "nothing"},
    "LLM is a qwen2, no vision tower; known are aimv2": {"init_from": "LLM"},
}


@pytest.mark.parametrize("said", TOWERS)
def test_a_tower_that_does_not_fit_is_one_line(tiny: Tiny, said: str) -> None:
    places = {"TEACHER": str(tiny.teacher), "LLM": str(tiny.llm)}
    vision = {"kind": "tower", "patch_size": PATCH, "init_from": "TEACHER", **TOWERS[said]}
    vision["init_from"] = places.get(vision["init_from"], vision["init_from"])
    for short, path in places.items():
        said = said.replace(short, path)
    with pytest.raises(OculiError) as caught:
        build(spec(tiny, vision=vision))
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("family", ["aimv2", "clip", "siglip2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_tower_has_its_own_weights(tiny: Tiny, tmp_path: Path, family: str, dtype: str) -> None:
    """And the mean and deviation it was trained with; only the connector is drawn."""
    folder = save_teacher(tmp_path / "tower", family)
    config = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.4, 0.3]}
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    vision = {"kind": "tower", "patch_size": PATCH, "init_from": str(folder)}
    models = [build(spec(tiny, vision=vision, dtype=dtype), seed) for seed in (0, 0, 1)]
    wanted = {n: p.to(getattr(torch, dtype)) for n, p in make_tower(family).named_parameters()}
    for model in models:
        found = dict(model.vision.tower.named_parameters())
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
        assert (list(model.vision.reader.mean), list(model.vision.reader.std)) == (
            config["image_mean"], config["image_std"],
        )  # fmt: skip
    same, again, other = (model.vision.connector[0].weight for model in models)
    assert torch.equal(same, again) and not torch.equal(same, other)
    processor = build_processor(spec(tiny, vision=vision))
    assert processor.image_processor.image_mean == config["image_mean"]


@pytest.mark.parametrize("said", WRONG)
def test_what_does_not_fit_is_one_line(tiny: Tiny, said: str) -> None:
    made = spec(tiny, **WRONG[said])
    with pytest.raises(OculiError) as caught:
        add_lora(build(made), made, 0)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_an_llm_with_sliding_windows_is_refused(
    tiny: Tiny, tmp_path: Path, make_llm_config: Callable[..., Any], make_tokenizer: Any
) -> None:
    config = make_llm_config(use_sliding_window=True, sliding_window=8, max_window_layers=1)
    folder = save_llm(tmp_path / "llm", config, make_tokenizer())
    with pytest.raises(RecipeError, match="sliding_attention") as caught:
        build(spec(tiny, llm=str(folder)))
    assert "model.llm" in str(caught.value) and "\n" not in str(caught.value)


def test_an_llm_that_cannot_be_read_is_named(
    tiny: Tiny, tmp_path: Path, make_llm_config: Callable[..., Any], make_tokenizer: Any
) -> None:
    from safetensors.torch import load_file, save_file

    said = {
        "cut": "cannot be loaded",
        "bare": "cannot be loaded",
        "mute": "cannot be loaded",
        "lacking": "lacks 1 weights of Qwen2ForCausalLM, the first is model.norm.weight",
    }
    for name, message in said.items():
        folder = save_llm(tmp_path / name, make_llm_config(), make_tokenizer())
        weights = folder / "model.safetensors"
        if name == "cut":
            weights.write_bytes(weights.read_bytes()[:-8])
        elif name == "bare":
            weights.unlink()
        elif name == "mute":
            for file in folder.glob("token*"):
                file.unlink()
        else:
            tensors = load_file(weights)
            del tensors["model.norm.weight"]
            save_file(tensors, weights, {"format": "pt"})
        with pytest.raises(CheckpointError, match=message) as caught:
            build(spec(tiny, llm=str(folder)))
        assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_the_image_token_is_never_generated_when_it_has_a_row(
    tiny: Tiny, tmp_path: Path, make_llm_config: Callable[..., Any], make_tokenizer: Any,
    vocab_size: int,
) -> None:  # fmt: skip
    assert build(spec(tiny)).generation_config.suppress_tokens is None
    config = make_llm_config(vocab_size=vocab_size + 8)
    folder = save_llm(tmp_path / "llm", config, make_tokenizer())
    model = build(spec(tiny, llm=str(folder)))
    assert model.config.image_token_id == vocab_size
    assert model.generation_config.suppress_tokens == [vocab_size]
