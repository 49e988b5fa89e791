"""One turn of a conversation as a sample of its own.

In a conversation about a picture later answers can be read off earlier ones, and a model that can
does not look. A turn that stands alone with the pictures has to be answered from them.
"""

from __future__ import annotations

from dataclasses import replace

from oculi.data.order import random_words
from oculi.data.sample import ImageSlot, Message, Sample


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
    if earlier and isinstance(own[0], str):
        own = ("\n" + own[0], *own[1:])  # as a first turn says it: the picture, then the text below
    content = (*earlier, *own)
    shown = sum(isinstance(part, ImageSlot) for part in content)
    messages = (*system, Message("user", content), answer)
    return replace(sample, messages=messages, images=sample.images[:shown])


def turns(sample: Sample) -> int:
    """How many user turns with an answer `sample` has."""
    return sum(message.role == "assistant" for message in sample.messages)


class TurnDraws:
    """Decides which draws of a stage learn a single turn: a pure function of seed and position.

    Args:
        seed: the stage's.
        share: part of the draws, 0 to 1.
    """

    def __init__(self, seed: int, share: float) -> None:
        self.seed, self.share = seed, share

    def __call__(self, position: int, sample: Sample) -> Sample:
        """The sample as position `position` of the order learns it."""
        if not self.share or turns(sample) < 2:
            return sample
        ticket, which = random_words(self.seed, 2 * position, 2)
        if int(ticket) >= self.share * 2**64:
            return sample
        return single_turn(sample, int(which) % turns(sample))
