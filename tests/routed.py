"""Tiny models with routed LoRA, and what tests of it compare."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from oculi.model.routed_oculi import Adapter

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def fill(module: nn.Module, std: float = 0.3, seed: int = 5) -> None:
    """Draw every adapter's B: at zero nothing would show."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for child in module.modules():
            if isinstance(child, Adapter):
                child.lora_B.weight.normal_(std=std)


def with_routed(
    make_model: Callable[..., Any],
    family: str = "qwen2",
    blocks: int = 3,
    dtype: torch.dtype = torch.float32,
    **settings: Any,
) -> tuple[Any, Any]:
    """A plain model, and the same one with LoRA on images in ``blocks`` blocks."""
    plain = make_model(family, **settings)
    for parameter in plain.parameters():
        parameter.data = parameter.data.to(dtype)
    model = copy.deepcopy(plain)
    model.add_routed_lora("image", 4, blocks, TARGETS)
    fill(model)
    return plain, model


def same_bits(found: Tensor, wanted: Tensor) -> bool:
    """Unlike ``torch.equal``, 0.0 and -0.0 differ."""
    assert found.dtype == wanted.dtype
    return torch.equal(found.contiguous().view(torch.uint8), wanted.contiguous().view(torch.uint8))
