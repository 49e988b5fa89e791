"""Level 4 of Playroom: bar and line charts of three to six labelled values.

The values of a chart are different whole multiples of its axis's step, from one to nine steps, and
are read off the axis, whose grid has a line at every step (see `charts`); no value is written at
its bar. A step is 1 or 10, so that no value or difference occurs on both axes: a number offered as
an answer does not tell which axis is meant, and all are equally likely.
"""

from __future__ import annotations

from dataclasses import replace

from oculi.testbed import charts, glyphs
from oculi.testbed.questions import LETTERS as OPTIONS
from oculi.testbed.questions import Question, as_choice
from oculi.testbed.scene import Chart, Plan, Scene, finish
from oculi.testbed.vocabulary import Dice

KINDS = ("value", "extreme", "difference", "comparison")
PAIR_KINDS: tuple[str, ...] = ()
SIZE = (112, 112)
FORMS = ("bar", "line")
STEPS = (1, 10)
FEWEST, MOST = 3, 6  # values
TOP = charts.STEPS - 1  # the largest value in steps
_LONGEST = {3: 3, 4: 3, 5: 2, 6: 2}  # letters of a label, by the number of labels

WORDS = {"extreme": ("largest", "smallest"), "comparison": ("larger", "smaller")}
_ASK: dict[str, tuple[str, ...]] = {
    "value": (
        "What is the value of {a}?",
        "Which value does {a} have?",
        "Read the value of {a} from the chart.",
        "What value does the chart show for {a}?",
        "{a} has which value?",
    ),
    "extreme": (
        "Which label has the {word} value?",
        "Name the label with the {word} value.",
        "The {word} value belongs to which label?",
        "Which label stands at the {word} value?",
        "What is the label of the {word} value?",
    ),
    "difference": (
        "What is the difference between {a} and {b}?",
        "By how much do {a} and {b} differ?",
        "How far apart are the values of {a} and {b}?",
        "What is the difference of the values of {a} and {b}?",
    ),
    "comparison": (
        "Which has the {word} value, {a} or {b}?",
        "{a} or {b}: which value is {word}?",
        "Of {a} and {b}, which has the {word} value?",
        "Compare {a} and {b}: which is {word}?",
    ),
}
_TWINS = (
    ("A {form} chart: {}.", "{} {}", ", "),
    ("{}", "The value of {} is {}.", " "),
    ("{form} chart\n{}", "{}: {}", "\n"),
    ("The {form} chart has {n} values: {}.", "{} has {}", ", "),
    ("The chart shows {}.", "{} = {}", "; "),
)


def _labels(n: int, roll: Dice) -> list[str]:
    """Return `n` different labels of one to three random capitals, as many as have room.

    None is the letter of an option of multiple choice.
    """
    made: dict[str, None] = {}
    while len(made) < n:
        length = 1 + roll.below(_LONGEST[n])
        label = "".join(roll.pick(glyphs.LETTERS) for _ in range(length))
        if label not in OPTIONS:
            made[label] = None
    return list(made)


def _first(kind: str, word: str, n: int, roll: Dice) -> list[int]:
    """Return the values, in steps, that the question is about: of the first labels, or of all."""
    levels = range(1, TOP + 1)
    if kind == "extreme":
        return sorted(roll.some(levels, n), reverse=word == "largest")
    if kind == "difference":  # evenly one to eight; two values drawn evenly would mostly be close
        apart = 1 + roll.below(TOP - 1)
        low = 1 + roll.below(TOP - apart)
        return roll.shuffled((low, low + apart))
    return roll.some(levels, 1 if kind == "value" else 2)


def plan(kind: str, split: str, roll: Dice) -> Plan:
    """Return the plan of one item: what is asked for is drawn first, evenly, the rest to fit."""
    n, step = FEWEST + roll.below(MOST - FEWEST + 1), roll.pick(STEPS)
    word = roll.pick(WORDS.get(kind, ("",)))
    values = _first(kind, word, n, roll)
    values += roll.some([k for k in range(1, TOP + 1) if k not in values], n - len(values))
    labels = _labels(n, roll)
    a, b = values[:2]
    answers = {
        "value": str(a * step),
        "extreme": labels[0],
        "difference": str(abs(a - b) * step),
        "comparison": labels[0] if (a > b) == (word == "larger") else labels[1],
    }
    order = roll.shuffled(range(n))
    chart = Chart(
        roll.pick(FORMS),
        step,
        tuple(labels[n] for n in order),
        tuple(values[n] * step for n in order),
    )
    return Plan(kind, (), answers[kind], word, labels=tuple(labels[:2]), chart=chart)


def arrange(plan: Plan, size: tuple[int, int], roll: Dice) -> Scene:
    """Return the plan's scene for a picture of `size` = (width, height) pixels."""
    assert plan.chart is not None
    scene = finish(4, (), [], size, roll)
    marks, words = charts.lay_out(plan.chart, size, scene.background, roll)
    return replace(scene, chart=plan.chart, marks=marks, words=words)


def ask(plan: Plan, scene: Scene, split: str, choice: bool, roll: Dice) -> Question:
    """Return the plan's question about `scene`, as multiple choice if `choice`."""
    assert plan.chart is not None
    a, b = plan.labels
    text = roll.pick(_ASK[plan.kind]).format(a=a, b=b, word=plan.about)
    question = Question(plan.kind, text, plan.answer)
    wrong = {
        "value": [str(k * plan.chart.step) for k in range(1, TOP + 1)],
        "extreme": list(plan.chart.labels),
        "difference": [str(k * plan.chart.step) for k in range(1, TOP)],
        "comparison": [a, b],
    }
    return as_choice(question, wrong[plan.kind], roll) if choice else question


def describe(scene: Scene, wording: int) -> str:
    """Return everything that can be asked about `scene`: each label and its value."""
    chart = scene.chart
    assert chart is not None
    frame, form, joint = _TWINS[wording % len(_TWINS)]
    listed = joint.join(form.format(*both) for both in zip(chart.labels, chart.values, strict=True))
    return frame.format(listed, form=chart.form, n=len(chart.labels))
