"""One sample: a conversation and its pictures, independent of the file format it came from.

A picture's place is an `ImageSlot` in a message's content, never a piece of text: a literal
`<image>` in an answer can then not be mistaken for a picture, and the rows of every format meet
the same rules in `Sample.validate`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from oculi.errors import DataError, shown

if TYPE_CHECKING:
    from PIL import Image

IMAGE = "image"  # the modality of a row that says none
Role = Literal["system", "user", "assistant"]


class RowError(DataError):
    """One sample is wrong: `reason` alone for lists of bad rows, the message with the place."""

    def __init__(self, reason: str, id: str = "", source: str = "") -> None:
        self.reason, self.id, self.source = reason, id, source
        where = f"{source}: " if source else ""
        name = f"row {shown(id)}: " if id else ""
        super().__init__(f"{where}{name}{reason}")

    def __reduce__(self) -> tuple[type[RowError], tuple[str, str, str]]:
        return RowError, (self.reason, self.id, self.source)  # crosses from loader processes


@runtime_checkable
class ImageSource(Protocol):
    """A picture that can be had later: a file, bytes, or something that draws itself."""

    def load(self) -> Image.Image:
        """Return the picture as RGB; raises DataError with the reason when it cannot be read."""
        ...

    def size(self) -> tuple[int, int]:
        """Return (width, height) as `load` would give it, without decoding the pixels."""
        ...


@dataclass(frozen=True, slots=True)
class ImageRef:
    """Where a picture is: a file, or encoded bytes in memory; exactly one of the two.

    `root` is the folder the file must lie in after links are resolved. Without it `path` is
    trusted as it stands, so a path that came out of a data row must carry its root. `span` is
    (offset, length) of a picture inside a larger file, `name` what messages call one that has no
    file of its own.
    """

    path: Path | None = None
    data: bytes | None = None
    root: Path | None = None
    span: tuple[int, int] | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if (self.path is None) == (self.data is None):
            raise ValueError("ImageRef takes exactly one of path and data")
        if self.span is not None and self.path is None:
            raise ValueError("ImageRef takes a span only of a file")

    def load(self) -> Image.Image:
        """Decode the picture to RGB; raises DataError with the reason when it cannot be read."""
        from oculi.data.images import load_image  # Pillow stays out of the fast import path

        return load_image(self)

    def size(self) -> tuple[int, int]:
        """Return (width, height) from the header, after EXIF rotation; raises DataError."""
        from oculi.data.images import image_size

        return image_size(self)


@dataclass(frozen=True, slots=True)
class ImageSlot:
    """Stands in a message's content where image `index` of the sample goes."""

    index: int


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. Content is text and image slots in reading order."""

    role: Role
    content: tuple[str | ImageSlot, ...]

    @property
    def text(self) -> str:
        """The text parts joined, without the image slots."""
        return "".join(part for part in self.content if isinstance(part, str))


@dataclass(frozen=True, slots=True)
class Sample:
    """A conversation with its pictures.

    Attributes:
        source: "file:line" where there is one.
        whole: not to be cut into single turns: whoever made it chose how many there are.
        separate: its turns are learnt side by side, each with the pictures and none with another; then
            all pictures begin the first user turn.
        modality: what its pictures are pictures of, for a model with LoRA for several.
    """

    id: str
    messages: tuple[Message, ...]
    images: tuple[ImageSource, ...] = ()
    source: str = ""
    whole: bool = False
    separate: bool = False
    modality: str = IMAGE

    def validate(self, *, for_training: bool = False) -> None:
        """Check the rules every consumer relies on; raises RowError naming source and id.

        Slots and images agree one to one in order, slots stand only in user turns, roles are an
        optional system turn and then user and assistant by turns, no turn of theirs is empty.
        With `for_training` the last turn must be an answer too.
        """
        reason = self._slot_problem() or self._turn_problem(for_training)
        if reason:
            raise RowError(reason, self.id, self.source)

    def _slot_problem(self) -> str:
        slots: list[int] = []
        for number, message in enumerate(self.messages, start=1):
            found = [part.index for part in message.content if isinstance(part, ImageSlot)]
            if found and message.role != "user":
                return f"turn {number} ({message.role}) holds an image; only user turns may"
            slots += found
        if len(slots) != len(self.images):
            return f"{_count(slots, 'placeholder')} for {_count(self.images, 'image')}"
        if slots != list(range(len(slots))):
            return f"image slots are {slots}; they must count up from 0 in reading order"
        return ""

    def _turn_problem(self, for_training: bool) -> str:
        roles = [message.role for message in self.messages]
        start = 1 if roles[:1] == ["system"] else 0
        if len(roles) == start:
            return "no user turn"
        for place, role in enumerate(roles[start:]):
            wanted = "assistant" if place % 2 else "user"
            if role != wanted:
                return f"turn {place + start + 1} is {role} where {wanted} must come"
            message = self.messages[place + start]
            shows = any(isinstance(part, ImageSlot) for part in message.content)
            if not shows and not message.text.strip():
                return f"turn {place + start + 1} ({role}) is empty"
        if for_training and roles[-1] != "assistant":
            return f"the last turn is {roles[-1]}; training needs an assistant answer there"
        return ""


def _count(things: tuple[object, ...] | list[int], noun: str) -> str:
    return f"{len(things)} {noun}" if len(things) == 1 else f"{len(things)} {noun}s"
