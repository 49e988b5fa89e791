"""bf16 where a machine computes it in software: said in one line, with what to do."""

from pathlib import Path

import pytest
import torch

from helpers import Tiny, recipe_data
from oculi.recipe import Stage, validate
from oculi.recipes import find_recipe
from oculi.training import precision
from oculi.training.run import train

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def stage(dtype: str) -> Stage:
    return find_recipe("vora_tiny").stages[0].model_copy(update={"precision": dtype})


def products_take(monkeypatch: pytest.MonkeyPatch, bfloat16: float, float32: float = 0.01) -> None:
    seconds = {torch.bfloat16: bfloat16, torch.float32: float32}
    monkeypatch.setattr(precision, "_product_seconds", seconds.__getitem__)


def test_a_cpu_that_is_slower_in_bf16_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    products_take(monkeypatch, bfloat16=0.034)
    line = precision.advice(stage("bfloat16"), 1, CPU)
    assert line is not None and "3.4 times" in line and "stages.1.precision=float32" in line


def test_one_with_bf16_instructions_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    products_take(monkeypatch, bfloat16=0.002)
    assert precision.advice(stage("bfloat16"), 0, CPU) is None
    products_take(monkeypatch, bfloat16=0.012)  # within what two timings differ by
    assert precision.advice(stage("bfloat16"), 0, CPU) is None


def test_a_stage_in_float32_times_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(precision, "_product_seconds")
    assert precision.advice(stage("float32"), 0, CPU) is None


@pytest.mark.parametrize("has", [True, False])
def test_a_gpu_is_asked(monkeypatch: pytest.MonkeyPatch, has: bool) -> None:
    """``is_bf16_supported`` alone also counts what is emulated, as on a T4."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has)
    line = precision.advice(stage("bfloat16"), 0, CUDA)
    assert (line is None) == has
    assert has or "CUDA" in str(line)


def test_a_product_is_timed() -> None:
    assert 0 < precision._product_seconds(torch.float32) < 10


def test_a_run_says_so(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And only of the stage that it holds for."""
    products_take(monkeypatch, bfloat16=0.02)
    recipe = validate(
        recipe_data(tiny, **{"stages.0.precision": "bfloat16", "stages.1.precision": "float32"}),
        "test",
    )
    train(recipe, tmp_path / "run")
    said = capsys.readouterr().err
    assert "2.0 times" in said and "stages.0.precision=float32" in said
    assert "stages.1.precision" not in said
