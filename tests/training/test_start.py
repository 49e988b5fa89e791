"""Training a model that sees already: whatever it is, it begins as it was exported."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers import Tiny, as_if_killed, exported, llava_data, losses, recipe_data, save_teacher
from oculi.errors import CheckpointError, OculiError, RecipeError
from oculi.export.exported import load_exported
from oculi.export.hf import export
from oculi.export.load import load_checkpoint, load_unmerged
from oculi.plan.build import meta_model
from oculi.recipe import Recipe, load, override, validate
from oculi.recipes import find_recipe
from oculi.recipes.flags import apply_flags
from oculi.training import start
from oculi.training.build import build_model, build_processor
from oculi.training.run import train
from oculi.training.start import begin_with

KINDS = ("vora", "routed", "tower", "perceiver", "aurora", "mutual")


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_teacher(tmp_path_factory.mktemp("tower"), "clip")


def original(kind: str, tiny: Tiny, tower: Path) -> Recipe:
    """A recipe whose model is of this kind."""
    if kind == "vora":
        return validate(recipe_data(tiny), "test")
    if kind == "routed":
        data = recipe_data(tiny, **{"stages.0.merge_lora": False})
        data["model"]["lora"]["routed"] = True
        data["stages"][1]["trainable"] = {"llm.*.lora_?": None}
        return validate(data, "test")
    changes: dict[str, Any] = {"model.image_attention": "mutual" if kind == "mutual" else "causal"}
    if kind == "perceiver":
        changes["model.vision"] = {
            "kind": "perceiver", "patch_size": 4, "init_from": str(tower), "heads": 2, "max_tiles": 3,
        }  # fmt: skip
    if kind == "aurora":
        changes["model.compress"] = {"kind": "mlp", "patches": 16, "tokens": 4}
        changes["model.fusion"] = {"kind": "combined"}
    return validate(llava_data(tiny, tower, **changes), "test")


@pytest.fixture
def sighted(
    request: pytest.FixtureRequest, tiny: Tiny, tower: Path, tmp_path: Path
) -> tuple[Path, Any, Any]:
    """An exported folder of a kind, and the model and processor that are in it."""
    spec = original(request.param, tiny, tower).model
    processor = build_processor(spec)
    model = build_model(spec, processor, seed=3)
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))  # what no start would give again
    return export(model, processor, tmp_path / "exported", "x", "y"), model, processor


def small(recipe: Recipe, tiny: Tiny, *changes: str) -> Recipe:
    """A recipe for any model, in three steps on the tests' data."""
    rows = f"stages.0.data=[{{kind: file, path: '{tiny.data}'}}]"
    settings = (
        "steps=3", "batch=4", "length=512", "pack_length=160", "workers=0", "precision=float32",
        "checkpoint_every=2", "log_every=1", "lr=1e-2", "warmup_steps=1",
    )  # fmt: skip
    return override(recipe, [rows, *(f"stages.0.{one}" for one in settings), *changes])


@pytest.mark.parametrize("sighted", KINDS, indirect=True)
def test_it_begins_as_it_was_exported(sighted: tuple[Path, Any, Any]) -> None:
    folder, model, processor = sighted
    recipe = begin_with(find_recipe("finetune"), str(folder))
    cutter = build_processor(recipe.model)
    settings = [one.image_processor.to_dict() for one in (cutter, processor)]
    for one in settings:
        one.pop("auto_map", None)  # of what has been saved
    assert settings[0] == settings[1]
    assert cutter.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    built = build_model(recipe.model, cutter, seed=7)
    wanted, found = model.state_dict(), built.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert built.config.image_attention == model.config.image_attention
    assert built.generation_config.eos_token_id == model.generation_config.eos_token_id
    # What is planned is what is trained.
    shapes = {name: value.shape for name, value in meta_model(recipe.model).named_parameters()}
    assert shapes == {name: value.shape for name, value in built.named_parameters()}


@pytest.mark.parametrize("sighted", KINDS, indirect=True)
def test_any_is_trained_further(sighted: tuple[Path, Any, Any], tiny: Tiny, tmp_path: Path) -> None:
    folder, _, _ = sighted
    recipe = small(begin_with(find_recipe("finetune"), str(folder)), tiny)
    out = train(recipe, tmp_path / "run", quiet=True)
    found, before = exported(out, "0-finetune"), load_file(folder / "model.safetensors")
    assert found.keys() == before.keys()
    moved = {name for name in found if not torch.equal(found[name], before[name].float())}
    assert {name.split(".")[0] for name in moved} == {name.split(".")[0] for name in found}
    assert load(out / "recipe.yaml") == recipe  # which runs again by itself


@pytest.fixture(scope="module")
def run(finished: Path, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LoRA on a finished run's model, merged; read only."""
    recipe = small(apply_flags(find_recipe("finetune_lora"), start=str(finished)), tiny)
    return train(recipe, tmp_path_factory.mktemp("run") / "run", quiet=True)


def test_a_run_stands_for_its_last_stage(run: Path, finished: Path) -> None:
    recipe = load(run / "recipe.yaml")
    assert recipe.model.start == recipe.model.llm == str(finished / "stages" / "1-finetune")
    found, before = exported(run, "0-finetune"), exported(finished)
    moved = {name for name in found if not torch.equal(found[name], before[name])}
    # LoRA of all blocks and linear layers, merged; nothing else.
    assert moved and all(name.endswith("_proj.weight") for name in moved)
    blocks = {name.split(".")[3] for name in moved}
    model, _ = load_exported(run / "stages" / "0-finetune")
    assert len(blocks) == len(model.blocks)


def test_resume_equals_uninterrupted(run: Path, tmp_path: Path) -> None:
    again = tmp_path / "run"
    shutil.copytree(run, again)
    shutil.rmtree(again / "stages")
    shutil.rmtree(again / "checkpoints" / "step-0000003")
    recipe = load(run / "recipe.yaml")
    model, _ = load_checkpoint(again)
    assert any(".lora_A." in name for name, _ in model.named_parameters())
    train(recipe, again, resume=True, quiet=True)
    assert losses(again) == losses(run) and len(losses(run)) == 3
    found, wanted = exported(again, "0-finetune"), exported(run, "0-finetune")
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_another_start_is_no_resume(finished: Path, tiny: Tiny, tmp_path: Path) -> None:
    """Not only its LLM: what LoRA leaves as it was is in no checkpoint."""
    start = shutil.copytree(finished / "stages" / "1-finetune", tmp_path / "start")
    recipe = small(apply_flags(find_recipe("finetune_lora"), start=str(start)), tiny)
    run = train(recipe, tmp_path / "run", quiet=True)
    shutil.rmtree(run / "stages")
    shutil.rmtree(run / "checkpoints" / "step-0000003")
    moved = start.rename(tmp_path / "moved")
    with pytest.raises(
        CheckpointError, match=r"start is no folder.* this run began with; if it has"
    ):
        load_checkpoint(run)
    assert load_unmerged(run, base=str(moved)).state.lora
    moved.rename(start)
    weights = load_file(start / "model.safetensors")
    name = next(name for name in weights if name.startswith("vision."))
    save_file({**weights, name: weights[name] + 1}, start / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=f"not the one that this run was trained on: {name}"):
        train(recipe, run, resume=True, quiet=True)
    with pytest.raises(CheckpointError, match=f"not the one that this run was trained on: {name}"):
        load_checkpoint(run)


def test_a_start_is_no_stage_of_the_run(
    finished: Path, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both may be called stages/1-finetune from where one stands."""
    monkeypatch.chdir(finished)
    recipe = small(begin_with(find_recipe("finetune"), "stages/1-finetune"), tiny)
    run = train(recipe, tmp_path / "run", quiet=True)
    before = losses(run)
    shutil.copytree(run / "stages" / "0-finetune", run / "stages" / "1-finetune")
    shutil.rmtree(run / "stages" / "0-finetune")
    shutil.rmtree(run / "checkpoints" / "step-0000003")
    train(recipe, run, resume=True, quiet=True)
    assert losses(run) == before


def test_a_recipe_that_describes_another_model(finished: Path, tmp_path: Path) -> None:
    recipe = begin_with(find_recipe("finetune"), str(finished))
    other = override(recipe, ["model.image_attention=causal"])
    with pytest.raises(
        RecipeError, match=r"image_attention: was bidirectional, is causal\): name it by"
    ):
        build_processor(other.model)
    with pytest.raises(RecipeError, match=r"model.vision.width: was 24, is 8"):
        meta_model(override(recipe, ["model.vision.width=8"]).model)
    # How pictures are cut, and how it computes, is the recipe's.
    chosen = override(recipe, ["model.images.max_patches=9", "model.attention=eager"]).model
    cutter = build_processor(chosen)
    assert cutter.image_processor.max_patches == 9
    assert build_model(chosen, cutter, 0).llm.config._attn_implementation == "eager"


def test_half_precision_is_kept(finished: Path, tiny: Tiny, tmp_path: Path) -> None:
    model, processor = load_exported(finished / "stages" / "1-finetune")
    start = export(model.to(torch.bfloat16), processor, tmp_path / "start", "x", "y")
    recipe = small(begin_with(find_recipe("finetune"), str(start)), tiny)
    assert recipe.model.dtype == "bfloat16"
    out = train(recipe, tmp_path / "run", quiet=True)
    assert {value.dtype for value in exported(out, "0-finetune").values()} == {torch.bfloat16}


def test_what_is_no_start(finished: Path, tiny: Tiny, tmp_path: Path) -> None:
    recipe = find_recipe("finetune")
    with pytest.raises(
        CheckpointError, match='of the kind "qwen2", not one of oculi\'s: a text LLM is'
    ):
        begin_with(recipe, str(tiny.llm))
    begun = as_if_killed(finished, tmp_path / "begun", 2)
    with pytest.raises(CheckpointError, match=r"holds no exported model .* oculi merge"):
        begin_with(recipe, str(begun))
    with pytest.raises(CheckpointError, match="is no folder"):
        begin_with(recipe, str(tmp_path / "nowhere"))
    broken = shutil.copytree(finished / "stages" / "1-finetune", tmp_path / "broken")
    (broken / "processor_config.json").write_text(json.dumps({"image_processor": {}}))
    with pytest.raises(CheckpointError, match="broken cannot be loaded"):
        begin_with(recipe, str(broken))


@pytest.mark.parametrize(
    "vision",
    [
        3,
        [],
        {"kind": ["x"]},
        {"kind": "no"},
        {"kind": "patch_embed", "grid": "x"},
    ],
)
def test_a_folder_of_a_stranger(finished: Path, tmp_path: Path, vision: Any) -> None:
    """One line, whatever its configuration says."""
    folder = shutil.copytree(finished / "stages" / "1-finetune", tmp_path / "strange")
    recipe = begin_with(find_recipe("finetune"), str(folder))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vision_config": vision}))
    for attempt in (lambda: begin_with(recipe, str(folder)), lambda: build_processor(recipe.model)):
        with pytest.raises(OculiError) as caught:
            attempt()
        assert "\n" not in str(caught.value)


def test_a_hub_id_stays_one(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it was downloaded to is another place on another machine."""
    folder = finished / "stages" / "1-finetune"
    monkeypatch.setattr(start, "resolve", {"me/mine": str(folder)}.__getitem__)
    recipe = begin_with(find_recipe("finetune"), "me/mine")
    assert (
        recipe.model.start == recipe.model.llm == "me/mine" and str(folder) not in recipe.to_yaml()
    )
    processor = build_processor(recipe.model)
    built = build_model(recipe.model, processor, 0).state_dict()
    wanted = load_file(folder / "model.safetensors")
    assert all(torch.equal(built[name], value) for name, value in wanted.items())


def test_flags(finished: Path, tiny: Tiny) -> None:
    with pytest.raises(
        RecipeError, match="finetune trains a model that sees already: give it by --start"
    ):
        apply_flags(find_recipe("finetune"))
    with pytest.raises(RecipeError, match=r"--llm: the model of --start .* has its LLM"):
        apply_flags(find_recipe("finetune"), start=str(finished), llm="x")
    with pytest.raises(RecipeError, match="--teacher: finetune distils from no ViT"):
        apply_flags(find_recipe("finetune"), start=str(finished), teacher="x")
    # A recipe that distils does so from the teacher that is given.
    chosen = apply_flags(find_recipe("vora"), start=str(finished), teacher="elsewhere")
    assert chosen.stages[0].objectives[1].teacher == "elsewhere"  # type: ignore[union-attr]
    assert (
        chosen.model.vision.init_from is None
        and chosen.model.lora == find_recipe("vora").model.lora
    )


@pytest.mark.parametrize("sighted", ["routed"], indirect=True)
def test_routed_lora_is_trained_and_not_added_to(
    sighted: tuple[Path, Any, Any], tiny: Tiny, tmp_path: Path
) -> None:
    folder = str(sighted[0])
    for name, extra in (
        ("finetune_lora", ()),
        ("finetune", ("model.lora={rank: 2, routed: true}",)),
    ):
        recipe = small(override(begin_with(find_recipe(name), folder), list(extra)), tiny)
        with pytest.raises(RecipeError, match=r"model.lora: .*routed LoRA"):
            train(recipe, tmp_path / name, quiet=True)
    recipe = small(
        begin_with(find_recipe("finetune"), folder),
        tiny,
        "stages.0.trainable={'llm.*.lora_?': null}",
    )
    out = train(recipe, tmp_path / "run", quiet=True)
    found, before = exported(out, "0-finetune"), load_file(sighted[0] / "model.safetensors")
    moved = {name for name in found if not torch.equal(found[name], before[name])}
    assert moved and all(".routed.image." in name for name in moved)
