"""Tasks: questions with known answers, from a data file, from Playroom or from MME."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from oculi.data.kinds import is_data
from oculi.data.sample import Message, Sample
from oculi.data.source import PlayroomRows, open_source
from oculi.errors import DataError, nearest
from oculi.eval import mme
from oculi.eval.asked import Question, Task
from oculi.eval.cognition import KINDS, open_cognition
from oculi.recipe import FileSource, PlayroomSource

PLAYROOM_QUESTIONS = 2000


def open_task(name: str, image_root: str | None = None) -> Task:
    """A task by name or file.

    ``playroom:LEVEL`` are held-out scenes, ``playroom:LEVEL:pairs`` scenes with colour-shape pairs
    that no training picture holds, where the level has such; ``@WIDTHxHEIGHT`` behind either has the
    same scenes drawn at that size, in pixels. ``mme:PATH`` is MME (``eval/mme.py``); ``pixels:TASK``
    and ``codes:TASK`` ask about the colours and codes of a task's pictures. Anything else is data: a
    file, a pattern, a folder of files or of prepared data.

    Raises:
        DataError: there is no such task or file, or a row of it is bad.
        CheckpointError: the codebook of ``codes`` is none.
    """
    path = Path(name)
    there = is_data(path)
    if not there and name.partition(":")[0] in KINDS:
        return open_cognition(name, lambda inner: open_task(inner, image_root))
    if name.startswith("playroom") and not there:
        return _playroom(name)
    if name.startswith(mme.PREFIX) and not there:
        return _mme(name, image_root)
    if not there:
        known = [*_playroom_tasks(), f"{mme.PREFIX}PATH"]
        raise DataError(
            f'"{name}" is neither a task nor a file{nearest(name, known)}; '
            f"tasks are {', '.join(known)}"
        )
    source = open_source(FileSource(path=str(path), image_root=image_root))

    def load(limit: int | None) -> list[Question]:
        found: list[Question] = []
        for i in range(len(source)):
            found += questions(source[i])
            if limit is not None and len(found) >= limit:
                return found[:limit]
        return found

    # A pattern's answers lie in a folder of its own, beside those of other patterns.
    title = path.stem if path.exists() else re.sub(r"\W+", "_", str(path.with_suffix("")))
    return Task(title, load)


def _mme(name: str, image_root: str | None) -> Task:
    root = Path(image_root) if image_root else None
    rows = mme.open_mme(Path(name.removeprefix(mme.PREFIX)), root)

    def load(limit: int | None) -> list[Question]:
        return [
            question for row in rows[:limit] for question in questions(row.sample, row.category)
        ]

    return Task("mme", load, mme.SCORING)


def _playroom_tasks() -> list[str]:
    from oculi.testbed import playroom

    tails = {"test": "", "pairs": ":pairs"}
    return [
        f"playroom:{level}{tail}"
        for split, tail in tails.items()
        for level in playroom.LEVELS
        if split in playroom.splits(level)
    ]


def _playroom(name: str) -> Task:
    from oculi.testbed import playroom

    scenes, at, pixels = name.partition("@")
    parts = scenes.split(":")
    known = _playroom_tasks()
    if scenes not in known:
        raise DataError(f'no task "{name}"{nearest(scenes, known)}; there are {", ".join(known)}')
    split: Literal["pairs", "test"] = "pairs" if parts[-1] == "pairs" else "test"
    level, size = int(parts[1]), _size(pixels, name) if at else None
    playroom.scene(level, split, 0, size)  # raises DataError for a size too small to be drawn

    def load(limit: int | None) -> list[Question]:
        count = PLAYROOM_QUESTIONS if limit is None else limit
        rows = PlayroomRows(
            PlayroomSource(level=level, samples=max(1, count), split=split, size=size)
        )
        return [questions(rows[i], rows.item(i).question.kind)[0] for i in range(count)]

    return Task(name, load)


def _size(text: str, name: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if found is None:
        raise DataError(
            f'the task "{name}" has no size after its "@": write width x height in pixels, as @168x84'
        )
    return int(found[1]), int(found[2])


def questions(sample: Sample, group: str | None = None) -> list[Question]:
    """Every assistant turn of a sample as a question; ``group`` is ``turn N`` unless given."""
    found: list[Question] = []
    for i, message in enumerate(sample.messages):
        if message.role != "assistant":
            continue
        turn = len(found) + 1
        history = sample.messages[:i]
        slots = sum(1 for m in history for part in m.content if not isinstance(part, str))
        found.append(
            Question(
                id=sample.id,
                turn=turn,
                group=group or f"turn {turn}",
                messages=history,
                images=sample.images[:slots],
                text=history[-1].text.strip(),
                answer=message.text,
                modality=sample.modality,
            )
        )
    return found


def without_images(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The same conversation for a blind model: image slots taken out."""
    return tuple(
        Message(m.role, tuple(part for part in m.content if isinstance(part, str)))
        for m in messages
    )
