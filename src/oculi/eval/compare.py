"""Two evaluations of the same questions, paired: which model is better, by how much, on what.

Paired, because both were asked the same: most questions are easy or hard for both and say nothing, so
the interval is narrower than two intervals side by side suggest.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from oculi.errors import DataError, shown
from oculi.eval.score import Z, mean_interval, wilson

Row = Mapping[str, Any]
# Group, id and turn of a question, and how often they were there before it: rows of a data file may
# share an id, and so do the questions of a picture of MME.
Key = tuple[str, str, int, int]
ALL = "all"
NEEDED = {"id": str, "turn": int, "group": str, "question": str, "answer": str, "correct": bool}


@dataclass(frozen=True)
class Difference:
    """Of some questions: how many each answered right, and the second's score minus the first's.

    Attributes:
        n: questions. first, second: right answers of each.
        only_first, only_second: questions that one alone answered right.
        difference, low, high: of the shares, with its 95 % interval.
        ratio: what part of the first's score the second has, with its interval; None where the
            first has no right answer.
    """

    n: int
    first: int
    second: int
    only_first: int
    only_second: int
    difference: float
    low: float
    high: float
    ratio: tuple[float, float, float] | None = None

    def line(self, name: str) -> str:
        """For the terminal."""
        part = ""
        if self.ratio:
            part = ", {:.1%} of it ({:.1f} to {:.1f})".format(
                self.ratio[0], *(100 * bound for bound in self.ratio[1:])
            )
        verdict = "better" if self.low > 0 else "worse" if self.high < 0 else "not decided"
        return (
            f"{name:18} {self.first / self.n:7.1%} -> {self.second / self.n:6.1%}  "
            f"{100 * self.difference:+5.1f} ({100 * self.low:+.1f} to {100 * self.high:+.1f}){part}; "
            f"{self.n} questions, right in one alone {self.only_first} and {self.only_second}: {verdict}"
        )


@dataclass(frozen=True)
class Comparison:
    """Two evaluations.

    Attributes:
        name: of the evaluation. groups: of all questions, then by kind and by form.
        measures: what the task measures of an answer beside that, second minus first.
        left_out: questions that one of the two alone was asked.
    """

    name: str
    groups: dict[str, Difference]
    measures: dict[str, dict[str, float]]
    left_out: tuple[int, int]

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For the terminal."""
        lines = [self.name, *(f"  {found.line(group)}" for group, found in self.groups.items())]
        for name, found in self.measures.items():
            inside = f"{found['low']:+.3g} to {found['high']:+.3g}"
            lines.append(f"  {name:18} {found['mean']:+.3g} ({inside})")
        if any(self.left_out):
            first, second = self.left_out
            lines.append(
                f"  left out, as one alone was asked: {first} of the first, {second} of the second"
            )
        return lines


def paired(first: Sequence[bool], second: Sequence[bool]) -> Difference:
    """The difference of two shares of the same n questions and its 95 % interval.

    Newcombe 1998 (Statistics in Medicine 17, 2635-2650), method 10: Wilson's intervals of both, put
    together by their correlation. Unlike Wald's it is right for few questions and shares near 0 and 1.

    Raises:
        ValueError: no questions, or not as many of each.
    """
    pairs = list(zip(first, second, strict=True))
    n, both = len(pairs), pairs.count((True, True))
    only_first, only_second = pairs.count((True, False)), pairs.count((False, True))
    a, b = wilson(both + only_first, n), wilson(both + only_second, n)
    agree = both * pairs.count((False, False)) - only_first * only_second
    scale = math.sqrt(a.correct * (n - a.correct) * b.correct * (n - b.correct))
    agree_corrected = max(agree - n / 2, 0) if agree > 0 else agree
    phi = agree_corrected / scale if scale else 0.0

    def side(x: float, y: float) -> float:
        return math.sqrt(max(0.0, x * x - 2 * phi * x * y + y * y))

    difference = b.score - a.score
    low = difference - side(b.score - b.low, a.high - a.score)
    high = difference + side(b.high - b.score, a.score - a.low)
    ratio = _ratio(both, only_first, only_second)
    return Difference(
        n, a.correct, b.correct, only_first, only_second, difference, low, high, ratio
    )


def _ratio(both: int, only_first: int, only_second: int) -> tuple[float, float, float] | None:
    """The second's score by the first's, and its 95 % interval; None for a first without any.

    Bonett and Price 2006 (Statistics in Medicine 25, 3039-3047), hybrid of Wilson's intervals: of the
    questions that anyone had right, with a quantile that makes the two together as wide as the ratio.
    """
    n, first, second = both + only_first + only_second, both + only_first, both + only_second
    if not first:
        return None

    def spread(correct: int) -> float:
        return math.sqrt((1 - (correct + 1) / (n + 2)) / (correct + 1))

    joint = math.sqrt((only_first + only_second + 2) / ((first + 1) * (second + 1)))
    z = joint / (spread(first) + spread(second)) * Z
    a, b = wilson(first, n, z), wilson(second, n, z)
    return second / first, b.low / a.high, b.high / a.low


def compare(first: Path, second: Path, kinds: Sequence[str] = ()) -> list[Comparison]:
    """Compare evaluations by the questions that both were asked.

    Args:
        first, second: folders of an evaluation (or their ``answers.jsonl``), or two runs, of which
            every evaluation that both have is compared.
        kinds: patterns as of ``fnmatch``: only questions whose kind (``group``) matches one of them,
            and only evaluations that have such. Without any: all.

    Raises:
        DataError: a file is damaged or missing, what should be the same question has two texts or
            answers, none is shared, or none is of these kinds.
    """
    if (first / "evals").is_dir() and (second / "evals").is_dir():
        names = sorted(_evaluations(first) & _evaluations(second))
        if not names:
            raise DataError(
                f"{first} and {second} share no evaluation: the first has "
                f"{', '.join(sorted(_evaluations(first))) or 'none'}, the second "
                f"{', '.join(sorted(_evaluations(second))) or 'none'}"
            )
        pairs = [(name, first / "evals" / name, second / "evals" / name) for name in names]
    else:
        pairs = [(_name(second), first, second)]
    found: list[Comparison] = []
    seen: set[str] = set()
    for name, a, b in pairs:
        ours, theirs = _read(a), _read(b)
        seen |= {row["group"] for row in ours.values()}
        if kinds:
            ours, theirs = (_of_kinds(rows, kinds) for rows in (ours, theirs))
        if ours or not kinds:
            found.append(_compare(name, ours, theirs, a, b))
    if not found:
        raise DataError(
            f"no question of {first} is of the kinds {', '.join(map(shown, kinds))}: there are "
            f"{', '.join(map(shown, sorted(seen)))}"
        )
    return found


def _of_kinds(rows: Mapping[Key, Row], kinds: Sequence[str]) -> dict[Key, Row]:
    return {
        key: row
        for key, row in rows.items()
        if any(fnmatchcase(row["group"], kind) for kind in kinds)
    }


def _evaluations(run: Path) -> set[str]:
    return {path.parent.name for path in (run / "evals").glob("*/answers.jsonl")}


def _name(path: Path) -> str:
    return path.parent.name if path.is_file() else path.name


def _read(path: Path) -> dict[Key, Row]:
    """The rows of an evaluation by question."""
    file = path if path.is_file() else path / "answers.jsonl"
    if not file.is_file():
        hint = ""
        if found := sorted(_evaluations(path)):
            hint = f"; it is a run: name one of its evaluations, as {path / 'evals' / found[0]}"
        raise DataError(f"{path} has no answers.jsonl, which `oculi eval` writes{hint}")
    rows: dict[Key, Row] = {}
    times: Counter[tuple[str, str, int]] = Counter()
    for number, row in _rows(file):
        wrong = [name for name, kind in NEEDED.items() if type(row.get(name)) is not kind]
        if wrong:
            raise DataError(f"{file}:{number}: no usable {', '.join(wrong)}: not a row of answers")
        measures = row.get("measures", {})
        if not isinstance(measures, dict) or not all(map(_is_number, measures.values())):
            raise DataError(f"{file}:{number}: measures are not numbers by name")
        place = row["group"], row["id"], row["turn"]
        rows[*place, times[place]] = row
        times[place] += 1
    return rows


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        # Not splitlines: an answer may hold a separator of its own, which JSON leaves as it is.
        lines = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {error}") from None
    for number, line in enumerate(lines if lines != [""] else [], 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file}:{number}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise DataError(f"{file}:{number}: not a row of answers")
        yield number, row


def _compare(
    name: str,
    first: Mapping[Key, Row],
    second: Mapping[Key, Row],
    a: Path,
    b: Path,
) -> Comparison:
    shared = [key for key in first if key in second]
    if not shared:
        raise DataError(f"{a} and {b} share no question: they are of different tasks or samples")
    for key in shared:
        for field, verb in (("question", "asks"), ("answer", "has the answer")):
            ours, theirs = first[key][field], second[key][field]
            if ours != theirs:
                raise DataError(
                    f"turn {key[2]} of {shown(key[1])} {verb} {shown(ours)} in {a} and {shown(theirs)} "
                    f"in {b}: these are not the same questions"
                )
    groups: dict[str, list[Key]] = {ALL: shared}
    for part in (_group, _form):
        parts: dict[str, list[Key]] = {}
        for key in shared:
            parts.setdefault(part(first[key]), []).append(key)
        if len(parts) > 1:
            groups |= dict(sorted(parts.items()))
    found = {
        group: paired([first[k]["correct"] for k in keys], [second[k]["correct"] for k in keys])
        for group, keys in groups.items()
    }
    left = len(first) - len(shared), len(second) - len(shared)
    return Comparison(name, found, _measures(first, second, shared), left)


def _group(row: Row) -> str:
    return str(row["group"])


def _form(row: Row) -> str:
    """Whether the question names lettered options, of which the answer is one."""
    letter = re.escape(row["answer"].strip())
    lettered = len(letter) == 1 and re.search(rf"^\s*\(?{letter}[).:]\s", row["question"], re.M)
    return "(multiple choice)" if lettered else "(open)"


def _measures(
    first: Mapping[Key, Row],
    second: Mapping[Key, Row],
    shared: Sequence[Key],
) -> dict[str, dict[str, float]]:
    """Mean differences of what both measured of every shared answer."""
    kept: dict[str, list[float]] = {}
    for key in shared:
        ours, theirs = first[key].get("measures", {}), second[key].get("measures", {})
        for name in ours.keys() & theirs.keys():
            kept.setdefault(name, []).append(float(theirs[name]) - float(ours[name]))
    return {
        name: asdict(mean_interval(values))
        for name, values in sorted(kept.items())
        if len(values) == len(shared)
    }
