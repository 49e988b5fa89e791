"""Arrow IPC files and streams, as `datasets` keeps its own; mapped, not read.

The file form is a stream with a table of contents behind it, so both are walked as a stream, which
also serves a file that was cut off. A group is a record batch, its number the offset of the batch.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Final

from oculi.data.columnar import DAMAGED, Block, Columnar, Group, guard, validated
from oculi.data.content import wrong
from oculi.data.sample import RowError
from oculi.errors import shown

MAX_BATCH_BYTES: Final = 2**32  # unpacked, of a compressed batch

_NONE = "is cut off or no Arrow file"


class ArrowRows(Columnar):
    """An Arrow file or stream."""

    kind: ClassVar[str] = "Arrow"

    def _reader(self) -> Any:
        import pyarrow as pa

        if self.size < 8:
            wrong(_NONE)
        data = guard(lambda: pa.memory_map(str(self.path)).read_buffer(), _NONE)
        message, start = _message(data, 8 if data[:6].to_pybytes() == b"ARROW1" else 0)
        if message is None or message.type != "schema":
            wrong(_NONE)
        schema = guard(lambda: pa.ipc.read_schema(message), _NONE)
        names, encoded = guard(lambda: _described(schema), "has a damaged schema")
        if encoded is not None:
            wrong(f"the column {shown(encoded)} is dictionary-encoded; save it as plain text")
        return data, schema, names, start

    def _names(self, reader: Any) -> list[str]:
        names: list[str] = reader[2]
        return names

    def _groups(self, reader: Any) -> Iterable[Group]:
        data, _, _, at = reader
        while at is not None:
            start = at
            try:
                message, at = _message(data, at)
            except RowError:
                at = None  # asked for its blocks, this group will say what is wrong with it
            else:
                if message is None:
                    return
            yield start, None, self.size if at is None else at

    def _blocks(self, reader: Any, group: int) -> Iterator[Block]:
        import pyarrow as pa

        data, schema, names, _ = reader
        message, _ = _message(data, group)
        if message is None or message.type != "record batch":
            wrong(DAMAGED)
        if guard(lambda: _unpacked(message)) > MAX_BATCH_BYTES:
            wrong(f"a batch claims more than {MAX_BATCH_BYTES} bytes unpacked")
        block = guard(lambda: pa.ipc.read_record_batch(message, schema))
        columns = [i for i, name in enumerate(names) if name in self.keys]
        yield validated(guard(lambda: block.select(columns)))


def _message(data: Any, at: int) -> tuple[Any, int]:
    """The message at a place of an Arrow stream and the place after it; None at the end mark.

    Raises RowError when there is no sound message there.
    """
    import pyarrow as pa

    file = pa.BufferReader(data.slice(at))
    try:
        message = guard(lambda: pa.ipc.read_message(file), but=(EOFError,))
    except EOFError:
        if file.tell():
            return None, at + file.tell()
        wrong("the file ends without its end mark: cut off")
    if not file.tell():
        wrong(DAMAGED)
    return message, at + file.tell()


def _unpacked(message: Any) -> int:
    """Bytes that a record batch claims to have unpacked, 0 when it is not compressed.

    pyarrow would allocate them before it finds out. They stand before each compressed buffer; where
    the buffers are, the message's header says, a flatbuffer (format/Message.fbs of Arrow).
    """
    head = memoryview(message.metadata)

    def number(kind: str, at: int) -> int:
        value: int = struct.unpack_from(kind, head, at)[0]
        return value

    def member(table: int, index: int) -> int:
        """Where the field of a table lies, 0 when it has none."""
        fields = table - number("<i", table)
        place = 4 + 2 * index
        offset = number("<H", fields + place) if place < number("<H", fields) else 0
        return table + offset if offset else 0

    def follow(at: int) -> int:
        return at + number("<I", at)

    batch = follow(member(follow(0), 2))
    if not member(batch, 3):
        return 0
    buffers = follow(member(batch, 2))
    total = 0
    for i in range(number("<I", buffers)):
        offset, length = struct.unpack_from("<qq", head, buffers + 4 + 16 * i)
        if length >= 8:
            total += max(0, struct.unpack("<q", message.body[offset : offset + 8].to_pybytes())[0])
    return total


def _described(schema: Any) -> tuple[list[str], str | None]:
    """The names of all columns, and that of the first with a dictionary."""
    encoded = (field.name for field in schema if _has_dictionary(field.type))
    return list(schema.names), next(encoded, None)


def _has_dictionary(type: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(type):
        return True
    return any(_has_dictionary(type.field(i).type) for i in range(type.num_fields))
