"""One stage of training: the only loop there is."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from oculi import durable
from oculi.batch import Batch, empty_batch
from oculi.data.feeding import make_loader
from oculi.data.loader import BadSample, Loaded, Steps
from oculi.errors import OculiError, shown
from oculi.recipe import Stage
from oculi.training.allocator import give_back_unused
from oculi.training.log import BAD_SAMPLES, RunLog
from oculi.training.module import TrainModule
from oculi.training.monitor import Monitor
from oculi.training.optim import Optimizers, lr_factor, set_rates
from oculi.training.parallel import whole
from oculi.training.precision import autocast
from oculi.training.ranks import ALONE, Ranks
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
class Share:
    """What a rank, or all of them, bring to a step.

    Attributes:
        units: of each objective. micro: micro-batches, of all ranks the most.
        tokens, padded: with and without what is padding. bad: samples left out.
        stop: whether a signal was heard.
    """

    units: dict[str, int]
    micro: int
    tokens: int
    padded: int
    bad: tuple[BadSample, ...] = ()
    stop: bool = False

    @classmethod
    def of(
        cls, module: TrainModule, batches: Sequence[Batch], bad: tuple[BadSample, ...] = ()
    ) -> Share:
        """One rank's."""
        return cls(
            units=module.counts(batches),
            micro=len(batches),
            tokens=sum(batch.tokens for batch in batches),
            padded=sum(batch.tokens_BT.numel() for batch in batches),
            bad=bad,
        )

    def of_all(self, ranks: Ranks) -> Share:
        """All ranks' together; each must call it."""
        shares = ranks.gather(self)
        bad = [sample for share in shares for sample in share.bad]
        return Share(
            units={name: sum(share.units[name] for share in shares) for name in self.units},
            micro=max(share.micro for share in shares),
            tokens=sum(share.tokens for share in shares),
            padded=sum(share.padded for share in shares),
            bad=tuple(sorted(bad, key=lambda sample: sample.position)),
            stop=any(share.stop for share in shares),
        )


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step measured, over all ranks.

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
    ranks: Ranks = ALONE,
    share: Share | None = None,
) -> StepResult:
    """Forward, backward and update for the micro-batches of one step.

    A parameter that the step does not reach has a gradient of zeros: momentum and decay go on.

    Args:
        batches: this rank's. It runs empty ones where others have more: all meet in every pass.
        ranks: who takes the step together.
        share: of all ranks, where that is known already.

    Raises:
        NonFiniteError: naming the samples of the step; the weights are as they were.
    """
    share = share or Share.of(module, batches).of_all(ranks)
    losses: dict[str, Tensor] = {}
    each: list[Tensor] = []
    for batch in (*batches, *(empty_batch() for _ in range(share.micro - len(batches)))):
        with autocast(stage, device):
            parts = module(batch.to(device), share.units)
            loss = module.loss(parts)
        # Text alone reaches nothing that is trained where that is the vision part. Several ranks meet in
        # every backward pass, and have something to begin it with (see ``parallel.split``).
        if loss.requires_grad or not ranks.alone:
            loss.backward()
        each.append(loss.detach())
        for name, part in parts.items():
            losses[name] = losses.get(name, torch.zeros((), device=device)) + part.detach()
    # What no micro-batch has reached: the same on one rank as on several, which exchange zeros for it.
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    norm = whole(nn.utils.clip_grad_norm_(parameters, stage.clip or math.inf))
    sums = ranks.sum(torch.stack(list(losses.values())))
    losses = dict(zip(losses, sums.unbind(), strict=True))
    # Together: each question to a GPU stops it.
    total, length = torch.stack([module.loss(losses), norm]).tolist()
    if not math.isfinite(total + length):
        optimizer.zero_grad()
        raise _not_finite(stage, batches, each, total, length, ranks)
    optimizer.step()
    optimizer.zero_grad()
    return StepResult(losses, total, length, share.tokens, share.padded)


def _not_finite(
    stage: Stage,
    batches: Sequence[Batch],
    each: Sequence[Tensor],
    loss: float,
    norm: float,
    ranks: Ranks,
) -> NonFiniteError:
    """Names the samples of micro-batches whose own loss is not finite, or of all if there is none."""
    # A rank with less to do has run empty batches behind its own.
    finite = [bool(torch.isfinite(one)) for one in each[: len(batches)]]
    suspects = [b.sample_ids for b, fine in zip(batches, finite, strict=True) if not fine]
    others = [b.sample_ids for b, fine in zip(batches, finite, strict=True) if fine]
    found = ranks.gather((suspects, others))
    suspects, others = ([ids for its in found for ids in its[kind]] for kind in (0, 1))
    few = [name for ids in suspects or others for name in ids[:4]][:8]
    return NonFiniteError(
        f"loss {loss} and gradient norm {norm} in stage {stage.name}; nothing was updated. The step "
        f"holds the samples {', '.join(map(shown, few))}, ...: look at them, lower the learning rate, "
        "or leave such steps out (stages.N.non_finite=skip)",
        loss,
        norm,
        [name for ids in (*suspects, *others) for name in ids],
    )


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Set torch's dice for a step, on every device: dropout is a function of stage, step and rank.

    So nothing has to be saved and restored, and what was drawn elsewhere does not matter.
    """
    words = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)
    torch.manual_seed(int(words[0] >> np.uint64(1)))


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
    ranks: Ranks = ALONE,
) -> None:
    """Train from step ``start`` to the end of the stage.

    Args:
        steps_before: steps of earlier stages, for the log.
        on_checkpoint: called with the number of steps done, every ``checkpoint_every``, at the end,
            and before a signal stops the run.
        on_step: called before every step; it may raise.
        monitor: what to count and judge with; it may come from a checkpoint.
        stopper: listens to signals.
        ranks: who trains together; a signal to one of them stops all.

    Raises:
        NonFiniteError: see ``train_step``; where they are skipped, after ``max_skips`` in a row.
        BadSamplesError: more than 1 % of the samples cannot be used, or 100 in a row.
        DataError: a data file is not as it was.
        LoaderError: loader workers hang, or are killed again and again.
        ElsewhereError: another rank has no data.
        Interrupt: a signal asked to stop; the step before it is done and ``on_checkpoint`` called.
    """
    module.train()
    log.start_stage()
    stopper = stopper or Stopper()
    recorder = _Recorder(stage, log, monitor or Monitor(), start, steps_before, ranks)
    loader = make_loader(steps, start, stage.workers, stage.worker_timeout, log.warn)
    saved = start
    with stopper.deferred(), closing(loader):
        for step in range(start, stage.steps):
            on_step()
            give_back_unused()
            try:
                loaded = _next(loader, stopper, ranks)
                share = _share(module, loaded, stopper, ranks)
            except Interrupt:
                if step > saved:
                    on_checkpoint(step)
                raise
            recorder.samples(step, share.bad)
            lr = set_rates(optimizer, lr_factor(stage, step))
            seed_step(steps.seed, step, ranks.rank)
            durable.reach("step")
            if share.micro:
                try:
                    result = train_step(
                        module, loaded.batches, optimizer, parameters, stage, device, ranks, share
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


def _next(loader: Iterator[Loaded], stopper: Stopper, ranks: Ranks) -> Loaded:
    """A step's data; waiting for them can be interrupted, but where others would wait for this rank."""
    if ranks.alone:
        with stopper.interruptible():
            return next(loader)
    return ranks.all_do(lambda: next(loader))


def _share(module: TrainModule, loaded: Loaded, stopper: Stopper, ranks: Ranks) -> Share:
    """What all ranks bring to the step; raises Interrupt if another one was asked to stop, or this."""
    own = Share.of(module, loaded.batches, loaded.bad)
    if ranks.alone:
        return own
    share = replace(own, stop=stopper.number is not None).of_all(ranks)
    if share.stop:
        raise Interrupt
    return share


class _Recorder:
    """What is logged of a stage's steps, and the decisions about samples and steps to leave out."""

    def __init__(
        self, stage: Stage, log: RunLog, monitor: Monitor, start: int, steps_before: int,
        ranks: Ranks,
    ) -> None:  # fmt: skip
        self.stage, self.log, self.monitor, self.ranks = stage, log, monitor, ranks
        self.start, self.steps_before = start, steps_before
        self.waited = 0.0  # seconds for checkpoints since the last record
        self._began = self._last = time.monotonic()
        self._done_at_last, self._tokens = start, 0  # tokens since the last record

    def samples(self, step: int, bad: Sequence[BadSample]) -> None:
        """Write down the samples that were left out; raises BadSamplesError."""
        for number, sample in enumerate(bad, self.monitor.bad):
            self.log.bad_sample(self.stage.name, step + 1, **asdict(sample))
            if number == 0:  # the others are in the file
                name = f"{sample.source}: {shown(sample.id)}: {sample.reason}"
                self.log.say(f"left out: {name}; all such go into {self.log.place(BAD_SAMPLES)}")
        batch = self.stage.batch
        self.monitor.samples(step * batch, batch, bad, self.log.place(BAD_SAMPLES))

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
        self._tokens += result.tokens
        if spike := monitor.spike(result.loss):
            own = [name for batch in loaded.batches for name in batch.sample_ids]
            ids = [name for its in self.ranks.gather(own) for name in its]
            self.log.event("loss spike", stage.name, done, **spike, samples=ids)
        if done % stage.log_every and done not in (self.start + 1, stage.steps):
            return
        now = time.monotonic()
        seconds = max(now - self._last, 1e-9)
        pace = (done - self._done_at_last) * stage.batch / seconds
        self.log.record(
            {
                "stage": stage.name, "step": done, "steps": stage.steps, "loss": result.loss,
                **{name: float(value) for name, value in result.losses.items()},
                "objectives": list(result.losses), "lr": lr, "grad_norm": result.grad_norm,
                "samples": done * stage.batch, "samples_per_second": pace,
                "tokens_per_second": self._tokens / seconds,
                "useful_tokens": result.tokens / result.padded, "elapsed": now - self._began,
                "save_wait": self.waited, "bad_samples": monitor.bad,
                "skipped_steps": monitor.skipped,
            },
            self.steps_before + done,
        )  # fmt: skip
        self._last, self._done_at_last, self._tokens, self.waited = now, done, 0, 0.0
