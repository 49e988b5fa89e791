"""A whole run: its folder, resuming it, what it refuses, and what stays untouched."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from helpers import (
    Tiny,
    as_if_killed,
    exported,
    losses,
    metrics,
    recipe_data,
    save_llm,
    save_teacher,
    tiny_recipe,
)
from oculi.errors import CheckpointError, DataError, OculiError, RecipeError
from oculi.export.exported import load_processor
from oculi.export.load import load_checkpoint, load_unmerged
from oculi.recipe import EvalSpec, Recipe, load, override, validate
from oculi.training import checkpoint as ckpt
from oculi.training import loop
from oculi.training.folder import lock
from oculi.training.run import train

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


def test_stages_and_seeds_meet_the_samples_in_orders_of_their_own(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, ...]] = []
    real = loop.train_step

    def step(module: Any, batches: Any, *arguments: Any) -> Any:
        seen.append(tuple(name for batch in batches for name in batch.sample_ids))
        return real(module, batches, *arguments)

    monkeypatch.setattr(loop, "train_step", step)
    for seed in (0, 5):
        changes = {"seed": seed, "stages.0.steps": 2, "stages.1.steps": 2}
        train(tiny_recipe(tiny, **changes), tmp_path / str(seed), quiet=True)
    orders = [seen[i] + seen[i + 1] for i in range(0, 8, 2)]
    assert all(sorted(order) == [f"row-{i}" for i in range(8)] for order in orders)
    assert len(set(orders)) == 4


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
        lock(finished),
        pytest.raises(RecipeError, match="being trained by another process") as caught,
    ):
        train(recipe, finished, resume=True, quiet=True)
    assert str(finished) in str(caught.value)
    with lock(finished):  # it is free again, and the file itself locks nothing
        pass


def test_an_absolute_folder_as_base_can_be_resumed(finished: Path, tiny: Tiny) -> None:
    """``run / "/abs"`` is ``/abs``: the base LLM must not be taken for a stage of the run."""
    assert tiny.llm.is_absolute()
    found = {base: ckpt.stage_folder(finished, base, "") for base in (str(tiny.llm), "testbed:llm")}
    assert list(found.values()) == [None, None]
    stage = finished / "stages" / "0-pretrain"
    assert ckpt.stage_folder(finished, "stages/0-pretrain", "") == stage
    # The LLM of a recipe may lie in a folder of that name beside the caller.
    assert ckpt.stage_folder(finished, "stages/llm", "stages/llm") is None


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
    # The names of what is trained are written before the first step, which may not be finite.
    (run / "trainable-0-pretrain.txt").write_text("vision.x\n")
    right = override(tiny_recipe(tiny), ["stages.0.steps=1", "stages.1.steps=1"])
    train(right, run, quiet=True)
    assert load(run / "recipe.yaml") == right


def test_a_stage_may_cut_pictures_otherwise(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a stage was trained on is what its folder, its checkpoints and its lengths go by."""
    patches: dict[str, int] = {}
    real = loop.train_step

    def step(
        module: Any, batches: Any, optimizer: Any, members: Any, stage: Any, *rest: Any
    ) -> Any:
        most = max(int(grid.prod()) for batch in batches for grid in batch.grids_N2)
        patches[stage.name] = max(patches.get(stage.name, 0), most)
        return real(module, batches, optimizer, members, stage, *rest)

    monkeypatch.setattr(loop, "train_step", step)
    small = {"mode": "native", "min_patches": 1, "max_patches": 4}
    recipe = tiny_recipe(tiny, **{"stages.1.images": small})
    run = train(recipe, tmp_path / "run", quiet=True)
    found = [load_processor(run / "stages" / name) for name in ("0-pretrain", "1-finetune")]
    assert [p.image_processor.max_patches for p in found] == [16, 4]
    steps = {s: load_unmerged(run / "checkpoints" / f"step-{s:07d}").processor for s in (2, 5)}
    assert [p.image_processor.max_patches for p in steps.values()] == [16, 4]
    assert patches["pretrain"] > 4 == patches["finetune"]
    resumed = as_if_killed(run, tmp_path / "resumed", 5)
    train(recipe, resumed, resume=True, quiet=True)
    assert losses(resumed) == losses(run)
    long = {"stages.1.images": {"mode": "native", "min_patches": 600, "max_patches": 600}}
    with pytest.raises(DataError, match="are longer than 512 tokens"):
        train(tiny_recipe(tiny, **long), tmp_path / "long", quiet=True)


def test_a_stage_may_have_another_teacher(tiny: Tiny, tmp_path: Path) -> None:
    """Heads of another shape begin anew, and are those of a resume."""
    narrow = save_teacher(tmp_path / "narrow", hidden_size=16)
    distil = [{"kind": "lm"}, {"kind": "distill", "teacher": str(narrow)}]
    trained = {"llm.*": None, "objectives.*": None}
    recipe = tiny_recipe(
        tiny, **{"stages.1.objectives": distil, "stages.1.trainable": trained, "stages.1.steps": 2}
    )
    run = train(recipe, tmp_path / "run", quiet=True)
    heads = [
        ckpt.load(run / "checkpoints" / f"step-{step:07d}")[1][
            "objectives.distill.heads.0.1.weight"
        ]
        for step in (3, 5)
    ]
    assert [len(head) for head in heads] == [24, 16]
    resumed = as_if_killed(run, tmp_path / "resumed", 4)
    train(recipe, resumed, resume=True, quiet=True)
    assert losses(resumed) == losses(run)


def test_evaluations_of_files_of_one_name(tiny: Tiny, tmp_path: Path) -> None:
    other = shutil.copytree(tiny.data.parent, tmp_path / "other") / tiny.data.name
    evals = [{"task": str(task), "limit": n} for n, task in ((1, tiny.data), (2, other))]
    recipe = tiny_recipe(tiny, **{"stages.0.steps": 1, "stages.1.steps": 1, "evals": evals})
    run = train(recipe, tmp_path / "run", quiet=True)
    for title, n in (("rows", 1), ("rows-2", 2), ("rows-2-blind", 2)):
        result = json.loads((run / "evals" / f"finetune-{title}" / "result.json").read_text())
        assert result["exact"]["n"] == n


def test_attention_that_a_cpu_cannot_train_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny, **{"model.attention": "flex_attention"})
    with pytest.raises(RecipeError, match="flex_attention has no backward pass on a CPU; blocked"):
        train(recipe, tmp_path / "run", quiet=True)


def test_evaluations_of_every_stage(tiny: Tiny, tmp_path: Path) -> None:
    recipe = tiny_recipe(
        tiny,
        **{
            "stages.0.steps": 1,
            "stages.1.steps": 1,
            "evals": [
                {"task": str(tiny.data), "limit": 3},
                {"task": "playroom:1", "limit": 1, "blind": False},
                {"task": "playroom:2", "limit": 1, "blind": False, "only_at_end": True},
            ],
        },
    )  # fmt: skip
    run = train(recipe, tmp_path / "run", quiet=True)
    assert sorted(path.name for path in (run / "evals").iterdir()) == sorted(
        f"{stage}-{task}"
        for stage in ("pretrain", "finetune")
        for task in ("rows", "rows-blind", "playroom-1", "playroom-2")
        if (stage, task) != ("pretrain", "playroom-2")
    )
    result = json.loads((run / "evals" / "finetune-rows-blind" / "result.json").read_text())
    assert result["blind"] is True and result["exact"]["n"] == 3
    assert result["stage"] == "finetune"


def test_a_stage_that_learns_no_answers_is_not_asked(tiny: Tiny, tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny)
    pretrain, finetune = recipe.stages
    see = pretrain.model_copy(
        update={"name": "see", "objectives": pretrain.objectives[1:], "merge_lora": False}
    )
    assert pretrain.answers and not see.answers
    recipe = recipe.model_copy(
        update={
            "stages": tuple(s.model_copy(update={"steps": 1}) for s in (see, pretrain, finetune)),
            "evals": (EvalSpec(task="playroom:1", limit=1, blind=False),),
        }
    )
    run = train(recipe, tmp_path / "run", quiet=True)
    found = {path.name for path in (run / "evals").iterdir()}
    assert found == {"pretrain-playroom-1", "finetune-playroom-1"}


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


def test_a_part_of_the_llm_beside_lora_in_bfloat16(tiny: Tiny, tmp_path: Path) -> None:
    """Norms in float32 and matrices in bfloat16: scored, merged, and opened from a checkpoint."""
    some = {"llm.*.lora_?": None, "llm.*norm.weight": None}
    changes = {
        "model.dtype": "bfloat16", "stages.0.precision": "bfloat16", "stages.0.trainable": some,
        "stages.0.objectives": [{"kind": "lm"}], "stages.0.merge_lora": False, "stages.1.steps": 1,
        "stages.1.precision": "bfloat16", "stages.1.trainable": some, "stages.1.merge_lora": True,
        "evals": [{"task": str(tiny.data), "limit": 2, "blind": False}],
    }  # fmt: skip
    run = train(tiny_recipe(tiny, **changes), tmp_path / "run", quiet=True)
    assert {value.dtype for value in exported(run).values()} == {torch.bfloat16}
    model, processor = load_checkpoint(run / "checkpoints" / "step-0000004")
    batch = processor(text="How many?")
    assert model(**batch).logits.isfinite().all()


def test_a_stage_in_float32_of_a_model_in_bfloat16(tiny: Tiny, tmp_path: Path) -> None:
    """With heads of distillation, and with a part of the LLM."""
    run = train(tiny_recipe(tiny, **{"model.dtype": "bfloat16"}), tmp_path / "run", quiet=True)
    assert {value.dtype for value in exported(run).values()} == {torch.bfloat16}
    resumed = as_if_killed(run, tmp_path / "resumed", 2)
    train(tiny_recipe(tiny, **{"model.dtype": "bfloat16"}), resumed, resume=True, quiet=True)
    assert losses(resumed) == losses(run)


def test_a_text_only_stage(bare: dict[str, Any], tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "How many?"}, {"from": "gpt", "value": "three"}]
    rows = [{"id": str(i), "conversations": turns} for i in range(3)]
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
    with pytest.raises(DataError, match=r"rows\.jsonl:1: "):
        train(recipe, tmp_path / "run", quiet=True)
