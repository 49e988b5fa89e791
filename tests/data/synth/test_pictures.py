"""Pictures to ask about: each once, from every kind of source, sent small and without metadata."""

import base64
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from datafiles import ROWS, png, write_folder, write_parquet
from endpoint import write_pictures
from oculi.data.images import load_image
from oculi.data.sample import ImageRef
from oculi.data.synth.pictures import IMAGE_TOKENS, Pictures, data_url, sent_size, text_tokens
from oculi.errors import DataError


def sizes(pictures: Pictures) -> list[tuple[int, int]]:
    return [item.image.size() for item in pictures]


def test_a_folder_means_its_pictures(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "p", [30, 20])
    write_pictures(folder / "a" / "b", [10])
    write_pictures(folder / ".hidden", [50])
    (folder / "a" / "notes.md").write_text("no picture")
    pictures = Pictures(folder)
    items = list(pictures)
    assert [item.id for item in items] == ["0020", "0030", "a/b/0010"]
    assert sizes(pictures) == [(20, 40), (30, 40), (10, 40)]
    assert pictures.root == folder and {item.question + item.text for item in items} == {""}
    assert [item.id for item in Pictures(folder, limit=2)] == ["0020", "0030"]


def test_captions_beside_pictures_are_not_read(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "f")
    assert all(item.text == "" for item in Pictures(folder)) and len(list(Pictures(folder))) >= 2


def test_every_picture_of_rows_is_there_once(tmp_path: Path) -> None:
    pictures = Pictures(write_parquet(tmp_path, ROWS))
    items = list(pictures)
    assert sizes(pictures)[:3] == [(8, 6), (4, 4), (5, 7)]
    assert [item.id for item in items][:3] == ["one", "two", "two-2"]
    assert items[0].question == "what?" and items[0].text == "a cat"
    assert items[1].question == ""  # two pictures: whose would it be
    assert len({item.key for item in items}) == len(items)


def test_the_same_picture_again_is_counted(tmp_path: Path) -> None:
    write_pictures(tmp_path, [20, 30])
    names = ["0020.png", "./0020.png", "0030.png", "0020.png"]
    rows = [{"image": name, "question": f"{n}?", "answer": "x"} for n, name in enumerate(names)]
    rows.append({"image": "0030.png", "question": 5, "answer": "x"})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    pictures = Pictures(tmp_path / "rows.json")
    for _ in range(2):  # every pass counts anew
        assert [item.question for item in pictures] == ["0?", "2?"]
        assert pictures.repeated == 2 and len(pictures.bad) == 1


def test_a_key_does_not_depend_on_where_the_folder_lies(tmp_path: Path) -> None:
    one = write_pictures(tmp_path / "one", [20, 30])
    two = write_pictures(tmp_path / "two" / "deeper", [20, 30])
    assert [i.key for i in Pictures(one)] == [i.key for i in Pictures(two)]
    file = write_parquet(tmp_path, ROWS)  # bytes inside the rows
    again = write_parquet(tmp_path / "again", ROWS[::-1])
    assert {i.key for i in Pictures(file)} == {i.key for i in Pictures(again)}


def test_rows_need_no_answer_yet(tmp_path: Path) -> None:
    write_pictures(tmp_path, [20])
    row = {"images": ["0020.png"], "messages": [{"role": "user", "content": "<image>\nWhat?"}]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    (item,) = Pictures(tmp_path / "rows.jsonl")
    assert (item.question, item.text) == ("What?", "")


def test_sources_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no pictures and no data files"):
        list(Pictures(tmp_path / "empty"))
    with pytest.raises(DataError, match="No such file"):
        list(Pictures(tmp_path / "none.json"))
    for name in ("a", "b"):
        write_parquet(tmp_path / name, ROWS)
    with pytest.raises(DataError, match="image paths start in"):
        Pictures(tmp_path / "*" / "rows.parquet")
    assert len(list(Pictures(tmp_path / "*" / "rows.parquet", tmp_path))) == 4


def sent(data: bytes, max_side: int) -> Image.Image:
    url = data_url(ImageRef(data=data), max_side)
    head, _, encoded = url.partition(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(encoded)))


def test_a_sent_picture_is_small_upright_and_tells_nothing_else() -> None:
    picture = Image.effect_noise((400, 100), 60).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate
    exif[0x8825] = {1: "N", 2: (48.0, 8.0, 0.0)}  # where it was taken
    file = io.BytesIO()
    picture.save(file, "JPEG", exif=exif)
    assert b"Exif" in file.getvalue()
    seen = sent(file.getvalue(), 200)
    assert seen.size == (50, 200) and seen.format == "JPEG"
    assert not seen.getexif() and "exif" not in seen.info


def test_a_small_picture_keeps_its_size_and_colours() -> None:
    seen = sent(png(31, 7, "blue"), 1024)
    assert seen.size == (31, 7)
    red, green, blue = seen.convert("RGB").getpixel((3, 3))  # type: ignore[misc]
    assert blue > 240 and red < 15 and green < 15
    assert sent_size((10_000, 3), 100) == (100, 1)


def test_what_cannot_be_read_is_an_error_of_the_data() -> None:
    with pytest.raises(DataError, match="truncated or damaged"):
        data_url(ImageRef(data=png()[:40]), 100)
    assert load_image(ImageRef(data=png())).size == (8, 6)


@pytest.mark.parametrize(
    ("size", "tiles"),
    [((1024, 1024), 765), ((2048, 4096), 1105), ((512, 512), 255), ((1, 1), 255)],
)
def test_tokens_as_gpt_4o_counts_them(size: tuple[int, int], tiles: int) -> None:
    """The first two are the examples of the provider's page; 85 + 170 a tile of 512."""
    assert IMAGE_TOKENS["tiles"](*size) == tiles


def test_tokens_as_qwen2_vl_counts_them() -> None:
    """Section 2.1 of its paper: 224 x 224 pixels are 66 tokens."""
    assert IMAGE_TOKENS["patches"](224, 224) == 66
    assert text_tokens("x" * 400) == 108
