"""What a Playroom picture holds, and the plan it is made from.

A plan comes first (kind of question, answer, traits of the objects), the scene is laid out to fit
it: only so are the answers uniform within each kind. Lengths are in units of the shorter side
while a scene is laid out, so that one index gives one scene at every resolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from oculi.testbed import glyphs
from oculi.testbed.vocabulary import COLOURS, PLACES, Dice, Pair

Rgb = tuple[int, int, int]
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True, slots=True)
class Traits:
    """What is said of one object; `place` is set where the plan fixes it (level 1)."""

    colour: str
    shape: str
    size: str
    place: str = ""

    @property
    def pair(self) -> Pair:
        """(colour, shape)."""
        return self.colour, self.shape

    @property
    def name(self) -> str:
        """Colour and shape as in a sentence: "red star"."""
        return f"{self.colour} {self.shape}"

    def value(self, attribute: str) -> str:
        """Return the value of "colour", "shape", "size" or "place"."""
        return str(getattr(self, attribute))


@dataclass(frozen=True, slots=True)
class Object(Traits):
    """One object of a scene, in pixels: centre (x, y), and radius as half its longer extent."""

    centre: tuple[float, float] = (0.0, 0.0)
    radius: float = 0.0
    rgb: Rgb = (0, 0, 0)

    @property
    def box(self) -> Box:
        """The square (left, top, right, bottom) that the object lies in, in pixels."""
        (x, y), r = self.centre, self.radius
        return x - r, y - r, x + r, y + r


@dataclass(frozen=True, slots=True)
class Text:
    """What is written, and at which of the nine places its middle lies ("" in a chart)."""

    string: str
    place: str = ""


@dataclass(frozen=True, slots=True)
class Word(Text):
    """One text of a scene, in pixels: centre (x, y) and height of its glyphs."""

    centre: tuple[float, float] = (0.0, 0.0)
    height: float = 0.0
    rgb: Rgb = (0, 0, 0)

    @property
    def box(self) -> Box:
        """The box (left, top, right, bottom) that the glyphs fill, in pixels."""
        (x, y), half = self.centre, glyphs.width(self.string, self.height) / 2
        return x - half, y - self.height / 2, x + half, y + self.height / 2


@dataclass(frozen=True, slots=True)
class Chart:
    """What a chart says, from left to right; `form` is "bar" or "line".

    Values are whole multiples of `step`, from 1 to 9 of them; the axis goes from 0 to ten steps.
    """

    form: str
    step: int
    labels: tuple[str, ...]
    values: tuple[int, ...]

    def value(self, label: str) -> int:
        """Return the value of `label`."""
        return self.values[self.labels.index(label)]


@dataclass(frozen=True, slots=True)
class Mark:
    """A plain part of a chart, in pixels: a line of this width with round ends, or if 0 an area."""

    points: tuple[tuple[float, float], ...]
    rgb: Rgb
    width: float = 0.0


@dataclass(frozen=True, slots=True)
class Texture:
    """What lies behind the objects: a pattern between the background and a second colour, and grain.

    `period` is in 4096ths of the shorter side, `slope` the direction of stripes, `grain` the most
    levels that noise adds or takes; `seed` fixes the rest.
    """

    pattern: str
    rgb: Rgb
    period: int
    slope: tuple[int, int]
    grain: int
    seed: int


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture before it is drawn: size in pixels, background, and what is on it.

    Objects go from left to right, words as one reads. What a level does not have stays empty.
    """

    level: int
    width: int
    height: int
    background: Rgb
    objects: tuple[Object, ...]
    words: tuple[Word, ...] = ()
    chart: Chart | None = None
    marks: tuple[Mark, ...] = ()
    texture: Texture | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What an item is about, before it has places and words.

    `about` is the attribute asked or the word of comparison, `by` the attribute that picks the
    object out, `value` what is counted, `pair` the pair asked for, `labels` those of a chart. The
    objects and texts a question is about come first in `traits` and `texts`.
    """

    kind: str
    traits: tuple[Traits, ...]
    answer: str = ""
    about: str = ""
    by: str = ""
    value: str = ""
    pair: Pair = ("", "")
    texts: tuple[Text, ...] = ()
    labels: tuple[str, ...] = ()
    chart: Chart | None = None


@dataclass(frozen=True, slots=True)
class Spot:
    """Where an object or text goes, in units of the shorter side: centre, half extent or height."""

    x: float
    y: float
    r: float


def extent(size: str, bands: dict[str, tuple[float, float]], roll: Dice) -> float:
    """Return half an object's extent in units of the shorter side, inside its size's band."""
    return roll.between(*bands[size]) / 2


def third(position: float, length: float) -> int:
    """Return which third (0, 1, 2) of `length` a position lies in."""
    return min(2, int(3 * position / length))


def place_name(x: float, y: float, width: float, height: float) -> str:
    """Return the name of the cell of the 3 x 3 grid that (x, y) lies in."""
    return PLACES[3 * third(y, height) + third(x, width)]


def paint(colour: str, roll: Dice) -> Rgb:
    """Return a shade of the named colour: each channel up to 10 levels off."""
    red, green, blue = (
        min(255, max(0, channel + roll.below(21) - 10)) for channel in COLOURS[colour]
    )
    return red, green, blue


def backdrop(roll: Dice) -> Rgb:
    """Return a light or dark grey with a slight tint, far from every object colour."""
    base = 216 + roll.below(33) if roll.coin() else 16 + roll.below(45)
    red, green, blue = (min(255, max(0, base + roll.below(13) - 6)) for _ in range(3))
    return red, green, blue


def finish(
    level: int,
    traits: tuple[Traits, ...],
    spots: list[Spot],
    size: tuple[int, int],
    roll: Dice,
) -> Scene:
    """Return the scene in pixels: `size` is (width, height); the objects from left to right."""
    width, height = size
    unit = min(size)
    objects = []
    for trait, spot in zip(traits, spots, strict=True):
        x, y, r = spot.x * unit, spot.y * unit, spot.r * unit
        place = trait.place or place_name(x, y, width, height)
        rgb = paint(trait.colour, roll)
        objects.append(Object(trait.colour, trait.shape, trait.size, place, (x, y), r, rgb))
    objects.sort(key=lambda item: item.centre[0])
    return Scene(level, width, height, backdrop(roll), tuple(objects))


def ink(background: Rgb, roll: Dice) -> Rgb:
    """Return a dark colour on a light background, or a light one on a dark: easy to read."""
    low = 0 if sum(background) > 3 * 128 else 196
    return low + roll.below(60), low + roll.below(60), low + roll.below(60)


def written(scene: Scene, texts: Sequence[Text], spots: Sequence[Spot], roll: Dice) -> Scene:
    """Return `scene` with texts at these spots, in the order in which one reads."""
    unit = min(scene.width, scene.height)
    words = [
        Word(
            text.string,
            text.place,
            (spot.x * unit, spot.y * unit),
            2 * spot.r * unit,
            ink(scene.background, roll),
        )
        for text, spot in zip(texts, spots, strict=True)
    ]
    words.sort(key=lambda word: (word.centre[1], word.centre[0]))
    return replace(scene, words=tuple(words))
