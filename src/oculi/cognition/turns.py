"""Questions about colours and codes at random places of a conversation, for training.

    picture, question, answer          as the data has it
    picture, colours?, 163 178 193,... question, answer         before: the answer can build on them
    picture, question, answer, colours?, 163 178 193,...        after

What is asked is a pure function of the stage's seed and the position in the order; the answer is one of
the picture that the model sees there, after a random crop. Which turns there are does not depend on what
the picture shows, and their tokens do not either, so a sample is measured without decoding it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from oculi.cognition.readers import Place, Reader, costliest, readers
from oculi.data.order import random_words
from oculi.data.sample import ImageSlot, Message, Sample
from oculi.data.source import pieces
from oculi.errors import RecipeError
from oculi.specs.cognition import CognitionSpec

if TYPE_CHECKING:
    from oculi.model import OculiProcessor
    from oculi.recipe import Stage

_STREAM = 0xC0DE  # keeps what is asked independent of all else that the stage's seed decides
_WORDS = 6  # of dice for each kind of question


@dataclass(frozen=True)
class Asked:
    """One question that is put into a conversation.

    Attributes:
        reader: its kind. image: which picture it is about. place: of its area.
        before: the exchange (from 0) that it stands in front of, or as many as there are: at the end.
        wording: how it is asked.
    """

    reader: Reader
    image: int
    place: Place
    before: int
    wording: int


class Cognition:
    """Puts questions into the samples of a stage.

    Args:
        spec: what is asked, how often.
        seed: of the stage.
        processor: counts tokens.
        length: a question that would make a sample longer is left out.

    Raises:
        CheckpointError: the codebook is none.
    """

    def __init__(
        self, spec: CognitionSpec, seed: int, processor: OculiProcessor, length: int
    ) -> None:
        words = np.random.SeedSequence([seed, _STREAM]).generate_state(1, np.uint64)
        self._seed = int(words[0] >> np.uint64(1))
        self.processor, self.length = processor, length
        self.readers = readers(spec)
        self.costliest = {
            reader.name: costliest(reader, lambda text: len(processor.chat.encode_text(text)))
            for reader in self.readers
        }

    def measured(self, position: int, sample: Sample, sizes: Sequence[tuple[int, int]]) -> Sample:
        """The sample as it is learnt at a position of the order, with answers that only cost as much.

        Args:
            sizes: (width, height) of its pictures.
        """
        for asked in self._asked(position, sample, sizes):
            sample = insert(sample, asked, self.costliest[asked.reader.name])
        return sample

    def __call__(self, position: int, sample: Sample, pictures: Sequence[Image.Image]) -> Sample:
        """The sample as it is learnt at a position of the order.

        Args:
            pictures: the sample's, as the model sees them.

        Raises:
            CheckpointError: the encoder cannot be loaded.
        """
        for asked in self._asked(position, sample, [picture.size for picture in pictures]):
            values = asked.reader.values(pictures[asked.image], asked.place)
            sample = insert(sample, asked, asked.reader.form.write(values))
        return sample

    def check(self, where: str) -> None:
        """Raises what would otherwise come up in the middle of a stage.

        Args:
            where: key of the stage, for messages.

        Raises:
            RecipeError: a question alone is longer than a sample may be.
            DataError: a cache is damaged or of another codebook.
            CheckpointError: the encoder cannot be loaded.
        """
        for reader in self.readers:
            most = self.cost(reader)[0]
            if most > self.length:
                raise RecipeError(
                    f"{where}.cognition.{reader.name}: a question and its answer have {most} tokens, "
                    f"more than {where}.length, {self.length}: ask for fewer values, or raise it"
                )
            reader.check()

    def cost(self, reader: Reader) -> tuple[int, int]:
        """Tokens that a question of a kind adds to a conversation at most, and those of its answer."""
        answer = self.costliest[reader.name]
        far = reader.places[0] - 1, reader.places[1] - 1
        talk = [Message("user", ("?",)), Message("assistant", ("!",))]
        bare = self._tokens(talk)
        costs = [
            self._tokens([*talk, Message("user", (text,)), Message("assistant", (answer,))]) - bare
            for text in (reader.question(far, wording) for wording in range(reader.wordings))
        ]
        return max(costs), len(self.processor.chat.encode_text(answer))

    def _asked(
        self, position: int, sample: Sample, sizes: Sequence[tuple[int, int]]
    ) -> Iterator[Asked]:
        """What is asked of a sample: a function of position, text and sizes of pictures alone."""
        if not sample.images:
            return
        words = random_words(self._seed + position, 0, _WORDS * len(self.readers))
        for reader, dice in zip(self.readers, words.reshape(-1, _WORDS), strict=True):
            if int(dice[0]) >= reader.share * 2**64:
                continue
            asked = drawn(reader, sample, dice[1:])
            longer = insert(sample, asked, self.costliest[reader.name])
            if self.processor.length(pieces(longer.messages, sizes)) <= self.length:
                sample = longer
                yield asked

    def _tokens(self, messages: Sequence[Message]) -> int:
        return self.processor.length(pieces(messages, []))


def cognition_of(stage: Stage, seed: int, processor: OculiProcessor) -> Cognition | None:
    """What a stage asks beside its data, if anything; ``seed`` is the stage's."""
    if stage.cognition is None:
        return None
    return Cognition(stage.cognition, seed, processor, stage.length)


def drawn(reader: Reader, sample: Sample, dice: NDArray[np.uint64]) -> Asked:
    """A question about one of the sample's pictures, at a place of the conversation where it is known.

    Args:
        dice: five random words, [5] uint64.
    """
    image = _below(dice[0], len(sample.images))
    exchanges = _exchanges(sample)
    shown = next(n for n, (user, _) in enumerate(exchanges) if ImageSlot(image) in user.content)
    first = shown if _movable(exchanges[shown][0]) else shown + 1
    return Asked(
        reader=reader,
        image=image,
        place=(_below(dice[1], reader.places[0]), _below(dice[2], reader.places[1])),
        before=first + _below(dice[3], len(exchanges) + 1 - first),
        wording=_below(dice[4], reader.wordings),
    )


def insert(sample: Sample, asked: Asked, answer: str) -> Sample:
    """The sample with a question and its answer at their place.

    In front of the exchange that shows the picture, the question takes that turn's pictures along: they
    stand where they stood, at the beginning of it.
    """
    exchanges = _exchanges(sample)
    text, slots = asked.reader.question(asked.place, asked.wording), tuple[ImageSlot, ...]()
    shown = [part.index for user, _ in exchanges[: asked.before] for part in _slots(user)]
    if asked.image not in shown:
        user, reply = exchanges[asked.before]
        slots = _slots(user)
        rest = "".join(part for part in user.content if isinstance(part, str)).strip("\n")
        exchanges[asked.before] = replace(user, content=(rest,)), reply
        shown += [slot.index for slot in slots]
    if len(shown) > 1:
        text = f"Image {shown.index(asked.image) + 1} of {len(shown)}. {text}"
    content: tuple[str | ImageSlot, ...] = (*slots, "\n" + text) if slots else (text,)
    exchanges.insert(asked.before, (Message("user", content), Message("assistant", (answer,))))
    system = sample.messages[:1] if sample.messages[0].role == "system" else ()
    return replace(sample, messages=(*system, *(m for pair in exchanges for m in pair)))


def _exchanges(sample: Sample) -> list[tuple[Message, Message]]:
    """Turns of user and assistant, without a system turn."""
    talk = [message for message in sample.messages if message.role != "system"]
    return list(zip(talk[::2], talk[1::2], strict=True))


def _slots(message: Message) -> tuple[ImageSlot, ...]:
    return tuple(part for part in message.content if isinstance(part, ImageSlot))


def _movable(message: Message) -> bool:
    """Whether all pictures of a turn stand before or behind its text, and there is a text."""
    kinds = [isinstance(part, ImageSlot) for part in message.content]
    return bool(message.text.strip()) and kinds in (sorted(kinds), sorted(kinds, reverse=True))


def _below(word: np.uint64, count: int) -> int:
    """An integer in [0, count) from a random word."""
    return int(word) * count >> 64
