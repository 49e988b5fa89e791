"""The example of another modality: its world is what it says, and its recipe learns from it."""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from oculi.objectives.teacher import Teacher
from oculi.recipe import DistillSpec, Recipe, override
from oculi.recipes import find_recipe
from oculi.training.run import train

FOLDER = Path(__file__).parents[2] / "examples" / "audio"


@pytest.fixture(scope="module")
def programs() -> Iterator[tuple[Any, Any]]:
    """The example's own files, which are no part of the package."""
    sys.path.insert(0, str(FOLDER))
    import sounds
    import teacher

    yield sounds, teacher
    sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def world(programs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a few clips and a teacher of a few steps."""
    sounds, teacher = programs
    folder = tmp_path_factory.mktemp("audio")
    sounds.write(folder / "sounds", 12, 4)
    model, _ = teacher.train(2, 4)
    model.save_pretrained(folder / "sounds" / "teacher")
    return folder


def test_a_clip_is_a_function_of_its_number(programs: Any) -> None:
    sounds, _ = programs
    again, other = (sounds.waveform(sounds.clip("train", n)) for n in (7, 8))
    found = sounds.waveform(sounds.clip("train", 7))
    assert np.array_equal(found, again) and not np.array_equal(found, other)
    assert sounds.clip("test", 7) != sounds.clip("train", 7)
    assert found.shape == (sounds.SAMPLES,) and np.abs(found).max() <= 1


def test_answers_are_uniform(programs: Any) -> None:
    """A blind model that knows all of it is right on 28 %."""
    sounds, _ = programs
    asked = [sounds.questions(sounds.clip("test", n)) for n in range(3000)]
    best = []
    for turn, choices in zip(range(5), (3, 3, 5, 5, 3), strict=True):
        counts = Counter(questions[turn][1] for questions in asked)
        assert len(counts) == choices
        assert max(counts.values()) / 3000 < 1 / choices + 0.04
        best.append(max(counts.values()) / 3000)
    assert sum(best) / 5 < 0.31


def test_a_tone_is_where_its_pitch_and_time_are(programs: Any) -> None:
    sounds, _ = programs
    for pitch, hertz in sounds.PITCHES.items():
        made = sounds.Sound("tone", pitch, 1.0, 0.6, hertz, 1.0)
        quiet = sounds.Sound("tone", pitch, 0.1, 0.6, hertz, 0.0)
        grey = np.asarray(sounds.picture(sounds.waveform(sounds.Clip((quiet, made), 1e-3, (0, 1)))))
        assert grey.shape == (84, 84) and grey.dtype == np.uint8
        band = 83 - int(grey[:, 65].argmax())
        low, high = (2595 * np.log10(1 + f / 700) for f in (sounds.LOWEST, sounds.HIGHEST))
        centre = 700 * (10 ** ((low + (band + 1) * (high - low) / 85) / 2595) - 1)
        assert abs(centre - hertz) < 20 + 0.03 * hertz, pitch
        assert grey[:, 55:78].max(0).min() > 180 and grey[:, :40].max() < 120


def test_every_band_hears_something(programs: Any) -> None:
    filters = programs[0].mel_filters()
    assert filters.shape == (84, 257) and (filters.max(1) >= 0.4).all() and (filters >= 0).all()


def test_any_length_is_a_picture(programs: Any) -> None:
    assert programs[0].picture(np.zeros(5000)).size == (32, 84)


def test_what_is_written(world: Path) -> None:
    rows = [json.loads(line) for line in (world / "sounds/train.jsonl").read_text().splitlines()]
    assert len(rows) == 12 and all(len(row["conversations"]) == 10 for row in rows)
    assert len({row["conversations"][0]["value"] for row in rows}) > 2  # in an order of its own
    tests = [json.loads(line) for line in (world / "sounds/test.jsonl").read_text().splitlines()]
    assert [len(row["conversations"]) for row in tests] == [2] * 4
    with Image.open(world / "sounds" / tests[0]["image"]) as picture:
        assert picture.size == (84, 84)
    assert (world / "sounds/test-0.wav").stat().st_size > 26_000


def test_the_teachers_targets_are_the_sounds(programs: Any) -> None:
    sounds, teacher = programs
    first = sounds.Sound("rise", "low", 0.0, 0.56, 200.0, 1.0)
    second = sounds.Sound("noise", "high", 0.9, 0.7, 1200.0, 1.0)
    which, kinds, pitches = teacher.targets(sounds.Clip((first, second), 0.01, (0, 0)))
    assert which == [0, 0, -100, 1, 1, 1]
    assert kinds == [1, 1, -100, 4, 4, 4] and pitches == [0, 0, -100, 2, 2, 2]
    images, classes = teacher.batch(0, 2)
    assert images.shape == (2, 3, 84, 84) and [c.shape for c in classes] == [(2, 36)] * 3
    # Patches are row by row: a column has the same class in all of its rows.
    rows = classes[0].view(2, 6, 6)
    assert torch.equal(rows, rows[:, :1].expand(-1, 6, -1))


def small(recipe: Recipe) -> Recipe:
    changes = ["steps=3", "batch=4", "checkpoint_every=2", "warmup_steps=1"]
    return override(recipe, [*(f"stages.0.{change}" for change in changes), "evals.0.limit=2"])


def test_the_recipe_trains_on_sounds(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    recipe = find_recipe(f"{FOLDER / 'recipe.py'}:vora_audio")
    (distill,) = [o for o in recipe.stages[0].objectives if isinstance(o, DistillSpec)]
    assert distill.teacher == recipe.model.vision.init_from == "sounds/teacher"
    assert Teacher.load(distill.teacher).blocks <= 5
    run = train(small(recipe), Path("run"), quiet=True)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) and all(0 < line["distill"] < 2 and line["lm"] > 0 for line in lines)
    results = [json.loads(path.read_text()) for path in run.glob("evals/*/result.json")]
    assert {result["blind"] for result in results} == {True, False}
    assert (run / "stages" / "0-pretrain" / "config.json").exists()
