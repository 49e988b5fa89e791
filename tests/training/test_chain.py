"""Resumed runs compute what the uninterrupted one does, to the bit, however often they are stopped.

A hundred steps over two stages with LoRA merged in between, more than two epochs in each, dropout,
packing, a mixture and random crops; stopped by SIGTERM at moments that nobody chose.
"""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_signals import ended, forked, wait_for

from helpers import Tiny, exported, losses, metrics, save_llm, tiny_recipe, write_rows
from oculi.recipe import Recipe, override
from oculi.training.run import train

STEPS = 50  # of each stage


@pytest.fixture(scope="module")
def recipe(
    tiny: Tiny,
    tmp_path_factory: pytest.TempPathFactory,
    make_llm_config: Callable[..., Any],
    make_tokenizer: Callable[..., Any],
) -> Recipe:
    folder = tmp_path_factory.mktemp("chain")
    config = make_llm_config(max_position_embeddings=1024, attention_dropout=0.2)
    mixture = [
        {"kind": "file", "path": str(tiny.data), "weight": 1.5},
        {"kind": "file", "path": str(write_rows(folder / "rows", 5))},
    ]
    changes: dict[str, Any] = {"model.llm": str(save_llm(folder / "llm", config, make_tokenizer()))}
    for stage in (0, 1):
        changes |= {
            f"stages.{stage}.steps": STEPS, f"stages.{stage}.data": mixture,
            f"stages.{stage}.checkpoint_every": 1000, f"stages.{stage}.crop": 0.3,
            f"stages.{stage}.single_turns": 0.3, f"stages.{stage}.separate_turns": 0.4,
            f"stages.{stage}.lr": 3e-3,
        }  # fmt: skip
    made = tiny_recipe(tiny, **changes)
    places = 8 + 4 + 5
    assert STEPS * made.stages[0].batch > 2 * places  # epochs
    return made


@pytest.fixture(scope="module")
def whole(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(recipe, tmp_path_factory.mktemp("whole") / "run", quiet=True)


def test_the_whole_run_is_what_is_meant(whole: Path, recipe: Recipe) -> None:
    assert len(losses(whole)) == 2 * STEPS == 100
    assert (whole / "stages" / "0-pretrain").exists() and recipe.stages[0].merge_lora
    assert any(entry["useful_tokens"] < 1 for entry in metrics(whole).values())  # packed rows


@pytest.mark.parametrize("workers", [0, 2])
def test_a_chain_of_stops(whole: Path, recipe: Recipe, tmp_path: Path, workers: int) -> None:
    """The number of workers may change on a resume: the whole run had none."""
    run = tmp_path / "run"
    chosen = override(recipe, [f"stages.{n}.workers={workers}" for n in (0, 1)])
    stops = []
    for number, steps in enumerate((11, 37, 64, 90)):  # twice in each stage
        pid = forked(lambda resume=number > 0: train(chosen, run, resume=resume, quiet=True))
        wait_for(run, steps, pid)
        os.kill(pid, signal.SIGTERM)
        assert ended(pid, 120) == 75
        stops.append(len(metrics(run)))
    assert sorted(set(stops)) == stops and stops[-1] < 100, "it was stopped in the middle"
    train(chosen, run, resume=True, quiet=True)
    assert losses(run) == losses(whole)
    assert list(metrics(run)) == list(metrics(whole))
    for stage in ("0-pretrain", "1-finetune"):
        found, wanted = exported(run, stage), exported(whole, stage)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_dropout_was_on(whole: Path, recipe: Recipe, tmp_path: Path, tiny: Tiny) -> None:
    """Without it the comparison would say nothing about torch's dice."""
    short = ["stages.0.steps=1", "stages.1.steps=1", "stages.0.merge_lora=false"]
    short += ["stages.1.trainable={vision.*: null}", "stages.0.schedule=constant"]
    from oculi.training import loop

    found = []
    for seed in (0, 1):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "seed_step", lambda *a, seed=seed: torch.manual_seed(seed))
            run = train(override(recipe, short), tmp_path / str(seed), quiet=True)
        found.append(losses(run)["pretrain", 1])
    assert found[0] != found[1]
