"""Playroom v1: a small world drawn by the program, unlimited, seeded and frozen.

No network and no data set is needed to see a vision-language model learn. Every picture, question
and answer is a pure function of (level, split, index); a change to any of them is a new version.
Six of the 48 colour-shape pairs occur in no picture of the splits "train" and "test": "pairs" asks
about them. Answers are drawn before the scenes, evenly within each kind of question.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType

from PIL import Image, ImageDraw

from oculi.errors import DataError, nearest
from oculi.testbed import level1, level2
from oculi.testbed.drawing import draw
from oculi.testbed.questions import Question
from oculi.testbed.scene import Object, Plan, Scene
from oculi.testbed.vocabulary import (
    COLOURS,
    HELD_OUT_PAIRS,
    PLACES,
    SHAPES,
    SIZES,
    SPLITS,
    TEXT_SPLITS,
    VERSION,
    dice,
)

__all__ = [
    "COLOURS", "HELD_OUT_PAIRS", "LEVELS", "PLACES", "SHAPES", "SIZES", "SPLITS", "VERSION",
    "Item", "Object", "Picture", "Question", "Scene", "describe_scene", "draw", "item", "kinds",
    "question", "scene", "sheet",
]  # fmt: skip

_LEVELS: dict[int, ModuleType] = {1: level1, 2: level2}
LEVELS = tuple(_LEVELS)
SIZE = (84, 84)
_SMALLEST = 16  # pixels; below, objects of level 2 are specks
_SHARES = 5  # one question in so many is multiple choice
_PLAN, _LAYOUT, _WORDS, _ORDER = range(4)  # streams of dice
_CACHED_BLOCKS = 64


def _level(level: int) -> ModuleType:
    if level not in _LEVELS:
        known = ", ".join(map(str, LEVELS))
        raise DataError(f"playroom: no level {level}; the levels are {known}")
    return _LEVELS[level]


def _check(level: int, split: str, index: int) -> None:
    _level(level)
    if split not in SPLITS + TEXT_SPLITS:
        known = ", ".join(SPLITS)
        hint = nearest(split, SPLITS)
        raise DataError(f'playroom: no split "{split}"{hint}; the splits are {known}')
    if index < 0:
        raise DataError(f"playroom: index {index} is negative; items count from 0")


@lru_cache(maxsize=_CACHED_BLOCKS)
def _block(level: int, split: str, number: int) -> list[tuple[str, bool]]:
    """Return (kind, is multiple choice) of the items of one block, in their order.

    A block holds each kind equally often and one multiple choice in five: shares are exact for
    any run of whole blocks, and no stride through the indices meets only some kinds.
    """
    slots = [(kind, n == 0) for kind in _level(level).KINDS for n in range(_SHARES)]
    return dice(level, split, number, _ORDER).shuffled(slots)


def _plan(level: int, split: str, index: int) -> tuple[Plan, bool]:
    _check(level, split, index)
    module = _level(level)
    number, slot = divmod(index, _SHARES * len(module.KINDS))
    kind, choice = _block(level, split, number)[slot]
    return module.plan(kind, split, dice(level, split, index, _PLAN)), choice


def kinds(level: int) -> tuple[str, ...]:
    """Return the kinds of question of `level`."""
    return tuple(_level(level).KINDS)


def scene(level: int, split: str, index: int, size: tuple[int, int] = SIZE) -> Scene:
    """Return the scene of one item for a picture of `size` = (width, height) pixels.

    Raises DataError for a level or split there is not, or a side below 16 pixels.
    """
    plan, _ = _plan(level, split, index)
    return _arrange(plan, level, split, index, size)


def _arrange(plan: Plan, level: int, split: str, index: int, size: tuple[int, int]) -> Scene:
    if min(size) < _SMALLEST:
        raise DataError(f"playroom: a picture of {size} pixels; each side needs {_SMALLEST}")
    return _level(level).arrange(plan, size, dice(level, split, index, _LAYOUT))


def question(scene: Scene, level: int, split: str, index: int) -> Question:
    """Return the question of one item; `scene` must be that item's, at any size."""
    plan, choice = _plan(level, split, index)
    return _ask(plan, scene, level, split, index, choice)


def _ask(plan: Plan, scene: Scene, level: int, split: str, index: int, choice: bool) -> Question:
    roll = dice(level, split, index, _WORDS)
    asked: Question = _level(level).ask(plan, scene, split, choice, roll)
    return asked


@dataclass(frozen=True, slots=True)
class Picture:
    """An item's picture, drawn when it is loaded; it serves as an `ImageSource` of a sample."""

    level: int
    split: str
    index: int
    width: int = SIZE[0]
    height: int = SIZE[1]

    def load(self) -> Image.Image:
        """Return the picture: RGB, width x height."""
        return draw(scene(self.level, self.split, self.index, self.size()))

    def size(self) -> tuple[int, int]:
        """Return (width, height)."""
        return self.width, self.height


@dataclass(frozen=True, slots=True)
class Item:
    """One picture with one question; nothing is drawn until `picture.load()`."""

    picture: Picture
    scene: Scene
    question: Question


def item(level: int, split: str, index: int, size: tuple[int, int] = SIZE) -> Item:
    """Return one item of "train", "test" or "pairs"; `size` is (width, height) in pixels."""
    if split in TEXT_SPLITS:
        raise DataError(f'playroom: the split "{split}" is text only and has no pictures')
    plan, choice = _plan(level, split, index)
    arranged = _arrange(plan, level, split, index, size)
    asked = _ask(plan, arranged, level, split, index, choice)
    return Item(Picture(level, split, index, *size), arranged, asked)


def text_item(level: int, split: str, index: int) -> tuple[Scene, Question]:
    """Return scene and question of one item of the splits "text" and "text-test"."""
    plan, choice = _plan(level, split, index)
    arranged = _arrange(plan, level, split, index, SIZE)
    return arranged, _ask(plan, arranged, level, split, index, choice)


def describe_scene(scene: Scene, wording: int = 0) -> str:
    """Return all that can be asked about `scene` as text; `wording` picks one of several."""
    text: str = _level(scene.level).describe(scene, wording)
    return text


def sheet(level: int, split: str, n: int, out: Path, size: tuple[int, int] = SIZE) -> Path:
    """Write a contact sheet of the first `n` items as PNG, questions and answers as .txt beside.

    Returns the PNG's path, `out` with the suffix .png; folders are made as needed.
    """
    across, gap = 8, 4
    rows = -(-n // across)
    width, height = size[0] + gap, size[1] + gap + 10
    board = Image.new("RGB", (across * width + gap, rows * height + gap), (128, 128, 128))
    pen = ImageDraw.Draw(board)
    lines = []
    for index in range(n):
        one = item(level, split, index, size)
        x, y = gap + index % across * width, gap + index // across * height
        board.paste(one.picture.load(), (x, y + 10))
        pen.text((x, y - 2), str(index), fill=(255, 255, 255))
        lines += [f"{index} [{one.question.kind}] {one.question.text}", f"-> {one.question.answer}"]
    picture = Path(out).with_suffix(".png")
    picture.parent.mkdir(parents=True, exist_ok=True)
    board.save(picture)
    picture.with_suffix(".txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return picture
