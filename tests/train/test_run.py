"""A whole run: its folder, resuming it, what it refuses, and what stays untouched."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Tiny, metrics, recipe_data, save_llm, save_teacher, tiny_recipe
from safetensors.torch import load_file
from torch import Tensor

from oculi.errors import CheckpointError, DataError, OculiError, RecipeError
from oculi.recipe import Recipe, load, override, validate
from oculi.train import checkpoint as ckpt
from oculi.train import loop
from oculi.train.run import _lock, first_difference, train


@pytest.fixture
def recipe(tiny: Tiny) -> Recipe:
    return tiny_recipe(tiny)


def exported(run: Path, stage: str = "1-finetune") -> dict[str, Tensor]:
    return load_file(run / "stages" / stage / "model.safetensors")


def losses(run: Path) -> dict[tuple[str, int], tuple[str, ...]]:
    """Every logged number that training has computed, exactly."""
    return {
        step: tuple(float(entry[key]).hex() for key in (*entry["objectives"], "loss", "grad_norm"))
        for step, entry in metrics(run).items()
    }


def as_if_killed(finished: Path, copy: Path, last_checkpoint: int) -> Path:
    """The folder of the run as it was just after its checkpoint at this step."""
    shutil.copytree(finished, copy)
    for folder in (copy / "checkpoints").iterdir():
        if int(folder.name[5:]) > last_checkpoint:
            shutil.rmtree(folder)
    kept = [line for line in (copy / "metrics.jsonl").read_text().splitlines(keepends=True)]
    (copy / "metrics.jsonl").write_text("".join(kept[:last_checkpoint]))
    shutil.rmtree(copy / "stages" / "1-finetune")
    if last_checkpoint <= 3:
        shutil.rmtree(copy / "stages")
    return copy


# ---------------------------------------------------------------------------------- the folder


def test_a_run_leaves_everything_it_promises(finished: Path, recipe: Recipe) -> None:
    assert load(finished / "recipe.yaml") == recipe
    assert list(metrics(finished)) == [(s, n) for s in ("pretrain", "finetune") for n in (1, 2, 3)]
    for entry in metrics(finished).values():
        assert {"loss", "lm", "lr", "grad_norm", "samples", "useful_tokens"} <= entry.keys()
        assert 0.3 < entry["useful_tokens"] <= 1
    assert [entry["lr"] for entry in metrics(finished).values()][:3] == [1e-2, 1e-2, 5e-3]
    names = sorted(path.name for path in (finished / "checkpoints").iterdir())
    assert names == [f"step-{n:07d}" for n in (2, 3, 5, 6)]
    assert sorted(path.name for path in (finished / "stages").iterdir()) == [
        "0-pretrain", "1-finetune",
    ]  # fmt: skip
    assert (finished / "report.html").stat().st_size > 1000
    trained = (finished / "trainable-1-finetune.txt").read_text().split()
    assert "llm.lm_head.weight" in trained and not any("lora" in name for name in trained)


def test_pretraining_leaves_the_llm_bit_identical(finished: Path, tiny: Tiny) -> None:
    """VoRA's promise: what LoRA is folded into is the base that people know, to the bit."""
    original = load_file(tiny.llm / "model.safetensors")
    state, tensors = ckpt.load(finished / "checkpoints" / "step-0000003")
    assert state.lora and state.base == str(tiny.llm)
    assert {name.split(".")[0] for name in tensors} == {"llm", "vision", "objectives"}
    llm = {name for name in tensors if name.startswith("llm.")}
    assert llm and all(name.endswith(("lora_A", "lora_B")) for name in llm)
    # What the merge has changed is LoRA's product and nothing else.
    merged = exported(finished, "0-pretrain")
    for name, value in original.items():
        module = f"llm.{name.removesuffix('.weight')}"
        if f"{module}.lora_A" in tensors:
            delta = tensors[f"{module}.lora_B"] @ tensors[f"{module}.lora_A"]
            assert delta.abs().max() > 1e-4
            torch.testing.assert_close(merged[f"llm.{name}"], value + delta, rtol=0, atol=1e-6)
        else:
            assert torch.equal(merged[f"llm.{name}"], value), name


def test_finetuning_changes_the_whole_llm(finished: Path) -> None:
    before, after = exported(finished, "0-pretrain"), exported(finished)
    assert before.keys() == after.keys()
    same = [name for name in before if torch.equal(before[name], after[name])]
    assert same == []


def test_nothing_of_the_teacher_or_the_heads_is_exported(finished: Path) -> None:
    for stage in ("0-pretrain", "1-finetune"):
        names = exported(finished, stage)
        assert {name.split(".")[0] for name in names} == {"llm", "vision"}
        assert not any("lora" in name or "head." in name.replace("lm_head.", "") for name in names)


def test_the_same_recipe_gives_the_same_run(finished: Path, recipe: Recipe, tmp_path: Path) -> None:
    (again := tmp_path / "again").mkdir()  # an empty folder is as good as none
    torch.rand(5)
    short = override(recipe, ["stages.1.steps=1"])
    train(short, again, quiet=True)
    wanted = losses(finished)
    found = losses(again)
    assert {step: found[step] for step in list(found)[:3]} == {
        step: wanted[step] for step in list(wanted)[:3]
    }
    for name, value in exported(finished, "0-pretrain").items():
        assert torch.equal(exported(again, "0-pretrain")[name], value)


# -------------------------------------------------------------------------------------- resume


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


def test_resume_with_workers_and_another_place(
    finished: Path, tiny: Tiny, tmp_path: Path
) -> None:
    """A run folder can be moved: its stages are found relative to it."""
    run = as_if_killed(finished, tmp_path / "elsewhere" / "run", 5)
    recipe = tiny_recipe(tiny)
    train(recipe, run, resume=True, quiet=True)
    assert losses(run) == losses(finished)


def test_resume_without_a_checkpoint_starts(
    finished: Path, recipe: Recipe, tmp_path: Path
) -> None:
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


def test_the_first_difference_is_by_key() -> None:
    assert first_difference({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}) == "a.1.b: was 2, is 3"
    assert first_difference({"a": [1]}, {"a": [1, 2]}) == "a: was [1], is [1, 2]"
    assert first_difference({"a": 1}, {"a": 1}) == ""
    assert first_difference({}, {"a": 1}) == "a: was None, is 1"


# --------------------------------------------------------------------------------- what is refused


def test_a_folder_that_is_taken_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RecipeError, match="is not empty: add --resume") as caught:
        train(recipe, tmp_path, quiet=True)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(OculiError, match="no run to resume"):
        train(recipe, tmp_path, resume=True, quiet=True)
    with pytest.raises(RecipeError, match="is a file"):
        train(recipe, tmp_path / "notes.txt", quiet=True)


def test_a_second_trainer_is_refused(finished: Path, recipe: Recipe) -> None:
    with (
        _lock(finished),
        pytest.raises(RecipeError, match="being trained by another process") as caught,
    ):
        train(recipe, finished, resume=True, quiet=True)
    assert str(finished) in str(caught.value)
    with _lock(finished):  # it is free again, and the file itself locks nothing
        pass


def test_an_absolute_folder_as_base_can_be_resumed(finished: Path, tiny: Tiny) -> None:
    """``run / "/abs"`` is ``/abs``: the base LLM must not be taken for a stage of the run."""
    assert tiny.llm.is_absolute()
    assert ckpt.stage_folder(finished, str(tiny.llm)) is None
    assert ckpt.stage_folder(finished, "stages/0-pretrain") == finished / "stages" / "0-pretrain"
    assert ckpt.stage_folder(finished, "testbed:llm") is None


def test_another_base_is_refused(
    finished: Path, tiny: Tiny, tmp_path: Path, make_llm_config: Callable[..., Any],
    make_tokenizer: Any,
) -> None:  # fmt: skip
    """The same folder with other weights in it, as after an update of the download."""
    config = make_llm_config(max_position_embeddings=1024)
    other = save_llm(tmp_path / "llm", config, make_tokenizer(), seed=9)
    run = as_if_killed(finished, tmp_path / "run", 2)
    text = (run / "recipe.yaml").read_text().replace(str(tiny.llm), str(other))
    (run / "recipe.yaml").write_text(text)
    with pytest.raises(CheckpointError, match=r"is not the LLM .*: lm_head\.weight differs"):
        train(load(run / "recipe.yaml"), run, resume=True, quiet=True)


MISTAKES: dict[str, dict[str, Any]] = {
    'stages.1.trainable: the glob "llm.*.lora_?" matches no parameter': {
        "stages.1.trainable": {"llm.*.lora_?": None}
    },
    'stages.1.trainable: the glob "vison.*" matches no parameter': {
        "stages.1.trainable": {"vison.*": None}
    },
    'stages.0.trainable: the glob "objectivs.*"': {"stages.0.trainable": {"objectivs.*": None}},
    "there is no": {"stages.1.data": [{"kind": "file", "path": "no such file.json"}]},
    "are longer than 20 tokens": {"stages.1.length": 20, "stages.1.pack_length": 20},
    "is neither a task nor a file": {"evals": [{"task": "no such task"}]},
    "nowhere is no folder": {
        "stages.1.objectives": [{"kind": "distill", "teacher": "nowhere"}],
    },
}


@pytest.mark.parametrize("said", MISTAKES)
def test_a_mistake_in_any_stage_is_found_before_the_first_step(
    tiny: Tiny, tmp_path: Path, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A typo in the second stage must not wait until the first has trained for a week: the recipe of
    a run cannot be changed any more then."""
    monkeypatch.setattr(loop, "train_step", lambda *a: pytest.fail("a step was trained"))
    recipe = tiny_recipe(tiny, **MISTAKES[said])
    with pytest.raises(OculiError) as caught:
        train(recipe, tmp_path / "run", quiet=True)
    if said != "there is no":
        assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_after_a_mistake_the_folder_is_free(tiny: Tiny, tmp_path: Path) -> None:
    """Nothing was trained, so the corrected command can be given again as it is."""
    run = tmp_path / "run"
    wrong = tiny_recipe(tiny, **{"stages.0.trainable": {"vison.*": None}})
    with pytest.raises(RecipeError, match="vison"):
        train(wrong, run, quiet=True)
    right = override(tiny_recipe(tiny), ["stages.0.steps=1", "stages.1.steps=1"])
    train(right, run, quiet=True)
    assert load(run / "recipe.yaml") == right


def test_evaluations_of_every_stage(tiny: Tiny, tmp_path: Path) -> None:
    recipe = tiny_recipe(
        tiny,
        **{
            "stages.0.steps": 1,
            "stages.1.steps": 1,
            "evals": [{"task": str(tiny.data), "limit": 3}, {"task": "playroom:1", "limit": 1, "blind": False}],
        },
    )  # fmt: skip
    run = train(recipe, tmp_path / "run", quiet=True)
    assert sorted(path.name for path in (run / "evals").iterdir()) == sorted(
        f"{stage}-{task}"
        for stage in ("pretrain", "finetune")
        for task in ("rows", "rows-blind", "playroom-1")
    )
    result = json.loads((run / "evals" / "finetune-rows-blind" / "result.json").read_text())
    assert result["blind"] is True and result["exact"]["n"] == 3
    assert result["stage"] == "finetune"


@pytest.fixture
def bare(tiny: Tiny) -> dict[str, Any]:
    """A recipe without LoRA: one stage that trains the LLM itself."""
    data = recipe_data(tiny, **{"model.lora": None})
    data["stages"] = [{**data["stages"][1], "steps": 1, "precision": "bfloat16"}]
    return data


def test_a_recipe_without_lora_and_in_bfloat16(bare: dict[str, Any], tmp_path: Path) -> None:
    bare["model"]["dtype"] = "bfloat16"
    run = train(validate(bare, "test"), tmp_path / "run", quiet=True)
    weights = exported(run, "0-finetune")
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}
    saved = ckpt.load(run / "checkpoints" / "step-0000001")[1]
    assert {value.dtype for value in saved.values()} == {torch.float32}  # trained ones stay exact


def test_a_text_only_stage(bare: dict[str, Any], tmp_path: Path) -> None:
    rows = [
        {"id": str(i), "conversations": [{"from": "human", "value": "How many?"}, {"from": "gpt", "value": "three"}]}
        for i in range(3)
    ]  # fmt: skip
    path = tmp_path / "text.json"
    path.write_text(json.dumps(rows))
    bare["stages"][0]["data"] = [{"kind": "file", "path": str(path)}]
    run = train(validate(bare, "test"), tmp_path / "run", quiet=True)
    assert metrics(run)["finetune", 1]["loss"] > 0


@pytest.fixture(autouse=True)
def _restore_dice() -> Iterator[None]:
    state = torch.random.get_rng_state()
    yield
    torch.random.set_rng_state(state)


def test_a_teacher_that_is_too_deep(tiny: Tiny, tmp_path: Path) -> None:
    deep = save_teacher(tmp_path / "deep", num_hidden_layers=4)
    recipe = tiny_recipe(tiny, **{"stages.0.objectives.1.teacher": str(deep)})
    with pytest.raises(RecipeError, match="teacher has 4 blocks, the LLM 3"):
        train(recipe, tmp_path / "run", quiet=True)


def test_bad_data_is_refused_by_line(tiny: Tiny, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"conversations": []}\n')
    recipe = tiny_recipe(tiny, **{"stages.0.data": [{"kind": "file", "path": str(path)}]})
    with pytest.raises(DataError, match="line 1"):
        train(recipe, tmp_path / "run", quiet=True)
