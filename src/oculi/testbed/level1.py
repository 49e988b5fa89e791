"""Level 1 of Playroom: one object of 30 to 70 % of the shorter side, at one of nine places.

A place is where the object lies within the room its size leaves it: a large object at the left
still reaches past the middle. So each size can be at each place.
"""

from __future__ import annotations

from oculi.testbed.questions import VALUES, Question, as_choice, changed
from oculi.testbed.scene import Plan, Scene, Spot, Traits, extent, finish
from oculi.testbed.vocabulary import (
    COLOURS,
    PLACES,
    SHAPES,
    SIZES,
    Dice,
    allowed_pairs,
    subject_pairs,
    with_article,
)

KINDS = ("colour", "shape", "size", "position", "existence", "description")
PAIR_KINDS = KINDS
SIZE = (84, 84)
BANDS = {"small": (0.30, 0.40), "medium": (0.46, 0.54), "large": (0.60, 0.70)}
_ROOM = ((0.0, 0.2), (0.4, 0.6), (0.8, 1.0))  # parts of the free room that the places take

_ASK: dict[str, tuple[str, ...]] = {
    "colour": (
        "What colour is the object?",
        "What is the colour of the shape in the picture?",
        "Name the colour of the object.",
        "Which colour does the object have?",
        "The object has which colour?",
    ),
    "shape": (
        "What shape is the object?",
        "Which shape is shown?",
        "Name the shape in the picture.",
        "What is the shape of the object?",
        "The object has which shape?",
    ),
    "size": (
        "What size is the object: small, medium or large?",
        "Is the object small, medium or large?",
        "Name the size of the object (small, medium or large).",
        "How big is the object: small, medium or large?",
    ),
    "position": (
        "Where is the object?",
        "At which of the nine places is the object?",
        "Name the place of the object in the picture.",
        "In which part of the picture is the object?",
        "The object is at which place?",
    ),
    "existence": (
        "Is there {}?",
        "Does the picture show {}?",
        "Can you see {}?",
        "Is {} in the picture?",
        "Yes or no: the object is {}.",
    ),
}
# Each form is shown in the request, so that one wording only is right.
_FORMS = (
    ("a SIZE COLOUR SHAPE at the PLACE", "a {0.size} {0.colour} {0.shape} at the {0.place}"),
    ("SIZE, COLOUR, SHAPE, PLACE", "{0.size}, {0.colour}, {0.shape}, {0.place}"),
    ("PLACE: SIZE COLOUR SHAPE", "{0.place}: {0.size} {0.colour} {0.shape}"),
    ("the SHAPE is SIZE and COLOUR", "the {0.shape} is {0.size} and {0.colour}"),
)
_REQUESTS = (
    'Describe the picture like "{}".',
    'Describe the object in the form "{}".',
    'What is in the picture? Answer as "{}".',
    'Fill in for this picture: "{}".',
)
_TWINS = (
    "There is a {0.size} {0.colour} {0.shape} at the {0.place}.",
    "The picture shows one object: a {0.size} {0.colour} {0.shape}. It is at the {0.place}.",
    "At the {0.place} is a {0.shape}. It is {0.size} and {0.colour}.",
    "shape: {0.shape}, colour: {0.colour}, size: {0.size}, place: {0.place}",
    "One {0.colour} {0.shape}, {0.size}, at the {0.place}.",
    "The {0.shape} at the {0.place} is {0.colour}. Its size is {0.size}.",
)


def plan(kind: str, split: str, roll: Dice) -> Plan:
    """Return the plan of one item: the value asked for is drawn first, evenly."""
    pairs = subject_pairs(split)
    if kind == "shape":  # colour first would make the shapes of rarer pairs less likely
        shape = roll.pick(SHAPES)
        pair = roll.pick([pair for pair in pairs if pair[1] == shape])
    else:
        colours = [colour for colour in COLOURS if any(pair[0] == colour for pair in pairs)]
        colour = roll.pick(colours)
        pair = roll.pick([pair for pair in pairs if pair[0] == colour])
    size, place = roll.pick(SIZES), roll.pick(PLACES)
    traits = Traits(*pair, size, place)
    if kind != "existence":
        return Plan(kind, (traits,), "", "place" if kind == "position" else kind)
    if roll.coin():
        return Plan(kind, (traits,), "yes", pair=pair)
    other = changed(traits, roll, ("colour", "shape"), allowed_pairs(split))
    return Plan(kind, (traits,), "no", pair=other.pair)


def arrange(plan: Plan, size: tuple[int, int], roll: Dice) -> Scene:
    """Return the plan's scene for a picture of `size` = (width, height) pixels."""
    (traits,) = plan.traits
    unit = min(size)
    r = extent(traits.size, BANDS, roll)
    row, column = divmod(PLACES.index(traits.place), 3)
    x, y = (
        r + roll.between(*_ROOM[band]) * (length / unit - 2 * r)
        for band, length in ((column, size[0]), (row, size[1]))
    )
    return finish(1, plan.traits, [Spot(x, y, r)], size, roll)


def ask(plan: Plan, scene: Scene, split: str, choice: bool, roll: Dice) -> Question:
    """Return the plan's question about `scene`, as multiple choice if `choice`."""
    item = scene.objects[0]
    if plan.kind == "existence":
        text = roll.pick(_ASK[plan.kind]).format(with_article(" ".join(plan.pair)))
        question, wrong = Question(plan.kind, text, plan.answer), ["yes", "no"]
    elif plan.kind == "description":
        shown, form = roll.pick(_FORMS)
        question = Question(plan.kind, roll.pick(_REQUESTS).format(shown), form.format(item))
        attributes = ["colour", "shape", "size"] + ["place"] * ("PLACE" in shown)
        pairs = allowed_pairs(split)
        wrong = [form.format(changed(item, roll, attributes, pairs)) for _ in range(5 * choice)]
    else:
        question = Question(plan.kind, roll.pick(_ASK[plan.kind]), item.value(plan.about))
        wrong = list(VALUES[plan.about])
    return as_choice(question, wrong, roll) if choice else question


def describe(scene: Scene, wording: int) -> str:
    """Return everything that can be asked about `scene` as a sentence or two."""
    return _TWINS[wording % len(_TWINS)].format(scene.objects[0])
