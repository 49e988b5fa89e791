"""``oculi data codes`` and ``oculi data cognition``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from helpers import write_rows
from oculi.cli import app
from oculi.cognition.cache import IndexCache
from oculi.cognition.codebook import Codebook
from oculi.data.source import open_source
from oculi.recipe import FileSource


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["data", *words])
    return result.exit_code, result.output


def test_pictures_of_a_file_are_encoded_once(tmp_path: Path, vq_folder: Path) -> None:
    rows, out = write_rows(tmp_path / "rows"), tmp_path / "codes"  # of three colours, all plain
    code, said = run("codes", str(rows), "--vq", str(vq_folder), "--out", str(out))
    assert code == 0 and "4 x 4 indices of 3 different pictures, 0 left out" in said
    book = Codebook(str(vq_folder))
    held, samples = IndexCache(out, book), open_source(FileSource(path=str(rows)))
    for number in range(len(samples)):
        for image in samples[number].images:
            assert np.array_equal(held.find(image.load()), book.indices(image.load()))
    code, said = run("codes", str(rows), "--vq", str(vq_folder), "--out", str(out))
    assert code == 2 and said.count("\n") == 1 and "choose another folder" in said


def test_a_damaged_picture_is_named(tmp_path: Path, vq_folder: Path) -> None:
    rows = write_rows(tmp_path / "rows")
    file = tmp_path / "rows" / "0.png"
    file.write_bytes(file.read_bytes()[:-30])
    code, said = run("codes", str(rows), "--vq", str(vq_folder), "--out", str(tmp_path / "codes"))
    assert code == 1 and "left out: " in said and "0.png" in said and "3 different" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["codes", "nowhere.json", "--vq", "testbed:llm", "--out", "x"], "nowhere.json"),
        (["cognition", "llava_tiny"], "asks for no colours or codes"),
        (["cognition", "llava_tiny", "stages.0.cognition={pixels: {grid: [0, 1]}}"], "grid.0"),
        (["cognition", "llava_tiny", "stages.0.cognition={codes: {vq: ./no}}"], "no folder"),
        (["cognition", "llava_tiny", "stages.0.cognition={codes: {vq: 'testbed:llm'}}"], "VQModel"),
    ],
)
def test_mistakes_are_one_line(words: list[str], said: str) -> None:
    code, told = run(*words)
    assert code == 2 and said in told and told.count("\n") == 1


def test_costs_and_examples_of_a_stage() -> None:
    spec = "stages.1.cognition={pixels: {share: 1.0, levels: 10, grid: [1, 2]}}"
    code, said = run("cognition", "llava_tiny", spec, "--n", "1")
    lines = said.splitlines()
    assert code == 0 and lines[0] == "stage 1, finetune"
    assert "pixels-1x2-10" in lines[1] and "11 of them its answer; in 100% of draws" in lines[1]
    assert lines[2].startswith("  playroom-") and len(lines) % 2 and len(lines) >= 7
    assert sum("[image]" in line for line in lines) == 1
