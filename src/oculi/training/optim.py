"""AdamW with a learning rate per glob, and the schedules."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from oculi.recipe import Stage


def make_optimizer(
    parameters: Mapping[str, nn.Parameter], rates: Mapping[str, float], stage: Stage
) -> torch.optim.AdamW:
    """One group per learning rate and decay; vectors (norms, biases) do not decay."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        decay = stage.weight_decay if parameter.ndim >= 2 else 0.0
        groups.setdefault((rates[name], decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": members, "lr": rate, "base_lr": rate, "weight_decay": decay}
            for (rate, decay), members in sorted(groups.items())
        ],
        betas=stage.betas,
        fused=True,
    )


def lr_factor(stage: Stage, step: int) -> float:
    """Factor on every learning rate at step ``step`` (from 0): linear warm-up, then the schedule."""
    if step < stage.warmup_steps:
        return (step + 1) / stage.warmup_steps
    if stage.schedule == "constant":
        return 1.0
    span = max(1, stage.steps - stage.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * (step - stage.warmup_steps) / span))


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Apply the factor; returns the highest rate, for the log."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return max(float(group["lr"]) for group in optimizer.param_groups)
