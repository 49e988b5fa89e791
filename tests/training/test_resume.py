"""Resuming: bit-exact, wherever a run was killed, and only with the recipe it began with."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import Tiny, as_if_killed, exported, losses, metrics, tiny_recipe
from oculi.errors import CheckpointError, RecipeError
from oculi.recipe import Recipe, load, override
from oculi.training import checkpoint as ckpt
from oculi.training import loop
from oculi.training.folder import first_difference
from oculi.training.run import train


@pytest.mark.parametrize("checkpoint", [2, 3, 5, 6], ids=["middle", "boundary", "stage 2", "end"])
def test_resume_equals_uninterrupted(
    finished: Path, recipe: Recipe, tmp_path: Path, checkpoint: int
) -> None:
    run = as_if_killed(finished, tmp_path / "run", checkpoint)
    train(recipe, run, resume=True, quiet=True)
    assert losses(run) == losses(finished)
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 6
    for stage in ("0-pretrain", "1-finetune"):
        if (run / "stages" / stage).exists():
            found, wanted = exported(run, stage), exported(finished, stage)
            assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert (run / "stages" / "1-finetune" / "config.json").exists()


def interrupt(monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    """Let the trainer die within its step after so many steps."""
    left = [calls]

    def step(*arguments: Any) -> Any:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return real(*arguments)

    real = loop.train_step
    monkeypatch.setattr(loop, "train_step", step)


def test_three_interruptions_in_a_chain(
    finished: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first checkpoint, after one, and at the first step of the second stage; steps that
    were done but not saved are done again, and logged once."""
    run = tmp_path / "run"
    for calls, resume in ((1, False), (2, True), (1, True)):
        with monkeypatch.context() as patch:
            interrupt(patch, calls)
            with pytest.raises(KeyboardInterrupt):
                train(recipe, run, resume=resume, quiet=True)
    train(recipe, run, resume=True, quiet=True)
    assert losses(run) == losses(finished)
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(entry["stage"], entry["step"]) for entry in steps] == list(metrics(finished))


def test_a_stage_with_new_heads_resumes_exactly(tiny: Tiny, tmp_path: Path) -> None:
    """Heads that a later stage adds are drawn anew: not from wherever the dice stood."""
    changes: dict[str, Any] = {"stages.0.objectives": [{"kind": "lm"}], "stages.0.steps": 1}
    changes["stages.0.trainable"] = {"vision.*": None}
    changes["stages.0.merge_lora"] = False
    changes["stages.1.objectives"] = [
        {"kind": "lm"}, {"kind": "distill", "teacher": str(tiny.teacher)}
    ]  # fmt: skip
    changes["stages.1.trainable"] = {"llm.*.lora_?": None, "objectives.*": None}
    changes["stages.1.steps"] = 2
    recipe = tiny_recipe(tiny, **changes)
    whole = train(recipe, tmp_path / "whole", quiet=True)
    assert not (whole / "stages").exists()  # LoRA is still in the model
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "checkpoints" / "step-0000003")
    train(recipe, run, resume=True, quiet=True)
    assert losses(run) == losses(whole)
    # What the first stage has trained is still among the changes that the last checkpoint holds.
    state, tensors = ckpt.load(run / "checkpoints" / "step-0000003")
    assert state.lora and "vision.projection.weight" in tensors


def test_a_run_that_was_moved_resumes(finished: Path, tiny: Tiny, tmp_path: Path) -> None:
    """A run folder can be moved: its stages are found relative to it."""
    run = as_if_killed(finished, tmp_path / "elsewhere" / "run", 5)
    recipe = tiny_recipe(tiny)
    train(recipe, run, resume=True, quiet=True)
    assert losses(run) == losses(finished)


def test_resume_without_a_checkpoint_starts(finished: Path, recipe: Recipe, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(finished / "recipe.yaml", run)
    (run / "checkpoints" / "step-0000002.partial").mkdir(parents=True)
    short = override(recipe, [])
    train(short, run, resume=True, quiet=True)
    assert losses(run) == losses(finished)


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("stages.0.lr=0.02", "stages.0.lr: was 0.01, is 0.02"),
        ("seed=1", "seed: was 0, is 1"),
        ("stages.1.trainable.vision.patch.*=1e-3", "stages.1.trainable.vision.patch.*: was None"),
        ("model.lora=null", "model.lora: was {"),
        ("stages.0.merge_lora=false", "stages.0.merge_lora: was True, is False"),
    ],
)
def test_another_recipe_is_refused_on_resume(
    finished: Path, recipe: Recipe, assignment: str, said: str
) -> None:
    changes = ["stages.0.merge_lora=false"] if assignment == "model.lora=null" else []
    other = override(recipe, [*changes, assignment])
    before = (finished / "metrics.jsonl").read_bytes()
    with pytest.raises(RecipeError, match="began with another recipe") as caught:
        train(other, finished, resume=True, quiet=True)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_another_order_of_what_is_trained_is_refused_on_resume(
    finished: Path, recipe: Recipe
) -> None:
    """The last glob that matches a parameter gives its rate."""
    first, second = recipe.stages
    turned = second.model_copy(update={"trainable": dict(reversed(second.trainable.items()))})
    other = recipe.model_copy(update={"stages": (first, turned)})
    with pytest.raises(RecipeError, match="began with another recipe") as caught:
        train(other, finished, resume=True, quiet=True)
    said = "stages.1.trainable, in its order: was llm.*, vision.*, is vision.*, llm.*"
    assert said in str(caught.value)


def test_the_first_difference_is_by_key() -> None:
    assert first_difference({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}) == "a.1.b: was 2, is 3"
    assert first_difference({"a": [1]}, {"a": [1, 2]}) == "a: was [1], is [1, 2]"
    assert first_difference({"a": 1}, {"a": 1}) == ""
    assert first_difference({}, {"a": 1}) == "a: was None, is 1"


@pytest.mark.parametrize(
    "change",
    [
        'stages.0.trainable={"vision.*": 1.0e-3, "objectives.*": 1.0e-3}',
        'stages.0.muon=["llm.*.lora_?"]',
    ],
)
def test_a_recipe_that_trains_something_else_is_refused_in_words(
    finished: Path, tmp_path: Path, change: str
) -> None:
    """``recipe.yaml`` was changed by hand: torch would say that a parameter group does not match."""
    run = as_if_killed(finished, tmp_path / "run", 2)
    before = {p: p.read_bytes() for p in (run / "checkpoints").rglob("*") if p.is_file()}
    changed = override(load(run / "recipe.yaml"), [change])
    (run / "recipe.yaml").write_text(changed.to_yaml())
    with pytest.raises(
        CheckpointError, match=r"step-0000002 has the optimizer of other parameters"
    ):
        train(changed, run, resume=True, quiet=True)
    assert before == {p: p.read_bytes() for p in before}
