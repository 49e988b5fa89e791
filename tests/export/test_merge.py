"""Merging: the same answers without LoRA, once, and only into the base that was trained on."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import oculi
from helpers import Drawn, Tiny, recipe_data, reseal, sample, save_llm
from oculi.data.loader import collate, encode_sample
from oculi.errors import CheckpointError, OculiError
from oculi.export.load import load_unmerged
from oculi.export.merge import fold, merge_run
from oculi.model.lora import has_lora, lora_layers
from oculi.recipe import validate
from oculi.training.run import train


@pytest.fixture
def pretrained(finished: Path, tmp_path: Path) -> Path:
    """A run that stopped within its first stage: LoRA is not merged yet."""
    later = shutil.ignore_patterns("stages", "step-0000005", "step-0000006")
    return Path(shutil.copytree(finished, tmp_path / "run", ignore=later))


def logits(model: Any, processor: Any) -> torch.Tensor:
    made = sample("x", ("#", " and ", "#", " what?"), "red", images=(Drawn(8, 8), Drawn(12, 16)))
    batch = collate([[("x", encode_sample(made, processor))]], 48)
    with torch.no_grad():
        found: torch.Tensor = model(**{**batch.model_inputs(), "label_rows": None}).logits
    return found


def test_merged_equals_unmerged(pretrained: Path, tmp_path: Path) -> None:
    unmerged = load_unmerged(pretrained)
    assert has_lora(unmerged.model)
    for _, layer in lora_layers(unmerged.model):
        assert layer.lora_B["default"].weight.abs().max() > 0  # trained: there is something to lose
    difference = merge_run(pretrained, tmp_path / "merged")
    model, processor = oculi.load(tmp_path / "merged")
    assert not has_lora(model) and not model.training
    wanted = logits(unmerged.model.eval(), unmerged.processor)
    found = logits(model, processor)
    assert float((found - wanted).abs().max()) < 2e-5 * float(wanted.abs().max())
    assert difference < 2e-5 * float(wanted.abs().max())


def test_the_merge_of_a_run_is_what_its_next_stage_began_with(
    finished: Path, pretrained: Path, tmp_path: Path
) -> None:
    merge_run(pretrained, tmp_path / "merged")
    found = load_file(tmp_path / "merged" / "model.safetensors")
    wanted = load_file(finished / "stages" / "0-pretrain" / "model.safetensors")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_single_checkpoint_can_be_merged(finished: Path, tmp_path: Path) -> None:
    early, late = (finished / "checkpoints" / f"step-000000{n}" for n in (2, 3))
    merge_run(early, tmp_path / "early")
    merge_run(late, tmp_path / "late")
    weights = [load_file(tmp_path / n / "model.safetensors") for n in ("early", "late")]
    name = "llm.model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(weights[0][name], weights[1][name])


def test_merging_twice_is_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="merged after an earlier stage") as caught:
        merge_run(finished, tmp_path / "out")
    assert "stages/" in str(caught.value) and not (tmp_path / "out").exists()
    with pytest.raises(CheckpointError, match="neither an exported folder nor a run"):
        merge_run(finished / "stages" / "0-pretrain", tmp_path / "out")


def test_a_run_without_lora_has_nothing_to_merge(tiny: Tiny, tmp_path: Path) -> None:
    data = recipe_data(tiny, **{"model.lora": None})
    data["stages"] = [{**data["stages"][1], "steps": 1}]
    run = train(validate(data, "test"), tmp_path / "run", quiet=True)
    with pytest.raises(CheckpointError, match="has no LoRA"):
        merge_run(run, tmp_path / "out")


def test_folding_twice_is_refused(pretrained: Path) -> None:
    unmerged = load_unmerged(pretrained)
    fold(unmerged.model, unmerged.recipe)
    with pytest.raises(ValueError, match="no LoRA to merge"):
        fold(unmerged.model, unmerged.recipe)


def test_a_foreign_base_is_refused_by_tensor(
    pretrained: Path, tiny: Tiny, tmp_path: Path, make_llm_config: Callable[..., Any],
    make_tokenizer: Any,
) -> None:  # fmt: skip
    config = make_llm_config(max_position_embeddings=1024)
    other = save_llm(tmp_path / "other", config, make_tokenizer(), seed=5)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs") as caught:
        merge_run(pretrained, tmp_path / "out", base=str(other))
    assert str(other) in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_one_changed_number_in_the_base_is_seen(
    pretrained: Path, tiny: Tiny, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny.llm, copy)
    merge_run(pretrained, tmp_path / "same", base=str(copy))  # the same weights elsewhere
    weights = load_file(copy / "model.safetensors")
    weights["model.layers.2.mlp.down_proj.weight"][0, 0] += 1e-3
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layers\.2\.mlp\.down_proj\.weight differs"):
        merge_run(pretrained, tmp_path / "out", base=str(copy))


def test_a_base_that_is_gone_asks_for_it(pretrained: Path, tiny: Tiny, tmp_path: Path) -> None:
    gone, moved = tmp_path / "gone", tmp_path / "moved"
    for name in ("recipe.yaml", "checkpoints/step-0000003/state.json"):
        file = pretrained / name
        file.write_text(file.read_text().replace(str(tiny.llm), str(gone)))
    reseal(pretrained / "checkpoints" / "step-0000003")
    with pytest.raises(OculiError, match="--base") as caught:
        merge_run(pretrained, tmp_path / "out")
    assert str(gone) in str(caught.value) and "\n" not in str(caught.value)
    shutil.copytree(tiny.llm, moved)
    merge_run(pretrained, tmp_path / "out", base=str(moved))


def test_damage_is_found_before_anything_is_written(pretrained: Path, tmp_path: Path) -> None:
    file = pretrained / "checkpoints" / "step-0000003" / "tensors.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"tensors\.safetensors is damaged"):
        merge_run(file.parent, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_result_has_the_recipes_dtype(pretrained: Path) -> None:
    unmerged = load_unmerged(pretrained)
    spec = unmerged.recipe.model.model_copy(update={"dtype": "bfloat16"})
    before = next(lora_layers(unmerged.model))[1].get_base_layer().weight.clone()
    fold(unmerged.model, unmerged.recipe.model_copy(update={"model": spec}))
    assert {p.dtype for p in unmerged.model.parameters()} == {torch.bfloat16}
    after = unmerged.model.llm.model.layers[0].self_attn.q_proj.weight
    assert not torch.equal(before.bfloat16(), after)
