"""Runs with fewer vision tokens: merged, or of larger patches than the teacher's."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import oculi
from helpers import PATCH, Tiny, as_if_killed, exported, losses, recipe_data, save_teacher
from oculi.cli import app
from oculi.data.index import processor_fingerprint
from oculi.data.loader import Steps
from oculi.data.source import open_sources
from oculi.model import OculiForConditionalGeneration
from oculi.model.patch_embed_oculi import PatchEmbed, unpatchify
from oculi.plan import plan
from oculi.recipe import ImageSpec, Recipe, validate
from oculi.training.build import build_model, build_processor, recut
from oculi.training.run import train
from oculi.training.vision import enlarge

MERGED = {"kind": "merge", "factor": 3}
LARGE = {"model.vision.patch_size": 2 * PATCH, "model.images": {"min_patches": 1}}


def merged(tiny: Tiny) -> Recipe:
    return validate(recipe_data(tiny, **{"model.compress": MERGED}), "test")


def large(tiny: Tiny) -> Recipe:
    return validate(recipe_data(tiny, **LARGE), "test")


@pytest.fixture(scope="module")
def run(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """From start to end, with distillation, merged tokens and packed rows; read only."""
    return train(merged(tiny), tmp_path_factory.mktemp("merged") / "run", quiet=True)


def batches(recipe: Recipe) -> list[Any]:
    stage = recipe.stages[0]
    steps = Steps(
        open_sources(stage.data), build_processor(recipe.model), seed=0, steps=1, batch=8,
        pack_length=160, micro_rows=8,
    )  # fmt: skip
    return steps[0]


def test_rows_are_packed_by_the_tokens_that_are_left(tiny: Tiny) -> None:
    (batch,), (whole,) = batches(merged(tiny)), batches(validate(recipe_data(tiny), "test"))
    patches = batch.grids_N2.prod(-1)
    assert batch.vision_tokens == int((-(-patches // 3)).sum()) < whole.vision_tokens
    assert len(batch.patches_PC) == len(whole.patches_PC) == patches.sum()
    per_image = torch.bincount(batch.images_BT[batch.images_BT >= 0])
    assert torch.equal(per_image, -(-patches // 3))


def test_resume_equals_uninterrupted(run: Path, tiny: Tiny, tmp_path: Path) -> None:
    again = as_if_killed(run, tmp_path / "run", 2)
    train(merged(tiny), again, resume=True, quiet=True)
    assert losses(again) == losses(run)
    found, wanted = exported(again), exported(run)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_what_is_loaded_merges_as_it_was_trained(run: Path) -> None:
    model, processor = oculi.load(run)
    assert model.config.compress_config == processor.image_processor.compress == MERGED
    assert isinstance(model, OculiForConditionalGeneration)
    names = {name.split(".")[0] for name in exported(run)}
    assert names == {"llm", "vision"}  # nothing is learnt
    result = CliRunner().invoke(
        app, ["merge", str(run / "checkpoints/step-0000002"), "--out", str(run / "merged")]
    )
    assert result.exit_code == 0, result.output
    config = json.loads((run / "merged" / "config.json").read_text())
    assert config["compress_config"] == MERGED


def test_a_stage_that_cuts_otherwise_still_merges(tiny: Tiny) -> None:
    cut = recut(build_processor(merged(tiny).model), ImageSpec(max_patches=64))
    assert cut.image_processor.tokens((4, 4)) == 6


def test_prepared_lengths_are_of_one_compressor(tiny: Tiny) -> None:
    plain = build_processor(validate(recipe_data(tiny), "test").model)
    other = build_processor(merged(tiny).model)
    assert processor_fingerprint(plain) != processor_fingerprint(other)
    assert processor_fingerprint(other) == processor_fingerprint(
        build_processor(merged(tiny).model)
    )
    assert plain.length([("user", [(16, 16), "Hi"])]) - 10 == other.length(
        [("user", [(16, 16), "Hi"])]
    )


def test_a_plan_counts_what_is_left(tiny: Tiny) -> None:
    """Linear layers see 6 tokens instead of 16; patch embedding, teacher and heads see all."""
    few = plan(merged(tiny), text_tokens=8, image=(16, 16)).stages[0]
    all_of = plan(validate(recipe_data(tiny), "test"), text_tokens=8, image=(16, 16)).stages[0]
    assert (few.tokens_per_image, all_of.tokens_per_image) == (6, 16)
    assert few.parameters == all_of.parameters and few.parameters["compressor"] == 0
    for part in ("llm", "lora"):
        assert few.macs[part].forward * 24 == all_of.macs[part].forward * 14
    for part in ("teacher", "distill"):
        assert few.macs[part] == all_of.macs[part]


# ------------------------------------------------------------------------------------ larger patches


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_larger_filters_see_the_picture_at_the_teachers_resolution(factor: int) -> None:
    torch.manual_seed(factor)
    small, side = PatchEmbed(8, PATCH, 6, grid=(2, 3)), factor * PATCH
    for parameter in small.parameters():
        torch.nn.init.normal_(parameter)
    big = PatchEmbed(8, side, 6, grid=(2, 3))
    weights = small.state_dict()
    weights["patch.weight"] = enlarge(weights["patch.weight"], side)
    big.load_state_dict(weights)
    grids = torch.tensor([[2, 3]])
    pixels = torch.randint(0, 256, (6, 3 * side**2)).float()
    whole = unpatchify(pixels, 2, 3, side)
    shrunk = torch.nn.functional.avg_pool2d(whole, factor)
    cut = shrunk.view(3, 2, PATCH, 3, PATCH).permute(1, 3, 0, 2, 4).reshape(6, -1)
    torch.testing.assert_close(big(pixels, grids), small(cut, grids), rtol=1e-4, atol=1e-4)


def test_filters_of_no_multiple_are_left_for_the_error_to_name() -> None:
    weight = torch.randn(5, 48)
    assert enlarge(weight, 6) is weight


def test_a_run_with_larger_patches_than_the_teachers(tiny: Tiny, tmp_path: Path) -> None:
    recipe = large(tiny)
    model = build_model(recipe.model, build_processor(recipe.model), 0)
    assert model.vision.patch.weight.shape == (24, 3 * 64) and model.vision.grid == (4, 4)
    out = train(recipe, tmp_path / "run", quiet=True)
    found = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])
    assert 0 < found["distill"] < 2
    model, processor = oculi.load(out)
    assert (
        processor.image_processor.patch_size == 8 and processor.image_processor.tokens((2, 2)) == 4
    )


def test_plan_and_training_agree_on_larger_patches(tiny: Tiny, tmp_path: Path) -> None:
    for family in ("aimv2", "clip", "siglip2"):
        folder = str(save_teacher(tmp_path / family, family))
        data = recipe_data(tiny, **LARGE, **{"model.vision.init_from": folder})
        recipe = validate(data, "test")
        stage = plan(recipe, text_tokens=8, image=(16, 16)).stages[0]
        model = build_model(recipe.model, build_processor(recipe.model), 0)
        vision = sum(p.numel() for p in model.vision.parameters())
        parts = ("patch_embedding", "position_embedding")
        assert stage.grid == (2, 2) and vision == sum(stage.parameters[part] for part in parts)
