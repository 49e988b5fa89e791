"""The numbers that a stage computes in, and whether this machine does so at speed."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext

import torch

from oculi.model import OculiForConditionalGeneration
from oculi.recipe import Stage
from oculi.training.build import cast

_SIDE = 512  # of the products that are timed: a millisecond or a few
_SLOWER = 1.5  # what two timings of the same thing may differ by is less


def autocast(stage: Stage, device: torch.device) -> AbstractContextManager[object]:
    """bf16 autocast where the stage asks for it; parameters stay float32."""
    if stage.precision == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def compute_in(stage: Stage, model: OculiForConditionalGeneration) -> None:
    """Cast a model that is loaded in bfloat16, in place, for a stage that computes in float32.

    There is no autocast then, and what is trained is in float32: its products with the rest would fail.
    """
    if stage.precision == "float32":
        cast(model, torch.float32)


def as_trained(model: OculiForConditionalGeneration) -> AbstractContextManager[object]:
    """Autocast for a model between its stages, if a part of the LLM was trained and is in float32 alone.

    With LoRA still to be merged it is cast by nobody; where only LoRA is, its layers see to it.
    """
    dtypes = {p.dtype for name, p in model.llm.named_parameters() if ".lora_" not in name}
    if len(dtypes) == 1:
        return nullcontext()
    return torch.autocast(model.device.type, dtype=torch.bfloat16)


def advice(stage: Stage, number: int, device: torch.device) -> str | None:
    """A line for a machine without bf16 instructions, where the stage would be faster in float32.

    Many processors have none (x86 without AVX512-BF16 or AMX, GPUs before Ampere) and compute bf16 in
    software. A CPU is timed, as no list of them stays complete; a slow one took a third of a second.
    """
    if stage.precision != "bfloat16":
        return None
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return None
        cost = "in software"
    else:
        times = _product_seconds(torch.bfloat16) / _product_seconds(torch.float32)
        if times < _SLOWER:
            return None
        cost = f"in {times:.1f} times the time of float32"
    return (
        f"this {device.type.upper()} multiplies in bfloat16 {cost}: with "
        f"stages.{number}.precision=float32 a new run is faster (and its numbers differ a little)"
    )


def _product_seconds(dtype: torch.dtype) -> float:
    """The least of a few: what else runs here only adds."""
    matrix = torch.ones(_SIDE, _SIDE, dtype=dtype)
    seconds = []
    for _ in range(4):  # the first one makes the kernel
        begun = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - begun)
    return min(seconds)
