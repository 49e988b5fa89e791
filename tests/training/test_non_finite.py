"""NaN and infinity never reach a weight: the run stops with the samples, or the step is left out."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import Tiny, tiny_recipe
from oculi.recipe import Recipe
from oculi.training import loop
from oculi.training.log import RunLog
from oculi.training.loop import NonFiniteError, run_stage
from oculi.training.module import TrainModule
from oculi.training.monitor import Monitor
from trainer import CPU, Trainer, bits

STEPS = 12


def recipe(tiny: Tiny, **changes: Any) -> Recipe:
    settings = {"stages.0.steps": STEPS, "stages.0.micro_rows": 1, "stages.0.pack_length": 90}
    return tiny_recipe(tiny, **{**settings, **changes})


def sicken(monkeypatch: pytest.MonkeyPatch, trainer: Trainer, steps: set[int], how: str) -> None:
    """Make these steps not finite: in the loss of their last micro-batch, or in a gradient alone."""
    now, parts = [-1], [0]
    real_step, real_loss = loop.train_step, TrainModule.loss

    def step(module: Any, batches: Any, *arguments: Any) -> Any:
        now[0], parts[0] = now[0] + 1, 0
        assert len(batches) > 1
        return real_step(module, batches, *arguments)

    def loss(self: TrainModule, found: Any) -> Tensor:
        value = real_loss(self, found)
        parts[0] += 1
        sick = now[0] in steps and parts[0] == 2 and value.requires_grad
        if sick and how == "gradient":
            value.register_hook(lambda gradient: gradient * math.inf)
            return value
        return value * math.nan if sick else value

    monkeypatch.setattr(loop, "train_step", step)
    monkeypatch.setattr(TrainModule, "loss", loss)


def run(trainer: Trainer, folder: Path, monitor: Monitor | None = None) -> None:
    folder.mkdir(exist_ok=True)
    log = RunLog(folder, quiet=True)
    try:
        run_stage(
            trainer.module, trainer.stage, trainer.steps, trainer.optimizer,
            list(trainer.parameters.values()), CPU, log, start=0, steps_before=0,
            on_checkpoint=lambda step: None, monitor=monitor,
        )  # fmt: skip
    finally:
        log.close()


def events(folder: Path) -> list[dict[str, Any]]:
    path = folder / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize("how", ["loss", "gradient"])
@pytest.mark.parametrize("at", [0, 10])
def test_by_default_the_run_stops_before_the_step(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, how: str
) -> None:
    trainer = Trainer(recipe(tiny))
    seen: list[dict[str, bytes]] = []
    monkeypatch.setattr(
        trainer.optimizer,
        "step",
        _then(trainer.optimizer.step, lambda: seen.append(bits(trainer.module))),
    )
    before = bits(trainer.module)
    sicken(monkeypatch, trainer, {at}, how)
    with pytest.raises(NonFiniteError) as caught:
        run(trainer, tmp_path)
    assert caught.value.exit_code == 4 and len(seen) == at
    assert bits(trainer.module) == (seen[-1] if seen else before)
    assert all(torch.isfinite(p).all() for p in trainer.parameters.values())
    (event,) = events(tmp_path)
    batches = trainer.steps[at]
    ids = [name for batch in batches for name in batch.sample_ids]
    assert (event["event"], event["step"]) == ("not finite", at + 1)
    assert sorted(event["samples"]) == sorted(ids) == sorted(caught.value.samples)
    if how == "loss":  # the micro-batch that it came from is named first
        suspects = batches[1].sample_ids
        assert tuple(event["samples"][: len(suspects)]) == suspects
        assert all(name in str(caught.value) for name in suspects)


def _then(first: Any, second: Any) -> Any:
    def both() -> None:
        first()
        second()

    return both


@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_on_request_the_step_is_left_out(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    trainer = Trainer(recipe(tiny, **{"stages.0.non_finite": "skip", "stages.0.max_skips": 2}))
    monitor = Monitor()
    updates: list[int] = []
    monkeypatch.setattr(
        trainer.optimizer, "step", _then(trainer.optimizer.step, lambda: updates.append(1))
    )
    sicken(monkeypatch, trainer, {0, 4, 5, 7, 8}, how)
    run(trainer, tmp_path, monitor)
    assert len(updates) == STEPS - 5 and monitor.skipped == 5
    assert [event["step"] for event in events(tmp_path)] == [1, 5, 6, 8, 9]
    assert all(torch.isfinite(p).all() for p in trainer.parameters.values())
    assert all(math.isfinite(loss) for loss in monitor.state()["losses"])
    assert len(monitor.state()["losses"]) == STEPS - 5
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == STEPS and last["skipped_steps"] == 5


def test_too_many_in_a_row_stop_the_run_nevertheless(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(recipe(tiny, **{"stages.0.non_finite": "skip", "stages.0.max_skips": 2}))
    sicken(monkeypatch, trainer, {3, 5, 6, 7}, "loss")
    with pytest.raises(NonFiniteError):
        run(trainer, tmp_path)
    assert [event["step"] for event in events(tmp_path)] == [4, 6, 7, 8]


def test_a_spike_is_logged_with_its_samples(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss as it is reported; it is not changed, and nothing is left out."""
    trainer = Trainer(recipe(tiny))
    window = {"losses": [1.0, 1.1] * 20}
    real = loop.train_step
    now = [-1]

    def step(*arguments: Any) -> Any:
        now[0] += 1
        result = real(*arguments)
        value = 100.0 if now[0] == 7 else 1.05
        return loop.StepResult(result.losses, value, result.grad_norm, result.tokens, result.padded)

    monkeypatch.setattr(loop, "train_step", step)
    run(trainer, tmp_path, Monitor(window))
    (event,) = events(tmp_path)
    assert (event["event"], event["step"], event["loss"]) == ("loss spike", 8, 100.0)
    ids = [name for batch in trainer.steps[7] for name in batch.sample_ids]
    assert event["samples"] == ids
