"""Golden lists of trainable parameters, in a form that people can read.

``python tests/golden_names.py`` from the root writes ``tests/golden/trainable_*.txt`` anew; a change
there means that a stage trains something else than before, which is never an accident to accept.
"""

import re
from collections.abc import Iterable
from pathlib import Path

import torch

from oculi.model import OculiConfig, OculiForConditionalGeneration
from oculi.model.lora import inject_lora
from oculi.objectives import Distill, LanguageModelling, Objective
from oculi.objectives.teacher import Teacher
from oculi.recipe import DistillSpec, ModelSpec, Recipe, Stage
from oculi.recipes import BUILTIN
from oculi.training.module import TrainModule, canonical_parameters, learning_rates

GOLDEN = Path(__file__).parent / "golden"
COMMAND = "# made by: python tests/golden_names.py"


def compact(names: Iterable[str]) -> list[str]:
    """Names with block numbers collapsed: ``a.{0-23}.b`` where blocks 0 to 23 have it, sorted."""
    blocks: dict[str, list[int]] = {}
    for name in names:
        match = re.search(r"\.(\d+)\.", name)
        key = name if match is None else f"{name[: match.start()]}.{{}}.{name[match.end() :]}"
        blocks.setdefault(key, []).append(-1 if match is None else int(match[1]))
    return sorted(key.replace("{}", "{" + _ranges(found) + "}") for key, found in blocks.items())


def _ranges(numbers: Iterable[int]) -> str:
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def paper_model(spec: ModelSpec, lora: bool) -> OculiForConditionalGeneration:
    """Qwen2.5-7B with AIMv2-huge's patch embedding, on the meta device: shapes and names alone."""
    from transformers import AutoConfig

    llm = AutoConfig.for_model(
        "qwen2",
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        tie_word_embeddings=False,
    )
    side = spec.images.size // spec.vision.patch_size
    vision = {"kind": spec.vision.kind, "patch_size": 14, "width": 1536, "grid": [side, side]}
    with torch.device("meta"):
        model = OculiForConditionalGeneration(OculiConfig(llm, vision, image_token_id=151655))
        if lora:
            assert spec.lora is not None
            inject_lora(model.llm, spec.lora.rank, spec.lora.blocks, spec.lora.targets)
    return model


def paper_teacher() -> Teacher:
    """AIMv2-huge-448 on the meta device."""
    from transformers import Aimv2VisionConfig, Aimv2VisionModel

    config = Aimv2VisionConfig(
        hidden_size=1536,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=12,
        image_size=448,
        patch_size=14,
    )
    with torch.device("meta"):
        return Teacher(Aimv2VisionModel(config))


def objectives(
    stage: Stage, model: OculiForConditionalGeneration, teacher: Teacher
) -> list[Objective]:
    """The objectives of a stage, with ``teacher`` whatever their specs name."""
    built: list[Objective] = []
    with torch.device("meta"):
        for spec in stage.objectives:
            if isinstance(spec, DistillSpec):
                built.append(Distill(spec, teacher, model.width, len(model.blocks)))
            else:
                built.append(LanguageModelling(spec))
    return built


def has_lora(recipe: Recipe, number: int) -> bool:
    """Whether LoRA is in the model while stage ``number`` trains."""
    merged = any(stage.merge_lora for stage in recipe.stages[:number])
    return recipe.model.lora is not None and not merged


def stage_module(recipe: Recipe, number: int) -> TrainModule:
    """What stage ``number`` of a built-in recipe trains: shapes and names, weights as they come."""
    if recipe.name == "vora":
        model, teacher = paper_model(recipe.model, has_lora(recipe, number)), paper_teacher()
    else:
        from oculi.training.build import add_lora, build_model, build_processor

        model = build_model(recipe.model, build_processor(recipe.model), seed=0)
        if has_lora(recipe, number):
            add_lora(model, recipe.model, seed=0)
        teacher = Teacher.load("testbed:aimv2")
    return TrainModule(model, objectives(recipe.stages[number], model, teacher))


def trainable(recipe: Recipe, number: int) -> dict[str, torch.nn.Parameter]:
    """The parameters that stage ``number`` trains, by canonical name."""
    parameters = canonical_parameters(stage_module(recipe, number))
    stage = recipe.stages[number]
    rates = learning_rates(list(parameters), stage.trainable, stage.lr, stage.name)
    return {name: parameters[name] for name in rates}


def stages() -> list[tuple[str, int]]:
    """Every stage of every built-in recipe."""
    return [(name, n) for name, build in BUILTIN.items() for n in range(len(build().stages))]


def golden_file(name: str, number: int) -> Path:
    """Where the names of a stage are kept."""
    return GOLDEN / f"trainable_{name}_{BUILTIN[name]().stages[number].name}.txt"


if __name__ == "__main__":
    for recipe_name, stage_number in stages():
        names = compact(trainable(BUILTIN[recipe_name](), stage_number))
        text = "\n".join([COMMAND, *names]) + "\n"
        golden_file(recipe_name, stage_number).write_text(text, encoding="utf-8")
