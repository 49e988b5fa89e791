"""A run with a tower: the connector alone, then with the LLM; the tower is never touched."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import oculi
from helpers import Tiny, as_if_killed, exported, llava_data, losses, reseal, save_teacher
from oculi.cli import app
from oculi.errors import CheckpointError
from oculi.export.exported import load_exported
from oculi.export.merge import merge_run
from oculi.recipe import Recipe, validate
from oculi.training import checkpoint as ckpt
from oculi.training import loop, results
from oculi.training.run import train

MOVED = "embeddings.class_embedding"


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP that drops nine tenths of its attention, when it is trained."""
    return save_teacher(tmp_path_factory.mktemp("tower"), "clip", attention_dropout=0.9)


@pytest.fixture(scope="module")
def recipe(tiny: Tiny, tower: Path) -> Recipe:
    return validate(llava_data(tiny, tower), "test")


@pytest.fixture(scope="module")
def run(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """From start to end; read only."""
    return train(recipe, tmp_path_factory.mktemp("llava") / "run", quiet=True)


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """Parts in which any bit differs; within a part, all tensors or none."""
    assert before.keys() == after.keys()
    parts: dict[str, set[bool]] = {}
    for name, value in before.items():
        part = name.split(".")[0] if name.startswith("llm.") else ".".join(name.split(".")[:2])
        parts.setdefault(part, set()).add(torch.equal(value, after[name]))
    assert parts.keys() == {"llm", "vision.tower", "vision.connector"}
    assert all(len(same) == 1 for same in parts.values())
    return {part for part, same in parts.items() if same == {False}}


def test_each_stage_trains_its_parts_and_never_the_tower(
    run: Path, recipe: Recipe, tiny: Tiny, tower: Path
) -> None:
    from oculi.training.build import build_model, build_processor

    start = build_model(recipe.model, build_processor(recipe.model), recipe.seed).state_dict()
    first, second = exported(run, "0-pretrain"), exported(run, "1-finetune")
    assert changed(start, first) == {"vision.connector"}
    assert changed(first, second) == {"vision.connector", "llm"}
    for name, value in load_file(tower / "model.safetensors").items():
        assert torch.equal(second[f"vision.tower.{name}"], value)
    for name, value in load_file(tiny.llm / "model.safetensors").items():
        assert torch.equal(first[f"llm.{name}"], value)


def test_checkpoints_hold_what_is_trained(run: Path) -> None:
    _, early = ckpt.load(run / "checkpoints" / "step-0000002")
    assert sorted(early) == [
        f"vision.connector.{i}.{n}" for i in (0, 2) for n in ("bias", "weight")
    ]
    _, late = ckpt.load(run / "checkpoints" / "step-0000005")
    assert set(early) < set(late) and not any(name.startswith("vision.tower") for name in late)
    assert "llm.lm_head.weight" in late


@pytest.mark.parametrize("checkpoint", [2, 3, 5], ids=["stage 1", "boundary", "stage 2"])
def test_resume_equals_uninterrupted(
    run: Path, recipe: Recipe, tmp_path: Path, checkpoint: int
) -> None:
    again = as_if_killed(run, tmp_path / "run", checkpoint)
    train(recipe, again, resume=True, quiet=True)
    assert losses(again) == losses(run) and len(losses(run)) == 6
    for stage in ("0-pretrain", "1-finetune"):
        found, wanted = exported(again, stage), exported(run, stage)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_frozen_tower_drops_nothing(run: Path, tiny: Tiny, tower: Path, tmp_path: Path) -> None:
    """The same run with a tower that has no dropout: the same losses, to the bit."""
    plain = Path(shutil.copytree(tower, tmp_path / "tower"))
    config = json.loads((plain / "config.json").read_text())
    assert config["attention_dropout"] == 0.9
    (plain / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.0}))
    short = validate(llava_data(tiny, plain, **{"stages.1.steps": 1}), "test")
    found = losses(train(short, tmp_path / "run", quiet=True))
    assert len(found) == 4
    wanted = losses(run)
    # The last step of the short run has another learning rate, which its loss does not see.
    assert all(wanted[step][:2] == values[:2] for step, values in found.items())


def test_another_tower_in_its_place_is_refused(
    run: Path, recipe: Recipe, tiny: Tiny, tower: Path, tmp_path: Path
) -> None:
    """As after an update of a download: nothing else would tell."""
    other = Path(shutil.copytree(tower, tmp_path / "tower"))
    copy = as_if_killed(run, tmp_path / "run", 2)
    moved = validate(llava_data(tiny, other), "test")
    (copy / "recipe.yaml").write_text(moved.to_yaml())
    assert oculi.load(copy)[0] is not None
    weights = load_file(other / "model.safetensors")
    weights[MOVED] = weights[MOVED] + 1e-3
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    said = rf"vision part is not the one .*: vision\.tower\.{MOVED} differs.*vision\.init_from"
    with pytest.raises(CheckpointError, match=said):
        train(moved, copy, resume=True, quiet=True)
    with pytest.raises(CheckpointError, match=said):
        oculi.load(copy)
    shutil.rmtree(other)
    with pytest.raises(CheckpointError, match=f"{other} is no folder") as caught:
        oculi.load(copy)
    assert "LLM" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("change", ["gone", "altered", "older"])
def test_the_stage_before_is_as_it_was(
    run: Path, recipe: Recipe, tmp_path: Path, change: str
) -> None:
    """The connector is in its folder alone: without a word, training went on with a new one."""
    again = as_if_killed(run, tmp_path / "run", 5)
    stage, step = again / "stages" / "0-pretrain", again / "checkpoints" / "step-0000005"
    if change == "gone":
        shutil.rmtree(stage)
        said = "0-pretrain is gone, and the checkpoints after it"
    elif change == "altered":
        weights = load_file(stage / "model.safetensors")
        name = next(name for name in weights if name.startswith("vision.connector"))
        weights[name] = weights[name] + 1
        save_file(weights, stage / "model.safetensors", {"format": "pt"})
        said = f"stages/0-pretrain is not what this run has exported: {name} differs"
    else:  # a checkpoint that has no sums of the connector
        state = ckpt.load_state(step)
        kept = {k: v for k, v in state.base_tensors.items() if "connector" not in k}
        assert kept != state.base_tensors
        (step / "state.json").write_text(json.dumps({**asdict(state), "base_tensors": kept}))
        reseal(step)
        train(recipe, again, resume=True, quiet=True)
        assert losses(again) == losses(run)
        return
    for work in (lambda: train(recipe, again, resume=True, quiet=True), lambda: oculi.load(step)):
        with pytest.raises(CheckpointError, match=said):
            work()


def test_there_is_nothing_to_merge(run: Path, tmp_path: Path) -> None:
    for path in (run, run / "checkpoints" / "step-0000002"):
        with pytest.raises(
            CheckpointError, match="has no LoRA: its recipe trains without"
        ) as caught:
            merge_run(path, tmp_path / "out")
        assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", [".", "checkpoints/step-0000002", "stages/0-pretrain"])
def test_eval_and_chat(run: Path, tiny: Tiny, tmp_path: Path, place: str) -> None:
    """A finished run, a checkpoint that is changes to a base, an exported stage."""
    settings = ["--max-new-tokens", "3"]
    task = ["--task", str(tiny.data), "--limit", "3", "--json", "--out", str(tmp_path / "eval")]
    for blind in ([], ["--blind"]):
        done = CliRunner().invoke(app, ["eval", str(run / place), *task, *settings, *blind])
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["exact"]["n"] == 3
    image = ["--image", str(tiny.data.parent / "0.png")]
    done = CliRunner().invoke(app, ["chat", str(run / place), *image, *settings, "What is it?"])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("lora", [None, {"rank": 2, "blocks": 2}], ids=["plain", "merged"])
def test_what_is_evaluated_is_what_is_exported(
    tiny: Tiny, tower: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: Any
) -> None:
    """In bfloat16 as well, where the weights are rounded but no position may be."""
    changes: dict[str, Any] = {
        "model.dtype": "bfloat16",
        "model.lora": lora,
        "stages.0.steps": 1,
        "stages.0.merge_lora": lora is not None,
        "stages.0.trainable": {"vision.connector.*": None, **({"llm.*.lora_?": None} if lora else {})},
        "evals": [{"task": str(tiny.data), "limit": 1, "blind": False}],
    }  # fmt: skip
    data = llava_data(tiny, tower, **changes)
    data["stages"] = data["stages"][:1]
    ids = torch.arange(200)[None] % 300
    seen: list[torch.Tensor] = []
    real = results.evaluate

    def evaluate(model: Any, *arguments: Any, **settings: Any) -> Any:
        with torch.no_grad():
            seen.append(model.eval()(input_ids=ids).logits)
        return real(model, *arguments, **settings)

    monkeypatch.setattr(results, "evaluate", evaluate)
    run = train(validate(data, "test"), tmp_path / "run", quiet=True)
    model, _ = load_exported(run / "stages" / "0-pretrain")
    with torch.no_grad():
        assert torch.equal(seen[0], model(input_ids=ids).logits)
    assert model.dtype == torch.bfloat16


def test_every_stage_has_the_attention_of_the_recipe(
    tiny: Tiny, tower: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second stage starts from an exported folder, which names none."""
    changes = {"model.attention": "eager", "stages.0.steps": 1, "stages.1.steps": 1}
    seen: list[str] = []
    real = loop.train_step

    def step(module: Any, *arguments: Any) -> Any:
        seen.append(module.model.llm.config._attn_implementation)
        return real(module, *arguments)

    monkeypatch.setattr(loop, "train_step", step)
    train(validate(llava_data(tiny, tower, **changes), "test"), tmp_path / "run", quiet=True)
    assert seen == ["eager", "eager"]
