"""The plan of a recipe as people and programs ask for it."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from helpers import Tiny, put, recipe_data
from oculi.cli import app
from oculi.plan import plan
from oculi.plan.build import meta_stages
from oculi.plan.gpus import GPUS, UNMEASURED, find_gpu
from oculi.plan.text import duration, si, three_digits
from oculi.recipe import override, validate
from oculi.recipes import BUILTIN, find_recipe


def asked(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["plan", *map(str, arguments)])
    assert done.exit_code == 0, (done.stderr, done.exception)
    return str(done.stdout)


def refused(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["plan", *map(str, arguments)])
    assert done.exit_code == 2 and done.stdout == "", (done.stdout, done.exception)
    (line,) = done.stderr.splitlines()
    return str(line.removeprefix("oculi: "))


@pytest.fixture(scope="module")
def vora() -> Any:
    return json.loads(asked("vora", "--gpu", "h200", "--json"))


def test_vora(vora: Any) -> None:
    """The paper's "2B" and "about 6M", and arithmetic from the published shapes."""
    assert vora["stage"] == "pretrain"
    found = vora["parameters"]
    assert found["lora"] == 2_214_592_512
    assert found["patch_embedding"] == 6_411_264 and found["position_embedding"] == 1_572_864
    assert found["llm"] == 7_615_616_512
    assert found["total"] == sum(count for part, count in found.items() if part != "total")
    # Section 3.1: "only the LoRA parameters and the vision embedding layer are updated".
    assert vora["trainable"] == 2_214_592_512 + 6_411_264 + 1_572_864
    assert vora["objectives"]["distill"]["parameters"] == 24 * (3584 + 3584 * 1536)
    assert vora["tokens_per_image"] == 1024
    assert vora["flops_per_sample"] == pytest.approx(49.7e12, rel=0.002)
    assert vora["bound"]["samples_per_second"] == pytest.approx(15.9, rel=0.002)
    assert vora["bound"]["seconds_per_step"] == pytest.approx(16.1, rel=0.002)


TERMS = {  # FLOP forward and backward of one sample, derived by hand: 1,152 tokens, 128 of them text
    "llm": (2 * 1152 * 28 * 233_046_016, 2 * 1152 * 28 * 233_046_016),
    "lora": (2 * 1152 * 2_214_592_512, 4 * 1152 * 2_214_592_512),
    "attention": (4 * 1_187_904 * 3584 * 28, 10 * 1_187_904 * 3584 * 28),
    "lm_head": (2 * 128 * 3584 * 152_064, 2 * 128 * 3584 * 152_064),
    "distill": (2 * 1024 * 24 * 3584 * 1536, 4 * 1024 * 24 * 3584 * 1536),
    "teacher": (
        2 * 1024 * (588 * 1536 + 24 * (4 * 1536**2 + 3 * 1536 * 4096)) + 4 * 1024**2 * 1536 * 24,
        0,
    ),
    "patch_embedding": (
        2 * 1024 * (588 * 1536 + 1536 * 3584),
        2 * 1024 * (588 * 1536 + 2 * 1536 * 3584),
    ),
}


def test_every_term_is_the_one_derived_by_hand(vora: Any) -> None:
    found = {
        part: (2 * macs["forward"], 2 * macs["backward"])
        for part, macs in vora["macs"].items()
        if part != "total"
    }
    assert found == TERMS
    assert vora["flops_per_sample"] == sum(map(sum, TERMS.values()))


def test_stages(vora: Any) -> None:
    first, second = vora["stages"]
    assert all(vora[key] == value for key, value in first.items())
    assert (second["stage"], second["parameters"]["lora"]) == ("finetune", 0)
    # Section 5.1: "The full LLM and 6M-parameter visual embedding layer were trainable."
    assert second["trainable"] == 7_615_616_512 + 6_411_264 + 1_572_864
    assert second["macs"]["llm"]["backward"] == 2 * second["macs"]["llm"]["forward"]
    assert "teacher" not in second["macs"] and "teacher" not in second["memory"]["parts"]
    days = [stage["bound"]["days"] for stage in vora["stages"]]
    assert days[0] == pytest.approx(143_750 * 256 / 15.89 / 86_400, rel=0.01)
    assert vora["days"] == sum(days)
    assert first["bound"]["fits"] and not second["bound"]["fits"]  # 16 bytes for each of 7.6B


def test_half_the_rank() -> None:
    stage = next(meta_stages(override(find_recipe("vora"), ["model.lora.rank=512"])))
    found = [p.numel() for name, p in stage.trained.items() if ".lora_" in name]
    assert sum(found) == 1_107_296_256  # "1B" in table 2


def test_the_table(tiny: Tiny, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(validate(recipe_data(tiny), "test").to_yaml())
    lines = asked(file, "--gpu", "rtx4090", "--gpus", "2", "--text-tokens", "9").splitlines()
    assert lines[0].startswith("tiny on 2 rtx4090: 132 TFLOP/s in large bfloat16 products")
    assert "stage 0, pretrain: 3 steps of 4 samples, each of 16 image tokens and 9 of text" in lines
    rows = [line.split()[0] for line in lines if line.startswith("  ")]
    assert rows.count("lora") == 1 and rows.count("teacher") == 1 and rows.count("total") == 2
    assert any("80 % of its data sheet" in line for line in lines)
    assert any("each of 2 GPUs holds 1/2 of all but teachers" in line for line in lines)
    assert max(map(len, lines)) < 130


def test_more_gpus_share_the_batch(tiny: Tiny) -> None:
    recipe = validate(recipe_data(tiny, **{"stages.0.batch": 8, "stages.0.micro_rows": 8}), "test")
    one, four = (plan(recipe, gpus=n, text_tokens=9).stages[0] for n in (1, 4))
    assert four.samples_per_second == 4 * one.samples_per_second and one.days == 4 * four.days
    assert (one.memory.samples, four.memory.samples) == (8, 2)


def test_flags_of_train_and_the_picture(tiny: Tiny, tmp_path: Path) -> None:
    """``--llm`` and ``--teacher`` as for training; a picture of the user's size."""
    found = json.loads(
        asked(
            "vora", "--llm", tiny.llm, "--teacher", tiny.teacher, "model.images.mode=native",
            "model.vision.patch_size=4", "model.lora.blocks=2", "--image", "40x24", "--json",
        )
    )  # fmt: skip
    assert found["image_grid"] == [6, 10] and found["tokens_per_image"] == 60
    assert found["parameters"]["position_embedding"] == 16 * 24


def test_built_in_recipes_can_be_built() -> None:
    for recipe in (build() for build in BUILTIN.values()):
        if recipe.model.start is None:  # else for any model: tests/training/test_start.py
            assert all(stage.trained for stage in meta_stages(recipe))


@pytest.mark.parametrize("name", ["llava", "vora_tiny", "llava_tiny"])
def test_built_in_recipes_can_be_planned(name: str) -> None:
    recipe = find_recipe(name)
    planned = plan(recipe)
    assert [stage.name for stage in planned.stages] == [stage.name for stage in recipe.stages]
    assert all(stage.days > 0 and stage.trainable > 0 for stage in planned.stages)
    json.dumps(planned.to_json())


MISTAKES = {
    "unknown recipe": ("vor",),
    '--gpu: no GPU "h20"; did you mean "h200"?': ("vora", "--gpu", "h20"),
    "--image: ": ("vora", "--image", "big"),
    "is longer than stages.0.length, 2048": ("vora", "--text-tokens", "2000"),
    "Qwen/Qwen3-8B is no folder here, and its configuration": ("vora", "--llm", "Qwen/Qwen3-8B"),
    'unknown key "model.lora.ranks"': ("vora", "model.lora.ranks=3"),
    "block i is aligned with block i": ("vora", "--llm", "testbed:llm", "model.lora.blocks=1"),
}


@pytest.mark.parametrize("said", MISTAKES)
def test_a_mistake_is_one_line(said: str) -> None:
    assert said in refused(*MISTAKES[said])


def test_rates_are_below_the_data_sheets() -> None:
    for gpu in GPUS.values():
        assert 0.5 * gpu.peak < gpu.matmul < gpu.peak
        assert gpu.measured or gpu.matmul == pytest.approx(UNMEASURED * gpu.peak)
        assert 10e9 < gpu.memory < 200e9
    assert find_gpu("H200") is GPUS["h200"]


def test_numbers_for_people() -> None:
    assert [three_digits(x) for x in (0.1234, 9.994, 9.996, 99.96, 1234.5)] == [
        "0.12", "9.99", "10.0", "100", "1,234",
    ]  # fmt: skip
    assert [si(x) for x in (1, 999, 15_231_233_024, 5e18)] == ["1.00 ", "999 ", "15.2 G", "5,000 P"]
    assert [duration(s / 86_400) for s in (0.0015, 1, 119, 120, 7199, 7200, 2 * 86_400)] == [
        "1.50 ms", "1.00 s", "119 s", "2.00 minutes", "120 minutes", "2.00 hours", "2.00 days",
    ]  # fmt: skip


def test_what_the_recipe_says_is_named(tiny: Tiny) -> None:
    data = recipe_data(tiny)
    put(data, "model.attention", "eager")
    said = " ".join(plan(validate(data, "test"), text_tokens=9).assumptions)
    assert "eager" in said and "pretrain, finetune: the recipe computes in float32" in said
