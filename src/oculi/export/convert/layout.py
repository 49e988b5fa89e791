"""Which tensor of the released VoRA code becomes which of ours, and that none is missing or left over.

theirs                                              ours
llm.model.layers.0.mlp.up_proj.weight  [O, I]  ──┬─▶ llm.model.layers.0.mlp.up_proj.weight  W + B A
                          .lora_A.weight [r, I] ─┤
                          .lora_B.weight [O, r] ─┘
                          .bias          [O]   ────▶ the same, in a class that has a place for it
vision_embedding.pos_embed             [1, N, W] ──▶ vision.position                        [N, W]
aux_vision.*                                     ──▶ nothing: the teacher and its heads only train
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from oculi.errors import CheckpointError, shown
from oculi.export.convert.config import ReleasedConfig
from oculi.export.convert.files import Stored

LM_HEAD, EMBEDDING = "llm.lm_head.weight", "llm.model.embed_tokens.weight"
TEACHER = "aux_vision."
VISION = {  # ours: theirs
    "vision.patch.weight": "vision_embedding.patchifier.proj.weight",
    "vision.patch.bias": "vision_embedding.patchifier.proj.bias",
    "vision.norm.weight": "vision_embedding.patchifier.norm.weight",
    "vision.position": "vision_embedding.pos_embed",
    "vision.projection.weight": "vision_embedding.out_proj.weight",
}

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Layout:
    """Names that were found, all checked.

    Attributes:
        weights: our name to theirs, of what is copied.
        adapters: our name of a weight to the names of its LoRA's A and B.
        biases: names, the same in both, of biases that their LoRA layer gave to linears without one.
        left_out: how many tensors only train.
    """

    weights: dict[str, str]
    adapters: dict[str, tuple[str, str]]
    biases: tuple[str, ...]
    left_out: int

    def names(self) -> Iterator[str]:
        """Every tensor of theirs that is read."""
        yield from self.weights.values()
        for pair in self.adapters.values():
            yield from pair
        yield from self.biases


def find_layout(
    stored: Mapping[str, Stored], config: ReleasedConfig, shapes: Shapes, source: str
) -> Layout:
    """Account for every stored tensor.

    Args:
        stored: what the files hold.
        shapes: of our tensors, by name, in the LLM's own class. Without ``LM_HEAD`` where it is tied.
        source: for messages.

    Raises:
        CheckpointError: a tensor is missing, unknown, or of another shape or a quantised type.
    """
    weights = {name: VISION.get(name, name) for name in shapes}
    wanted = {theirs: _their_shape(ours, shapes[ours], config) for ours, theirs in weights.items()}
    adapters: dict[str, tuple[str, str]] = {}
    biases: list[str] = []
    for linear in _lora_linears(config, shapes, source):
        weight, bias = f"{linear}.weight", f"{linear}.bias"
        outputs, inputs = shapes[weight]
        if config.lora is not None and config.lora.r >= 0:
            a, b = f"{linear}.lora_A.weight", f"{linear}.lora_B.weight"
            adapters[weight] = a, b
            wanted |= {a: (config.lora.r, inputs), b: (outputs, config.lora.r)}
        if bias not in wanted and bias in stored:
            biases.append(bias)
            wanted[bias] = (outputs,)
    teacher = {name for name in stored if name.startswith(TEACHER)}
    others = stored.keys() - wanted.keys() - teacher
    if LM_HEAD not in shapes:
        others -= {LM_HEAD}  # a copy of the embedding; ``tied`` has looked at it
    if others:
        raise CheckpointError(_unknown(sorted(others), stored, config, source))
    if missing := [name for name in wanted if name not in stored]:
        raise CheckpointError(
            f"{source} lacks {_count(missing)} that its config.json asks for, the first is {missing[0]}"
            f"{_family(missing[0])}"
        )
    for name, shape in wanted.items():
        _check(name, stored[name], shape, source)
    return Layout(weights, adapters, tuple(biases), len(teacher))


def tied(stored: Mapping[str, Stored], config: ReleasedConfig, source: str) -> bool:
    """Whether the LM head is the embedding. The key is left out of some files where it is true.

    Raises:
        CheckpointError: it is said to be, and the file's two differ.
    """
    if LM_HEAD not in stored:
        return config.tie_word_embeddings is not False
    if not config.tie_word_embeddings:
        return False
    head, embedding = stored[LM_HEAD], stored.get(EMBEDDING)
    if embedding is None:  # which is found missing later
        return True
    if head.dtype != embedding.dtype or not torch.equal(head.read(), embedding.read()):
        raise CheckpointError(
            f"{source}: {LM_HEAD} differs from {EMBEDDING}, but config.json has tie_word_embeddings: "
            "set that to false there, if the head was trained"
        )
    return True


def largest(names: Iterable[str], stored: Mapping[str, Stored]) -> tuple[float, str]:
    """The largest absolute value in these tensors and who has it; NaN counts as largest."""
    found = [(0.0, "")]
    for name in names:
        if values := stored[name].read().abs().flatten().tolist():
            found.append((max(math.inf if math.isnan(v) else v for v in values), name))
    return max(found)


def dtype_of(layout: Layout, stored: Mapping[str, Stored]) -> torch.dtype:
    """The narrowest type that holds every tensor exactly."""
    result: torch.dtype | None = None
    for name in layout.names():
        dtype = stored[name].dtype
        assert dtype is not None  # checked by find_layout
        result = dtype if result is None else torch.promote_types(result, dtype)
    assert result is not None
    return result


def read_weight(
    name: str,
    layout: Layout,
    stored: Mapping[str, Stored],
    shape: tuple[int, ...],
    dtype: torch.dtype,
) -> Tensor:
    """One of our tensors; LoRA is added in float32 before it is rounded. Biases they lack are zero."""
    if name not in layout.weights:
        if name in layout.biases:
            return stored[name].read().to(dtype)
        return torch.zeros(shape, dtype=dtype)
    value = stored[layout.weights[name]].read().reshape(shape)
    if name in layout.adapters:
        a, b = (stored[part].read().float() for part in layout.adapters[name])
        value = torch.addmm(value.float(), b, a)
    return value.to(dtype)


def _lora_linears(config: ReleasedConfig, shapes: Shapes, source: str) -> Iterator[str]:
    """Names of the linears that their LoRA layer replaced."""
    if config.lora is None:
        return
    if config.lora_blocks.stop > config.num_hidden_layers:
        raise CheckpointError(
            f"{source}/config.json: lora.layers is {config.lora.layers}, but the LLM has "
            f"{config.num_hidden_layers} blocks"
        )
    for block in config.lora_blocks:
        for target in config.lora.target_modules:
            linear = f"llm.model.layers.{block}.{target}"
            if len(shapes.get(f"{linear}.weight", ())) != 2:
                raise CheckpointError(
                    f"{source}/config.json: lora.target_modules names {shown(target)}, which is no "
                    f"linear layer of the LLM's blocks"
                )
            yield linear


def _their_shape(ours: str, shape: tuple[int, ...], config: ReleasedConfig) -> tuple[int, ...]:
    if ours == "vision.patch.weight":  # a convolution; channels, rows, columns of a patch, as ours
        return (shape[0], 3, config.patch_size, config.patch_size)
    return (1, *shape) if ours == "vision.position" else shape


def _check(name: str, found: Stored, shape: tuple[int, ...], source: str) -> None:
    if found.shape != shape:
        raise CheckpointError(
            f"{source}: {name} is {list(found.shape)}, but its config.json makes it {list(shape)}"
        )
    if found.dtype is None:
        raise CheckpointError(
            f"{source}: {name} is not stored as float32, bfloat16 or float16: convert the checkpoint "
            "from before it was quantised"
        )


def _unknown(
    names: list[str], stored: Mapping[str, Stored], config: ReleasedConfig, source: str
) -> str:
    """Message about tensors that nothing accounts for."""
    name = next((name for name in names if ".lora_" in name), names[0])
    message = (
        f"{source} holds {_count(names)} that its config.json does not account for, the first is "
        f"{shown(name, 120)}"
    )
    if ".lora_" in name:
        rank = "it has no lora" if config.lora is None else f"lora.r is {config.lora.r}"
        return f"{message}: {rank} there, but this is LoRA on a layer; correct config.json"
    if name.startswith("llm.") and name.endswith(".bias") and stored[name].dtype is not None:
        value, _ = largest([name], stored)
        return (
            f"{message} (largest value {value:.3g}): its lora block names no such layer, and the "
            "released code would ignore it; name the layer there if it was trained"
        )
    return message + _family(name)


def _family(name: str) -> str:
    return "; if the LLM is no Qwen2, name it with --llm" if name.startswith("llm.") else ""


def _count(names: list[str]) -> str:
    return f"{len(names)} tensor{'s' * (len(names) != 1)}"
