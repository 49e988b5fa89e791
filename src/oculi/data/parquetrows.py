"""Parquet files, read by row group, and within one by as much as fits."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Final

from oculi.data.columnar import Block, Columnar, Group, guard, validated
from oculi.data.content import wrong

# Of a row group no more is decoded at once, however large its writer made it.
BLOCK_BYTES: Final = 32 * 2**20
BLOCK_ROWS: Final = 1024
SLOW_BYTES: Final = 64 * 2**20
# Rows of real data take bytes; more than this in a file of so many are a bomb.
_ROWS_PER_BYTE: Final = 64
_ROWS_FREE: Final = 2**20


class ParquetRows(Columnar):
    """A Parquet file."""

    kind: ClassVar[str] = "Parquet"

    def _reader(self) -> Any:
        import pyarrow.parquet as pq

        # Buffered: without, a whole column of a row group is read before its first value.
        return guard(
            lambda: pq.ParquetFile(
                self.path, buffer_size=2**20, pre_buffer=False, page_checksum_verification=True
            ),
            "is cut off, encrypted or no Parquet file",
        )

    def _names(self, reader: Any) -> list[str]:
        names: list[str] = guard(lambda: list(reader.schema_arrow.names), "has a damaged schema")
        return names

    def _groups(self, reader: Any) -> Iterable[Group]:
        data = reader.metadata
        counts: list[int] = guard(
            lambda: [data.row_group(group).num_rows for group in range(data.num_row_groups)],
            "has a damaged table of contents",
        )
        sizes = [data.row_group(group).total_byte_size for group in range(len(counts))]
        if max(sizes, default=0) > SLOW_BYTES and len(counts) < sum(counts):
            self.note = (
                f"row groups of up to {max(sizes) // 2**20} MiB: in random order about half of one "
                "is decoded for every sample; write smaller ones (docs/data.md)"
            )
        total = sum(counts)
        if min(counts, default=0) < 0 or total > _ROWS_FREE + _ROWS_PER_BYTE * self.size:
            wrong(f"claims {total} rows in {self.size} bytes")
        ends = itertools.accumulate(counts)
        return [
            (group, count, self.size * end // max(1, total))
            for group, (count, end) in enumerate(zip(counts, ends, strict=True))
        ]

    def _blocks(self, reader: Any, group: int) -> Iterator[Block]:
        columns = [name for name in reader.schema_arrow.names if name in self.keys]
        data = guard(lambda: reader.metadata.row_group(group))
        rows = data.num_rows * BLOCK_BYTES // max(1, data.total_byte_size)
        blocks = guard(
            lambda: reader.iter_batches(
                batch_size=max(1, min(rows, BLOCK_ROWS)),
                row_groups=[group],
                columns=columns,
                use_threads=False,
            )
        )
        while (block := guard(lambda: next(blocks, None))) is not None:
            yield validated(block)
