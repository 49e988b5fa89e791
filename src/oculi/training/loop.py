"""One stage of training: the only loop there is."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from oculi.batch import Batch
from oculi.data.loader import Steps, make_loader
from oculi.errors import OculiError, shown
from oculi.recipe import Stage
from oculi.training.log import RunLog
from oculi.training.module import TrainModule
from oculi.training.optim import Optimizers, lr_factor, set_rates


class NonFiniteError(OculiError):
    """The loss or the gradient is NaN or infinite; raised before the weights are touched."""

    code = "non-finite"


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step measured, as device tensors so that nothing waits for them.

    Attributes:
        losses: per objective, means over the step. loss: their weighted sum.
        grad_norm: before clipping. tokens, padded: of the step.
    """

    losses: dict[str, Tensor]
    loss: Tensor
    grad_norm: Tensor
    tokens: int
    padded: int


def train_step(
    module: TrainModule,
    batches: Sequence[Batch],
    optimizer: Optimizers,
    parameters: Sequence[nn.Parameter],
    stage: Stage,
    device: torch.device,
) -> StepResult:
    """Forward, backward and update for the micro-batches of one step.

    Raises:
        NonFiniteError: naming the samples of the step; the weights are as they were.
    """
    counts = module.counts(batches)
    losses: dict[str, Tensor] = {}
    for batch in batches:
        with autocast(stage, device):
            parts = module(batch.to(device), counts)
            loss = module.loss(parts)
        loss.backward()
        for name, part in parts.items():
            losses[name] = losses.get(name, torch.zeros((), device=device)) + part.detach()
    norm = nn.utils.clip_grad_norm_(parameters, stage.clip or math.inf)
    total = module.loss(losses)
    if not bool(torch.isfinite(norm + total)):
        optimizer.zero_grad()
        names = ", ".join(shown(name) for batch in batches for name in batch.sample_ids[:4])
        raise NonFiniteError(
            f"loss {float(total)} and gradient norm {float(norm)} in stage {stage.name}; nothing was "
            f"updated. The step holds the samples {names}, ...: lower the learning rate or look at them"
        )
    optimizer.step()
    optimizer.zero_grad()
    return StepResult(
        losses=losses,
        loss=total,
        grad_norm=norm,
        tokens=sum(batch.tokens for batch in batches),
        padded=sum(batch.tokens_BT.numel() for batch in batches),
    )


def autocast(stage: Stage, device: torch.device) -> AbstractContextManager[object]:
    """bf16 autocast where the stage asks for it; parameters stay float32."""
    if stage.precision == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def run_stage(
    module: TrainModule,
    stage: Stage,
    steps: Steps,
    optimizer: Optimizers,
    parameters: Sequence[nn.Parameter],
    device: torch.device,
    log: RunLog,
    *,
    start: int,
    steps_before: int,
    on_checkpoint: Callable[[int], None],
) -> None:
    """Train from step ``start`` to the end of the stage.

    Args:
        steps_before: steps of earlier stages, for the log.
        on_checkpoint: called with the number of steps done, every ``checkpoint_every`` and at the end.

    Raises:
        NonFiniteError: see ``train_step``.
        DataError: a picture of the data cannot be read.
    """
    module.train()
    log.start_stage()
    began = last = time.monotonic()
    done_at_last = start
    for step, batches in enumerate(make_loader(steps, start, stage.workers), start):
        lr = set_rates(optimizer, lr_factor(stage, step))
        result = train_step(module, batches, optimizer, parameters, stage, device)
        done = step + 1
        if done % stage.log_every == 0 or done in (start + 1, stage.steps):
            now = time.monotonic()
            pace = (done - done_at_last) * stage.batch / max(now - last, 1e-9)
            log.record(
                {
                    "stage": stage.name, "step": done, "steps": stage.steps,
                    "loss": float(result.loss),
                    **{name: float(value) for name, value in result.losses.items()},
                    "objectives": list(result.losses), "lr": lr, "grad_norm": float(result.grad_norm),
                    "samples": done * stage.batch, "samples_per_second": pace,
                    "tokens_per_second": pace * result.tokens / stage.batch,
                    "useful_tokens": result.tokens / result.padded, "elapsed": now - began,
                },
                steps_before + done,
            )  # fmt: skip
            last, done_at_last = now, done
        if done % stage.checkpoint_every == 0 and done < stage.steps:
            on_checkpoint(done)
    on_checkpoint(stage.steps)
