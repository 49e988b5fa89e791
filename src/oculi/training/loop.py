"""One stage of training: the only loop there is."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn

from oculi import durable
from oculi.batch import Batch
from oculi.data.feeding import make_loader
from oculi.data.loader import Loaded, Steps
from oculi.errors import OculiError, shown
from oculi.recipe import Stage
from oculi.training.log import BAD_SAMPLES, RunLog
from oculi.training.module import TrainModule
from oculi.training.monitor import Monitor
from oculi.training.optim import Optimizers, lr_factor, set_rates
from oculi.training.signals import Interrupt, Stopper


class NonFiniteError(OculiError):
    """The loss or the gradient is NaN or infinite; raised before the weights are touched.

    Attributes:
        loss, grad_norm: of the step. samples: ids of all its samples, suspects first.
    """

    code = "non-finite"
    exit_code = 4

    def __init__(self, message: str, loss: float, grad_norm: float, samples: list[str]) -> None:
        super().__init__(message)
        self.loss, self.grad_norm, self.samples = loss, grad_norm, samples


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step measured.

    Attributes:
        losses: per objective, means over the step, as device tensors so that nothing waits for them.
        loss: their weighted sum. grad_norm: before clipping. tokens, padded: of the step.
    """

    losses: dict[str, Tensor]
    loss: float
    grad_norm: float
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
    each: list[Tensor] = []
    for batch in batches:
        with autocast(stage, device):
            parts = module(batch.to(device), counts)
            loss = module.loss(parts)
        loss.backward()
        each.append(loss.detach())
        for name, part in parts.items():
            losses[name] = losses.get(name, torch.zeros((), device=device)) + part.detach()
    norm = nn.utils.clip_grad_norm_(parameters, stage.clip or math.inf)
    # Together: each question to a GPU stops it.
    total, length = torch.stack([module.loss(losses), norm]).tolist()
    if not math.isfinite(total + length):
        optimizer.zero_grad()
        raise _not_finite(stage, batches, each, total, length)
    optimizer.step()
    optimizer.zero_grad()
    return StepResult(
        losses=losses,
        loss=total,
        grad_norm=length,
        tokens=sum(batch.tokens for batch in batches),
        padded=sum(batch.tokens_BT.numel() for batch in batches),
    )


def _not_finite(
    stage: Stage, batches: Sequence[Batch], each: Sequence[Tensor], loss: float, norm: float
) -> NonFiniteError:
    """Names the samples of micro-batches whose own loss is not finite, or of all if there is none."""
    finite = [bool(torch.isfinite(one)) for one in each]
    suspects = [b for b, fine in zip(batches, finite, strict=True) if not fine]
    others = [b for b, fine in zip(batches, finite, strict=True) if fine]
    few = [name for batch in suspects or others for name in batch.sample_ids[:4]][:8]
    return NonFiniteError(
        f"loss {loss} and gradient norm {norm} in stage {stage.name}; nothing was updated. The step "
        f"holds the samples {', '.join(map(shown, few))}, ...: look at them, lower the learning rate, "
        "or leave such steps out (stages.N.non_finite=skip)",
        loss,
        norm,
        [name for batch in (*suspects, *others) for name in batch.sample_ids],
    )


def seed_step(seed: int, step: int) -> None:
    """Set torch's dice for a step, on every device: dropout is a function of the stage and the step.

    So nothing has to be saved and restored, and what was drawn elsewhere does not matter.
    """
    words = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)
    torch.manual_seed(int(words[0] >> np.uint64(1)))


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
    on_step: Callable[[], None] = lambda: None,
    monitor: Monitor | None = None,
    stopper: Stopper | None = None,
) -> None:
    """Train from step ``start`` to the end of the stage.

    Args:
        steps_before: steps of earlier stages, for the log.
        on_checkpoint: called with the number of steps done, every ``checkpoint_every``, at the end,
            and before a signal stops the run.
        on_step: called before every step; it may raise.
        monitor: what to count and judge with; it may come from a checkpoint.
        stopper: listens to signals.

    Raises:
        NonFiniteError: see ``train_step``; where they are skipped, after ``max_skips`` in a row.
        BadSamplesError: more than 1 % of the samples cannot be used, or 100 in a row.
        DataError: a data file is not as it was.
        LoaderError: loader workers hang, or are killed again and again.
        Interrupt: a signal asked to stop; the step before it is done and ``on_checkpoint`` called.
    """
    module.train()
    log.start_stage()
    stopper = stopper or Stopper()
    recorder = _Recorder(stage, log, monitor or Monitor(), start, steps_before)
    loader = make_loader(steps, start, stage.workers, stage.worker_timeout, log.warn)
    saved = start
    with stopper.deferred(), closing(loader):
        for step in range(start, stage.steps):
            on_step()
            try:
                with stopper.interruptible():
                    loaded = next(loader)
            except Interrupt:
                if step > saved:
                    on_checkpoint(step)
                raise
            recorder.samples(step, loaded)
            lr = set_rates(optimizer, lr_factor(stage, step))
            seed_step(steps.seed, step)
            durable.reach("step")
            if loaded.batches:
                try:
                    result = train_step(
                        module, loaded.batches, optimizer, parameters, stage, device
                    )
                except NonFiniteError as error:
                    recorder.not_finite(step, error)
                else:
                    recorder.step(step, loaded, result, lr)
            durable.reach("stepped")
            done = step + 1
            if done == stage.steps or done % stage.checkpoint_every == 0:
                began = time.monotonic()
                on_checkpoint(done)
                saved = done
                recorder.waited += time.monotonic() - began


class _Recorder:
    """What is logged of a stage's steps, and the decisions about samples and steps to leave out."""

    def __init__(
        self, stage: Stage, log: RunLog, monitor: Monitor, start: int, steps_before: int
    ) -> None:
        self.stage, self.log, self.monitor = stage, log, monitor
        self.start, self.steps_before = start, steps_before
        self.waited = 0.0  # seconds for checkpoints since the last record
        self._began = self._last = time.monotonic()
        self._done_at_last = start

    def samples(self, step: int, loaded: Loaded) -> None:
        """Write down the samples that were left out; raises BadSamplesError."""
        for number, bad in enumerate(loaded.bad, self.monitor.bad):
            self.log.bad_sample(self.stage.name, step + 1, **asdict(bad))
            if number == 0:  # the others are in the file
                name = f"{bad.source}: {shown(bad.id)}: {bad.reason}"
                self.log.say(f"left out: {name}; all such go into {self.log.place(BAD_SAMPLES)}")
        batch = self.stage.batch
        self.monitor.samples(step * batch, batch, loaded.bad, self.log.place(BAD_SAMPLES))

    def not_finite(self, step: int, error: NonFiniteError) -> None:
        """Write down a step that was not finite, and raise it unless it may be left out."""
        self.log.event(
            "not finite", self.stage.name, step + 1,
            loss=str(error.loss), grad_norm=str(error.grad_norm), samples=error.samples,
        )  # fmt: skip
        if self.stage.non_finite == "stop" or not self.monitor.skip(self.stage.max_skips):
            raise error

    def step(self, step: int, loaded: Loaded, result: StepResult, lr: float) -> None:
        """Log a step, and a loss that stands out."""
        stage, monitor, done = self.stage, self.monitor, step + 1
        if spike := monitor.spike(result.loss):
            ids = [name for batch in loaded.batches for name in batch.sample_ids]
            self.log.event("loss spike", stage.name, done, **spike, samples=ids)
        if done % stage.log_every and done not in (self.start + 1, stage.steps):
            return
        now = time.monotonic()
        pace = (done - self._done_at_last) * stage.batch / max(now - self._last, 1e-9)
        self.log.record(
            {
                "stage": stage.name, "step": done, "steps": stage.steps, "loss": result.loss,
                **{name: float(value) for name, value in result.losses.items()},
                "objectives": list(result.losses), "lr": lr, "grad_norm": result.grad_norm,
                "samples": done * stage.batch, "samples_per_second": pace,
                "tokens_per_second": pace * result.tokens / stage.batch,
                "useful_tokens": result.tokens / result.padded, "elapsed": now - self._began,
                "save_wait": self.waited, "bad_samples": monitor.bad,
                "skipped_steps": monitor.skipped,
            },
            self.steps_before + done,
        )  # fmt: skip
        self._last, self._done_at_last, self.waited = now, done, 0.0
