"""The turns of a conversation apart from one another: one of them alone, or all side by side.

In a conversation about a picture later answers can be read off earlier ones, and a model that can
does not look. A turn that stands alone with the pictures has to be answered from them. Side by side all
turns do, for the price of one picture: they share it and do not see each other (``branches.py``).

Where every picture is asked for a thing in one wording only, the wording can help to tell pictures
apart; a plain turn, the pictures and then the answer as in LLaVA's first stage, has no wording.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from oculi.data.order import random_words
from oculi.data.sample import ImageSlot, Message, Sample

_PLAIN = 0x91A1  # keeps the choice of plain turns independent of all else that the seed decides


def single_turn(sample: Sample, number: int) -> Sample:
    """User turn `number` (from 0) of `sample` with its answer, without what was said before.

    A system turn stays. Pictures shown earlier stay too, in front of the turn's own content; those
    shown later go. Raises ValueError when there is no such turn.
    """
    system = sample.messages[:1] if sample.messages[0].role == "system" else ()
    talk = sample.messages[len(system) :]
    if not 0 <= number < turns(sample):
        raise ValueError(f"sample {sample.id} has {turns(sample)} answered turns, none is {number}")
    question, answer = talk[2 * number : 2 * number + 2]
    earlier = [p for m in talk[: 2 * number] for p in m.content if isinstance(p, ImageSlot)]
    own = question.content
    if earlier and own and isinstance(own[0], str):
        own = ("\n" + own[0], *own[1:])  # as a first turn says it: the picture, then the text below
    content = (*earlier, *own)
    shown = sum(isinstance(part, ImageSlot) for part in content)
    messages = (*system, Message("user", content), answer)
    return replace(sample, messages=messages, images=sample.images[:shown])


def turns(sample: Sample) -> int:
    """How many user turns with an answer `sample` has."""
    return sum(message.role == "assistant" for message in sample.messages)


def plain(sample: Sample) -> Sample:
    """A single turn without its question: pictures, then the answer.

    The template of LLaVA's first stage ("plain"; Visual Instruction Tuning, section 4.2, asks, its
    code since version 1.5 does not). A sample without pictures stays what it is.
    """
    *system, question, answer = sample.messages
    slots = tuple(part for part in question.content if isinstance(part, ImageSlot))
    if not slots:
        return sample
    return replace(sample, messages=(*system, Message("user", slots), answer))


def separable(sample: Sample) -> bool:
    """Whether its turns can stand side by side: all of its pictures begin the first user turn."""
    first = next((m.content for m in sample.messages if m.role == "user"), ())
    shown = first[: len(sample.images)]
    return bool(shown) and all(isinstance(part, ImageSlot) for part in shown)


def side_by_side(sample: Sample) -> list[Sample]:
    """Every turn of a sample that is to be learnt ``separate``, as one of its own."""
    return [single_turn(sample, number) for number in range(turns(sample))]


class TurnDraws:
    """Decides which draws of a stage learn turns apart: a pure function of seed and position.

    Args:
        seed: the stage's.
        share: part of the draws that learn a single turn, 0 to 1. A sample without pictures stays
            whole, for what a later turn asks about was said in an earlier one; so does one that says so.
        plain_share: part of these that learn it without its question, 0 to 1. A sample that has
            one turn as it is keeps its question.
        separate: part of the draws that learn all turns side by side, 0 to 1 - ``share``. Of these,
            too, ``plain_share`` of the turns lose their questions, but not in a sample that stays whole.
            A conversation that shows a picture later learns a single turn instead.
    """

    def __init__(
        self, seed: int, share: float, plain_share: float = 0.0, separate: float = 0.0
    ) -> None:
        self.seed, self.share, self.plain_share = seed, share, plain_share
        self.separate = separate
        self._plain_seed = int(np.random.SeedSequence([seed, _PLAIN]).generate_state(1)[0])

    def __call__(self, position: int, sample: Sample) -> Sample:
        """The sample as position `position` of the order learns it."""
        count = turns(sample)
        if not (self.share or self.separate) or count < 2 or not sample.images:
            return sample
        ticket, which = random_words(self.seed, 2 * position, 2)
        if int(ticket) < self.separate * 2**64 and separable(sample):
            return self._separate(position, sample)
        if sample.whole or int(ticket) >= (self.separate + self.share) * 2**64:
            return sample
        sample = single_turn(sample, int(which) % count)
        (ticket,) = random_words(self._plain_seed, position, 1)
        return plain(sample) if int(ticket) < self.plain_share * 2**64 else sample

    def _separate(self, position: int, sample: Sample) -> Sample:
        if sample.whole or not self.plain_share:
            return replace(sample, separate=True)
        tickets = random_words(self._plain_seed + position, 0, len(sample.messages))
        messages = tuple(
            replace(message, content=tuple(p for p in message.content if isinstance(p, ImageSlot)))
            if message.role == "user" and int(ticket) < self.plain_share * 2**64
            else message
            for message, ticket in zip(sample.messages, tickets, strict=True)
        )
        return replace(sample, messages=messages, separate=True)
