"""Restoring pictures from what a checkpoint's LLM is given, and the page about it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from diffusion import SIZE, save_pipeline
from helpers import Drawn, Tiny
from oculi.cli import app
from oculi.recipe import ReconstructSpec
from oculi.reconstruct.probe import BATCH, Probe, restore


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("pipeline"))


def drawn(number: int) -> Image.Image:
    return Drawn(8 + 4 * (number % 3), 12, seed=number).load()


def probe(pipeline: Path, steps: int = 1) -> Probe:
    name = str(pipeline)
    spec = ReconstructSpec(denoiser=name, vae=name, size=SIZE, rank=4)
    return Probe(spec, steps, samplings=2)


def test_restorations_are_of_ones_own_and_of_the_next(
    make_model: Any, make_processor: Any, pipeline: Path
) -> None:
    model, processor = make_model(), make_processor()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    test = [drawn(100 + i) for i in range(BATCH + 2)]
    asked: list[int] = []

    def train(number: int) -> Image.Image:
        asked.append(number)
        return drawn(number)

    found = restore(model, processor, probe(pipeline, steps=2), train, test)
    assert asked == list(range(2 * BATCH))
    assert found.own.shape == found.others.shape == (BATCH + 2, SIZE, SIZE, 3)
    assert found.own.dtype == np.uint8 and not np.array_equal(found.own, found.others)
    again = restore(model, processor, probe(pipeline, steps=2), train, test)
    assert np.array_equal(found.own, again.own) and np.array_equal(found.others, again.others)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    # The same picture twice in a row: its stranger shows the same, from the same noise.
    twice = [test[0], test[0], test[1]]
    same = restore(model, processor, probe(pipeline), drawn, twice)
    assert np.array_equal(same.own[0], same.others[0])
    assert not np.array_equal(same.own[1], same.others[1])


def test_the_command(tiny: Tiny, finished: Path, pipeline: Path, tmp_path: Path) -> None:
    stages = [str(finished / "stages" / name) for name in ("0-pretrain", "1-finetune")]
    settings = ["--denoiser", str(pipeline), "--vae", str(pipeline), "--size", str(SIZE)]
    settings += ["--steps", "1", "--rank", "4", "--side", "16", "--level", "1"]
    out = tmp_path / "out"
    command = ["reconstruct", *stages, "--out", str(out), "--pictures", "3", *settings]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    text = (out / "report.md").read_text()
    assert f"PSNR: {stages[0]} against {stages[1]}" in text and "| SSIM |" in text
    scores = json.loads((out / "scores.json").read_text())
    assert list(scores) == stages and len(scores[stages[0]]["PSNR"]["others"]) == 3
    # Autoencoder and picture are the same whatever the checkpoint.
    assert scores[stages[0]]["PSNR"]["latents"] == scores[stages[1]]["PSNR"]["latents"]
    with Image.open(out / "pictures.png") as sheet:
        assert sheet.size == (3 * (SIZE + 4), 6 * (SIZE + 4))


def test_mistakes_are_one_line(tiny: Tiny, finished: Path, tmp_path: Path) -> None:
    cases = [
        ([str(finished), str(finished)], "given twice"),
        ([str(finished), "--data", str(tiny.data), "--pictures", "50"], "more than --pictures 50"),
    ]
    for words, said in cases:
        done = CliRunner().invoke(app, ["reconstruct", *words, "--out", str(tmp_path / "out")])
        assert done.exit_code == 2 and said in done.output and done.output.count("\n") == 1
