"""What is measured of a finished model: skills against generation, cosines against the objective."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from helpers import Tiny, tiny_recipe
from oculi.ablate import engine, runs
from oculi.ablate.alignment import block_cosines
from oculi.ablate.forgetting import TextAbility, ask, before_training
from oculi.ablate.runs import finish, measure
from oculi.ablate.spec import Ablation, Claim, Row, difference
from oculi.data.loader import Steps
from oculi.data.source import PlayroomRows
from oculi.eval.evaluate import answer
from oculi.export.load import load_unmerged
from oculi.model import OculiForConditionalGeneration, OculiProcessor
from oculi.recipe import PlayroomSource, Recipe
from oculi.recipes.tiny import vora_tiny
from oculi.testbed import language
from oculi.training import checkpoint as ckpt
from oculi.training import loop
from oculi.training.build import build_model, build_processor

QUESTIONS = 14


@pytest.fixture(scope="module")
def reader() -> tuple[OculiForConditionalGeneration, OculiProcessor]:
    spec = vora_tiny().model
    processor = build_processor(spec)
    return build_model(spec, processor, 0).eval(), processor


@pytest.fixture(scope="module")
def ability(reader: tuple[Any, Any]) -> TextAbility:
    return ask(*reader, QUESTIONS)


@torch.no_grad()
def test_text_skills_are_what_generation_and_single_passes_say(
    reader: tuple[Any, Any], ability: TextAbility
) -> None:
    model, processor = reader
    losses, right = [], []
    for number in range(QUESTIONS):
        _, prompt, wanted = language.skills("test", number)
        question = [("user", [prompt])]
        encoded = processor.encode([*question, ("assistant", [wanted])])
        logits = model(input_ids=torch.tensor([encoded.input_ids])).logits[0, :-1]
        labels = torch.tensor(encoded.labels[1:])
        losses.append(F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum"))
        losses.append((labels != -100).sum())
        opened = processor.encode(question, add_generation_prompt=True)
        right.append(answer(model, processor, [opened], 48) == [wanted])
    assert ability.loss == pytest.approx(float(sum(losses[::2]) / sum(losses[1::2])), rel=1e-4)
    assert list(ability.correct) == right
    assert sum(right) > 0 and set(ability.kinds) == set(language.SKILLS)


def test_a_damaged_llm_has_forgotten(reader: tuple[Any, Any], ability: TextAbility) -> None:
    processor = reader[1]
    damaged = build_model(vora_tiny().model, processor, 0).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in damaged.llm.parameters():
            parameter.add_(0.5 * parameter.std() * torch.randn_like(parameter))
    found = ask(damaged, processor, QUESTIONS)
    assert found.loss > ability.loss + 1 and found.exact < ability.exact


def test_before_training_is_the_llm_of_the_recipe(ability: TextAbility) -> None:
    other_row = vora_tiny().model_copy(update={"seed": 3})
    assert before_training(other_row, QUESTIONS) == ability


def one_stage(tiny: Tiny, **changes: Any) -> Recipe:
    recipe = tiny_recipe(tiny, **{"stages.0.steps": 6, **changes})
    return recipe.model_copy(update={"stages": recipe.stages[:1]})


@pytest.fixture(scope="module")
def trained(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("ablate") / "run"
    finish(one_stage(tiny), run)
    return run


@torch.no_grad()
def test_cosines_of_blocks_average_to_the_distillation_loss(trained: Path) -> None:
    """The same pictures through the objective itself, with the heads of the checkpoint."""
    from oculi.objectives import build_objectives
    from oculi.training.module import TrainModule, canonical_parameters

    unmerged = load_unmerged(trained)
    stage = unmerged.recipe.stages[0]
    module = TrainModule(unmerged.model, build_objectives(stage.objectives, unmerged.model))
    step = ckpt.newest(trained / "checkpoints")
    assert step is not None
    ckpt.restore(canonical_parameters(module), ckpt.load(step)[1], step)
    rows = PlayroomRows(PlayroomSource(level=1, samples=8, split="test"))
    (batch,) = Steps(
        rows, unmerged.processor, seed=0, steps=1, batch=8, pack_length=512, micro_rows=8
    )[0]
    loss = float(module.eval()(batch, module.counts([batch]))["distill"])
    found = block_cosines(trained, 8)
    assert sorted(found) == [0, 1]
    assert 1 - sum(found.values()) / 2 == pytest.approx(loss, rel=1e-4)
    assert found[0] != pytest.approx(found[1], rel=1e-3)


def test_what_is_measured_is_kept(trained: Path, tiny: Tiny, monkeypatch: Any) -> None:
    monkeypatch.setattr(runs, "QUICK_PICTURES", 4)
    recipe = one_stage(tiny)
    first = measure(recipe, trained, ("blocks", "text"), quick=True)
    assert {"block.0", "block.1", "text_rise", "text_change", "loss", "distill"} <= set(
        first.values
    )
    assert len(first.answers["text"]) == runs.QUICK_QUESTIONS
    changes = first.answers["text_change"]  # question by question, so that claims are bootstrapped
    assert len(changes) == runs.QUICK_QUESTIONS and set(changes) <= {-1, 0, 1}
    assert first.values["text_change"] == pytest.approx(sum(changes) / len(changes))

    def again(*args: Any) -> None:
        raise AssertionError("measured twice")

    monkeypatch.setattr("oculi.ablate.forgetting.text_ability", again)
    monkeypatch.setattr("oculi.ablate.alignment.block_cosines", again)
    assert measure(recipe, trained, ("blocks", "text"), quick=True).values == first.values


def test_tasks_are_asked_of_the_last_stage_and_kept(
    trained: Path, tiny: Tiny, monkeypatch: Any
) -> None:
    tasks = {"wide": "playroom:1@32x16", "square": "playroom:1@16x16"}
    first = measure(one_stage(tiny), trained, (), quick=True, tasks=tasks)
    # Patches of 4 pixels, at most 16 of them: the wide picture is scaled.
    assert (first.values["tokens@square"], first.values["tokens@wide"]) == (16, 15)
    for name in tasks:
        right = first.answers[f"score@{name}"]
        assert len(right) == runs.QUICK_QUESTIONS
        assert first.values[f"score@{name}"] == sum(right) / len(right)
    lines = (trained / "evals" / "pretrain-playroom-1@32x16" / "answers.jsonl").read_text()
    assert len(lines.splitlines()) == runs.QUICK_QUESTIONS

    def again(*args: Any, **named: Any) -> None:
        raise AssertionError("asked twice")

    monkeypatch.setattr("oculi.ablate.asking.evaluate", again)
    second = measure(one_stage(tiny), trained, (), quick=True, tasks=tasks)
    assert second.values == first.values and second.answers == first.answers


def test_no_distillation_has_no_blocks(tiny: Tiny, tmp_path: Path) -> None:
    recipe = one_stage(
        tiny,
        **{
            "stages.0.steps": 1,
            "stages.0.objectives.1.mode": "none",
            "stages.0.trainable": {"llm.*.lora_?": None, "vision.*": None},
        },
    )
    finish(recipe, tmp_path / "run")
    found = measure(recipe, tmp_path / "run", ("blocks",), quick=True)
    assert not any(name.startswith(("block", "distill")) for name in found.values)


class Killed(BaseException):
    """As if the process were gone, in the middle of a step."""


def test_a_kill_in_the_middle_of_a_run_changes_no_number(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = (Row("block"), Row("last", ("stages.0.objectives.1.mode=last",)))
    claim = Claim("c", "p", difference("block", "last", "loss"), "below", 0.0)
    ablation = Ablation(
        "made-up", "no paper", "?", lambda: one_stage(tiny), rows, (), ("loss",), (claim,)
    )

    def ablate(out: Path, **options: Any) -> dict[str, float]:
        report = engine.run_ablation(ablation, 2, out, say=lambda line: None, **options)
        return {
            f"{row}-{seed}-{name}": value
            for (row, seed), run in report.results.items()
            for name, value in run.values.items()
        }

    whole = ablate(tmp_path / "whole")
    step, calls = loop.train_step, []

    def dying(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 11:  # the second run's fifth of six steps, a checkpoint is behind it
            raise Killed
        return step(*args)

    monkeypatch.setattr(loop, "train_step", dying)
    with pytest.raises(Killed):
        ablate(tmp_path / "killed")
    assert ablate(tmp_path / "killed", resume=True) == whole
    assert 24 < len(calls) < 30  # not begun anew
