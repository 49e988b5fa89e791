"""``oculi convert vora``: what the released VoRA code saved, to a folder that oculi loads.

Released: ``Hon-Wong/VoRA``, commit f138756e10db87d5c96864b36a3fd8b1cfae4e86. Nothing of that code is run
or copied: its ``save_pretrained`` writes a flat ``config.json`` and tensors, and both are read as data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, GenerationConfig, PreTrainedConfig

from oculi import durable
from oculi.errors import CheckpointError
from oculi.export.convert import layout as names
from oculi.export.convert.config import (
    ReleasedConfig,
    buildable,
    llm_kind,
    read_config,
    read_json,
    small_files_of,
    text_config,
    with_biases,
)
from oculi.export.convert.files import Stored, open_tensors
from oculi.export.hf import check_free, export
from oculi.hub import readable, resolve
from oculi.model import (
    OculiConfig,
    OculiForConditionalGeneration,
    OculiImageProcessor,
    OculiProcessor,
)
from oculi.model.patch_embed_oculi import CLIP_MEAN, CLIP_STD
from oculi.training.build import DTYPES

ATTENTION = {"bidirectional": "bidirectional", "default": "causal"}  # as the released code calls it
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model")
# What the released training writes around turns. The tokenizer's own template is Qwen's, which begins
# with another system message.
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Conversion:
    """What was done.

    Attributes:
        out: the folder.
        model_type: of the LLM as it is written.
        parameters, dtype: of all of it.
        folded: linears whose LoRA was folded.
        biases, largest: of linears that have none in the LLM's class: how many there were, and the
            largest absolute value with its tensor's name.
        left_out: tensors that only train.
        size: side of the pictures in pixels.
        theirs: the side that ``preprocessor_config.json`` asks for.
    """

    out: Path
    model_type: str
    parameters: int
    dtype: torch.dtype
    folded: int
    biases: int
    largest: tuple[float, str]
    left_out: int
    size: int
    theirs: int

    def lines(self) -> list[str]:
        """For the user."""
        dtype = str(self.dtype).removeprefix("torch.")
        said = [f"{self.out}: {self.parameters:,} parameters in {dtype}"]
        if self.folded:
            said.append(f"LoRA: folded into {self.folded} linears")
        value, name = self.largest
        if self.biases and value:
            said.append(
                f"biases: kept {self.biases} of linears that have none in the LLM, the largest "
                f"{value:.3g} in {name}; so the LLM is written as {self.model_type}, which has a place "
                "for them"
            )
        elif self.biases:
            said.append(f"biases: dropped {self.biases} of linears without one, all zero")
        if self.left_out:
            said.append(f"teacher: left out {self.left_out} tensors that only train")
        said.append(f"pictures: padded to a square with black, {self.size} x {self.size} pixels")
        if self.theirs != self.size:
            said[-1] += (
                f" as in training; preprocessor_config.json says {self.theirs}, where the released code "
                "would take the first rows of the position table"
            )
        return said


@torch.no_grad()
def convert_vora(
    source: str,
    out: Path,
    llm: str | None = None,
    dtype: str | None = None,
    on_progress: Progress | None = None,
) -> Conversion:
    """Convert a checkpoint; LoRA that is not merged is folded, in float32.

    Args:
        source: folder or hub id; sharded or not, safetensors or ``pytorch_model.bin``.
        out: folder to write.
        llm: folder or id of its LLM, for the tokenizer and the family; needed where the source has no
            tokenizer and its configuration names a folder of another machine.
        dtype: "float32" or "bfloat16", to round the weights to; as they are stored if None.
        on_progress: called with tensors done and in all.

    Raises:
        CheckpointError: ``out`` is taken, or the source is no such checkpoint, incomplete or damaged.
        DiskError: ``out`` cannot be written.
    """
    check_free(out)
    folder = Path(resolve(source))
    config = read_config(folder, source)
    stored = open_tensors(folder)
    if config.num_hidden_layers > len(stored):  # before that many blocks are made
        raise CheckpointError(
            f"{source}/config.json: num_hidden_layers is {config.num_hidden_layers}, but there are "
            f"{len(stored)} tensors"
        )
    processor, theirs = _processor(folder, config, llm, source)
    text = text_config(config, llm_kind(config, llm), names.tied(stored, config, source))
    ours = OculiConfig(
        text_config=text,
        vision_config=_vision_config(folder, config),
        image_token_id=processor.image_token_id,
        image_attention=ATTENTION[config.vision_attention_mask],
    )
    found = names.find_layout(stored, config, _shapes(_empty(ours)), source)
    chosen = DTYPES[dtype] if dtype else names.dtype_of(found, stored)
    largest = names.largest(found.biases, stored)
    if largest[0]:
        text = _with_biases(text, largest, source)
    text.dtype = chosen
    ours.text_config, ours.dtype = text, chosen
    model = _empty(ours)
    _fill(model, found, stored, chosen, on_progress)
    _set_generation(model, processor, folder)
    name = Path(source).resolve().name
    summary = f"converted from the VoRA checkpoint {name}, whose licence holds."
    with durable.disk_errors(f"the folder {out}"):
        export(model, processor, out, name, summary)
    return Conversion(
        out=out, model_type=text.model_type, parameters=model.num_parameters(), dtype=chosen,
        folded=len(found.adapters), biases=len(found.biases), largest=largest,
        left_out=found.left_out, size=config.image_size, theirs=theirs,
    )  # fmt: skip


def _vision_config(folder: Path, config: ReleasedConfig) -> dict[str, Any]:
    mean, std = _normalisation(folder)
    return {
        "kind": "patch_embed",
        "patch_size": config.patch_size,
        "width": config.vision_embedding_intermediate_size,
        "grid": [config.side, config.side],
        "image_mean": mean,
        "image_std": std,
        "eps": config.rms_norm_eps,  # the LLM's: the released code overwrites its own with it
    }


def _normalisation(folder: Path) -> tuple[list[float], list[float]]:
    """Mean and deviation from ``preprocessor_config.json``, else CLIP's, which the release uses."""
    file = folder / "preprocessor_config.json"
    data = read_json(file) if file.is_file() else {}
    values = [data.get("image_mean", list(CLIP_MEAN)), data.get("image_std", list(CLIP_STD))]
    for key, value in zip(("image_mean", "image_std"), values, strict=True):
        numbers = isinstance(value, list) and all(type(v) in (int, float) for v in value)
        if not numbers or len(value) != 3 or (key == "image_std" and min(value) <= 0):
            raise CheckpointError(f"{file}: {key} is no list of three numbers that can be used")
    return values[0], values[1]


def _processor(
    folder: Path, config: ReleasedConfig, llm: str | None, source: str
) -> tuple[OculiProcessor, int]:
    """The processor, and the side of pictures in pixels that the source's own asks for."""
    # Released pictures are padded with black, not with the mean colour; the vision part normalises.
    images = OculiImageProcessor(
        patch_size=config.patch_size, mode="square", size=config.image_size, image_mean=(0, 0, 0)
    )
    own = any((folder / file).is_file() for file in TOKENIZER_FILES)
    place = llm or (str(folder) if own else config.llm)
    if not place:
        raise CheckpointError(f"{source} has no tokenizer: name its LLM with --llm")
    try:
        with readable(place):
            path = small_files_of(place)
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
            if len(tokenizer.get_vocab()) <= len(tokenizer.added_tokens_decoder):
                raise ValueError("it has no tokenizer")  # transformers makes up an empty one
    except CheckpointError as error:
        if llm or own:
            raise
        raise CheckpointError(
            f"{source} has no tokenizer, and the LLM that its config.json names cannot be had "
            f"({error}): name it with --llm"
        ) from None
    tokenizer.chat_template = _template(folder, tokenizer)
    with readable(place):
        processor = OculiProcessor(images, tokenizer)
    if tokenizer.vocab_size > config.vocab_size:  # added tokens may lie beyond the table, unused
        raise CheckpointError(
            f"the tokenizer of {place} has {tokenizer.vocab_size} entries, but the LLM of {source} has "
            f"{config.vocab_size}: it is the tokenizer of another LLM"
        )
    try:
        processor.chat.end_of_turn()
    except Exception as error:  # a template may raise anything
        said = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{source}: the chat template cannot be used: {said}") from None
    return processor, _side(folder, config)


def _template(folder: Path, tokenizer: Any) -> str | None:
    """The source's chat template where its processor has one, else that of the released training."""
    if (file := folder / "chat_template.json").is_file():
        template = read_json(file).get("chat_template")
        if not isinstance(template, str):
            raise CheckpointError(f"{file}: chat_template is no text")
        return template
    if (file := folder / "chat_template.jinja").is_file():
        with readable(str(file)):
            return file.read_text(encoding="utf-8")
    if {"<|im_start|>", "<|im_end|>"} <= tokenizer.get_vocab().keys():
        return TEMPLATE
    own: str | None = tokenizer.chat_template
    return own


def _side(folder: Path, config: ReleasedConfig) -> int:
    """Side of a picture in pixels that ``preprocessor_config.json`` asks for."""
    file = folder / "preprocessor_config.json"
    data = read_json(file) if file.is_file() else {}
    size = data.get("crop_size", data.get("size"))
    if isinstance(size, dict):
        size = next(iter(size.values()), None)
    return size if isinstance(size, int) else config.image_size


def _empty(config: OculiConfig) -> OculiForConditionalGeneration:
    """The model without memory for its weights; raises CheckpointError for an LLM that cannot see."""
    with buildable(), torch.device("meta"):
        return OculiForConditionalGeneration(config)


def _shapes(model: OculiForConditionalGeneration) -> dict[str, tuple[int, ...]]:
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if model.config.text_config.tie_word_embeddings:
        del shapes[names.LM_HEAD]
    return shapes


def _with_biases(
    text: PreTrainedConfig, largest: tuple[float, str], source: str
) -> PreTrainedConfig:
    try:
        return with_biases(text)
    except ValueError as error:
        raise CheckpointError(
            f"{source}: {largest[1]} (largest value {largest[0]:.3g}) is a bias that its LoRA layer "
            f"left on a linear without one, and cannot be kept: {error}"
        ) from None


def _fill(
    model: OculiForConditionalGeneration,
    found: names.Layout,
    stored: Mapping[str, Stored],
    dtype: torch.dtype,
    on_progress: Progress | None,
) -> None:
    """Give the model its weights, one after the other."""
    shapes = _shapes(model)
    for done, (name, shape) in enumerate(shapes.items(), start=1):
        value = names.read_weight(name, found, stored, shape, dtype)
        module, _, leaf = name.rpartition(".")
        weight = nn.Parameter(value, requires_grad=False)
        model.get_submodule(module).register_parameter(leaf, weight)
        if on_progress:
            on_progress(done, len(shapes))
    if names.LM_HEAD not in shapes:
        model.get_output_embeddings().weight = model.get_input_embeddings().weight


def _set_generation(
    model: OculiForConditionalGeneration, processor: OculiProcessor, folder: Path
) -> None:
    """How it generates by default: as the source says, ending where its chat template ends a turn."""
    if (folder / "generation_config.json").is_file():
        with readable(str(folder)):
            model.generation_config = GenerationConfig.from_pretrained(folder)
    settings: Any = model.generation_config
    ends = [id for id in processor.chat.end_of_turn() if id is not None]
    settings.eos_token_id = ends or None
    settings.pad_token_id = processor.tokenizer.pad_token_id
    if processor.image_token_id < model.config.text_config.vocab_size:
        settings.suppress_tokens = [processor.image_token_id]
    with readable(f"{folder}/generation_config.json"):
        settings.validate(strict=True)  # as saving it will
