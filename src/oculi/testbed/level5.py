"""Level 5 of Playroom: a crowd of small objects and some words on a textured, noisy ground.

It asks what levels 2 and 3 ask, of 5 to 12 objects of 4 to 10 % of the shorter side and one to
three texts, none overlapping. A description names those objects only that have one value, two to
four of them. The split "pairs" asks about objects only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from oculi.errors import DataError
from oculi.testbed import level2, level3
from oculi.testbed.questions import VALUES, Question, as_choice, crossed
from oculi.testbed.scene import Box, Plan, Scene, Spot, Traits, extent, finish, written
from oculi.testbed.texture import texture
from oculi.testbed.vocabulary import SIZES, Dice, Pair, allowed_pairs, subject_pairs

PAIR_KINDS = level2.KINDS
KINDS = (*level2.KINDS, *level3.KINDS)
SIZE = (168, 168)
BANDS = {"small": (0.040, 0.048), "medium": (0.062, 0.072), "large": (0.088, 0.100)}
FEWEST, MOST = 5, 12  # objects
HEIGHTS = (0.06, 0.08)  # of the glyphs
GAP = 0.015  # least distance of any two boxes
ACROSS = 0.04  # least distance of two listed objects' centres from left to right
_LISTED = (2, 4)  # objects in a description

_REQUESTS = (
    'List the {what} from left to right like "{form}".',
    'Describe all {what} from left to right in the form "{form}".',
    'Which {what} are there? Go from left to right and answer as "{form}".',
    'From left to right, name each of the {what} as in "{form}".',
)
_TWINS = (
    (
        "From left to right there is {}. {}",
        "a {0.size} {0.colour} {0.shape} at the {0.place}",
        ", ",
    ),
    ("{n} objects, left to right: {}. {}", "{0.size} {0.colour} {0.shape} ({0.place})", ", "),
    ("{}\n{}", "shape {0.shape}, colour {0.colour}, size {0.size}, place {0.place}", "\n"),
    ("{n} objects. {} {}", "The {0.colour} {0.shape} at the {0.place} is {0.size}.", " "),
    ("{}\n{}", "{0.place}: a {0.size} {0.colour} {0.shape}", "; "),
)


def _existence(split: str, n: int, roll: Dice) -> Plan:
    """Whether a pair is there; if not, some object has its colour, or its shape, or two have both.

    The pair asked for comes from the same pairs for yes and for no. With yes, too, another object
    often shares an attribute, so that partial matches tell nothing.
    """
    pairs, yes = allowed_pairs(split), roll.coin()
    asked = roll.pick(subject_pairs(split))
    subjects = [pair for pair in subject_pairs(split) if pair != asked]

    def near(attribute: str) -> Traits:
        value = dict(zip(("colour", "shape"), asked, strict=True))[attribute]
        return level2.some_traits(
            roll, pairs, lambda trait: trait.value(attribute) == value and trait.pair != asked
        )

    traits = [Traits(*(asked if yes else roll.pick(subjects)), roll.pick(SIZES))]
    sharing = roll.shuffled(("colour", "shape"))[: 1 + roll.coin()]
    traits += [near(attribute) for attribute in sharing]
    while len(traits) < n:
        traits.append(level2.some_traits(roll, pairs, lambda trait: trait.pair != asked))
    return Plan("existence", tuple(traits), "yes" if yes else "no", pair=asked)


def _description(split: str, n: int, roll: Dice) -> Plan:
    """The two to four objects that have one value, from left to right."""
    pairs, subjects = allowed_pairs(split), subject_pairs(split)
    about = roll.pick(("colour", "shape", "size"))
    value = roll.pick(level2.values_of(subjects, about))
    k = _LISTED[0] + roll.below(_LISTED[1] - _LISTED[0] + 1)
    traits = [level2.with_value(roll, subjects, about, value)]
    traits += [level2.with_value(roll, pairs, about, value) for _ in range(k - 1)]
    traits += [
        level2.some_traits(roll, pairs, lambda trait: trait.value(about) != value)
        for _ in range(n - k)
    ]
    return Plan("description", tuple(traits), about=about, value=value)


_PLANS = {**level2.PLANS, "existence": _existence, "description": _description}


def plan(kind: str, split: str, roll: Dice) -> Plan:
    """Return the plan of one item: the answer is drawn first, evenly, and the rest to fit."""
    n = FEWEST + roll.below(MOST - FEWEST + 1)
    if kind in level3.KINDS:
        asked = level3.plan(kind, split, roll)
        crowd = [level2.some_traits(roll, allowed_pairs(split), lambda _: True) for _ in range(n)]
        return replace(asked, traits=tuple(crowd))
    return replace(_PLANS[kind](split, n, roll), texts=level3.texts(1 + roll.below(3), roll))


def _box(spot: Spot) -> Box:
    return spot.x - spot.r, spot.y - spot.r, spot.x + spot.r, spot.y + spot.r


def _free(box: Box, taken: Sequence[Box]) -> bool:
    """Whether `box` is clear of all others."""
    left, top, right, bottom = box
    return all(
        left - x1 >= GAP or x0 - right >= GAP or top - y1 >= GAP or y0 - bottom >= GAP
        for x0, y0, x1, y1 in taken
    )


def _spots(plan: Plan, room: tuple[float, float], taken: list[Box], roll: Dice) -> list[Spot]:
    """Return where the objects go, clear of `taken`; fewer spots than objects if that fails."""
    radii = [extent(trait.size, BANDS, roll) for trait in plan.traits]
    listed = [
        plan.kind == "description" and trait.value(plan.about) == plan.value
        for trait in plan.traits
    ]
    spots: list[Spot] = []
    if plan.kind == "relation":
        spots = level2.related_spots(radii[:2], plan.answer, room, roll)
        if not all(_free(_box(spot), taken) for spot in spots):
            return []
    taken = taken + [_box(spot) for spot in spots]
    for _ in range(300):
        if len(spots) == len(radii):
            break
        r = radii[len(spots)]
        new = Spot(roll.between(r, room[0] - r), roll.between(r, room[1] - r), r)
        others = [spot for spot, its in zip(spots, listed[: len(spots)], strict=True) if its]
        abreast = listed[len(spots)] and any(abs(new.x - spot.x) < ACROSS for spot in others)
        if not abreast and _free(_box(new), taken):
            spots.append(new)
            taken.append(_box(new))
    return spots


def arrange(plan: Plan, size: tuple[int, int], roll: Dice) -> Scene:
    """Return the plan's scene for a picture of `size` = (width, height) pixels."""
    unit = min(size)
    room = size[0] / unit, size[1] / unit
    for _ in range(200):
        lines = level3.text_spots(plan.texts, room, HEIGHTS, roll)
        taken = [level3.frame(*both) for both in zip(plan.texts, lines, strict=True)]
        spots = _spots(plan, room, taken, roll)
        if len(spots) == len(plan.traits):
            scene = written(finish(5, plan.traits, spots, size, roll), plan.texts, lines, roll)
            return replace(scene, texture=texture(scene.background, roll))
    raise DataError(
        f"playroom: {len(plan.traits)} objects do not fit in a picture of {size} pixels"
    )


def _changes(
    items: Sequence[Traits], attributes: Sequence[str], pairs: Sequence[Pair], roll: Dice
) -> list[list[Traits]]:
    """Return three wrong lists: one attribute of an object changed, another one, and both."""
    slots = [(n, attribute) for n in range(len(items)) for attribute in attributes]

    def change(traits: list[Traits], slot: tuple[int, str], value: str) -> list[Traits]:
        n, attribute = slot
        fields = {name: traits[n].value(name) for name in ("colour", "shape", "size")}
        return [*traits[:n], Traits(**{**fields, attribute: value}), *traits[n + 1 :]]

    bare = [Traits(item.colour, item.shape, item.size) for item in items]
    while True:
        both = roll.some(slots, 2)
        one, other = ((slot, roll.pick(VALUES[slot[1]])) for slot in both)
        if any(bare[n].value(attribute) == value for (n, attribute), value in (one, other)):
            continue
        wrong = crossed(bare, lambda t: change(t, *one), lambda t: change(t, *other))  # noqa: B023
        seen = {trait.pair for traits in wrong for trait in traits}
        if seen <= {*pairs, *(trait.pair for trait in bare)}:
            return wrong


def _ask_description(
    plan: Plan, scene: Scene, split: str, roll: Dice
) -> tuple[Question, list[str]]:
    """Return the request for some of the objects, and three wrong lists."""
    shown, form, joint = roll.pick(level2.FORMS)
    items = [item for item in scene.objects if item.value(plan.about) == plan.value]

    def text(traits: Sequence[Traits]) -> str:
        return joint.join(form.format(trait) for trait in traits)

    attributes = [name for name in ("colour", "shape", "size") if name.upper() in shown]
    attributes = [name for name in attributes if name != plan.about]
    wrong = [text(traits) for traits in _changes(items, attributes, allowed_pairs(split), roll)]
    what = level2.named_by(plan.about, plan.value, plural=True)
    request = roll.pick(_REQUESTS).format(what=what, form=shown)
    return Question("description", request, text(items)), wrong


def ask(plan: Plan, scene: Scene, split: str, choice: bool, roll: Dice) -> Question:
    """Return the plan's question about `scene`, as multiple choice if `choice`."""
    if plan.kind in level3.KINDS:
        return level3.ask(plan, scene, split, choice, roll)
    if plan.kind != "description":
        return level2.ask(plan, scene, split, choice, roll)
    question, wrong = _ask_description(plan, scene, split, roll)
    return as_choice(question, wrong, roll) if choice else question


def describe(scene: Scene, wording: int) -> str:
    """Return everything that can be asked about `scene`: objects from left to right, then texts."""
    frame, form, joint = _TWINS[wording % len(_TWINS)]
    listed = joint.join(form.format(item) for item in scene.objects)
    return frame.format(listed, level3.describe(scene, wording), n=len(scene.objects))
