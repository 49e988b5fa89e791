"""From a recipe's model spec to the model and its processor, before any training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from oculi.errors import RecipeError
from oculi.export.exported import load_exported, load_processor
from oculi.hub import load_weights, readable, resolve
from oculi.model import (
    OculiConfig,
    OculiForConditionalGeneration,
    OculiImageProcessor,
    OculiProcessor,
)
from oculi.model.lora import inject_lora
from oculi.recipe import ImageSpec, ModelSpec, PerceiverSpec, TowerSpec
from oculi.training.start import check_start, start_folder
from oculi.training.vision import mean_and_deviation, token_settings, vision_start

NEW_PARTS = ("vision.connector.", "compress.", "fusion.cross.")  # nothing pre-trained is in them
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def build_processor(spec: ModelSpec) -> OculiProcessor:
    """The LLM's tokenizer with the recipe's picture cutter.

    Raises:
        CheckpointError: a checkpoint is not there, or has no tokenizer.
        RecipeError: ``start`` is another model than the recipe says.
    """
    if spec.start is not None:
        begun = recut(load_processor(check_start(spec)), spec.images)
        begun.image_processor.modalities = _modalities(spec, begun.image_processor.modalities)
        return begun
    images = OculiImageProcessor(
        patch_size=spec.vision.patch_size,
        **spec.images.model_dump(),
        image_mean=mean_and_deviation(spec.vision)[0],
        compress=compress_config(spec),
        vision_tokens=token_settings(spec.vision),
        modalities=_modalities(spec),
    )
    with readable(spec.llm):
        tokenizer = AutoTokenizer.from_pretrained(resolve(spec.llm))
        if not tokenizer("text", add_special_tokens=False)["input_ids"]:
            raise ValueError("it has no tokenizer")  # transformers makes up an empty one
        return OculiProcessor(images, tokenizer)


def _modalities(spec: ModelSpec, there: list[str] | None = None) -> list[str] | None:
    """Those with LoRA of their own: of the model that training begins with, and the recipe's."""
    if spec.lora is None or not spec.lora.routed:
        return there
    return [*(there or []), spec.lora.modality]


def compress_config(spec: ModelSpec) -> dict[str, Any] | None:
    """What the model and its processor are told of the recipe's compressor."""
    return spec.compress.model_dump() if spec.compress is not None else None


def fuse_config(spec: ModelSpec) -> dict[str, Any] | None:
    """What the model is told of the recipe's fusion."""
    return spec.fusion.model_dump() if spec.fusion is not None else None


@torch.no_grad()
def standard_normal(model: OculiForConditionalGeneration) -> None:
    """Connector, compressor and cross fusion as AuroraEdge-V starts them (section 4.1).

    Matrices and filters are drawn; biases and norms stay as they are.
    """
    for name, parameter in model.named_parameters():
        if name.startswith(NEW_PARTS) and parameter.ndim > 1:
            parameter.normal_()


def recut(processor: OculiProcessor, images: ImageSpec) -> OculiProcessor:
    """The same processor with pictures cut as ``images`` says."""
    old = processor.image_processor
    cutter = OculiImageProcessor(
        patch_size=old.patch_size, **images.model_dump(), image_mean=tuple(old.image_mean),
        compress=old.compress, vision_tokens=old.vision_tokens, modalities=old.modalities,
    )  # fmt: skip
    return OculiProcessor(cutter, processor.tokenizer)


def build_model(
    spec: ModelSpec, processor: OculiProcessor, seed: int
) -> OculiForConditionalGeneration:
    """The LLM with its weights and a new vision part, started from ``vision.init_from`` if that is set.

    Or all of ``start``. Routed LoRA is in it, as it is part of the model; mergeable LoRA is what a stage
    adds.

    Args:
        spec: what to build.
        processor: gives the image token.
        seed: of the new weights.

    Raises:
        RecipeError: the vision part and the checkpoint that should start it have different shapes, it
            has no such layer, the LLM has blocks that cannot see, or no place for routed LoRA; or
            ``start`` is another model than the recipe says.
        CheckpointError: a checkpoint is not there, damaged or lacks weights.
    """
    torch.manual_seed(seed)
    if spec.start is not None:
        model, _ = load_exported(check_start(spec))
        cast(model, DTYPES[spec.dtype])
        set_attention(model, spec)
        add_routed_lora(model, spec, seed)
        return model
    start = vision_start(spec.vision)
    llm_path = resolve(spec.llm)
    with readable(spec.llm):
        kind = AutoConfig.from_pretrained(llm_path).model_type
    if kind == OculiConfig.model_type:
        raise RecipeError(
            f"model.llm: {spec.llm} can see already; give the text LLM it was made from, or train it "
            "further: oculi train finetune --start"
        )
    llm = load_weights(
        AutoModelForCausalLM,
        llm_path,
        spec.llm,
        dtype=DTYPES[spec.dtype],
        attn_implementation=spec.attention,
    )
    config = OculiConfig(
        text_config=llm.config,
        vision_config=start.config,
        compress_config=compress_config(spec),
        fuse_config=fuse_config(spec),
        image_token_id=processor.image_token_id,
        image_attention=spec.image_attention,
        dtype=DTYPES[spec.dtype],
    )
    try:
        model = OculiForConditionalGeneration.assemble(config, llm)
    except ValueError as error:
        raise RecipeError(f"model.llm: {error}") from None
    set_attention(model, spec)  # a new configuration around it has reset that
    model.generation_config.eos_token_id = processor.chat.end_of_turn()
    if processor.image_token_id < llm.config.vocab_size:
        model.generation_config.suppress_tokens = [processor.image_token_id]
    start.load(model.vision, spec.vision.init_from)
    if spec.init == "normal":
        standard_normal(model)
    add_routed_lora(model, spec, seed)
    return model


def base_of(spec: ModelSpec) -> str:
    """What checkpoints are changes to: a folder, or a name that is shipped; raises CheckpointError."""
    if spec.start is not None:
        # Absolute: a relative one could be taken for a stage of the run itself.
        return str(start_folder(spec.start).resolve())
    return spec.llm if spec.llm.startswith("testbed:") else resolve(spec.llm)


def set_attention(model: OculiForConditionalGeneration, spec: ModelSpec) -> None:
    """How the LLM and a tower attend in training; an exported folder has transformers' default."""
    model.llm.set_attn_implementation(spec.attention)
    if isinstance(spec.vision, TowerSpec | PerceiverSpec):
        tower: Any = model.vision.tower
        tower.set_attn_implementation(spec.vision.attention)


def cast(model: OculiForConditionalGeneration, dtype: torch.dtype) -> None:
    """All weights to ``dtype``, in place, as an exported folder will have them.

    Buffers stay as they are, because they are not exported: ``model.to`` would round the LLM's rotary
    frequencies to bfloat16, and positions of a few hundred tokens would blur.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def add_lora(model: OculiForConditionalGeneration, spec: ModelSpec, seed: int) -> None:
    """Inject the recipe's LoRA, unless it is routed; its A matrices depend on ``seed`` alone.

    Raises:
        RecipeError: a target or a block does not exist.
    """
    if (lora := spec.lora) is not None and not lora.routed:
        with _lora_of_recipe(seed):
            inject_lora(model.llm, lora.rank, lora.blocks, lora.targets)


def add_routed_lora(model: OculiForConditionalGeneration, spec: ModelSpec, seed: int) -> None:
    """Add the recipe's LoRA if it is routed; see ``add_lora``."""
    if (lora := spec.lora) is not None and lora.routed:
        with _lora_of_recipe(seed):
            blocks = lora.blocks or len(model.blocks)
            model.add_routed_lora(lora.modality, lora.rank, blocks, lora.targets)


@contextmanager
def _lora_of_recipe(seed: int) -> Iterator[None]:
    torch.manual_seed(seed)
    try:
        yield
    except ValueError as error:
        raise RecipeError(f"model.lora: {error}") from None
