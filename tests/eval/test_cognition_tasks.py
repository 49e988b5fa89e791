"""Tasks about colours and codes: their names, their true answers, what is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import oculi
from helpers import write_rows
from oculi.cognition.codebook import Codebook
from oculi.data.sample import ImageSlot
from oculi.errors import CheckpointError, DataError
from oculi.eval import evaluate as module
from oculi.eval.command import Results
from oculi.eval.evaluate import evaluate
from oculi.eval.tasks import open_task


def test_pixels_of_playroom_are_asked_once_a_picture() -> None:
    task = open_task("pixels:playroom:1?grid=1x2&levels=10")
    assert task.name == "pixels-1x2-10:playroom:1"
    found = task.load(30)
    assert len(found) == 30 and found == open_task("pixels:playroom:1?grid=1x2&levels=10").load(30)
    assert len({q.text for q in found}) > 20
    for question in found:
        assert question.messages[0].content[0] == ImageSlot(0)
        assert question.group == "pixels" and "1 x 2 cells" in question.text
        assert len(question.answer) == len("6 7 7,0 0 9")
    assert len({q.answer for q in found}) > 15  # pictures differ


def test_codes_are_those_of_the_codebook(vq_folder: Path) -> None:
    name = f"codes:playroom:1?vq={vq_folder}&window=4x4"
    task = open_task(name)
    assert task.name == "codes-4x4:playroom:1" and "/" not in task.name
    (question,) = task.load(1)
    picture = question.images[0].load()
    wanted = Codebook(str(vq_folder)).indices(picture).ravel()
    assert question.answer == ",".join(f"{n:02d}" for n in wanted)


def test_pictures_of_a_file_are_asked_about_once(tmp_path: Path) -> None:
    path = write_rows(tmp_path)  # of eight rows two have no picture
    assert [len(open_task(f"pixels:{path}").load(n)) for n in (None, 4, 100)] == [6, 4, 6]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pixels:playroom:9", 'no task "playroom:9"'),
        ("pixels:", "neither a task nor a file"),
        ("pixels:playroom:1?grid=0x2", "grid.0: "),
        ("pixels:playroom:1?grid=2", "grid"),
        ("pixels:playroom:1?grid=axb", "grid"),
        ("pixels:playroom:1?grid=99x1", "grid.0: "),
        ("pixels:playroom:1?levles=3", r'unknown key "levles"; did you mean "levels"'),
        ("pixels:playroom:1?levels=1", "levels"),
        ("pixels:playroom:1?text=roman", "text: "),
        ("codes:playroom:1", "vq"),
    ],
)
def test_names_that_are_wrong_are_one_line(name: str, said: str) -> None:
    with pytest.raises(DataError, match=said) as found:
        open_task(name)
    assert "\n" not in str(found.value)


def test_a_codebook_that_is_none() -> None:
    with pytest.raises(CheckpointError, match="no folder"):
        open_task("codes:playroom:1?vq=./nowhere")


def test_what_is_near_is_measured_and_nonsense_is_wrong(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = open_task("pixels:playroom:1?grid=1x1")
    questions = task.load(4)
    said = [questions[0].answer, "red", "", questions[3].answer.replace(" ", "  ")]
    by_question = {id(q): text for q, text in zip(questions, said, strict=True)}
    monkeypatch.setattr(module, "encode_question", lambda question, *_: question)
    answers = {q.id: by_question[id(q)] for q in questions}
    monkeypatch.setattr(
        module, "answer", lambda model, processor, prompts, most: [answers[p.id] for p in prompts]
    )
    result = evaluate(*oculi.load(finished), task, tmp_path, limit=4)
    measures = result["measures"]
    assert measures["readable"]["mean"] == 0.5 == measures["cell_accuracy"]["mean"]
    assert measures["colour_error"]["mean"] == 127.5
    assert result["exact"]["correct"] == 1
    lines = (tmp_path / "answers.jsonl").read_text().splitlines()
    each: list[dict[str, Any]] = [json.loads(line)["measures"] for line in lines]
    assert [one["colour_error"] for one in each] == [0.0, 255.0, 255.0, 0.0]
    shown = "\n".join(Results(result, None, tmp_path).lines())
    assert "colour_error" in shown and "128" in shown
    low, high = measures["colour_error"]["low"], measures["colour_error"]["high"]
    assert np.isclose(high - low, 2 * 1.959964 * np.std([0, 255, 255, 0], ddof=1) / 2)


def test_a_model_is_asked(finished: Path, vq_folder: Path, tmp_path: Path) -> None:
    """From start to end; a random model writes nothing that can be read."""
    task = open_task(f"codes:playroom:1?vq={vq_folder}")
    result = evaluate(*oculi.load(finished), task, tmp_path, limit=3, max_new_tokens=4)
    assert result["measures"]["readable"]["mean"] == 0
    assert result["task"] == "codes-2x2:playroom:1"
