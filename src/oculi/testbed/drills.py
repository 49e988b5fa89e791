"""Short texts to look things up in: records and lists of random words, asked about in many ways.

They teach what reading about Playroom needs (finding, counting, comparing, choosing a letter) on
words that have nothing to do with it, and that different requests can ask for the same thing:
"What is this?", "Name the icon." and "Describe the picture." all ask for a record's name.

Whether a word is there at all is hard to learn from yes and no: as long as nothing is looked up,
looking at the right place is not rewarded. What stands beside a word, or "none", rewards it from
the first, and yes and no follow within a few hundred steps.
"""

from __future__ import annotations

from collections.abc import Sequence

from oculi.testbed.questions import LETTERS, MARKS, Question, as_choice
from oculi.testbed.vocabulary import COLOURS, SHAPES, Dice
from oculi.testbed.words import WORDS

_NOUNS = (
    "image", "picture", "photo", "icon", "emoji", "drawing", "symbol", "sign", "object", "thing",
    "item", "product", "animal", "person", "place", "scene", "figure", "entry", "record", "word",
)  # fmt: skip
_REQUESTS: dict[str, tuple[str, ...]] = {
    "name": (
        "What is this?", "What is it?", "What's this?", "What is this {noun}?", "Name it.",
        "Name this.", "Name the {noun}.", "Name this {noun}.", "Describe it.", "Describe this.",
        "Describe the {noun}.", "Describe this {noun}.", "What is the {noun} called?",
        "What is it called?", "What is the name of the {noun}?", "Give its name.",
        "What do you see?", "What can you see?", "What is shown?", "What does the {noun} show?",
        "What is in the {noun}?", "Identify the {noun}.", "Tell me what this is.",
        "Write a caption.", "Write a caption for the {noun}.", "Say what the {noun} is.",
    ),
    "group": (
        "Which group does it belong to?", "Which group is it in?", "What is its group?",
        "Name its group.", "To which group does the {noun} belong?", "What kind of {noun} is this?",
        "Which kind of {noun} is it?", "What type of {noun} is it?", "Which category is it?",
        "Which category does the {noun} belong to?", "Classify it.", "Classify the {noun}.",
        "Which class does the {noun} have?", "Give the group.",
    ),
    "keywords": (
        "List keywords.", "List the keywords.", "Give keywords.", "Give the keywords.",
        "Name its keywords.", "Which keywords does the {noun} have?", "What are the keywords?",
        "Which keywords fit?", "Write keywords for the {noun}.", "List tags.", "Tag the {noun}.",
        "Which words go with it?", "Keywords?",
    ),
}  # fmt: skip
_RECORDS = (
    "name: {name}\ngroup: {group}\nkeywords: {keywords}",
    "group: {group}\nkeywords: {keywords}\nname: {name}",
    "This is {name}. It belongs to {group}. Its keywords are {keywords}.",
    "In the group {group} there is {name}. Keywords: {keywords}.",
    "Keywords {keywords}; name {name}; group {group}.",
)
_ASK: dict[str, tuple[str, ...]] = {
    "value": ("What is the value of {}?", "Which number has {}?", "{}:", "What number is {}?"),
    "key": ("Which has the value {}?", "What has {}?", "Who has the number {}?"),
    "largest": ("Which has the largest value?", "Which value is the largest: of what?"),
    "smallest": ("Which has the smallest value?", "Which value is the smallest: of what?"),
    "larger": ("Which is larger, {} or {}?", "{} or {}: which is larger?"),
    "smaller": ("Which is smaller, {} or {}?", "{} or {}: which is smaller?"),
    "difference": ("What is the difference of {} and {}?", "By how much do {} and {} differ?"),
    "total": ("How many are there?", "Count them all.", "How many does the list have?"),
    "count": ("How many {} are there?", "Count the {}.", "How many {} can you see?"),
    "member": ("Is there {}?", "Is {} there?", "Yes or no: one of them is {}.", "Can you see {}?"),
    "first": ("Which is first?", "What comes first?", "Name the first."),
    "last": ("Which is last?", "What comes last?", "Name the last."),
    "after": ("What comes after {}?", "Which follows {}?", "Name the one after {}."),
    "before": ("What comes before {}?", "Which one is before {}?", "Name the one before {}."),
}
_LETTERS = {
    "letter": ("Which letter has {}?", "{} is at which letter?", "Give the letter of {}."),
    "option": ("What is {}?", "What does {} say?", "Write out {}."),
}
NONE = "none"  # what stands beside a word that is not there
# Words of one token each: what is looked up can be compared at one place.
_SHORT = (
    *COLOURS, *SHAPES, "letter", "car", "man", "ear", "answer", "word", "number", "colour", "shape",
    "size", "place", "order", "group", "part", "value", "plan", "new", "big", "follow",
)  # fmt: skip
_UPPER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_FIRST = ("{text}\n{question}", "{text}\n\nQuestion: {question}", "{question}\n\n{text}")


def _word(roll: Dice) -> str:
    """Return a common word, or one in six times three to six random capitals."""
    if roll.below(6):
        return roll.pick(WORDS)
    return "".join(roll.pick(_UPPER) for _ in range(3 + roll.below(4)))


def _different(n: int, roll: Dice) -> list[str]:
    made: dict[str, None] = {}
    while len(made) < n:
        made[_word(roll)] = None
    return list(made)


def record(n: int, roll: Dice) -> tuple[str, list[Question]]:
    """Return a record (name, group, keywords) as text, and `n` questions; a field may come twice."""
    title = [_word(roll) for _ in range(1 + roll.below(4))]
    group = " & ".join(_word(roll).capitalize() for _ in range(1 + roll.below(2)))
    words = ", ".join(_word(roll) for _ in range(3 + roll.below(4)))
    name = " ".join(title) if roll.below(6) else f"{title[0]}: {' '.join(title)}"
    fields = {"name": name, "group": group, "keywords": words}
    kinds = roll.shuffled(tuple(fields)) + [roll.pick(("name", "name", "group")) for _ in range(n)]
    asked = [
        Question(kind, roll.pick(_REQUESTS[kind]).format(noun=roll.pick(_NOUNS)), fields[kind])
        for kind in kinds[:n]
    ]
    return roll.pick(_RECORDS).format(**fields), asked


def options(n: int, roll: Dice) -> tuple[str, list[Question]]:
    """Return two to four lettered words as text, and `n` questions from word to letter and back."""
    words = _different(2 + roll.below(3), roll)
    mark = roll.pick(MARKS)
    asked = []
    for _ in range(n):
        spot = roll.below(len(words))
        kind = roll.pick(("letter", "letter", "option"))
        about, answer = words[spot], LETTERS[spot]
        if kind == "option":
            about, answer = answer, about
        asked.append(Question(kind, roll.pick(_LETTERS[kind]).format(about), answer))
    letters = LETTERS[: len(words)]
    lines = [mark.format(*pair) for pair in zip(letters, words, strict=True)]
    return "\n".join(lines), asked


def _table(kind: str, keys: Sequence[str], values: Sequence[int], roll: Dice) -> tuple[str, ...]:
    """Return what a question about words with numbers asks for (0 to 2 words), then its answer."""
    one, other = roll.some(range(len(keys)), 2)
    a, b = values[one], values[other]
    found: dict[str, tuple[str, ...]] = {
        "value": (keys[one], str(a)),
        "key": (str(a), keys[one]),
        "largest": (keys[values.index(max(values))],),
        "smallest": (keys[values.index(min(values))],),
        "larger": (keys[one], keys[other], keys[one] if a > b else keys[other]),
        "smaller": (keys[one], keys[other], keys[one] if a < b else keys[other]),
        "difference": (keys[one], keys[other], str(abs(a - b))),
        "total": (str(len(keys)),),
    }
    return found[kind]


def table(n: int, roll: Dice) -> tuple[str, list[Question]]:
    """Return two to five words with different numbers as text, and up to `n` questions."""
    keys = _different(2 + roll.below(4), roll)
    values = roll.some(range(20 if roll.coin() else 100), len(keys))
    mark = roll.pick(("{} {}", "{}: {}", "{} = {}", "{} has {}"))
    told = [mark.format(key, value) for key, value in zip(keys, values, strict=True)]
    kinds = ("value", "key", "largest", "smallest", "larger", "smaller", "difference", "total")
    asked = []
    for kind in roll.shuffled(kinds)[:n]:
        *about, answer = _table(kind, keys, values, roll)
        question = Question(kind, roll.pick(_ASK[kind]).format(*about), answer)
        numbers = kind in ("value", "difference", "total")
        wrong = [str(roll.below(20)) for _ in range(6)] if numbers else keys
        asked.append(as_choice(question, wrong, roll) if roll.below(4) == 0 else question)
    return roll.pick((", ", "\n", "; ")).join(told), asked


def _row(kind: str, rows: Sequence[tuple[str, str]], roll: Dice) -> tuple[str, ...] | None:
    """Return what a question about pairs of words asks for, then its answer; None if none fits."""
    names = [" ".join(row) for row in rows]
    spot = roll.below(len(rows) - 1)
    mixed = {f"{one[0]} {other[1]}": None for one in rows for other in rows}
    absent = [name for name in mixed if name not in names]
    if kind == "count":
        column = roll.below(2)
        word = roll.pick(rows)[column]
        return word, str(sum(row[column] == word for row in rows))
    if kind == "member":
        if absent and roll.coin():
            return roll.pick(absent), "no"
        return roll.pick(names), "yes"
    if kind in ("first", "last"):
        return (names[0 if kind == "first" else -1],)
    if absent and roll.below(4) == 0:
        return roll.pick(absent), NONE
    about, answer = (spot, spot + 1) if kind == "after" else (spot + 1, spot)
    return (names[about], names[answer]) if names.count(names[about]) == 1 else None


def pairs(n: int, roll: Dice) -> tuple[str, list[Question]]:
    """Return two to five pairs of words that share words as text, and up to `n` questions."""
    words = _different(6, roll)  # a word in both places would be counted in one of them
    firsts, seconds = words[:3], words[3:]
    if roll.coin():
        firsts, seconds = roll.some(_SHORT[: len(COLOURS)], 3), roll.some(_SHORT[len(COLOURS) :], 3)
    rows = [(roll.pick(firsts), roll.pick(seconds)) for _ in range(2 + roll.below(4))]
    asked: list[Question] = []
    for kind in roll.shuffled(("count", "member", "member", "first", "last", "after", "before")):
        found = _row(kind, rows, roll)
        if found is None or len(asked) == n:
            continue
        *about, answer = found
        question = Question(kind, roll.pick(_ASK[kind]).format(*about), answer)
        wrong = [" ".join(row) for row in rows]
        if kind == "count":
            wrong = list("01234")
        elif kind == "member":
            wrong = ["yes", "no"]
        asked.append(as_choice(question, wrong, roll) if roll.below(4) == 0 else question)
    return roll.pick((", ", "\n", "; ")).join(" ".join(row) for row in rows), asked


def words(n: int, roll: Dice) -> tuple[str, list[Question]]:
    """Return three to six single words as text, and up to `n` questions: the plainest look-ups."""
    listed = _different(3 + roll.below(4), roll)
    spot = roll.below(len(listed) - 1)
    asked: list[Question] = []
    kinds = ("member", "member", "total", "first", "last", "after", "before")
    for kind in roll.shuffled(kinds)[:n]:
        about, answer = "", listed[0 if kind == "first" else -1]
        if kind == "member":
            there = roll.coin()
            about = roll.pick(listed) if there else _word(roll)
            answer = "yes" if there or about in listed else "no"
        elif kind == "total":
            answer = str(len(listed))
        elif kind in ("after", "before"):
            about, answer = listed[spot], listed[spot + 1]
            if kind == "before":
                about, answer = answer, about
        question = Question(kind, roll.pick(_ASK[kind]).format(about), answer)
        wrong = {"member": ["yes", "no"], "total": list("23456")}.get(kind, listed)
        asked.append(as_choice(question, wrong, roll) if roll.below(3) == 0 else question)
    return roll.pick((", ", "\n", "; ", " ")).join(listed), asked


def _beside(listed: Sequence[str], about: str, step: int) -> str:
    """Return what stands one place after (1) or before (-1) a word, if both are there."""
    if about not in listed:
        return NONE
    place = listed.index(about) + step
    return listed[place] if 0 <= place < len(listed) else NONE


def lookup(n: int, roll: Dice) -> tuple[str, list[Question]]:
    """Return a list of three to six short words, lettered or not, as text, and `n` questions.

    One in three asks about a word that may not be there, or for what stands beyond an end.
    """
    listed = roll.some(_SHORT, 3 + roll.below(4))
    letters = "ABCDEF"[: len(listed)] if roll.coin() else ""
    kinds = ("member", "member", "after", "before", *(("letter", "option") if letters else ()))
    asked = []
    for _ in range(n):
        kind, about = roll.pick(kinds), roll.pick(listed if roll.below(3) else _SHORT)
        if kind == "member":
            about = roll.pick(listed if roll.coin() else _SHORT)
            answer = "yes" if about in listed else "no"
        elif kind in ("after", "before"):
            answer = _beside(listed, about, 1 if kind == "after" else -1)
        elif kind == "letter":
            answer = letters[listed.index(about)] if about in listed else NONE
        else:
            about, answer = roll.pick(list(zip(letters, listed, strict=True)))
        asks = _LETTERS[kind] if kind in _LETTERS else _ASK[kind]
        question = Question(kind, roll.pick(asks).format(about), answer)
        choice = kind in ("after", "before") and not letters and roll.below(4) == 0
        asked.append(as_choice(question, [*listed, NONE], roll) if choice else question)
    mark = roll.pick(MARKS)
    lines = (
        [mark.format(*pair) for pair in zip(letters, listed, strict=True)] if letters else listed
    )
    return f"List: {roll.pick((', ', '; ', ' ', chr(10))).join(lines)}", asked


_TOLD = ("It is {}.", "The answer is {}.", "{}", "This is {}.", "Right: {}", "The word is {}.")
_WHICH = (
    "Which is it?",
    "Which is right?",
    "What is it?",
    "Choose.",
    "Which one?",
    "What is right?",
)


def chosen(n: int, roll: Dice) -> tuple[str, list[Question]]:
    """Return one word as text, and `n` multiple choices of which it is the right one.

    All that they take is to find among the options what is known already: the second half of every
    multiple choice, alone.
    """
    among = roll.pick((_SHORT, tuple(COLOURS), SHAPES, WORDS))
    word = roll.pick(among)
    asked = [
        as_choice(
            Question("chosen", roll.pick(_WHICH), word), [roll.pick(among) for _ in range(6)], roll
        )
        for _ in range(n)
    ]
    return roll.pick(_TOLD).format(word), asked


def told(text: str, questions: Sequence[Question], roll: Dice) -> list[tuple[str, str, str]]:
    """Return (kind, prompt, answer) of each question; the first prompt also tells the text."""
    prompts = [question.text for question in questions]
    prompts[0] = roll.pick(_FIRST).format(text=text, question=prompts[0])
    return [(q.kind, prompt, q.answer) for q, prompt in zip(questions, prompts, strict=True)]
