"""What a Playroom picture holds, and the plan it is made from.

A plan comes first (kind of question, answer, traits of the objects), the scene is laid out to fit
it: only so are the answers uniform within each kind. Lengths are in units of the shorter side
while a scene is laid out, so that one index gives one scene at every resolution.
"""

from __future__ import annotations

from dataclasses import dataclass

from oculi.testbed.vocabulary import COLOURS, PLACES, Dice, Pair


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
    rgb: tuple[int, int, int] = (0, 0, 0)

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The square (left, top, right, bottom) that the object lies in, in pixels."""
        (x, y), r = self.centre, self.radius
        return x - r, y - r, x + r, y + r


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture before it is drawn: size in pixels, background, objects from left to right."""

    level: int
    width: int
    height: int
    background: tuple[int, int, int]
    objects: tuple[Object, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What an item is about, before it has places and words.

    `about` is the attribute asked or the word of comparison, `by` the attribute that picks the
    object out, `value` what is counted, `pair` the pair asked for. The objects a question names
    come first in `traits`.
    """

    kind: str
    traits: tuple[Traits, ...]
    answer: str = ""
    about: str = ""
    by: str = ""
    value: str = ""
    pair: Pair = ("", "")


@dataclass(frozen=True, slots=True)
class Spot:
    """Where one object goes, in units of the shorter side: centre and half its extent."""

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


def paint(colour: str, roll: Dice) -> tuple[int, int, int]:
    """Return a shade of the named colour: each channel up to 10 levels off."""
    red, green, blue = (
        min(255, max(0, channel + roll.below(21) - 10)) for channel in COLOURS[colour]
    )
    return red, green, blue


def backdrop(roll: Dice) -> tuple[int, int, int]:
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
