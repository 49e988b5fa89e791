"""The text the tiny LLM is pre-trained on: scenes to read, skills that need no scene, and guesses.

Reading comprehension gives it Playroom's language, with all 48 colour-shape pairs alike, so that
a picture later needs only to take the place of the description. The skills (arithmetic, copying,
spelling, sorting, reversing) have nothing to do with pictures: their loss shows forgetting. A few
questions come without any scene and get an answer of the right type, so that a blind model, too,
answers in the right format. No text here speaks of a picture that is drawn.

`turn` is the plain mixture; `dialogue` is what training reads, with several questions on a scene.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from oculi.errors import DataError, nearest
from oculi.testbed import drills, playroom
from oculi.testbed.interview import interview
from oculi.testbed.questions import Question
from oculi.testbed.vocabulary import Dice
from oculi.testbed.words import WORDS

SKILLS = ("add", "subtract", "copy", "spell", "sort numbers", "sort words", "reverse")
SPLITS = ("train", "test")
LEVELS = playroom.LEVELS  # that are read about
_SKILL_LEVEL = 0  # the place of the level in the dice's seed; Playroom's levels count from 1
_SCENES = {"train": "text", "test": "text-test"}
# Of 64 single exchanges so many read each level, or try a skill; the rest are guesses.
_READING = {1: 12, 2: 14, 3: 6, 4: 6, 5: 4}
_SKILL = 18
# Of 32 dialogues so many read each level through, are drills, or try skills; the rest is mixed.
_THROUGH = {1: 4, 2: 9, 3: 2, 4: 3, 5: 2}
_DRILL, _TASKS = 6, 4
_HARD = (*("count",) * 3, *("relation",) * 3, "comparison")

_FRAMES = (
    "{scene}\n{question}",
    "Scene: {scene}\n{question}",
    "{scene}\n\nQuestion: {question}",
    "{question}\n\n{scene}",
)
_ASK: dict[str, tuple[str, ...]] = {
    "add": ("What is {} + {}?", "{} + {} =", "Add {} and {}.", "{} plus {}"),
    "subtract": ("What is {} - {}?", "{} - {} =", "{} minus {}", "Subtract: {} - {}"),
    "copy": ("Copy: {}", "Repeat these words: {}", "Say again: {}", "Write the same: {}"),
    "spell": ("Spell {}.", "Spell the word {}", "How do you spell {}?", "Letters of {}:"),
    "sort numbers": (
        "Sort: {}", "Sort these numbers: {}", "Put in order, smallest first: {}", "In order: {}"
    ),
    "sort words": (
        "Sort by alphabet: {}", "Sort these words: {}", "Put in alphabetical order: {}",
        "By alphabet: {}",
    ),
    "reverse": ("Reverse: {}", "Reverse this list: {}", "Backwards: {}", "Last to first: {}"),
}  # fmt: skip


_DRILLS = (
    drills.record, drills.pairs, drills.table, drills.options, drills.words, drills.lookup
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Turn:
    """One exchange: its kind, what the user says, and the one right reply."""

    kind: str
    prompt: str
    answer: str


def _roll(split: str, index: int, stream: int) -> Dice:
    if split not in SPLITS:
        known = ", ".join(SPLITS)
        raise DataError(
            f'language: no split "{split}"{nearest(split, SPLITS)}; the splits are {known}'
        )
    return Dice(_SKILL_LEVEL, SPLITS.index(split), index, stream)


def _skill(kind: str, roll: Dice) -> tuple[tuple[str, ...], str]:
    """Return what a skill's question is about, and the answer."""
    if kind == "add":
        a, b = roll.below(50), roll.below(50)
        return (str(a), str(b)), str(a + b)
    if kind == "subtract":
        a, b = sorted((roll.below(60), roll.below(60)), reverse=True)
        return (str(a), str(b)), str(a - b)
    if kind == "spell":
        word = roll.pick(WORDS)
        return (word,), " ".join(word)
    if kind == "sort numbers":
        numbers = roll.some(range(100), 3 + roll.below(3))
        return (" ".join(map(str, numbers)),), " ".join(map(str, sorted(numbers)))
    words = [roll.pick(WORDS) for _ in range((1 if kind == "copy" else 3) + roll.below(3))]
    if kind == "sort words":
        return (" ".join(words),), " ".join(sorted(words))
    return (" ".join(words),), " ".join(words[::-1] if kind == "reverse" else words)


def skills(split: str, index: int) -> tuple[str, str, str]:
    """Return (kind, prompt, answer) of one text-only task; the kinds take turns.

    `split` is "train" or "test"; raises DataError for another.
    """
    roll, kind = _roll(split, index, 0), SKILLS[index % len(SKILLS)]
    given, answer = _skill(kind, roll)
    return kind, roll.pick(_ASK[kind]).format(*given), answer


def reading(level: int, split: str, index: int) -> Turn:
    """Return one question about a scene that is described in the prompt."""
    roll = _roll(split, index, level)
    scene, question = playroom.text_item(level, _SCENES[split], index)
    described = playroom.describe_scene(scene, roll.below(30))
    prompt = roll.pick(_FRAMES).format(scene=described, question=question.text)
    return Turn(question.kind, prompt, question.answer)


def guess(level: int, split: str, index: int) -> Turn:
    """Return a question without its scene; the answer is right in type and else a guess."""
    _, question = playroom.text_item(level, _SCENES[split], index)
    return Turn("guess", question.text, question.answer)


def turn(split: str, index: int) -> Turn:
    """Return exchange `index` of the plain mixture (about 2/3 reading, 28 % skills)."""
    ticket = _roll(split, index, 4).below(64)
    for level, share in _READING.items():
        if ticket < share:
            return reading(level, split, index)
        ticket -= share
    if ticket < _SKILL:
        return Turn(*skills(split, index))
    return guess(1 + index % len(LEVELS), split, index)


def _read_through(
    level: int, split: str, index: int, n: int, roll: Dice, choices: int = 1,
    kinds: Sequence[str] = (),
) -> list[Turn]:  # fmt: skip
    """Return up to `n` exchanges on one scene, told in the first; of three, `choices` multiple choice.

    With `kinds` there may be none.
    """
    scene, _ = playroom.text_item(level, _SCENES[split], index)
    questions = interview(scene, n, roll, choices, kinds)
    if not questions:
        return []
    described = playroom.describe_scene(scene, roll.below(30))
    prompts = [question.text for question in questions]
    prompts[0] = roll.pick(_FRAMES).format(scene=described, question=prompts[0])
    return [Turn(q.kind, text, q.answer) for q, text in zip(questions, prompts, strict=True)]


def drill(split: str, index: int, n: int) -> list[Turn]:
    """Return up to `n` exchanges on one record, table or list of random words."""
    roll = _roll(split, index, 7)
    text, questions = _DRILLS[index % len(_DRILLS)](n, roll)
    return [Turn(*said) for said in drills.told(text, questions, roll)]


def _long_copy(roll: Dice) -> Turn:
    words = " ".join(roll.pick(WORDS) for _ in range(6 + roll.below(14)))
    return Turn("copy", roll.pick(_ASK["copy"]).format(words), words)


def copying(split: str, index: int) -> list[Turn]:
    """Return a list of words to say again: what the first steps of training are made of.

    Looking back at words is what everything else rests on, and it is learnt fast only alone.
    """
    return [_long_copy(_roll(split, index, 8))]


def _looked_up(kind: Callable[[int, Dice], tuple[str, list[Question]]], roll: Dice) -> list[Turn]:
    text, questions = kind(8, roll)
    return [Turn(*said) for said in drills.told(text, questions, roll)]


def lookup(split: str, index: int) -> list[Turn]:
    """Return a dialogue on a list of short words: what is there, and what stands beside it."""
    return _looked_up(drills.lookup, _roll(split, index, 9))


def lookups(split: str, index: int) -> list[Turn]:
    """Return a dialogue on a list of words, of pairs of words, or of lettered words."""
    made = (drills.lookup, drills.lookup, drills.words, drills.pairs, drills.options)[index % 5]
    return _looked_up(made, _roll(split, index, 10))


def chosen(split: str, index: int) -> list[Turn]:
    """Return a dialogue of multiple choices of which the right one is told."""
    return _looked_up(drills.chosen, _roll(split, index, 12))


def choosing(split: str, index: int) -> list[Turn]:
    """Return what is hard about objects, every other time, so that nothing else is forgotten.

    Multiple choice alone on one object, then on more, and what compares or counts.
    """
    if index % 2:
        return dialogue(split, index)
    roll, kind = _roll(split, index, 16), index // 2 % 4
    if kind < 2:
        return _read_through(1 + kind, split, index, 6, roll, choices=3)
    return _read_through(2, split, index, 7, roll, kinds=_HARD) or _looked_up(drills.chosen, roll)


def primer(split: str, index: int) -> list[Turn]:
    """Return a dialogue for what comes after copying: one object, a list or a record."""
    roll = _roll(split, index, 5)
    ticket = roll.below(16)
    if ticket < 9:
        return _read_through(1, split, index, 5, roll)
    return drill(split, index, 5) if ticket < 13 else [_long_copy(roll)]


def dialogue(split: str, index: int) -> list[Turn]:
    """Return one dialogue of the pre-training mixture: most about Playroom's scenes."""
    roll = _roll(split, index, 6)
    ticket = roll.below(32)
    for level, share in _THROUGH.items():
        if ticket < share:
            return _read_through(level, split, index, 5 if level == 1 else 6, roll)
        ticket -= share
    if ticket < _DRILL:
        return drill(split, index, 5)
    if ticket < _DRILL + _TASKS:
        return [Turn(*skills(split, 4 * index + step)) for step in range(4)]
    return [turn(split, index) if roll.coin() else _long_copy(roll)]
