"""Golden lists of trainable parameters, in a form that people can read.

``python tests/golden_names.py`` from the root writes ``tests/golden/trainable_*.txt`` anew; a change
there means that a stage trains something else than before, which is never an accident to accept.
"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from oculi.hub import resolve
from oculi.model import OculiConfig, OculiForConditionalGeneration
from oculi.model.lora import inject_lora
from oculi.objectives import Distill, LanguageModelling, Objective, Reconstruct
from oculi.objectives.latents import Autoencoder
from oculi.objectives.teacher import Teacher
from oculi.recipe import (
    DistillSpec,
    ModelSpec,
    PatchEmbedSpec,
    PerceiverSpec,
    Recipe,
    ReconstructSpec,
    Stage,
    TowerSpec,
)
from oculi.recipes import BUILTIN
from oculi.testbed.build_diffusion import new_sd3, new_vae
from oculi.testbed.towers import TOWERS
from oculi.training.build import compress_config, fuse_config
from oculi.training.module import TrainModule, canonical_parameters, learning_rates

GOLDEN = Path(__file__).parent / "golden"
COMMAND = "# made by: python tests/golden_names.py"

# What the recipes name on the hub, as their config.json say.
CONFIGS: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-7B-Instruct": {
        "model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944,
        "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
    "lmsys/vicuna-7b-v1.5": {
        "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
        "tie_word_embeddings": False,
    },
    "meta-llama/Meta-Llama-3-8B-Instruct": {
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "tie_word_embeddings": False,
    },
    "Qwen/Qwen2.5-1.5B": {
        "model_type": "qwen2", "vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960,
        "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "google/siglip2-so400m-patch16-naflex": {
        "model_type": "siglip2_vision_model", "hidden_size": 1152, "intermediate_size": 4304,
        "num_hidden_layers": 27, "num_attention_heads": 16, "num_patches": 256, "patch_size": 16,
    },
    "apple/aimv2-huge-patch14-448": {
        "model_type": "aimv2_vision_model", "hidden_size": 1536, "intermediate_size": 4096,
        "num_hidden_layers": 24, "num_attention_heads": 12, "image_size": 448, "patch_size": 14,
    },
    "openai/clip-vit-large-patch14-336": {
        "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096,
        "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 336, "patch_size": 14,
    },
}  # fmt: skip


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


def config(name: str) -> Any:
    """Configuration of an LLM or ViT that a recipe names: from the table, else from its folder."""
    from transformers import AutoConfig

    known = CONFIGS.get(name)
    if (tower := TOWERS.get(name.removeprefix("testbed:"))) is not None:
        with torch.device("meta"):
            return tower.new().config  # whether it is shipped yet or not
    return AutoConfig.for_model(**known) if known else AutoConfig.from_pretrained(resolve(name))


def patch_embed(spec: PatchEmbedSpec) -> dict[str, Any]:
    """As ``training/vision.py`` would make it from the weights."""
    assert spec.init_from is not None
    vit = config(spec.init_from)
    side = vit.image_size // vit.patch_size
    return {"width": spec.width or vit.hidden_size, "grid": spec.grid or [side, side]}


def tower(spec: TowerSpec) -> dict[str, Any]:
    """As ``training/vision.py`` would make it from the weights."""
    return {"tower": config(spec.init_from).to_dict(), "layer": spec.layer}


def perceiver(spec: PerceiverSpec) -> dict[str, Any]:
    """As ``training/vision.py`` would make it from the weights."""
    settings = {"tokens": spec.tokens, "max_tiles": spec.max_tiles, "heads": spec.heads}
    return {"tower": config(spec.init_from).to_dict(), "layer": spec.layer, **settings}


# SD3-medium by the arguments that its config.json has other than diffusers' defaults.
SD3 = {
    "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536,
    "pos_embed_max_size": 192,
}  # fmt: skip


def reconstruct(spec: ReconstructSpec, width: int) -> Reconstruct:
    """With the shapes of the checkpoints that the spec names."""
    from diffusers import SD3Transformer2DModel

    tiny = spec.denoiser.startswith("testbed:")
    denoiser = new_sd3() if tiny else SD3Transformer2DModel(**SD3)
    return Reconstruct(spec, denoiser, Autoencoder(new_vae()), width)


VISION: dict[type, Callable[[Any], dict[str, Any]]] = {
    PatchEmbedSpec: patch_embed,
    TowerSpec: tower,
    PerceiverSpec: perceiver,
}


def model(spec: ModelSpec, lora: bool) -> OculiForConditionalGeneration:
    """The recipe's model at its size, on the meta device: shapes and names alone."""
    vision = {"kind": spec.vision.kind, "patch_size": spec.vision.patch_size}
    vision |= VISION[type(spec.vision)](spec.vision)
    with torch.device("meta"):
        parts = {"compress_config": compress_config(spec), "fuse_config": fuse_config(spec)}
        built = OculiForConditionalGeneration(OculiConfig(config(spec.llm), vision, **parts))
        if lora:
            assert spec.lora is not None
            inject_lora(built.llm, spec.lora.rank, spec.lora.blocks, spec.lora.targets)
    return built


def objectives(stage: Stage, model: OculiForConditionalGeneration) -> list[Objective]:
    """The objectives of a stage, their teachers on the meta device."""
    from transformers import AutoModel

    built: list[Objective] = []
    with torch.device("meta"):
        for spec in stage.objectives:
            if isinstance(spec, DistillSpec):
                teacher = Teacher(AutoModel.from_config(config(spec.teacher)))
                built.append(Distill(spec, teacher, model.width, len(model.blocks)))
            elif isinstance(spec, ReconstructSpec):
                built.append(reconstruct(spec, model.width))
            else:
                built.append(LanguageModelling(spec))
    return built


def has_lora(recipe: Recipe, number: int) -> bool:
    """Whether LoRA is in the model while stage ``number`` trains."""
    merged = any(stage.merge_lora for stage in recipe.stages[:number])
    return recipe.model.lora is not None and not merged


def stage_module(recipe: Recipe, number: int) -> TrainModule:
    """What stage ``number`` of a recipe trains: shapes and names, no weights."""
    built = model(recipe.model, has_lora(recipe, number))
    return TrainModule(built, objectives(recipe.stages[number], built))


def trainable(recipe: Recipe, number: int) -> dict[str, torch.nn.Parameter]:
    """The parameters that stage ``number`` trains, by canonical name."""
    parameters = canonical_parameters(stage_module(recipe, number))
    stage = recipe.stages[number]
    rates = learning_rates(list(parameters), stage.trainable, stage.lr, stage.name)
    return {name: parameters[name] for name in rates}


def stages() -> list[tuple[str, int]]:
    """Every stage of every built-in recipe that has a model of its own."""
    own = {name: build() for name, build in BUILTIN.items() if build().model.start is None}
    return [(name, n) for name, recipe in own.items() for n in range(len(recipe.stages))]


def golden_file(name: str, number: int) -> Path:
    """Where the names of a stage are kept."""
    return GOLDEN / f"trainable_{name}_{BUILTIN[name]().stages[number].name}.txt"


if __name__ == "__main__":
    for recipe_name, stage_number in stages():
        names = compact(trainable(BUILTIN[recipe_name](), stage_number))
        text = "\n".join([COMMAND, *names]) + "\n"
        golden_file(recipe_name, stage_number).write_text(text, encoding="utf-8")
