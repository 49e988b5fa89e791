"""What the tiny checkpoints' trainings share: seeds, optimisers, schedule, progress, saving.

Two threads and bf16 autocast, whatever the machine has: a build anywhere then takes the same steps
in the same order.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

THREADS = 2
SHARD = "4MB"  # shipped files stay small enough for any repository


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how fast one part is trained; `steps` fixes the work, not the time.

    `horizon` is where the learning rate would reach its end, if that is not the last step.
    """

    steps: int
    batch: int
    muon_lr: float
    adam_lr: float
    warmup: int
    seed: int = 0
    report_every: int = 50
    save_every: int = 0  # 0: only at the end
    horizon: int = 0  # 0: the last step


def setup(seed: int) -> None:
    """Seed torch and keep it to two threads."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(seed)


def compiled(model: nn.Module) -> Any:
    """Return `model` compiled for batches of any shape, or as it is where no C++ compiler is.

    The tiny LLM's step takes 0.36 s instead of 0.60 s on two cores.
    """
    if shutil.which("c++") is None and shutil.which("g++") is None:
        return model
    return torch.compile(model, dynamic=True)


class Optimisers:
    """Muon for matrices, AdamW for the rest, on one schedule.

    Muon needs about half of AdamW's steps here, which on a CPU is what decides. A convolution's kernel
    [out, in, k, k] is a matrix [out, in * k * k].

    Args:
        matrices: of two dimensions or more. others: of any.
        plan: rates and schedule.
        decay: of the matrices.
    """

    def __init__(
        self,
        matrices: Sequence[nn.Parameter],
        others: Sequence[nn.Parameter],
        plan: Plan,
        decay: float = 0.05,
    ) -> None:
        self.matrices, self.others, self.plan = list(matrices), list(others), plan
        # Views of the same storage: torch's Muon takes two dimensions alone.
        self.flat = [nn.Parameter(weight.detach().flatten(1)) for weight in self.matrices]
        self.parts: list[tuple[torch.optim.Optimizer, float]] = [
            (
                torch.optim.Muon(self.flat, weight_decay=decay, adjust_lr_fn="original"),
                plan.muon_lr,
            ),
            (torch.optim.AdamW(self.others, betas=(0.9, 0.98), weight_decay=0.0), plan.adam_lr),
        ]

    @classmethod
    def of_layers(cls, model: nn.Module, heads: nn.Module | None, plan: Plan) -> Optimisers:
        """Muon for the matrices of ``model``'s blocks; heads go with the rest."""
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, weight in model.named_parameters():
            inside = weight.ndim == 2 and ".layers." in name
            (matrices if inside else others).append(weight)
        if heads is not None:
            others += list(heads.parameters())
        return cls(matrices, others, plan)

    def step(self, step: int) -> float:
        """Clip, update, clear; return the gradient norm before clipping."""
        norm = nn.utils.clip_grad_norm_([*self.matrices, *self.others], 1.0)
        for weight, flat in zip(self.matrices, self.flat, strict=True):
            if weight.grad is not None:
                flat.grad, weight.grad = weight.grad.flatten(1), None
        for part, lr in self.parts:
            for group in part.param_groups:
                group["lr"] = lr * factor(step, self.plan)
            part.step()
            part.zero_grad(set_to_none=True)
        return float(norm)


def factor(step: int, plan: Plan) -> float:
    """Return the learning rate at `step` relative to its peak: warm-up, then cosine to 2 %."""
    if step < plan.warmup:
        return (step + 1) / plan.warmup
    done = (step - plan.warmup) / max(1, (plan.horizon or plan.steps) - plan.warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class Progress:
    """Prints a line every so many steps: step, running losses, samples, time left."""

    def __init__(self, part: str, plan: Plan, log: Path | None) -> None:
        self.part, self.plan, self.log = part, plan, log
        self.begin = time.monotonic()
        self.sums: dict[str, float] = {}
        self.count = 0

    def add(self, step: int, values: dict[str, float]) -> None:
        """Take one step's losses and print when it is time."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1
        if (step + 1) % self.plan.report_every and step + 1 != self.plan.steps:
            return
        spent = time.monotonic() - self.begin
        left = spent / (step + 1) * (self.plan.steps - step - 1)
        shown = " ".join(f"{name} {total / self.count:.4f}" for name, total in self.sums.items())
        self.say(f"step {step + 1}/{self.plan.steps} {shown} spent {spent:.0f}s left {left:.0f}s")
        self.sums, self.count = {}, 0

    def say(self, line: str) -> None:
        """Print a line, and append it to the log if there is one."""
        print(f"[{self.part}] {line}", flush=True)
        if self.log is not None:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(line + "\n")


def cast(model: Any, dtype: torch.dtype) -> None:
    """All weights to `dtype`, in place. `model.to` would also round the rotary frequencies, which
    are buffers that no file keeps: training would go on with others than the shipped model has."""
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)


def save(model: Any, folder: Path) -> None:
    """Write `model` as bf16 safetensors of at most 4 MB a file; the model itself keeps fp32."""
    kept = [weight.detach().clone() for weight in model.parameters()]
    cast(model, torch.bfloat16)
    model.save_pretrained(folder, max_shard_size=SHARD)
    cast(model, torch.float32)
    for weight, value in zip(model.parameters(), kept, strict=True):
        weight.data.copy_(value)
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors are written for their owner only; a package is for all


def batches(total: int, size: int) -> Iterator[range]:
    """Yield ranges that cut `total` into runs of `size`."""
    for first in range(0, total, size):
        yield range(first, min(total, first + size))
