"""Colours and codes beside other recipes: they are learnt, every trainable part learns, runs resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import Tiny, as_if_killed, exported, llava_data, losses, recipe_data
from oculi.cognition.turns import cognition_of
from oculi.data.loader import Steps
from oculi.data.source import open_sources
from oculi.recipe import Recipe, validate
from oculi.training.module import canonical_parameters
from oculi.training.optim import lr_factor, set_rates
from oculi.training.run import train
from trainer import Trainer


def asking(vq: Path, **more: Any) -> dict[str, Any]:
    cognition = {
        "pixels": {"share": 1.0, "grid": [1, 2], "levels": 10},
        "codes": {"share": 1.0, "vq": str(vq), "window": [1, 2]},
    }
    return {"stages.0.cognition": cognition, "stages.0.lr": 1e-2, **more}


def vora(tiny: Tiny, vq: Path) -> Recipe:
    return validate(recipe_data(tiny, **asking(vq)), "test")


def llava(tiny: Tiny, vq: Path) -> Recipe:
    everything = {"vision.connector.*": None, "llm.*": None}
    data = llava_data(tiny, tiny.teacher, **asking(vq, **{"stages.0.trainable": everything}))
    return validate(data, "test")


@pytest.mark.parametrize("make", [vora, llava])
def test_the_loss_falls_and_every_trained_parameter_gets_a_gradient(
    make: Any, tiny: Tiny, vq_folder: Path
) -> None:
    recipe = make(tiny, vq_folder)
    trainer, stage = Trainer(recipe), recipe.stages[0]
    processor = trainer.steps.processor
    trainer.steps = Steps(
        open_sources(stage.data), processor, seed=0, steps=1, batch=8, pack_length=512,
        micro_rows=8, asking=cognition_of(stage, 0, processor),
    )  # fmt: skip
    batches = trainer.steps[0]
    asked = sum(" of 4 x 4" in processor.tokenizer.decode(b.tokens_BT.flatten()) for b in batches)
    assert asked  # it is in the text that the model reads
    counts = trainer.module.counts(batches)
    for batch in batches:
        trainer.module.loss(trainer.module(batch, counts)).backward()
    without = [
        name
        for name, p in canonical_parameters(trainer.module).items()
        if p.requires_grad and (p.grad is None or not torch.isfinite(p.grad).all())
    ]
    assert without == []
    moved = {n.split(".")[0] for n, p in trainer.parameters.items() if p.grad.abs().sum() > 0}
    assert moved == {n.split(".")[0] for n in trainer.parameters}
    trainer.optimizer.zero_grad()
    found = []
    for number in range(12):
        set_rates(trainer.optimizer, lr_factor(stage, min(number, 1)))
        found.append(trainer.step(0).losses["lm"].item())
    assert found[-1] < 0.8 * found[0], found


def test_a_run_resumes_to_the_bit(tiny: Tiny, vq_folder: Path, tmp_path: Path) -> None:
    recipe = validate(
        recipe_data(tiny, **asking(vq_folder, **{"stages.0.crop": 0.3, "evals": [
            {"task": f"codes:playroom:1?vq={vq_folder}", "limit": 2, "blind": False}]})),
        "test",
    )  # fmt: skip
    run = train(recipe, tmp_path / "run", quiet=True)
    again = as_if_killed(run, tmp_path / "again", 2)
    train(recipe, again, resume=True, quiet=True)
    assert losses(again) == losses(run)
    found, wanted = exported(again), exported(run)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert (run / "evals" / "finetune-codes-2x2-playroom-1" / "result.json").exists()
