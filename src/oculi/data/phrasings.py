"""Questions for captions that have none.

A caption says what a picture shows, and nobody asked. A model that learns thousands of them under no
question, or under one wording, does not learn to be asked in another; AuroraEdge-V (section 4.3,
item 1, and its supplementary material) draws one of many wordings for each pair.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from oculi.data.draws import draw
from oculi.data.sample import ImageSlot, Message, Sample
from oculi.errors import DataError, nearest, shown

# Names of built-in lists, and the strategy of `synth/instructions.yaml` whose wordings they are.
LISTS: Final = {"brief": "brief-caption", "detailed": "detailed-caption"}
_MAX_BYTES: Final = 2**20


@dataclass(frozen=True, slots=True)
class Phrasings:
    """Gives every question that is a picture alone one of `texts`.

    Which one is a pure function of seed, id and answer. It is the same in every epoch, so that
    lengths can be known before, and wherever a row lies that has an id; that of one without is
    made of its file's name and its place there.
    """

    texts: tuple[str, ...]
    seed: int = 0

    def __call__(self, sample: Sample) -> Sample:
        """The sample with a question wherever there was none; others as they are."""
        messages = list(sample.messages)
        for place, message in enumerate(messages):
            slots = tuple(part for part in message.content if isinstance(part, ImageSlot))
            if message.role == "user" and slots and not message.text.strip():
                answer = messages[place + 1].text if place + 1 < len(messages) else ""
                asked = draw(self.texts, self.seed, f"{sample.id}\0{place}\0{answer}")
                messages[place] = Message("user", (*slots, "\n" + asked))
        return replace(sample, messages=tuple(messages))


def find_phrasings(name: str | None, seed: int = 0) -> Phrasings | None:
    """The phrasings of this name: `brief`, `detailed`, or a text file with a wording a line.

    Raises:
        DataError: there is no such file, it is no text, or it is empty.
    """
    if name is None:
        return None
    if name in LISTS:
        from oculi.data.synth.instructions import read_instructions

        return Phrasings(read_instructions().strategy(LISTS[name]).wordings, seed)
    try:
        with Path(name).open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        lines = [line.strip() for line in data.decode("utf-8-sig").splitlines()]
    except (OSError, ValueError) as error:
        said = "is not UTF-8" if isinstance(error, UnicodeError) else "cannot be read"
        known = f"known: {', '.join(LISTS)}, or a file of them{nearest(name, LISTS)}"
        reason = (isinstance(error, OSError) and error.strerror) or said
        raise DataError(f"phrasings {shown(name)}: {reason}; {known}") from None
    if len(data) > _MAX_BYTES:
        raise DataError(f"phrasings {shown(name)}: longer than {_MAX_BYTES} bytes")
    if not any(lines):
        raise DataError(f"phrasings {shown(name)}: the file has no line with a wording")
    return Phrasings(tuple(filter(None, lines)), seed)
