"""The chat template as ids: what ``oculi.edge`` needs no Jinja for.

``ChatEncoder`` cuts a rendered conversation at its contents. What stands between two contents is kept by
the roles on both sides; that this is all there is to know is not taken for granted but checked on
conversations of several turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from oculi.edge.folder import Chat
from oculi.errors import CheckpointError
from oculi.model import OculiProcessor

TURNS = 4  # of the longest conversation that is compared


def chat_ids(processor: OculiProcessor) -> Chat:
    """The template of a processor for the runner.

    Raises:
        CheckpointError: not even one question can be asked with it.
    """
    tokenizer, chat = processor.tokenizer, processor.chat
    one = _stretches(processor, ["user"])
    if one is None:
        raise CheckpointError("the tokenizer's chat template cannot render a question of the user")
    begin, between, generate = {"user": one[0]}, {}, one[-1]
    longer = _stretches(processor, ["user", "assistant", "user"])
    turns = 1
    if longer is not None:
        between = {"user assistant": longer[1], "assistant user": longer[2]}
        found = all(
            _stretches(processor, roles) == [one[0], *_expected(roles, between), generate]
            for n in range(1, TURNS)
            for roles in [_roles(n)]
        )
        turns = 0 if found else 1
    system = _stretches(processor, ["system", "user"])
    if system is not None:
        begin["system"], between["system user"] = system[0], system[1]
        rest = _stretches(processor, ["system", *_roles(1)]) if turns == 0 else None
        known = [system[0], *_expected(["system", *_roles(1)], between), generate] if rest else rest
        if system[-1] != generate or rest != known:
            del begin["system"], between["system user"]
    return Chat(
        begin=begin,
        between=between,
        generate=generate,
        turns=turns,
        system="system" in begin,
        image_token_id=processor.image_token_id,
        control_ids=sorted(chat.control_ids),
        unk_token=tokenizer.unk_token,
        unk_token_id=tokenizer.unk_token_id,
    )


def _roles(answers: int) -> list[str]:
    return [*["user", "assistant"] * answers, "user"]


def _expected(roles: Sequence[str], between: dict[str, list[int]]) -> list[list[int]]:
    return [between[f"{before} {after}"] for before, after in pairwise(roles)]


def _stretches(processor: OculiProcessor, roles: Sequence[str]) -> list[list[int]] | None:
    """Ids before, between and behind the contents of a conversation; None if the template refuses it."""
    shape = tuple((role, 1) for role in roles)
    try:
        segments = processor.chat._segments(shape, True, False)
    except Exception:  # templates raise what they like for roles that they do not take
        return None
    stretches: list[list[int]] = [[]]
    for segment in segments:
        if segment.content is None:
            stretches[-1] += segment.ids
        else:
            stretches.append([])
    return stretches
