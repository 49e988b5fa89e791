"""``config.json`` as the released VoRA code writes it: its own keys, with its LLM's beside them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from transformers import AutoConfig, LlamaConfig, PreTrainedConfig

from oculi.errors import CheckpointError, shown
from oculi.hub import readable, resolve

# The only family that was released; ``--llm`` names another.
DEFAULT_KIND = "qwen2"
# Families that compute what Llama computes where Llama's linears have biases.
LIKE_LLAMA = ("qwen2", "llama")
_ROPE = {"rope_theta", "rope_scaling", "rope_parameters"}
_NOT_OF_THE_LLM = {
    *("_name_or_path", "architectures", "dtype", "model_type", "torch_dtype"),
    *("transformers_version", "tie_word_embeddings"),
}


class ReleasedLora(BaseModel):
    """The ``lora`` block. A negative rank means merged: the layers are plain, with their biases."""

    model_config = ConfigDict(strict=True, frozen=True)

    layers: int | Literal["all"] = "all"
    r: int = 1024
    target_modules: list[str]


class ReleasedConfig(BaseModel):
    """What is read of ``config.json``; the rest of the LLM's keys are in ``model_extra``.

    Keys that transformers leaves out of a file have the released class's defaults.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="allow")

    llm: str = ""
    lora: ReleasedLora | None = None
    image_size: int = Field(default=448, gt=0)
    patch_size: int = Field(default=14, gt=0)
    vision_embedding: Literal["AIMv2Embedding"] = "AIMv2Embedding"
    vision_embedding_intermediate_size: int = Field(default=1536, gt=0)
    vision_attention_mask: Literal["bidirectional", "default"] = "bidirectional"
    # Of the LLM. A wrong one of these would not show in the shapes of the weights.
    vocab_size: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    num_hidden_layers: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    rms_norm_eps: float = Field(gt=0)
    tie_word_embeddings: bool | None = None

    @field_validator("lora", mode="before")
    @classmethod
    def _none_is_empty(cls, value: Any) -> Any:
        return value or None

    @model_validator(mode="after")
    def _fits(self) -> ReleasedConfig:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}"
            )
        if not _ROPE & set(self.model_extra or {}):
            raise ValueError("rope_theta and rope_parameters are missing")
        return self

    @property
    def side(self) -> int:
        """Rows, and columns, of the position table."""
        return self.image_size // self.patch_size

    @property
    def lora_blocks(self) -> range:
        """Blocks whose linears its LoRA layer replaced."""
        if self.lora is None:
            return range(0)
        blocks = self.lora.layers
        return range(self.num_hidden_layers if blocks == "all" else blocks)


def read_config(folder: Path, source: str) -> ReleasedConfig:
    """Read ``config.json``.

    Raises:
        CheckpointError: it is no JSON, of another kind of model, or a key is missing or wrong.
    """
    data = read_json(folder / "config.json")
    kind = data.get("model_type")
    if kind == "oculi":
        raise CheckpointError(f"{source} is oculi's own already: use it as it is")
    if kind != "vora":
        raise CheckpointError(
            f"{source}/config.json has the model_type {shown(str(kind))}, and the released VoRA code "
            'writes "vora"'
        )
    try:
        return ReleasedConfig.model_validate(data)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        said = problem["msg"].removeprefix("Value error, ")
        place = f"{where}: " if where else ""
        raise CheckpointError(f"{source}/config.json: {place}{said}") from None


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; raises CheckpointError."""
    with readable(str(file)):
        data = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise ValueError("it holds no JSON object")
        return data


def small_files_of(llm: str) -> str:
    """Where transformers finds configuration and tokenizer of an LLM: a folder, or a hub id, of which it
    then fetches no weights; raises CheckpointError."""
    if llm.startswith("testbed:") or Path(llm).is_dir() or llm.count("/") != 1:
        return resolve(llm)
    return llm


def llm_kind(config: ReleasedConfig, llm: str | None) -> str:
    """The LLM's ``model_type``, which the released code overwrites with its own.

    Args:
        config: names its LLM, which may be a folder of another machine.
        llm: folder or id that the user has given.

    Raises:
        CheckpointError: ``llm`` is not there.
    """
    place = llm
    if llm is None and (Path(config.llm) / "config.json").is_file():
        place = config.llm
    if place is None or not place:
        return DEFAULT_KIND
    with readable(place):
        found = AutoConfig.from_pretrained(small_files_of(place), trust_remote_code=False)
    return str(found.model_type)


def text_config(config: ReleasedConfig, kind: str, tied: bool) -> PreTrainedConfig:
    """The LLM's configuration, out of the keys beside VoRA's own.

    Raises:
        CheckpointError: transformers does not accept them.
    """
    with buildable():
        known = set(AutoConfig.for_model(kind).to_dict()) | _ROPE | {"head_dim"}
        data = config.model_dump()
        values = {key: data[key] for key in data if key in known - _NOT_OF_THE_LLM}
        return AutoConfig.for_model(kind, tie_word_embeddings=tied, **values)


@contextmanager
def buildable() -> Iterator[None]:
    """Turn what transformers raises for settings that make no LLM into one line.

    Raises:
        CheckpointError: instead.
    """
    try:
        yield
    except Exception as error:  # from a dozen libraries' checks down to a division by zero
        said = " ".join(str(error).split())[:300]
        raise CheckpointError(f"config.json describes no LLM that can be built: {said}") from None


def with_biases(text: PreTrainedConfig) -> LlamaConfig:
    """A Llama that computes what ``text`` computes, and whose linears all have biases.

    Qwen2's class has no place for biases of o, gate, up and down. Llama's has, by two flags, and with
    full attention the two compute the same; a bias of zero is none.

    Raises:
        ValueError: ``text`` is of a family of which that is not known.
    """
    if text.model_type not in LIKE_LLAMA:
        raise ValueError(f"the class of {text.model_type} has no place for them")
    shared = set(LlamaConfig().to_dict()) - _NOT_OF_THE_LLM
    values = {key: value for key, value in text.to_dict().items() if key in shared}
    values |= {"attention_bias": True, "mlp_bias": True}
    return LlamaConfig(tie_word_embeddings=text.tie_word_embeddings, **values)
