"""AdamW and Muon with a learning rate per glob, and the schedules."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from oculi.errors import RecipeError
from oculi.recipe import Stage
from oculi.training.module import match


class Optimizers:
    """Several optimizers as one, as the loop and the checkpoint use it."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = list(parts)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all parts, one after the other."""
        return [group for part in self.parts for group in part.param_groups]

    def members(self) -> list[list[nn.Parameter]]:
        """The parameters of each part, in the order of its state."""
        return [[p for group in part.param_groups for p in group["params"]] for part in self.parts]

    def step(self) -> None:
        """Update every parameter once."""
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        """Free all gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """The state of every part, in order."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def check(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError unless a state is of these parts, groups and shapes."""
        found = state.get("parts", ())
        if len(found) != len(self.parts):
            raise ValueError(f"the state of {len(found)} optimizers, not of {len(self.parts)}")
        for part, its, members in zip(self.parts, found, self.members(), strict=True):
            groups = [len(group["params"]) for group in its["param_groups"]]
            wanted = [len(group["params"]) for group in part.param_groups]
            if groups != wanted:
                raise ValueError(f"the state of groups of {groups} parameters, not of {wanted}")
            for number, values in its["state"].items():
                shape = members[number].shape
                for name, value in values.items():
                    if value.ndim and value.shape != shape:
                        raise ValueError(
                            f"{name} of parameter {number} is {tuple(value.shape)}, not {tuple(shape)}"
                        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state_dict`` gave; raises ValueError as ``check``."""
        self.check(state)
        for part, its in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(its)


def muon_matrices(
    parameters: Mapping[str, nn.Parameter], trained: Sequence[str], stage: Stage, where: str
) -> set[str]:
    """Names of the matrices that Muon updates.

    Args:
        parameters: all, by canonical name.
        trained: names of those that the stage trains.
        stage: whose globs to match.
        where: for the message.

    Raises:
        RecipeError: a glob of the stage matches nothing that is trained, or what is no matrix.
    """
    names: set[str] = set()
    for glob in stage.muon:
        matched = match(trained, glob, where)
        for name in matched:
            if parameters[name].ndim != 2:
                raise RecipeError(
                    f'{where}: the glob "{glob}" matches {name}, which has '
                    f"{parameters[name].ndim} dimensions; Muon updates matrices only"
                )
        names.update(matched)
    return names


def make_optimizer(
    parameters: Mapping[str, nn.Parameter], rates: Mapping[str, float], stage: Stage
) -> Optimizers:
    """AdamW, and Muon for the stage's ``muon`` globs, with a group per learning rate and decay.

    Vectors (norms, biases) do not decay. Muon's update is scaled to the size of AdamW's (Moonlight,
    arXiv 2502.16982, section 2.2), so that one learning rate serves both.

    Args:
        parameters: those to train, by canonical name.
        rates: learning rate of each.
        stage: gives decay, betas and the globs.
    """
    by_muon = muon_matrices(parameters, list(parameters), stage, "muon")
    parts: list[torch.optim.Optimizer] = []
    if groups := _groups({n: p for n, p in parameters.items() if n not in by_muon}, rates, stage):
        parts.append(torch.optim.AdamW(groups, betas=stage.betas, fused=True))
    if groups := _groups({name: parameters[name] for name in sorted(by_muon)}, rates, stage):
        parts.append(torch.optim.Muon(groups, adjust_lr_fn="match_rms_adamw"))
    return Optimizers(parts)


def _groups(
    parameters: Mapping[str, nn.Parameter], rates: Mapping[str, float], stage: Stage
) -> list[dict[str, Any]]:
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        decay = stage.weight_decay if parameter.ndim >= 2 else 0.0
        groups.setdefault((rates[name], decay), []).append(parameter)
    return [
        {"params": members, "lr": rate, "base_lr": rate, "weight_decay": decay}
        for (rate, decay), members in sorted(groups.items())
    ]


def lr_factor(stage: Stage, step: int) -> float:
    """Factor on every learning rate at step ``step`` (from 0): linear warm-up, then the schedule."""
    if step < stage.warmup_steps:
        return (step + 1) / stage.warmup_steps
    if stage.schedule == "constant":
        return 1.0
    span = max(1, stage.steps - stage.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * (step - stage.warmup_steps) / span))


def set_rates(optimizer: Optimizers, factor: float) -> float:
    """Apply the factor; returns the highest rate, for the log."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return max(float(group["lr"]) for group in optimizer.param_groups)
