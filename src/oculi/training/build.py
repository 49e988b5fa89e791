"""From a recipe's model spec to the model and its processor, before any training."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from oculi.errors import RecipeError
from oculi.hub import load_weights, readable, resolve
from oculi.model import (
    OculiConfig,
    OculiForConditionalGeneration,
    OculiImageProcessor,
    OculiProcessor,
)
from oculi.model.lora import inject_lora
from oculi.model.patch_embed_oculi import CLIP_MEAN, CLIP_STD
from oculi.recipe import ModelSpec

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def build_processor(spec: ModelSpec) -> OculiProcessor:
    """The LLM's tokenizer with the recipe's picture cutter; raises CheckpointError."""
    images = OculiImageProcessor(
        patch_size=spec.vision.patch_size,
        **spec.images.model_dump(),
        image_mean=_mean_and_deviation(spec)[0],
    )
    with readable(spec.llm):
        tokenizer = AutoTokenizer.from_pretrained(resolve(spec.llm))
        if not tokenizer("text", add_special_tokens=False)["input_ids"]:
            raise ValueError("it has no tokenizer")  # transformers makes up an empty one
        return OculiProcessor(images, tokenizer)


def build_model(
    spec: ModelSpec, processor: OculiProcessor, seed: int
) -> OculiForConditionalGeneration:
    """The LLM with its weights and a new vision part, started from ``vision.init_from`` if that is set.

    Args:
        spec: what to build.
        processor: gives the image token.
        seed: of the new weights.

    Raises:
        RecipeError: the vision part and the checkpoint that should start it have different shapes, or
            the LLM has blocks that cannot see.
        CheckpointError: a checkpoint is not there, damaged or lacks weights.
    """
    torch.manual_seed(seed)
    start = _patch_embedding(spec)
    width, grid = spec.vision.width, spec.vision.grid
    if start:
        width = width or start["patch.weight"].shape[0]
        grid = grid or _square(start)
    llm_path = resolve(spec.llm)
    with readable(spec.llm):
        kind = AutoConfig.from_pretrained(llm_path).model_type
    if kind == OculiConfig.model_type:
        raise RecipeError(
            f"model.llm: {spec.llm} can see already; give the text LLM it was made from"
        )
    llm = load_weights(
        AutoModelForCausalLM,
        llm_path,
        spec.llm,
        dtype=DTYPES[spec.dtype],
        attn_implementation=spec.attention,
    )
    mean, deviation = _mean_and_deviation(spec)
    config = OculiConfig(
        text_config=llm.config,
        vision_config={
            "kind": spec.vision.kind, "patch_size": spec.vision.patch_size, "width": width,
            "grid": list(grid or (32, 32)), "image_mean": list(mean), "image_std": list(deviation),
        },
        image_token_id=processor.image_token_id,
        image_attention=spec.image_attention,
        dtype=DTYPES[spec.dtype],
    )  # fmt: skip
    try:
        model = OculiForConditionalGeneration.assemble(config, llm)
    except ValueError as error:
        raise RecipeError(f"model.llm: {error}") from None
    model.set_attn_implementation(spec.attention)  # a new configuration resets that of its LLM
    model.generation_config.eos_token_id = processor.chat.end_of_turn()
    if processor.image_token_id < llm.config.vocab_size:
        model.generation_config.suppress_tokens = [processor.image_token_id]
    _start_from(model.vision, start, spec)
    return model


def add_lora(model: OculiForConditionalGeneration, spec: ModelSpec, seed: int) -> None:
    """Inject the recipe's LoRA; its A matrices depend on ``seed`` alone.

    Raises:
        RecipeError: a target or a block does not exist.
    """
    assert spec.lora is not None
    torch.manual_seed(seed)
    try:
        inject_lora(model.llm, spec.lora.rank, spec.lora.blocks, spec.lora.targets)
    except ValueError as error:
        raise RecipeError(f"model.lora: {error}") from None


def _mean_and_deviation(spec: ModelSpec) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of pixels, as the weights that start the vision part were trained with."""
    if spec.vision.init_from is None:
        return CLIP_MEAN, CLIP_STD
    from oculi.objectives.teacher import normalisation

    return normalisation(resolve(spec.vision.init_from))


def _patch_embedding(spec: ModelSpec) -> dict[str, Tensor]:
    if spec.vision.init_from is None:
        return {}
    from oculi.objectives.teacher import load_patch_embedding

    return load_patch_embedding(spec.vision.init_from)


def _square(start: dict[str, Tensor]) -> tuple[int, int] | None:
    if "position" not in start:
        return None
    side = round(len(start["position"]) ** 0.5)
    return side, side


@torch.no_grad()
def _start_from(vision: torch.nn.Module, start: dict[str, Tensor], spec: ModelSpec) -> None:
    own = vision.state_dict()
    for name, value in start.items():
        if own[name].shape != value.shape:
            raise RecipeError(
                f"model.vision: {name} is {tuple(own[name].shape)} here but {tuple(value.shape)} in "
                f"{spec.vision.init_from}: take its patch_size, width and grid, or no init_from"
            )
        own[name].copy_(value)
