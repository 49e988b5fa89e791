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
from oculi.reconstruct.command import _pictures
from oculi.reconstruct.probe import BATCH, LEVELS, OWN, SHUFFLED, Probe, kind, restore


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("pipeline"))


def drawn(number: int) -> Image.Image:
    return Drawn(8 + 4 * (number % 3), 12, seed=number).load()


def probe(pipeline: Path, steps: int = 1) -> Probe:
    name = str(pipeline)
    spec = ReconstructSpec(denoiser=name, vae=name, size=SIZE, rank=4)
    return Probe(spec, steps, pictures=BATCH + 1, samplings=2)


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
    assert asked == list(range(BATCH + 1))
    assert list(found.found) == [
        kind(tokens, level) for tokens in (OWN, SHUFFLED) for level in (None, *LEVELS)
    ]
    for level in (None, *LEVELS):
        own, shuffled = (found.found[kind(tokens, level)] for tokens in (OWN, SHUFFLED))
        assert own.shape == shuffled.shape == found.latents.shape == (BATCH + 2, SIZE, SIZE, 3)
        assert own.dtype == np.uint8 and not np.array_equal(own, shuffled)
    again = restore(model, processor, probe(pipeline, steps=2), train, test)
    assert all(np.array_equal(pixels, again.found[name]) for name, pixels in found.found.items())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    # The same picture twice in a row: its stranger shows the same, from the same noise.
    twice = [test[0], test[0], test[1]]
    same = restore(model, processor, probe(pipeline), drawn, twice).found
    for level in (None, *LEVELS):
        own, shuffled = same[kind(OWN, level)], same[kind(SHUFFLED, level)]
        assert np.array_equal(own[0], shuffled[0]) and not np.array_equal(own[1], shuffled[1])


def test_less_noise_leaves_more_of_the_picture(
    make_model: Any, make_processor: Any, pipeline: Path
) -> None:
    """A denoiser that has learnt nothing is wrong by as much as there is noise."""
    test = [drawn(100 + i) for i in range(4)]
    found = restore(make_model(), make_processor(), probe(pipeline), drawn, test)
    wanted = found.latents.astype(float)
    errors = [np.square(found.found[kind(OWN, level)] - wanted).mean() for level in LEVELS]
    assert errors == sorted(errors, reverse=True)


def check_differences(found: dict[str, Any]) -> None:
    """Each is the mean of what the pictures' scores differ by, within its interval."""
    sides = [(gap["of"], gap["minus"]) for gap in found["differences"]]
    first, second = found["checkpoints"]
    told = [((a["checkpoint"], a["tokens"]), (b["checkpoint"], b["tokens"])) for a, b in sides]
    pairs = [((first, OWN), (first, SHUFFLED)), ((second, OWN), (second, SHUFFLED))]
    assert told[::2] == told[1::2] == [
        ((a, kind(own, level)), (b, kind(other, level)))
        for (a, own), (b, other) in [*pairs, ((first, OWN), (second, OWN))]
        for level in (None, *LEVELS)
    ]  # fmt: skip
    for gap in found["differences"]:
        of, minus = (
            found["checkpoints"][side["checkpoint"]][gap["measure"]][side["tokens"]]["values"]
            for side in (gap["of"], gap["minus"])
        )
        wanted = [a - b for a, b in zip(of, minus, strict=True)]
        assert gap["mean"] == pytest.approx(np.mean(wanted), abs=2e-4)
        assert min(wanted) - 2e-4 <= gap["low"] <= gap["mean"] <= gap["high"] <= max(wanted) + 2e-4


def test_the_command(tiny: Tiny, finished: Path, pipeline: Path, tmp_path: Path) -> None:
    stages = [str(finished / "stages" / name) for name in ("0-pretrain", "1-finetune")]
    settings = ["--denoiser", str(pipeline), "--vae", str(pipeline), "--size", str(SIZE)]
    settings += [
        "--steps",
        "1",
        "--train-pictures",
        "2",
        "--rank",
        "4",
        "--side",
        "16",
        "--level",
        "1",
    ]
    out = tmp_path / "run" / "restored"
    out.parent.mkdir()
    (out.parent / "recipe.yaml").write_text((finished / "recipe.yaml").read_text())
    command = ["reconstruct", *stages, "--out", str(out), "--pictures", "3", *settings]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    text = (out / "report.md").read_text()
    assert f"| {stages[0]}, own tokens - {stages[1]}, own tokens | PSNR | noise alone |" in text
    assert " --size 16 --rank 4" in text and "| SSIM |" in text
    found = json.loads((out / "scores.json").read_text())
    scores = found["checkpoints"]
    assert list(scores) == stages and len(scores[stages[0]]["PSNR"]["shuffled"]["values"]) == 3
    # Autoencoder and picture are the same whatever the checkpoint.
    assert scores[stages[0]]["PSNR"]["latents"] == scores[stages[1]]["PSNR"]["latents"]
    check_differences(found)
    assert "Restored pictures" in (out.parent / "report.html").read_text()
    with Image.open(out / "pictures.png") as sheet:
        assert sheet.size == (3 * (SIZE + 4), (2 + 2 * 4) * (SIZE + 4))


def test_a_file_of_fewer_pictures_than_are_wanted(
    tiny: Tiny, finished: Path, pipeline: Path, tmp_path: Path
) -> None:
    """All that are not scored are trained on, and none that is scored."""
    train, test, available = _pictures(tiny.data, 1, 16, 3)
    assert len(test) == 3 and 0 < available < 3072
    assert train(available - 1) is not None
    with pytest.raises(IndexError):
        train(available)
    settings = ["--denoiser", str(pipeline), "--vae", str(pipeline), "--size", str(SIZE)]
    words = ["reconstruct", str(finished), "--data", str(tiny.data), "--out", str(tmp_path / "out")]
    words += ["--pictures", "3", "--steps", "1", "--rank", "4", *settings]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output


def test_mistakes_are_one_line(tiny: Tiny, finished: Path, tmp_path: Path) -> None:
    cases = [
        ([str(finished), str(finished)], "given twice"),
        ([str(finished), "--data", str(tiny.data), "--pictures", "50"], "more than --pictures 50"),
    ]
    for words, said in cases:
        done = CliRunner().invoke(app, ["reconstruct", *words, "--out", str(tmp_path / "out")])
        assert done.exit_code == 2 and said in done.output and done.output.count("\n") == 1
