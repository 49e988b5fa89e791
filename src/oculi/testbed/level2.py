"""Level 2 of Playroom: two to four objects of 15 to 30 % of the shorter side, none overlapping.

Objects never lie at the same place across, so "from left to right" always means one order, and
two objects whose relation is asked for lie clearly along one axis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from oculi.errors import DataError
from oculi.testbed.questions import VALUES, Question, as_choice, changed
from oculi.testbed.scene import Plan, Scene, Spot, Traits, extent, finish, third
from oculi.testbed.vocabulary import (
    RELATIONS,
    SIZES,
    Dice,
    Pair,
    allowed_pairs,
    subject_pairs,
    with_article,
)

KINDS = ("attribute", "count", "relation", "existence", "comparison", "description")
PAIR_KINDS = KINDS
SIZE = (84, 84)
BANDS = {"small": (0.15, 0.18), "medium": (0.21, 0.24), "large": (0.27, 0.30)}
GAP = 0.03  # least distance of two objects' squares
ACROSS = 0.05  # least distance of two centres from left to right
CLEAR = 0.30  # least distance of two related objects along their axis

_ATTRIBUTE = (
    "What {about} is the {what}?",
    "What is the {about} of the {what}?",
    "Name the {about} of the {what}.",
    "Which {about} does the {what} have?",
    "The {what} has which {about}?",
)
_COUNT = (
    "How many {what} are there?",
    "Count the {what}.",
    "How many {what} does the picture show?",
    "What is the number of {what}?",
    "How many {what} can you see?",
)
_RELATION = (
    "Where is the {a} relative to the {b}: left, right, above or below?",
    "Is the {a} to the left, to the right, above or below the {b}?",
    "Seen from the {b}, where is the {a}: left, right, above or below?",
    "Compared with the {b}, is the {a} left, right, above or below?",
)
_EXISTENCE = (
    "Is there {}?",
    "Does the picture show {}?",
    "Can you see {}?",
    "Is {} in the picture?",
    "Yes or no: one of the objects is {}.",
)
_COMPARISON = (
    "Which is {word}, the {a} or the {b}?",
    "Which one is {word}: the {a} or the {b}?",
    "The {a} or the {b}: which is {word}?",
    "Of the {a} and the {b}, which is {word}?",
)
FORMS = (
    ("a SIZE COLOUR SHAPE, a SIZE COLOUR SHAPE", "a {0.size} {0.colour} {0.shape}", ", "),
    ("SIZE COLOUR SHAPE; SIZE COLOUR SHAPE", "{0.size} {0.colour} {0.shape}", "; "),
    ("COLOUR SHAPE, COLOUR SHAPE", "{0.colour} {0.shape}", ", "),
    ("SHAPE SIZE COLOUR then SHAPE SIZE COLOUR", "{0.shape} {0.size} {0.colour}", " then "),
)
_REQUESTS = (
    'List the objects from left to right like "{}".',
    'Describe all objects from left to right in the form "{}".',
    'What is in the picture? Go from left to right and answer as "{}".',
    'From left to right, name each object as in "{}".',
)
_TWINS = (
    ("From left to right there is {}.", "a {0.size} {0.colour} {0.shape} at the {0.place}", ", "),
    ("{n} objects, left to right: {}.", "{0.size} {0.colour} {0.shape} ({0.place})", ", "),
    ("{}", "shape {0.shape}, colour {0.colour}, size {0.size}, place {0.place}", "\n"),
    ("The picture shows {n} objects. {}", "The {0.colour} {0.shape} at the {0.place} is "
     "{0.size}.", " "),
    ("{}", "{0.place}: a {0.size} {0.colour} {0.shape}", "; "),
)  # fmt: skip


def some_traits(roll: Dice, pairs: Sequence[Pair], keep: Callable[[Traits], bool]) -> Traits:
    """Return traits drawn evenly from those that `keep` accepts."""
    while True:
        trait = Traits(*roll.pick(pairs), roll.pick(SIZES))
        if keep(trait):
            return trait


def with_value(roll: Dice, pairs: Sequence[Pair], attribute: str, value: str) -> Traits:
    """Return traits whose `attribute` is `value`."""
    return some_traits(roll, pairs, lambda trait: trait.value(attribute) == value)


def values_of(pairs: Sequence[Pair], attribute: str) -> list[str]:
    """Return the values of `attribute` that objects with these pairs can have."""
    if attribute == "size":
        return list(SIZES)
    position = ("colour", "shape").index(attribute)
    return sorted({pair[position] for pair in pairs})


def _attribute(split: str, n: int, roll: Dice) -> Plan:
    """One attribute of the only object with a given value of another."""
    pairs, subjects = allowed_pairs(split), subject_pairs(split)
    about, by = roll.some(("colour", "shape", "size"), 2)
    subject = with_value(roll, subjects, about, roll.pick(values_of(subjects, about)))
    rest = [
        some_traits(roll, pairs, lambda trait: trait.value(by) != subject.value(by))
        for _ in range(n - 1)
    ]
    value = subject.value(by)
    return Plan("attribute", (subject, *rest), subject.value(about), about, by, value)


def _count(split: str, n: int, roll: Dice) -> Plan:
    """How many objects have a value; in the split "pairs" one of them is held out."""
    pairs, subjects = allowed_pairs(split), subject_pairs(split)
    about, k = roll.pick(("colour", "shape", "size")), roll.below(5)
    n = max(k, n) if k > 2 else n
    value = roll.pick(values_of(subjects, about))
    traits = []
    for number in range(n):
        source = subjects if number == 0 else pairs
        if number < k:
            traits.append(with_value(roll, source, about, value))
        else:
            traits.append(some_traits(roll, source, lambda trait: trait.value(about) != value))
    return Plan("count", tuple(traits), str(k), about, value=value)


def _named(split: str, n: int, roll: Dice, sizes_differ: bool) -> list[Traits]:
    """Return `n` objects with different pairs, the first a subject of the split."""
    pairs = allowed_pairs(split)
    traits = [some_traits(roll, subject_pairs(split), lambda trait: True)]
    while len(traits) < n:
        seen = {trait.pair for trait in traits}
        other = some_traits(roll, pairs, lambda trait: trait.pair not in seen)  # noqa: B023
        if len(traits) > 1 or not sizes_differ or other.size != traits[0].size:
            traits.append(other)
    return traits


def _relation(split: str, n: int, roll: Dice) -> Plan:
    """Where the first object is, seen from the second."""
    traits = _named(split, n, roll, sizes_differ=False)
    return Plan("relation", tuple(traits), roll.pick(RELATIONS))


def _comparison(split: str, n: int, roll: Dice) -> Plan:
    """Which of the first two objects is larger, or smaller; either may be the answer."""
    traits = _named(split, n, roll, sizes_differ=True)
    first, second = traits[:2]
    larger, smaller = sorted((first, second), key=lambda trait: -SIZES.index(trait.size))
    word = roll.pick(("larger", "smaller"))
    answer = larger if word == "larger" else smaller
    return Plan("comparison", tuple(traits), answer.name, word)


def _existence(split: str, n: int, roll: Dice) -> Plan:
    """Whether a pair is there; if not, one object has its colour or its shape, or two have both.

    With yes, too, another object may share an attribute, so that partial matches tell nothing.
    """
    pairs, yes = allowed_pairs(split), roll.coin()
    subject = some_traits(roll, subject_pairs(split), lambda trait: True)
    asked = subject if yes else changed(subject, roll, ("colour", "shape"), pairs)
    traits = [subject]
    if roll.coin():
        shared = "shape" if asked.colour == subject.colour and not yes else "colour"
        if yes and roll.coin():
            shared = "shape"
        value = asked.value(shared)
        traits.append(
            some_traits(roll, pairs, lambda t: t.value(shared) == value and t.pair != asked.pair)
        )
    while len(traits) < n:
        traits.append(some_traits(roll, pairs, lambda trait: trait.pair != asked.pair))
    return Plan("existence", tuple(traits), "yes" if yes else "no", pair=asked.pair)


def _description(split: str, n: int, roll: Dice) -> Plan:
    """All objects, from left to right."""
    return Plan("description", tuple(_named(split, n, roll, sizes_differ=False)))


PLANS: dict[str, Callable[[str, int, Dice], Plan]] = {
    "attribute": _attribute,
    "count": _count,
    "relation": _relation,
    "existence": _existence,
    "comparison": _comparison,
    "description": _description,
}


def plan(kind: str, split: str, roll: Dice) -> Plan:
    """Return the plan of one item: the answer is drawn first, evenly, and the objects to fit."""
    return PLANS[kind](split, 2 + roll.below(3), roll)


def _clear(spots: Sequence[Spot], new: Spot) -> bool:
    """Whether `new` overlaps none of `spots` and is not at the same place across."""
    for spot in spots:
        apart = new.r + spot.r + GAP
        if abs(new.x - spot.x) < apart and abs(new.y - spot.y) < apart:
            return False
        if abs(new.x - spot.x) < ACROSS:
            return False
    return True


def related_spots(
    radii: Sequence[float], relation: str, room: tuple[float, float], roll: Dice
) -> list[Spot]:
    """Return two spots of which the first lies `relation` of the second."""
    axis = 0 if relation in ("left", "right") else 1
    for _ in range(2000):
        main = [roll.between(r, room[axis] - r) for r in radii]
        if (main[0] < main[1]) != (relation in ("left", "above")):
            main = main[::-1]
        first = roll.between(radii[0], room[1 - axis] - radii[0])
        side = [first, first + roll.between(-0.35, 0.35)]
        away, aside = abs(main[0] - main[1]), abs(side[0] - side[1])
        inside = all(
            r <= m <= room[axis] - r and r <= s <= room[1 - axis] - r
            for r, m, s in zip(radii, main, side, strict=True)
        )
        cells = [third(m, room[axis]) for m in main], [third(s, room[1 - axis]) for s in side]
        apart = cells[0][0] != cells[0][1] and cells[1][0] == cells[1][1]
        if not inside or not apart or away < CLEAR or aside > away / 2:
            continue
        points = zip(main, side, strict=True) if axis == 0 else zip(side, main, strict=True)
        spots = [Spot(x, y, r) for (x, y), r in zip(points, radii, strict=True)]
        if _clear(spots[:1], spots[1]):
            return spots
    raise DataError(f"playroom: no room for two objects, one {relation} of the other")


def arrange(plan: Plan, size: tuple[int, int], roll: Dice) -> Scene:
    """Return the plan's scene for a picture of `size` = (width, height) pixels."""
    unit = min(size)
    room = size[0] / unit, size[1] / unit
    radii = [extent(trait.size, BANDS, roll) for trait in plan.traits]
    for _ in range(1000):
        related = plan.kind == "relation"
        spots = related_spots(radii[:2], plan.answer, room, roll) if related else []
        for _ in range(60):
            if len(spots) == len(radii):
                return finish(2, plan.traits, spots, size, roll)
            r = radii[len(spots)]
            new = Spot(roll.between(r, room[0] - r), roll.between(r, room[1] - r), r)
            if _clear(spots, new):
                spots.append(new)
    raise DataError(f"playroom: {len(radii)} objects do not fit in a picture of {size} pixels")


def named_by(attribute: str, value: str, plural: bool = False) -> str:
    """Return how an object with this value is named: "star", "red object", "large objects"."""
    name = value if attribute == "shape" else f"{value} object"
    return name + ("es" if name.endswith("s") else "s") * plural


def _ask_description(
    scene: Scene, split: str, choice: bool, roll: Dice
) -> tuple[Question, list[str]]:
    """Return the request for a description and wrong ones: a changed object, another order."""
    shown, form, joint = roll.pick(FORMS)
    items: list[Traits] = list(scene.objects)

    def text(traits: Sequence[Traits]) -> str:
        return joint.join(form.format(trait) for trait in traits)

    attributes = ["colour", "shape"] + ["size"] * ("SIZE" in shown)
    wrong = []
    for _ in range(5 * choice):
        position = roll.below(len(items))
        other = list(items)
        other[position] = changed(items[position], roll, attributes, allowed_pairs(split))
        wrong.append(text(roll.shuffled(items) if roll.coin() else other))
    return Question("description", roll.pick(_REQUESTS).format(shown), text(items)), wrong


def ask(plan: Plan, scene: Scene, split: str, choice: bool, roll: Dice) -> Question:
    """Return the plan's question about `scene`, as multiple choice if `choice`."""
    kind, limit = plan.kind, 4
    first, second = plan.traits[0].name, plan.traits[1].name
    if kind == "description":
        question, wrong = _ask_description(scene, split, choice, roll)
        limit = 3  # the longest options by far
    else:
        if kind == "attribute":
            what = named_by(plan.by, plan.value)
            text = roll.pick(_ATTRIBUTE).format(about=plan.about, what=what)
            wrong = list(VALUES[plan.about])
        elif kind == "count":
            what = named_by(plan.about, plan.value, plural=True)
            text, wrong = roll.pick(_COUNT).format(what=what), list("01234")
        elif kind == "relation":
            text, wrong = roll.pick(_RELATION).format(a=first, b=second), list(RELATIONS)
        elif kind == "existence":
            text = roll.pick(_EXISTENCE).format(with_article(" ".join(plan.pair)))
            wrong = ["yes", "no"]
        else:
            a, b = roll.shuffled((first, second))
            text = roll.pick(_COMPARISON).format(word=plan.about, a=a, b=b)
            wrong = [first, second]
        question = Question(kind, text, plan.answer)
    return as_choice(question, wrong, roll, limit) if choice else question


def describe(scene: Scene, wording: int) -> str:
    """Return everything that can be asked about `scene`, objects from left to right."""
    frame, form, joint = _TWINS[wording % len(_TWINS)]
    listed = joint.join(form.format(item) for item in scene.objects)
    return frame.format(listed, n=len(scene.objects))
