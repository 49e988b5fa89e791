"""`oculi data prepare` as people type it, and training from what it writes."""

import json
from pathlib import Path

import pytest

from helpers import Tiny, finished, losses, metrics, recipe_data, tiny, write_rows
from oculi.recipe import load, validate
from test_cli import fails, works

__all__ = ["finished", "tiny"]


@pytest.fixture
def recipe(tiny: Tiny, tmp_path: Path) -> Path:
    """recipe.yaml of a run of two steps and one, the LoRA merged between them."""
    data = recipe_data(tiny, **{"stages.0.steps": 2, "stages.1.steps": 1})
    file = tmp_path / "recipe.yaml"
    file.write_text(validate(data, "test").to_yaml())
    return file


def test_training_from_prepared_data_is_the_same_training(
    recipe: Path, tiny: Tiny, tmp_path: Path
) -> None:
    """Number for number, through a merge that builds the processor anew, and with no cache."""
    out, seen, plain = tmp_path / "prepared", tmp_path / "seen", tmp_path / "plain"
    said = works("data", "prepare", tiny.data, "--recipe", recipe, "--out", out, "--workers", 2)
    assert "rows 8: 8 good, 0 bad" in said and said == (out / "report.md").read_text()
    works("train", recipe, "--data", out, "--out", seen)
    works("train", recipe, "--data", tiny.data, "--out", plain)
    assert losses(seen) == losses(plain) and len(losses(seen)) == 3
    assert not (seen / "index").exists() and (plain / "index").exists()
    assert load(seen / "recipe.yaml").stages[1].data[0].path == str(out)  # type: ignore[union-attr]
    answers = [
        [json.loads(line)["id"] for line in (run / "evals" / name / "answers.jsonl").open()]
        for run, name in ((seen, "finetune-prepared"), (plain, "finetune-rows"))
    ]
    assert answers[0] == answers[1] and len(answers[0]) == 8


def test_bad_rows_stop_a_file_and_not_what_was_prepared_from_it(
    recipe: Path, tmp_path: Path
) -> None:
    data = write_rows(tmp_path / "rows")
    rows = json.loads(data.read_text())
    rows[2]["conversations"] = []
    data.write_text(json.dumps(rows))
    said = fails("train", recipe, "--data", data, "--out", tmp_path / "run")
    assert "1 bad rows" in said and "leave them out with: oculi data prepare" in said
    works("data", "prepare", data, "--recipe", recipe, "--out", tmp_path / "prepared")
    works("train", recipe, "--data", tmp_path / "prepared", "--out", tmp_path / "run")
    assert len(metrics(tmp_path / "run")) == 3


def test_the_processor_of_an_exported_folder(
    finished: Path, tiny: Tiny, recipe: Path, tmp_path: Path
) -> None:
    exported = finished / "stages" / "1-finetune"
    works("data", "prepare", tiny.data, "--processor", exported, "--out", tmp_path / "a")
    works("data", "prepare", tiny.data, "--recipe", recipe, "--out", tmp_path / "b")
    for name in ("oculi-prepared.json", "tokens.npy"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    said = fails(
        *("train", recipe, "model.images.max_patches=9"),
        *("--data", tmp_path / "a", "--out", tmp_path / "run"),
    )
    assert "prepared for another tokenizer, chat template or image settings" in said


def test_mistakes_are_one_line(recipe: Path, tiny: Tiny, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "out"]
    base = ["data", "prepare", tiny.data]
    said = {
        fails(*base, *out): "Give either --recipe or --processor",
        fails(*base, "--recipe", recipe, "--processor", tiny.llm, *out): "Give either",
        fails(*base, "--recipe", "vorra", *out): 'did you mean "vora"?',
        fails(*base, "--processor", tiny.llm, *out): 'of the kind "qwen2"',
        fails(*base, "--recipe", recipe, "--llm", tmp_path, *out): "no config.json",
        fails(*base, "--recipe", recipe, "--format", "lava", *out): 'did you mean "llava"?',
        fails("data", "prepare", "none", "--recipe", recipe, *out): "No such file",
        fails("data", "prepare", "none*", "--recipe", recipe, *out): "no file matches",
        fails(*base, "--recipe", recipe, "--out", tmp_path): "is not empty",
        fails("eval", tiny.llm, "--task", tmp_path / "no"): "neither a task nor a file",
    }
    for line, wanted in said.items():
        assert wanted in line
    assert not (tmp_path / "out").exists()
