"""Writes tests/golden/playroom_v1.json: what Playroom v1 is, frozen.

Run as `python tests/testbed/make_golden.py` from the root. The file changes only together with
Playroom's version; a difference found by a test means the world has moved, not the file.
"""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from oculi.testbed import language, playroom

GOLDEN = Path(__file__).parents[1] / "golden" / "playroom_v1.json"
TEXTS = 600
PICTURES = ((0, None), (7, None), (3, (120, 56)))  # index, and size if not the level's own
THUMB = (6, 6)


def sha(data: bytes) -> str:
    """Return the SHA-256 of `data` as hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def texts(level: int, split: str) -> str:
    """Return one hash over the questions and answers of the first items of a split."""
    made = [playroom.item(level, split, index).question for index in range(TEXTS)]
    return sha("\0".join(f"{q.kind}\1{q.text}\1{q.answer}\1{q.options}" for q in made).encode())


def thumbnail(image: Image.Image) -> list[int]:
    """Return the mean colours of a 6 x 6 grid over the picture, row by row, 108 numbers."""
    return list(image.resize(THUMB, Image.Resampling.BOX).tobytes())


def world() -> dict[str, Any]:
    """Return everything that is frozen."""
    cases = [(level, split) for level in playroom.LEVELS for split in playroom.splits(level)]
    found: dict[str, Any] = {
        "command": "python tests/testbed/make_golden.py",
        "pillow": version("pillow"),
        "texts": {f"{level} {split}": texts(level, split) for level, split in cases},
        "turns": sha(repr([language.turn("train", index) for index in range(TEXTS)]).encode()),
        "first": {},
        "pictures": {},
    }
    for level, split in cases:
        question = playroom.item(level, split, 0).question
        found["first"][f"{level} {split}"] = [question.text, question.answer]
        for index, size in PICTURES:
            image = playroom.item(level, split, index, size).picture.load()
            name = f"{level} {split} {index} {image.width}x{image.height}"
            found["pictures"][name] = {"sha256": sha(image.tobytes()), "mean": thumbnail(image)}
    return found


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(world(), separators=(",", ":")) + "\n", encoding="utf-8")
