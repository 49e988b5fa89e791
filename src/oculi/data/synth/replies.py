"""What a model replied: strictly checked JSON, or the reason why it is of no use."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Final

from pydantic import ConfigDict, Field, ValidationError

from oculi.data.synth.instructions import Instruction
from oculi.errors import shown
from oculi.specs.base import Strict

Pairs = list[tuple[str, str]]  # of question and answer
_FENCE: Final = re.compile(r"\A```[a-zA-Z]*\s*\n(.*)\n\s*```\Z", re.DOTALL)


class BadReply(ValueError):
    """A reply cannot be used; the message says why, without quoting it."""


class _Reply(Strict):
    model_config = ConfigDict(strict=True, str_strip_whitespace=True)


class _Caption(_Reply):
    Caption: str = Field(min_length=1)


class _Pair(_Reply):
    Query: str = Field(min_length=1)
    Answer: str = Field(min_length=1)


class _Pairs(_Reply):
    Pairs: list[_Pair]


def _caption(value: Any, asked: Instruction, question: str) -> Pairs:
    return [(question, _Caption.model_validate(value).Caption)]


def _pairs(value: Any, asked: Instruction, question: str) -> Pairs:
    found = [(pair.Query, pair.Answer) for pair in _Pairs.model_validate(value).Pairs]
    least, most = asked.pairs.least, asked.pairs.most
    if not least <= len(found) <= most:
        wanted = f"{least}" if least == most else f"{least} to {most}"
        raise BadReply(f"{len(found)} pairs where {wanted} were asked for")
    if len({query.lower() for query, _ in found}) < len(found):
        raise BadReply("the same question twice")
    return found


_KINDS: Final[dict[str, Callable[[Any, Instruction, str], Pairs]]] = {
    "caption": _caption,
    "pairs": _pairs,
}


def read_reply(reply: str, asked: Instruction, question: str) -> Pairs:
    """Questions and answers out of a reply.

    A code fence around the JSON is taken off, as models put one there whatever they are told; any
    other word beside it is a mistake, and so are unknown keys, empty texts and other types.

    Args:
        reply: as the model wrote it.
        asked: the strategy.
        question: of a caption; may be empty.

    Raises:
        BadReply: with the reason.
    """
    text = reply.strip()
    if fenced := _FENCE.match(text):
        text = fenced[1]
    try:
        found = _KINDS[asked.reply](json.loads(text), asked, question)
    except (json.JSONDecodeError, RecursionError) as error:
        said = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        raise BadReply(f"not valid JSON: {said}") from None
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"]))  # keys, which the model may have chosen
        raise BadReply(f"{shown(where) + ': ' if where else ''}{first['msg']}") from None
    except BadReply:
        raise
    except ValueError:  # an integer of too many digits
        raise BadReply("not valid JSON: a number is too long") from None
    for part in (part for pair in found for part in pair):
        if len(part) > asked.characters:
            raise BadReply(f"a text of {len(part)} characters, more than {asked.characters}")
        if any("\ud800" <= c <= "\udfff" for c in part):
            raise BadReply("half of a surrogate pair")
    return found
