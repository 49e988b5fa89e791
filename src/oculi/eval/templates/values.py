"""Values out of JSON that may be anything, turned into what a report shows.

What is not of the kind that is asked for is None or left out, never an error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from oculi.eval.score import Score
from oculi.eval.templates.contents import Answer, Measure, Restored, Shown, StageLog

Json = dict[str, Any]

# Every other number in a line of metrics.jsonl is an objective's loss.
KNOWN = frozenset(
    (
        "stage", "step", "steps", "loss", "objectives", "lr", "grad_norm", "samples",
        "samples_per_second", "tokens_per_second", "useful_tokens", "elapsed", "device",
        "save_wait", "bad_samples", "skipped_steps",
    )
)  # fmt: skip
MAX_KEYS = 64  # numbers in a line, stages or tasks of a recipe, kinds of question
MAX_SHOWN = 12  # answers of one evaluation with their pictures
MAX_FAILED = 12  # further wrong answers


def objects(lines: Sequence[str]) -> list[Json]:
    """The lines that hold a JSON object; a line that was cut while it was written does not."""
    found = []
    for line in lines:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def string(value: object) -> str:
    """The text, "" for anything else."""
    return value if isinstance(value, str) else ""


def entries(value: object, name: str) -> list[Json]:
    """The members of a list that are objects with the text ``name``."""
    found = [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
    return [one for one in found if isinstance(one.get(name), str)][:MAX_KEYS]


def number(value: object) -> float | None:
    """A number, which may be NaN or infinite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def finite(value: object) -> float | None:
    """A number that is one."""
    found = number(value)
    return found if found is not None and math.isfinite(found) else None


def count(value: object) -> int | None:
    """A whole number that a float holds exactly, 0 or more."""
    found = finite(value)
    return int(found) if found is not None and 0 <= found < 2**53 else None


def share(value: object) -> float | None:
    """A number from 0 to 1."""
    found = finite(value)
    return found if found is not None and 0 <= found <= 1 else None


def score(value: Json) -> Score | None:
    """A score, if it has at least its share and its interval."""
    middle, low, high = (share(value.get(key)) for key in ("score", "low", "high"))
    if middle is None or low is None or high is None:
        return None
    return Score(middle, low, high, count(value.get("correct")) or 0, count(value.get("n")) or 0)


def groups(value: object) -> dict[str, Json]:
    """The kinds of question of a result, with what it says about each."""
    if not isinstance(value, dict):
        return {}
    return {k: v for k, v in list(value.items())[:MAX_KEYS] if isinstance(v, dict)}


def stage_logs(rows: Sequence[Json]) -> list[StageLog]:
    """Metrics per stage; of a step that was logged again after a resume, the last line counts.

    Args:
        rows: lines of metrics.jsonl in the order of writing, each with a stage and a step.
    """
    by_stage: dict[str, dict[int, Json]] = {}
    for row in rows:
        by_stage.setdefault(row["stage"], {})[int(row["step"])] = row
    return [_stage_log(name, by_step) for name, by_step in by_stage.items()]


def _stage_log(name: str, by_step: dict[int, Json]) -> StageLog:
    steps = sorted(by_step)
    rows = [by_step[step] for step in steps]
    numeric = dict.fromkeys(k for row in rows for k, v in row.items() if number(v) is not None)
    keys = list(numeric)[:MAX_KEYS]
    values = {}
    for key in keys:
        found = (number(row.get(key)) for row in rows)
        values[key] = np.array([math.nan if v is None else v for v in found])
    return StageLog(
        name=name,
        planned=next((n for row in reversed(rows) if (n := count(row.get("steps")))), None),
        steps=np.array(steps, dtype=np.float64),
        values=values,
        objectives=tuple(key for key in keys if key not in KNOWN),
    )


def restored(found: Json, picture: str | None = None, note: str = "") -> Restored | None:
    """What ``oculi reconstruct`` wrote into scores.json; None if there is no number in it."""
    measures = []
    for checkpoint, kinds in groups(found.get("checkpoints")).items():
        for name, conditions in groups(kinds).items():
            for condition, bounds in groups(conditions).items():
                measures.append(_measure(f"{checkpoint}, {condition}", name, bounds))
    for gap in entries(found.get("differences"), "measure"):
        of, minus = (_condition(gap.get(side)) for side in ("of", "minus"))
        measures.append(_measure(f"{of} - {minus}", gap["measure"], gap))
    known = [measure for measure in measures if measure is not None][:MAX_KEYS]
    if not known:
        return None
    pictures = count(found.get("pictures")) or 0
    return Restored(string(found.get("command")), pictures, known, picture, note)


def shown(row: Json, picture: str | None = None, note: str = "") -> Shown | None:
    """One line of shown.jsonl; None if there is no number in it."""
    scores = row.get("scores")
    found = {string(k): finite(v) for k, v in scores.items()} if isinstance(scores, dict) else {}
    known = {k: v for k, v in list(found.items())[:MAX_KEYS] if k and v is not None}
    step = count(row.get("step"))
    if not known or step is None:
        return None
    rows = row.get("rows")
    return Shown(
        stage=string(row.get("stage")),
        step=step,
        objective=string(row.get("objective")),
        images=count(row.get("images")) or 0,
        scores=known,
        rows=[string(name) for name in rows[:MAX_KEYS]] if isinstance(rows, list) else [],
        picture=picture,
        note=note,
    )


def _condition(side: object) -> str:
    side = side if isinstance(side, dict) else {}
    return f"{string(side.get('checkpoint'))}, {string(side.get('tokens'))}"


def _measure(label: str, name: str, bounds: Json) -> Measure | None:
    mean, low, high = (finite(bounds.get(key)) for key in ("mean", "low", "high"))
    if mean is None or low is None or high is None:
        return None
    return Measure(label, name, mean, low, high)


def choice(rows: Sequence[Json]) -> tuple[list[Json], list[Json]]:
    """Answers to show, half of them wrong if there are as many, and further wrong ones.

    Those with a picture go before those without; the order is the file's.
    """
    places = sorted(range(len(rows)), key=lambda i: not rows[i].get("image"))
    wrong = [i for i in places if rows[i].get("correct") is not True]
    right = [i for i in places if rows[i].get("correct") is True]
    half = max(MAX_SHOWN // 2, MAX_SHOWN - len(right))
    chosen = wrong[:half]
    chosen += right[: MAX_SHOWN - len(chosen)]
    further = sorted(wrong[half:])[:MAX_FAILED]
    return [rows[i] for i in sorted(chosen)], [rows[i] for i in further]


def answer(row: Json, picture: str | None = None, note: str = "") -> Answer:
    """One line of answers.jsonl."""
    return Answer(
        group=string(row.get("group")),
        question=string(row.get("question")),
        answer=string(row.get("answer")),
        prediction=string(row.get("prediction")),
        correct=row.get("correct") is True,
        picture=picture,
        note=note,
    )
