"""Several questions about one scene that is told in words: more reading per word of text.

Only the LLM's pre-training uses it. The answers follow from a scene that was not made for the
questions, so they are not as even as Playroom's own; that matters for scores, not for practice.
"""

from __future__ import annotations

from oculi.testbed import level1, level2, playroom
from oculi.testbed.questions import VALUES, Question, changed
from oculi.testbed.scene import Object, Plan, Scene
from oculi.testbed.vocabulary import PAIRS, PLACES, Dice


def _existence(scene: Scene, roll: Dice) -> Plan:
    """Ask for a pair that is there, or that nearly is."""
    subject = roll.pick(scene.objects)
    if roll.coin():
        return Plan("existence", scene.objects, "yes", pair=subject.pair)
    seen = {item.pair for item in scene.objects}
    while True:
        other = changed(subject, roll, ("colour", "shape"), PAIRS)
        if other.pair not in seen:
            return Plan("existence", scene.objects, "no", pair=other.pair)


def _attribute(scene: Scene, roll: Dice) -> Plan | None:
    """Ask for a value of an object that another of its values picks out."""
    about, by = roll.some(("colour", "shape", "size"), 2)
    values = [item.value(by) for item in scene.objects]
    single = [item for item in scene.objects if values.count(item.value(by)) == 1]
    if not single:
        return None
    subject = roll.pick(single)
    return Plan("attribute", scene.objects, subject.value(about), about, by, subject.value(by))


def _count(scene: Scene, roll: Dice) -> Plan:
    """Ask how many objects have a value, mostly one that some object has."""
    about = roll.pick(("colour", "shape", "size"))
    seen = roll.pick(scene.objects).value(about)
    value = seen if roll.below(4) else roll.pick(VALUES[about])
    number = sum(item.value(about) == value for item in scene.objects)
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
    (row, column), (other_row, other_column) = (divmod(PLACES.index(item.place), 3) for item in two)
    if (row == other_row) == (column == other_column):
        return None
    across = "left" if column < other_column else "right"
    down = "above" if row < other_row else "below"
    return Plan("relation", two, across if row == other_row else down)


def _comparison(scene: Scene, roll: Dice) -> Plan | None:
    """Ask which of two objects of different sizes is larger, or smaller."""
    two = _two(scene, roll)
    if two is None or two[0].size == two[1].size:
        return None
    word = roll.pick(("larger", "smaller"))
    pick = max if word == "larger" else min
    return Plan("comparison", two, pick(two, key=lambda item: item.radius).name, word)


def _plan(kind: str, scene: Scene, roll: Dice) -> Plan | None:
    """Return a plan of this kind that fits the scene, or None if there is none."""
    if kind == "existence":
        return _existence(scene, roll)
    if kind == "description":
        return Plan(kind, scene.objects)
    if scene.level == 1:
        return Plan(kind, scene.objects, "", "place" if kind == "position" else kind)
    makers = {
        "attribute": _attribute, "count": _count, "relation": _relation, "comparison": _comparison,
    }  # fmt: skip
    return makers[kind](scene, roll)


def interview(scene: Scene, n: int, roll: Dice) -> list[Question]:
    """Return up to `n` questions of different kinds about `scene`, at least one."""
    module = {1: level1, 2: level2}[scene.level]
    asked: list[Question] = []
    for kind in roll.shuffled(playroom.kinds(scene.level)):
        plan = _plan(kind, scene, roll)
        if plan is not None and len(asked) < n:
            asked.append(module.ask(plan, scene, "text", roll.below(3) == 0, roll))
    return asked
