"""Instructions as text: what is asked for, in which words, and what a reply must look like.

They are data: a strategy is an entry of `instructions.yaml` or of a file like it, and no code knows
its name.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Final, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from oculi.data.draws import draw
from oculi.errors import DataError, nearest, shown
from oculi.specs.base import Count, Strict

BUILTIN: Final = Path(__file__).with_name("instructions.yaml")
_MAX_BYTES: Final = 2**20


class Range(Strict):
    """Least and most question-answer pairs."""

    least: Count
    most: Count


class Tokens(Strict):
    """Tokens of a reply: usual ones for the estimate, most as the limit of a request."""

    usual: Count
    most: Count


class Instruction(Strict):
    """One strategy; the head of `instructions.yaml` explains the fields."""

    prompt: str = Field(min_length=1)
    wordings: tuple[str, ...] = ()
    reply: Literal["caption", "pairs"]
    question: Literal["wording", "own"] = "wording"
    pairs: Range = Range(least=1, most=20)
    characters: Count
    tokens: Tokens

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if any(not wording.strip() for wording in self.wordings):
            raise ValueError("a wording is empty")
        asks = self.reply == "caption" and self.question == "wording"
        if not self.wordings and (asks or "{wording}" in self.prompt):
            raise ValueError("there are no wordings to ask with")
        if self.pairs.least > self.pairs.most:
            raise ValueError("pairs: least is more than most")
        return self

    def wording(self, seed: int, key: str) -> str:
        """The wording of a picture: a pure function of seed and key; empty where there are none."""
        return draw(self.wordings, seed, key) if self.wordings else ""

    def ask(self, wording: str, text: str) -> str:
        """The prompt for one picture; `text` is what its row says."""
        # The texts put in are not looked through for marks.
        parts = [part.replace("{text}", text) for part in self.prompt.split("{wording}")]
        return wording.join(parts).strip()


class Instructions(Strict):
    """A file of strategies."""

    version: str = Field(min_length=1, max_length=100)
    strategies: dict[str, Instruction] = Field(min_length=1)

    def strategy(self, name: str) -> Instruction:
        """The strategy of this name; raises DataError with the nearest one."""
        if name not in self.strategies:
            known = ", ".join(self.strategies)
            hint = nearest(name, self.strategies)
            raise DataError(f"unknown strategy {shown(name)}; known: {known}{hint}")
        return self.strategies[name]


def read_instructions(path: Path | None = None) -> Instructions:
    """The instructions of a YAML file, or the built-in ones; raises DataError."""
    return _builtin() if path is None else _read(path)


@cache
def _builtin() -> Instructions:
    return _read(BUILTIN)


def _read(path: Path) -> Instructions:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise DataError(f"{path}: is longer than {_MAX_BYTES} bytes")
        value = yaml.safe_load(data.decode("utf-8"))
        # By way of JSON: what YAML makes of "on" or a date is then a mistake, not a value.
        return Instructions.model_validate_json(json.dumps(value), strict=True)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or 'cannot be read'}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(f"{path}: {where}{': ' if where else ''}{first['msg']}") from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        said = " ".join(str(error).split())
        raise DataError(f"{path}: is no file of instructions: {said[:200]}") from None
