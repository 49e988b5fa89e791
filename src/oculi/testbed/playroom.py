"""Playroom v1: a small world drawn by the program, unlimited, seeded and frozen.

No network and no data set is needed to see a vision-language model learn. Every picture, question
and answer is a pure function of (level, split, index); a change to any of them is a new version.
Six of the 48 colour-shape pairs occur in no picture of the splits "train" and "test": "pairs" asks
about them. Answers are drawn before the scenes, evenly within each kind of question.

A level is a module with what `Level` lists; nothing here knows what its scenes hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from PIL import Image, ImageDraw

from oculi.errors import DataError, nearest
from oculi.testbed import level1, level2, level3, level4, level5
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
    Dice,
    dice,
)

__all__ = [
    "COLOURS", "HELD_OUT_PAIRS", "LEVELS", "PLACES", "SHAPES", "SIZES", "SPLITS", "VERSION",
    "Item", "Object", "Picture", "Question", "Scene", "check", "default_size", "describe_scene",
    "draw", "item", "kinds", "question", "scene", "sheet", "splits",
]  # fmt: skip

Size = tuple[int, int]  # width, height in pixels


class Level(Protocol):
    """What the module of a level brings."""

    @property
    def KINDS(self) -> tuple[str, ...]:
        """The kinds of question."""

    @property
    def PAIR_KINDS(self) -> tuple[str, ...]:
        """Those that can be about a colour-shape pair; the split "pairs" asks them alone."""

    @property
    def SIZE(self) -> Size:
        """Width and height of a picture where none is asked for."""

    def plan(self, kind: str, split: str, roll: Dice) -> Plan:
        """Draw the answer, and the contents of a scene to fit."""

    def arrange(self, plan: Plan, size: Size, roll: Dice) -> Scene:
        """Lay the plan's contents out in a picture."""

    def ask(self, plan: Plan, scene: Scene, split: str, choice: bool, roll: Dice) -> Question:
        """Put the plan's question in words."""

    def describe(self, scene: Scene, wording: int) -> str:
        """Tell in words all that can be asked."""


_LEVELS: dict[int, Level] = {1: level1, 2: level2, 3: level3, 4: level4, 5: level5}
LEVELS = tuple(_LEVELS)
_SMALLEST = 16  # pixels; below, objects of level 2 are specks
_SHARES = 5  # one question in so many is multiple choice
_PLAN, _LAYOUT, _WORDS, _ORDER = range(4)  # streams of dice
_CACHED_BLOCKS = 64


def _level(level: int) -> Level:
    if level not in _LEVELS:
        known = ", ".join(map(str, LEVELS))
        raise DataError(f"playroom: no level {level}; the levels are {known}")
    return _LEVELS[level]


def default_size(level: int) -> Size:
    """Return (width, height) of a level's pictures where none is asked for."""
    return _level(level).SIZE


def kinds(level: int, split: str = "train") -> tuple[str, ...]:
    """Return the kinds of question of `level` in `split`; none if it has no such split."""
    module = _level(level)
    return module.PAIR_KINDS if split == "pairs" else module.KINDS


def splits(level: int) -> tuple[str, ...]:
    """Return the splits of `level` that have pictures."""
    return tuple(split for split in SPLITS if kinds(level, split))


def check(level: int, split: str) -> None:
    """Raise DataError for a level, or a split of it, that there is not."""
    _level(level)
    if split not in SPLITS + TEXT_SPLITS:
        known = ", ".join(splits(level))
        hint = nearest(split, splits(level))
        raise DataError(f'playroom: no split "{split}"{hint}; the splits are {known}')
    if not kinds(level, split):
        others = ", ".join(str(other) for other in LEVELS if kinds(other, split))
        raise DataError(
            f'playroom: level {level} has no colour-shape pairs and so no split "{split}"; use '
            f'"test", or one of the levels {others}'
        )


@lru_cache(maxsize=_CACHED_BLOCKS)
def _block(level: int, split: str, number: int) -> list[tuple[str, bool]]:
    """Return (kind, is multiple choice) of the items of one block, in their order.

    A block holds each kind equally often and one multiple choice in five: shares are exact for
    any run of whole blocks, and no stride through the indices meets only some kinds.
    """
    slots = [(kind, n == 0) for kind in kinds(level, split) for n in range(_SHARES)]
    return dice(level, split, number, _ORDER).shuffled(slots)


def of_kinds(level: int, split: str, chosen: Sequence[str], number: int) -> int:
    """Return the index of item `number` among those whose question is of the `chosen` kinds.

    Raises DataError for a kind that the level's split has not.
    """
    known = kinds(level, split)
    if wrong := [kind for kind in chosen if kind not in known]:
        raise DataError(
            f'playroom: level {level} has no kind "{wrong[0]}"{nearest(wrong[0], known)}; its kinds '
            f"are {', '.join(known)}"
        )
    block, place = divmod(number, _SHARES * len(set(chosen)))
    slots = [i for i, (kind, _) in enumerate(_block(level, split, block)) if kind in chosen]
    return block * _SHARES * len(known) + slots[place]


def _plan(level: int, split: str, index: int) -> tuple[Plan, bool]:
    check(level, split)
    if index < 0:
        raise DataError(f"playroom: index {index} is negative; items count from 0")
    number, slot = divmod(index, _SHARES * len(kinds(level, split)))
    kind, choice = _block(level, split, number)[slot]
    return _level(level).plan(kind, split, dice(level, split, index, _PLAN)), choice


def scene(level: int, split: str, index: int, size: Size | None = None) -> Scene:
    """Return the scene of one item for a picture of `size` = (width, height) pixels.

    Without a size it is the level's own. Raises DataError for a level or split there is not, or a
    side below 16 pixels.
    """
    plan, _ = _plan(level, split, index)
    return _arrange(plan, level, split, index, size or default_size(level))


def _arrange(plan: Plan, level: int, split: str, index: int, size: Size) -> Scene:
    if min(size) < _SMALLEST:
        raise DataError(f"playroom: a picture of {size} pixels; each side needs {_SMALLEST}")
    return _level(level).arrange(plan, size, dice(level, split, index, _LAYOUT))


def question(scene: Scene, level: int, split: str, index: int) -> Question:
    """Return the question of one item; `scene` must be that item's, at any size."""
    plan, choice = _plan(level, split, index)
    return _ask(plan, scene, level, split, index, choice)


def _ask(plan: Plan, scene: Scene, level: int, split: str, index: int, choice: bool) -> Question:
    roll = dice(level, split, index, _WORDS)
    return _level(level).ask(plan, scene, split, choice, roll)


@dataclass(frozen=True, slots=True)
class Picture:
    """An item's picture, drawn when it is loaded; it serves as an `ImageSource` of a sample.

    Without width and height it has the level's own size.
    """

    level: int
    split: str
    index: int
    width: int = 0
    height: int = 0

    def __post_init__(self) -> None:
        if not (self.width or self.height):
            for name, length in zip(("width", "height"), default_size(self.level), strict=True):
                object.__setattr__(self, name, length)

    def load(self) -> Image.Image:
        """Return the picture: RGB, width x height."""
        return draw(scene(self.level, self.split, self.index, self.size()))

    def size(self) -> Size:
        """Return (width, height)."""
        return self.width, self.height


@dataclass(frozen=True, slots=True)
class Item:
    """One picture with one question; nothing is drawn until `picture.load()`."""

    picture: Picture
    scene: Scene
    question: Question


def item(level: int, split: str, index: int, size: Size | None = None) -> Item:
    """Return one item of "train", "test" or "pairs"; `size` is (width, height) in pixels.

    Without a size it is the level's own.
    """
    if split in TEXT_SPLITS:
        raise DataError(f'playroom: the split "{split}" is text only and has no pictures')
    plan, choice = _plan(level, split, index)
    size = size or default_size(level)
    arranged = _arrange(plan, level, split, index, size)
    asked = _ask(plan, arranged, level, split, index, choice)
    return Item(Picture(level, split, index, *size), arranged, asked)


def text_item(level: int, split: str, index: int) -> tuple[Scene, Question]:
    """Return scene and question of one item of the splits "text" and "text-test"."""
    plan, choice = _plan(level, split, index)
    arranged = _arrange(plan, level, split, index, default_size(level))
    return arranged, _ask(plan, arranged, level, split, index, choice)


def describe_scene(scene: Scene, wording: int = 0) -> str:
    """Return all that can be asked about `scene` as text; `wording` picks one of several."""
    return _level(scene.level).describe(scene, wording)


def sheet(level: int, split: str, n: int, out: Path, size: Size | None = None) -> Path:
    """Write a contact sheet of the first `n` items as PNG, questions and answers as .txt beside.

    Returns the PNG's path, `out` with the suffix .png; folders are made as needed.
    """
    across, gap = 8, 4
    size = size or default_size(level)
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
    picture = save(board, Path(out))
    picture.with_suffix(".txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return picture


def save(picture: Image.Image, out: Path) -> Path:
    """Write a PNG to `out` with the suffix .png, and return its path; folders are made as needed.

    Raises DataError where `out` names no file.
    """
    if not out.name:
        raise DataError(f"{out}: is a folder; name a PNG file in it")
    path = out.with_suffix(".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return path
