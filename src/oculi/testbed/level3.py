"""Level 3 of Playroom: one to three words of random capitals, or numbers, to be read.

A text lies at the place that its middle lies in, clear of the border to the next place. Texts in
one row of places stand on one line, at its left and its right end, and the lines are clearly
apart: reading line by line means one order.
"""

from __future__ import annotations

from collections.abc import Sequence

from oculi.errors import DataError
from oculi.testbed import glyphs
from oculi.testbed.questions import Question, as_choice, crossed
from oculi.testbed.scene import Box, Plan, Scene, Spot, Text, finish, written
from oculi.testbed.vocabulary import PLACES, Dice

KINDS = ("read all", "read one", "word place", "word count")
PAIR_KINDS: tuple[str, ...] = ()
SIZE = (112, 112)
HEIGHTS = (0.06, 0.12)  # of the glyphs
MOST = 3  # texts in a picture
MARGIN = 0.02  # least distance of a text from the picture's edge
INSIDE = 0.03  # least distance of a text's middle from the border of its place
LINES = 0.03  # least distance of two lines
_GAP = 0.06  # least distance of two texts in a line

_ASK: dict[str, tuple[str, ...]] = {
    "read all": (
        'Read everything line by line, in the form "{}".',
        'What is written, from top to bottom? Answer as "{}".',
        'Write down all that is written, line by line, like "{}".',
        'Give every word and number from the first line to the last, as in "{}".',
    ),
    "read one": (
        "What is written at the {}?",
        "Read what is at the {}.",
        "Which word or number is at the {}?",
        "At the {}, what is written?",
        "What does the picture say at the {}?",
    ),
    "word place": (
        "Where is {} written?",
        "At which of the nine places is {}?",
        "At which place does the picture say {}?",
        "{} is written at which place?",
        "Name the place where {} is written.",
    ),
    "word count": (
        "How many words and numbers are there?",
        "How many words and numbers are written in the picture?",
        "Count the words and numbers.",
        "Counting words and numbers together, how many are there?",
        "What is the number of words and numbers?",
    ),
}
# Each form is shown in the request, so that one wording only is right.
_FORMS = (("ONE, TWO", ", "), ("ONE TWO", " "), ("ONE; TWO", "; "), ("ONE then TWO", " then "))
_TWINS = (
    ("{}", "At the {0.place} is written {0.string}.", " "),
    ("Words and numbers: {n}. {}.", "{0.string} at the {0.place}", ", "),
    ("{}", "{0.place}: {0.string}", "\n"),
    ("Written line by line: {}", "{0.string} ({0.place})", ", "),
    ("The picture says {}.", "{0.string} at the {0.place}", ", then "),
)


def string(roll: Dice) -> str:
    """Return three to six random capitals, or one in four times a number of as many digits."""
    length = 3 + roll.below(4)
    if roll.below(4):
        return "".join(roll.pick(glyphs.LETTERS) for _ in range(length))
    first = roll.pick(glyphs.DIGITS[1:])
    return first + "".join(roll.pick(glyphs.DIGITS) for _ in range(length - 1))


def strings(n: int, roll: Dice) -> list[str]:
    """Return `n` different words or numbers."""
    made: dict[str, None] = {}
    while len(made) < n:
        made[string(roll)] = None
    return list(made)


def _fits(place: str, others: Sequence[str]) -> bool:
    """Whether a text may be at `place`: alone in its row, or at the end across from another."""
    row, column = divmod(PLACES.index(place), 3)
    for other in others:
        its_row, its_column = divmod(PLACES.index(other), 3)
        if row == its_row and {column, its_column} != {0, 2}:
            return False
    return True


def texts(n: int, roll: Dice) -> tuple[Text, ...]:
    """Return `n` (at most 3) different texts at different places, the first at any place evenly."""
    places = [roll.pick(PLACES)]
    for place in roll.shuffled(PLACES):
        if len(places) < n and _fits(place, places):
            places.append(place)
    return tuple(Text(*both) for both in zip(strings(n, roll), places, strict=True))


def plan(kind: str, split: str, roll: Dice) -> Plan:
    """Return the plan of one item; the question is about the first text."""
    n = 1 + roll.below(MOST)
    made = texts(n, roll)
    answers = {
        "read one": made[0].string, "word place": made[0].place, "word count": str(n),
    }  # fmt: skip
    return Plan(kind, (), answers.get(kind, ""), texts=made)


def frame(text: Text, spot: Spot) -> Box:
    """Return the box (left, top, right, bottom) that a text at `spot` fills."""
    half = glyphs.width(text.string, 2 * spot.r) / 2
    return spot.x - half, spot.y - spot.r, spot.x + half, spot.y + spot.r


def _between(band: int, length: float, margin: float, roll: Dice) -> float:
    """Return a position well inside this third of `length`, and at least `margin` from the ends."""
    low = max(band * length / 3 + INSIDE, margin)
    return roll.between(low, min((band + 1) * length / 3 - INSIDE, length - margin))


def _apart(some: Sequence[Text], spots: Sequence[Spot]) -> bool:
    """Whether lines, and texts in one line, are clearly apart."""
    boxes = [frame(*both) for both in zip(some, spots, strict=True)]
    for number, (spot, box) in enumerate(zip(spots, boxes, strict=True)):
        for other, its in zip(spots[:number], boxes[:number], strict=True):
            if spot.y == other.y:
                if max(box[0] - its[2], its[0] - box[2]) < _GAP:
                    return False
            elif abs(spot.y - other.y) < spot.r + other.r + LINES:
                return False
    return True


def text_spots(
    some: Sequence[Text], room: tuple[float, float], heights: tuple[float, float], roll: Dice
) -> list[Spot]:
    """Return where each text goes, in a picture of `room` units, with glyphs of these heights.

    Raises DataError if they do not fit.
    """
    for _ in range(1000):
        lines = [_between(row, room[1], MARGIN + heights[1] / 2, roll) for row in range(3)]
        spots = []
        for text in some:
            row, column = divmod(PLACES.index(text.place), 3)
            height = roll.between(*heights)
            half = glyphs.width(text.string, height) / 2
            spots.append(
                Spot(_between(column, room[0], MARGIN + half, roll), lines[row], height / 2)
            )
        if _apart(some, spots):
            return spots
    raise DataError(f"playroom: {len(some)} texts do not fit in a picture of {room} units")


def arrange(plan: Plan, size: tuple[int, int], roll: Dice) -> Scene:
    """Return the plan's scene for a picture of `size` = (width, height) pixels."""
    unit = min(size)
    spots = text_spots(plan.texts, (size[0] / unit, size[1] / unit), HEIGHTS, roll)
    return written(finish(3, (), [], size, roll), plan.texts, spots, roll)


def _another(sign: str, first: bool, roll: Dice) -> str:
    """Return another letter for a letter, another digit for a digit (no nought if `first`)."""
    signs = glyphs.LETTERS if sign in glyphs.LETTERS else glyphs.DIGITS[first:]
    return roll.pick([other for other in signs if other != sign])


def _misread(read: Sequence[str], roll: Dice) -> list[list[str]]:
    """Return three wrong readings: a letter wrong, another wrong or two texts swapped, and both."""
    places = [(n, spot) for n, word in enumerate(read) for spot in range(len(word))]
    one, other = roll.some(places, 2)
    signs = {(n, spot): _another(read[n][spot], spot == 0, roll) for n, spot in (one, other)}

    def wrong(words: Sequence[str], place: tuple[int, int]) -> list[str]:
        n, spot = place
        new = words[n][:spot] + signs[place] + words[n][spot + 1 :]
        return [*words[:n], new, *words[n + 1 :]]

    swapped = roll.below(len(read) - 1) if len(read) > 1 and roll.coin() else None

    def second(words: Sequence[str]) -> list[str]:
        if swapped is None:
            return wrong(words, other)
        return [*words[:swapped], *words[swapped : swapped + 2][::-1], *words[swapped + 2 :]]

    return crossed(list(read), lambda words: wrong(words, one), second)


def _read(plan: Plan, scene: Scene, roll: Dice) -> tuple[Question, list[str]]:
    """Return a question for one text or all, and three wrong answers.

    Wrong answers for one text are either misreadings or other texts, some of them in the picture.
    """
    if plan.kind == "read all":
        shown, joint = roll.pick(_FORMS)
        text = roll.pick(_ASK[plan.kind]).format(shown)
        read = [word.string for word in scene.words]
        wrong = [joint.join(words) for words in _misread(read, roll)]
        return Question(plan.kind, text, joint.join(read)), wrong
    text = roll.pick(_ASK[plan.kind]).format(plan.texts[0].place)
    if roll.coin():
        wrong = [words[0] for words in _misread([plan.answer], roll)]
    else:
        wrong = [other.string for other in plan.texts[1:]]
        wrong += strings(3 - len(wrong), roll)
    return Question(plan.kind, text, plan.answer), wrong


def ask(plan: Plan, scene: Scene, split: str, choice: bool, roll: Dice) -> Question:
    """Return the plan's question about `scene`, as multiple choice if `choice`."""
    if plan.kind in ("read all", "read one"):
        question, wrong = _read(plan, scene, roll)
    else:
        text = roll.pick(_ASK[plan.kind]).format(plan.texts[0].string)
        question = Question(plan.kind, text, plan.answer)
        counts = [str(n) for n in range(1, MOST + 1)]
        wrong = counts if plan.kind == "word count" else list(PLACES)
    return as_choice(question, wrong, roll) if choice else question


def describe(scene: Scene, wording: int) -> str:
    """Return everything that can be asked about `scene`: each text and its place, line by line."""
    told, form, joint = _TWINS[wording % len(_TWINS)]
    listed = joint.join(form.format(word) for word in scene.words)
    return told.format(listed, n=len(scene.words))
