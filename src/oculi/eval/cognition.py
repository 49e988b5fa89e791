"""Tasks that ask for colours and codebook indices of the pictures of another task.

    pixels:playroom:1                    settings as those of a stage, behind a question mark
    pixels:playroom:3?grid=3x3&levels=10
    codes:test.json?vq=DIR&window=2x2&size=256

Exact match counts an answer that is right in all of its numbers; what is near is measured beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final
from urllib.parse import parse_qsl

from pydantic import ValidationError

from oculi.cognition.readers import CodeReader, PixelReader, Reader
from oculi.cognition.turns import Asked, insert
from oculi.data.order import random_words
from oculi.data.sample import ImageSlot, ImageSource, Message, Sample
from oculi.errors import DataError, shown
from oculi.eval.asked import Question, Task
from oculi.eval.score import Scoring, exact
from oculi.recipe_problems import first_problem
from oculi.specs.base import Strict
from oculi.specs.cognition import CodesSpec, PixelsSpec

_SEED = 0xC0DE  # of the places that are asked about: the same for every model
_KINDS: Final[dict[str, tuple[type[Strict], Callable[[Any], Reader]]]] = {
    "pixels": (PixelsSpec, PixelReader),
    "codes": (CodesSpec, CodeReader),
}
KINDS: Final = tuple(_KINDS)
_PAIRS: Final = ("grid", "window")


def open_cognition(name: str, base: Callable[[str], Task]) -> Task:
    """A task of this kind by name.

    Args:
        name: ``KIND:TASK`` or ``KIND:TASK?key=value&key=value``.
        base: opens the task whose pictures are asked about.

    Raises:
        DataError: the settings are none, or there is no such task.
        CheckpointError: the codebook is none.
    """
    kind, _, rest = name.partition(":")
    inner, _, query = rest.partition("?")
    spec_class, reader_class = _KINDS[kind]
    reader = reader_class(_spec(spec_class, query, name))
    task = base(inner)

    def load(limit: int | None) -> list[Question]:
        found = _about(reader, task.load(limit), limit)
        # Conversations have several questions about a picture: of the first few there are too few.
        if limit is not None and len(found) < limit:
            found = _about(reader, task.load(None), limit)
        return found

    return Task(f"{reader.label}:{task.name}", load, Scoring("exact", exact, measure=reader.score))


def _about(reader: Reader, asked: Sequence[Question], limit: int | None) -> list[Question]:
    """A question about each picture that is asked about, once."""
    found: list[Question] = []
    seen: set[tuple[str, int]] = set()
    for question in asked:
        for number, image in enumerate(question.images):
            if (question.id, number) in seen or len(found) == limit:
                continue
            seen.add((question.id, number))
            found.append(_question(reader, len(found), f"{question.id}-{number}", image))
    return found


def _question(reader: Reader, index: int, id: str, image: ImageSource) -> Question:
    """One question about one picture, in a conversation of its own."""
    dice = random_words(_SEED, 3 * index, 3)
    ranges = (*reader.places, reader.wordings)
    down, across, wording = (int(word) * n >> 64 for word, n in zip(dice, ranges, strict=True))
    asked = Asked(reader, 0, (down, across), 0, wording)
    answer = reader.form.write(reader.values(image.load(), asked.place))
    shell = Sample(id, (Message("user", (ImageSlot(0),)), Message("assistant", ("",))), (image,))
    first, said = insert(shell, asked, answer).messages[:2]
    text = first.text.strip()
    return Question(id, 1, reader.name, (first,), (image,), text, said.text)


def _spec(spec_class: type[Strict], query: str, name: str) -> Strict:
    data: dict[str, Any] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        data[key] = _pair(value) if key in _PAIRS else _plain(value)
    try:
        return spec_class.model_validate(data)
    except ValidationError as error:
        problem = first_problem(error, data, spec_class)
        raise DataError(f"the task {shown(name)}: {problem}") from None


def _pair(text: str) -> Any:
    parts = text.split("x")
    return [int(part) if part.isdecimal() else part for part in parts]


def _plain(text: str) -> Any:
    return int(text) if text.isdecimal() else {"true": True, "false": False}.get(text, text)
