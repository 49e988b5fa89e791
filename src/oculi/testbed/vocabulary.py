"""Playroom's words, colours and dice: everything that fixes what the world contains.

The dice draw from raw Philox words, whose stream numpy guarantees between releases, and turn them
into choices with integer arithmetic of their own: a `numpy.random.Generator` may change how it
makes a bounded integer, and the frozen world would change with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")
Pair = tuple[str, str]

VERSION = 1
_KEY = 0x0C0117  # with VERSION, the entropy that every scene starts from

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 36, 36),
    "orange": (246, 134, 22),
    "yellow": (242, 218, 40),
    "green": (40, 158, 58),
    "cyan": (40, 196, 212),
    "blue": (44, 72, 214),
    "purple": (130, 48, 168),
    "pink": (246, 130, 192),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
SIZES = ("small", "medium", "large")
PLACES = (
    "top left", "top", "top right",
    "left", "centre", "right",
    "bottom left", "bottom", "bottom right",
)  # fmt: skip
RELATIONS = ("left", "right", "above", "below")
PAIRS: tuple[Pair, ...] = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)

# Six colours and all six shapes, each once, so that no single word is rare in training.
HELD_OUT_PAIRS: tuple[Pair, ...] = (
    ("red", "star"),
    ("yellow", "cross"),
    ("green", "circle"),
    ("blue", "triangle"),
    ("purple", "ring"),
    ("pink", "square"),
)
TRAINED_PAIRS: tuple[Pair, ...] = tuple(pair for pair in PAIRS if pair not in HELD_OUT_PAIRS)

SPLITS = ("train", "test", "pairs")
# Scenes that are only ever written as text, for the LLM: all 48 pairs, never drawn.
TEXT_SPLITS = ("text", "text-test")
_SPLIT_IDS = {name: number for number, name in enumerate(SPLITS + TEXT_SPLITS)}


def allowed_pairs(split: str) -> tuple[Pair, ...]:
    """Return the colour-shape pairs that may be seen or named in `split` besides its subject."""
    return PAIRS if split in TEXT_SPLITS else TRAINED_PAIRS


def subject_pairs(split: str) -> tuple[Pair, ...]:
    """Return the pairs that the object a question is about comes from."""
    return HELD_OUT_PAIRS if split == "pairs" else allowed_pairs(split)


class Dice:
    """Seeded choices from raw Philox words; equal seeds give equal choices everywhere."""

    def __init__(self, *seed: int) -> None:
        sequence = np.random.SeedSequence([_KEY, VERSION, *seed])
        self._bits = np.random.Philox(sequence)
        self._words: list[int] = []

    def _word(self) -> int:
        if not self._words:
            self._words = self._bits.random_raw(32).tolist()[::-1]
        return self._words.pop()

    def noise(self, n: int) -> np.ndarray:
        """Return `n` random bytes (n,) uint8, for pictures: one call is one stretch of the stream."""
        words = self._bits.random_raw(-(-n // 8)).astype("<u8")
        return words.view(np.uint8)[:n]

    def below(self, n: int) -> int:
        """Return an integer in [0, n)."""
        return (self._word() * n) >> 64

    def between(self, low: float, high: float) -> float:
        """Return a float in [low, high)."""
        return low + (high - low) * ((self._word() >> 11) * 2.0**-53)

    def coin(self) -> bool:
        """Return True or False with equal chance."""
        return bool(self._word() >> 63)

    def pick(self, options: Sequence[T]) -> T:
        """Return one of `options`, each with equal chance."""
        return options[self.below(len(options))]

    def shuffled(self, options: Sequence[T]) -> list[T]:
        """Return all of `options` in random order."""
        left = list(options)
        for last in range(len(left) - 1, 0, -1):
            other = self.below(last + 1)
            left[last], left[other] = left[other], left[last]
        return left

    def some(self, options: Sequence[T], n: int) -> list[T]:
        """Return up to `n` different ones of `options`, in random order."""
        return self.shuffled(options)[:n]


def dice(level: int, split: str, index: int, stream: int) -> Dice:
    """Return the dice of one item; `stream` keeps plan, layout and wording independent."""
    return Dice(level, _SPLIT_IDS[split], index, stream)


def with_article(name: str) -> str:
    """Return `name` with "a" or "an" in front."""
    return ("an " if name[0] in "aeiou" else "a ") + name
