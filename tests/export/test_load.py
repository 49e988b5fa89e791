"""What ``oculi.load`` opens, and that it never opens the wrong thing in silence."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import oculi
from helpers import Tiny
from oculi.errors import CheckpointError, OculiError
from oculi.export.exported import load_exported
from oculi.model.lora import has_lora

NAME = "llm.model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def up_proj(model: Any) -> torch.Tensor:
    found: torch.Tensor = model.llm.model.layers[0].mlp.up_proj.weight
    return found


def exported(run: Path, stage: str) -> torch.Tensor:
    return load_file(run / "stages" / stage / "model.safetensors")[NAME]


def test_a_finished_run_is_its_last_stage(finished: Path) -> None:
    model, processor = oculi.load(finished)
    assert torch.equal(up_proj(model), exported(finished, "1-finetune"))
    assert not model.training and processor.image_token_id == model.config.image_token_id
    assert torch.equal(up_proj(oculi.load(str(finished))[0]), up_proj(model))


def test_an_exported_folder_and_a_checkpoint(finished: Path) -> None:
    model, _ = oculi.load(finished / "stages" / "0-pretrain")
    assert torch.equal(up_proj(model), exported(finished, "0-pretrain"))
    model, _ = oculi.load(finished / "checkpoints" / "step-0000002")
    assert has_lora(model) and not model.training
    model, _ = oculi.load(finished / "checkpoints" / "step-0000005")
    assert not has_lora(model)
    begun, ended = exported(finished, "0-pretrain"), exported(finished, "1-finetune")
    assert not torch.equal(up_proj(model), begun) and not torch.equal(up_proj(model), ended)


def test_a_run_in_its_second_stage_is_its_newest_checkpoint(run: Path, finished: Path) -> None:
    shutil.rmtree(run / "stages" / "1-finetune")
    shutil.rmtree(run / "checkpoints" / "step-0000006")
    model, _ = oculi.load(run)
    wanted, _ = oculi.load(finished / "checkpoints" / "step-0000005")
    assert torch.equal(up_proj(model), up_proj(wanted))


def test_a_run_between_its_stages_is_the_merged_one(run: Path) -> None:
    shutil.rmtree(run / "stages" / "1-finetune")
    for name in ("step-0000005", "step-0000006"):
        shutil.rmtree(run / "checkpoints" / name)
    assert torch.equal(up_proj(oculi.load(run)[0]), exported(run, "0-pretrain"))


def test_a_folder_that_was_cut_while_it_was_written_is_ignored(run: Path) -> None:
    stage = run / "stages" / "1-finetune"
    stage.rename(run / "stages" / "1-finetune.partial")
    (run / "stages" / "1-finetune.partial" / "model.safetensors").unlink()
    wanted = oculi.load(run / "checkpoints" / "step-0000006")[0]
    assert torch.equal(up_proj(oculi.load(run)[0]), up_proj(wanted))


def test_more_than_ten_stages_are_numbers_not_words(run: Path) -> None:
    shutil.copytree(run / "stages" / "0-pretrain", run / "stages" / "10-more")
    assert torch.equal(up_proj(oculi.load(run)[0]), exported(run, "10-more"))


def test_what_is_no_checkpoint(tmp_path: Path, tiny: Tiny) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    said = {
        tmp_path / "none": "is no folder",
        tmp_path / "file": "is no folder",
        tmp_path / "empty": "neither an exported folder nor a run with checkpoints",
        tmp_path / "run": "neither an exported folder nor a run with checkpoints",
        tiny.llm: 'holds a model of the kind "qwen2", not one of oculi',
        tiny.teacher: 'holds a model of the kind "aimv2_vision_model"',
    }
    for path, message in said.items():
        with pytest.raises(CheckpointError, match=message) as caught:
            oculi.load(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_weights_that_are_missing_are_not_made_up(run: Path) -> None:
    folder = run / "stages" / "1-finetune"
    file = folder / "model.safetensors"
    weights = load_file(file)
    del weights[NAME]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=f"lacks 1 weights .*{NAME}"):
        oculi.load(folder)
    weights[NAME], weights["llm.extra"] = torch.zeros(48, 32), torch.zeros(1)
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"llm\.extra"):
        oculi.load(folder)


@pytest.mark.parametrize(
    ("field", "settings", "said"),
    [
        ("vision_config", {"kind": "tower"}, "vision_config: missing a required argument: 'tower'"),
        ("vision_config", {"kind": ["x"]}, "vision_config: kind .* is none of patch_embed, tower"),
        ("vision_config", [1], r"vision_config: \[1\] is no set of settings"),
        ("compress_config", {"kind": "merge", "factor": 2, "size": 2}, "compress: .*'size'"),
        ("fuse_config", {"layers": 1}, "fusion: missing a required argument: 'kind'"),
        (
            "routed_lora",
            [{"modality": "image"}],
            "routed_lora: missing a required argument: 'rank'",
        ),
    ],
)
def test_settings_of_another_version_are_named(
    run: Path, field: str, settings: Any, said: str
) -> None:
    folder = run / "stages" / "1-finetune"
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, field: settings}))
    with pytest.raises(CheckpointError, match=f"cannot be loaded: {said}") as caught:
        oculi.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["cut", "gone", "config", "list", "tokenizer", "shape"])
def test_a_damaged_folder_is_one_line(run: Path, damage: str) -> None:
    folder = run / "stages" / "1-finetune"
    weights = folder / "model.safetensors"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-9])
    elif damage == "gone":
        weights.unlink()
    elif damage == "config":
        (folder / "config.json").write_text("{")
    elif damage == "list":
        (folder / "config.json").write_text("[]")
    elif damage == "tokenizer":
        (folder / "tokenizer.json").write_text("{}")
    else:
        tensors = load_file(weights)
        tensors[NAME] = tensors[NAME][:-1].clone()
        save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        oculi.load(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_code_in_a_folder_is_not_run(run: Path) -> None:
    folder = run / "stages" / "1-finetune"
    for file in folder.glob("*_oculi.py"):
        file.write_text("raise SystemExit('code of the folder was run')")
    model, processor = load_exported(folder)
    assert type(model).__module__ == "oculi.model.modeling_oculi"
    assert type(processor).__module__ == "oculi.model.processing_oculi"


def test_a_run_without_its_recipe(run: Path) -> None:
    (run / "recipe.yaml").unlink()
    with pytest.raises(OculiError, match=r"recipe\.yaml") as caught:
        oculi.load(run / "checkpoints" / "step-0000002")
    assert "\n" not in str(caught.value)


def test_a_damaged_checkpoint_is_never_used(run: Path) -> None:
    state = run / "checkpoints" / "step-0000006" / "state.json"
    data = json.loads(state.read_text())
    state.write_text(json.dumps({**data, "stage": 0}))
    with pytest.raises(CheckpointError, match=r"state\.json is damaged"):
        oculi.load(run / "checkpoints" / "step-0000006")
