"""Several questions about one scene, told in words or drawn: more practice per scene.

For training alone. The answers follow from a scene that was not made for the
questions, so they are not as even as Playroom's own; that matters for scores, not for practice.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

from oculi.testbed import level1, level2, level3, level4, level5, playroom
from oculi.testbed.questions import VALUES, Question, changed
from oculi.testbed.scene import Object, Plan, Scene, Text
from oculi.testbed.vocabulary import PLACES, Dice, Pair, allowed_pairs, dice

_STREAM = 4  # of dice; Playroom's own are 0 to 3
_ROUNDS = 4  # of all kinds, until there are questions enough


def _existence(scene: Scene, roll: Dice, pairs: Sequence[Pair]) -> Plan:
    """Ask for a pair that is there, or nearly is, or is another altogether of `pairs`.

    Playroom itself never asks the last; for a beginner it is the way in.
    """
    subject, near = roll.pick(scene.objects), roll.coin()
    if roll.coin():
        return Plan("existence", scene.objects, "yes", pair=subject.pair)
    seen = {item.pair for item in scene.objects}
    while True:
        pair = changed(subject, roll, ("colour", "shape"), pairs).pair if near else roll.pick(pairs)
        if pair not in seen:
            return Plan("existence", scene.objects, "no", pair=pair)


def _attribute(scene: Scene, roll: Dice) -> Plan | None:
    """Ask for a value of an object that another of its values picks out."""
    about, by = roll.some(("colour", "shape", "size"), 2)
    values = [item.value(by) for item in scene.objects]
    single = [item for item in scene.objects if values.count(item.value(by)) == 1]
    if not single:
        return None
    subject = roll.pick(single)
    return Plan("attribute", scene.objects, subject.value(about), about, by, subject.value(by))


def _count(scene: Scene, roll: Dice) -> Plan | None:
    """Ask how many objects have a value, mostly one that some object has."""
    about = roll.pick(("colour", "shape", "size"))
    seen = roll.pick(scene.objects).value(about)
    value = seen if roll.below(4) else roll.pick(VALUES[about])
    number = sum(item.value(about) == value for item in scene.objects)
    if number > 4:  # a crowd may have more; no question asks for more
        return None
    return Plan("count", scene.objects, str(number), about, value=value)


def _two(scene: Scene, roll: Dice) -> tuple[Object, Object] | None:
    """Return two objects that each have a name of their own."""
    pairs = [item.pair for item in scene.objects]
    named = [item for item in scene.objects if pairs.count(item.pair) == 1]
    if len(named) < 2:
        return None
    first, second = roll.some(named, 2)
    return first, second


def _relation(scene: Scene, roll: Dice) -> Plan | None:
    """Ask where one object is, seen from another in the same row or column of places."""
    two = _two(scene, roll)
    if two is None:
        return None
    answer = lies(two[0].place, two[1].place)
    return Plan("relation", two, answer) if answer else None


def lies(place: str, other: str) -> str:
    """Return how `place` lies seen from `other`; empty unless they share their row or their column."""
    (row, column), (other_row, other_column) = (divmod(PLACES.index(p), 3) for p in (place, other))
    if (row == other_row) == (column == other_column):
        return ""
    across = "left" if column < other_column else "right"
    down = "above" if row < other_row else "below"
    return across if row == other_row else down


def _comparison(scene: Scene, roll: Dice) -> Plan | None:
    """Ask which of two objects of different sizes is larger, or smaller."""
    two = _two(scene, roll)
    if two is None or two[0].size == two[1].size:
        return None
    word = roll.pick(("larger", "smaller"))
    pick = max if word == "larger" else min
    return Plan("comparison", two, pick(two, key=lambda item: item.radius).name, word)


def _description(scene: Scene, roll: Dice) -> Plan | None:
    """Ask for all objects, or in a crowd for those that share a value, if they have one order."""
    if scene.level < 5:
        return Plan("description", scene.objects)
    about = roll.pick(("colour", "shape", "size"))
    value = roll.pick(scene.objects).value(about)
    listed = sorted(item.centre[0] for item in scene.objects if item.value(about) == value)
    least = level5.ACROSS * min(scene.width, scene.height)
    apart = all(right - left >= least for left, right in itertools.pairwise(listed))
    if not 2 <= len(listed) <= 4 or not apart:
        return None
    return Plan("description", scene.objects, about=about, value=value)


def _written(kind: str, scene: Scene, roll: Dice) -> Plan:
    """Ask about what is written; the question is about the first text."""
    texts = tuple(Text(word.string, word.place) for word in roll.shuffled(scene.words))
    answers = {
        "read one": texts[0].string, "word place": texts[0].place, "word count": str(len(texts)),
    }  # fmt: skip
    return Plan(kind, (), answers.get(kind, ""), texts=texts)


def _charted(kind: str, scene: Scene, roll: Dice) -> Plan:
    """Ask about one or two values of a chart, or the one at its end."""
    chart = scene.chart
    assert chart is not None
    a, b = roll.some(chart.labels, 2)
    word, answer = "", str(abs(chart.value(a) - chart.value(b)))
    if kind == "value":
        answer = str(chart.value(a))
    elif kind in ("extreme", "comparison"):
        large = roll.coin()
        word = level4.WORDS[kind][0 if large else 1]
        among = chart.labels if kind == "extreme" else (a, b)
        answer = (max if large else min)(among, key=chart.value)
    return Plan(kind, (), answer, word, labels=(a, b), chart=chart)


_OBJECTS: dict[str, Callable[[Scene, Dice], Plan | None]] = {
    "description": _description, "attribute": _attribute, "count": _count,
    "relation": _relation, "comparison": _comparison,
}  # fmt: skip
_ASK = {1: level1.ask, 2: level2.ask, 3: level3.ask, 4: level4.ask, 5: level5.ask}


def _plan(kind: str, scene: Scene, split: str, roll: Dice) -> Plan | None:
    """Return a plan of this kind that fits the scene, or None if there is none."""
    if kind == "existence":
        return _existence(scene, roll, allowed_pairs(split))
    if scene.chart is not None:
        return _charted(kind, scene, roll)
    if kind in level3.KINDS:
        return _written(kind, scene, roll)
    if kind in _OBJECTS:
        return _OBJECTS[kind](scene, roll)
    return Plan(kind, scene.objects, "", "place" if kind == "position" else kind)


def interview(
    scene: Scene,
    n: int,
    roll: Dice,
    choices: int = 1,
    kinds: Sequence[str] = (),
    split: str = "text",
) -> list[Question]:
    """Return up to `n` questions of different kinds about `scene`, at least one.

    Of three, `choices` are multiple choice; only pairs of `split` are named. With `kinds`, a kind is
    asked as often as it occurs there; of these every one may be impossible.
    """
    asked: list[Question] = []
    for kind in roll.shuffled(kinds or playroom.kinds(scene.level)):
        plan = _plan(kind, scene, split, roll)
        if plan is not None and len(asked) < n:
            asked.append(_ASK[scene.level](plan, scene, split, roll.below(3) < choices, roll))
    return asked


def different(
    scene: Scene, n: int, roll: Dice, kinds: Iterable[str], split: str, but: str = ""
) -> list[Question]:
    """Return up to `n` questions of `kinds` in their order, none about the same thing as another.

    One in three is multiple choice. `but` is the text of a question that was asked already.
    """
    plans: list[Plan] = []
    asked: list[Question] = []
    for kind in kinds:
        plan = _plan(kind, scene, split, roll)
        if plan is None or plan in plans or len(asked) == n:
            continue
        question = _ASK[scene.level](plan, scene, split, roll.below(3) < 1, roll)
        if question.text not in {but, *(other.text for other in asked)}:
            plans.append(plan)
            asked.append(question)
    return asked


def more(item: playroom.Item, n: int, kinds: Sequence[str] = ()) -> list[Question]:
    """Return up to `n` questions about the picture of `item`: of other kinds than its own first.

    Then all kinds come again, about something else. They are a function of the item; with `kinds`, of
    these alone. There may be none.
    """
    picture = item.picture
    known = kinds or playroom.kinds(picture.level, picture.split)
    roll = dice(picture.level, picture.split, picture.index, _STREAM)
    rounds = [roll.shuffled([kind for kind in known if kind != item.question.kind])]
    rounds += [roll.shuffled(known) for _ in range(_ROUNDS)]
    turns = itertools.chain(*rounds)
    return different(item.scene, n, roll, turns, picture.split, item.question.text)
