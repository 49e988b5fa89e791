"""Rows as they are written: none is longer than what is read back, and the picture at fault is named."""

from pathlib import Path

import pytest

from datafiles import png
from oculi.data import rowfile
from oculi.data.container import MAX_ROW_BYTES
from oculi.data.formats import FileSource
from oculi.data.images import ImageError
from oculi.data.rowfile import MAX_EMBEDDED, check_pictures, picture_values, to_row, write_rows
from oculi.data.sample import ImageRef, ImageSlot, Message, Sample


def picture(length: int, name: str = "x.png") -> ImageRef:
    return ImageRef(data=png().ljust(length, b"\0"), name=name)


def test_the_largest_picture_that_may_stand_in_a_row_can_be_read_back(tmp_path: Path) -> None:
    image = picture(MAX_EMBEDDED)
    talk = (Message("user", (ImageSlot(0),)), Message("assistant", ("é" * 2**18,)))
    write_rows(tmp_path / "rows.jsonl", [to_row(Sample("1", talk, (image,)))])
    assert MAX_ROW_BYTES * 0.95 < (tmp_path / "rows.jsonl").stat().st_size < MAX_ROW_BYTES
    (made,) = FileSource(tmp_path / "rows.jsonl")
    assert isinstance(made.images[0], ImageRef) and made.images[0].data == image.data


@pytest.mark.parametrize("use", [check_pictures, picture_values])
def test_what_is_too_large_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: object
) -> None:
    assert callable(use)
    monkeypatch.setattr(rowfile, "MAX_EMBEDDED", 300)
    use([picture(150), picture(150)])
    with pytest.raises(ImageError, match=r'image "x.png" is too large to stand in a row, .* 23 M'):
        use([picture(301)])
    with pytest.raises(ImageError, match=r'image "second.png" is too large'):  # they share the room
        use([picture(150), picture(151, "second.png")])
    (tmp_path / "a.png").write_bytes(png().ljust(1000, b"\0"))
    use([ImageRef(path=Path("a.png"), root=tmp_path)])  # a file is only named
