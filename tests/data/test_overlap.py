"""Shared pictures are found whatever was done to their files; others are not; nothing is lost."""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from typer.testing import CliRunner

import datafiles
from oculi.cli import app
from oculi.data.overlap import MAX_LISTED, Overlap, overlap
from oculi.data.sample import ImageRef
from oculi.errors import DataError
from oculi.testbed import playroom

SHARED = Path(
    os.environ.get("OCULI_SHARED") or Path(__file__).resolve().parents[2].parent / "shared"
)


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def scene(number: int) -> Image.Image:
    """Pictures with some structure, no two alike."""
    return playroom.item(2, "train", number, (96, 96)).picture.load()


def photo(seed: int, size: int = 120) -> Image.Image:
    """Smooth noise in colour, as a photograph has, with finer noise on it."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (7, 7, 3), dtype=np.uint8))
    values = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray((values + draw.normal(0, 6, values.shape)).clip(0, 255).astype(np.uint8))


def data_set(folder: Path, **pictures: bytes) -> Path:
    """A row of LLaVA JSON Lines for each picture; its name is the row's id."""
    folder.mkdir(parents=True, exist_ok=True)
    turns = datafiles.said("<image>\nwhat?", "x")
    for name, data in pictures.items():
        (folder / name).write_bytes(data)
    rows = [{"id": name, "image": name, "conversations": turns} for name in pictures]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "rows.jsonl"


def found(result: Overlap) -> list[tuple[str, str, str]]:
    return [(pair.kind, pair.a.id, pair.b.id) for pair in result.pairs()]


def compare(folder: Path, a: dict[str, bytes], b: dict[str, bytes], **options: Any) -> Overlap:
    return overlap(data_set(folder / "a", **a), data_set(folder / "b", **b), **options)


def resized(image: Image.Image, scale: float) -> Image.Image:
    size = round(image.width * scale), round(image.height * scale)
    return image.resize(size, Image.Resampling.LANCZOS)


CHANGES: dict[str, tuple[str, Callable[[Image.Image], bytes]]] = {
    "the same file": ("bytes", encoded),
    "PNG anew": ("pixels", lambda image: encoded(image, compress_level=1)),
    "BMP": ("pixels", lambda image: encoded(image, "BMP")),
    "WebP without loss": ("pixels", lambda image: encoded(image, "WEBP", lossless=True)),
    "with alpha that hides nothing": ("pixels", lambda image: encoded(image.convert("RGBA"))),
    "half": ("near", lambda image: encoded(resized(image, 0.5))),
    "double": ("near", lambda image: encoded(resized(image, 2))),
    "squeezed": ("near", lambda image: encoded(image.resize((64, 100)))),
    "JPEG 95": ("near", lambda image: encoded(image, "JPEG", quality=95)),
    "JPEG 30": ("near", lambda image: encoded(image, "JPEG", quality=30)),
    "WebP 50": ("near", lambda image: encoded(image, "WEBP", quality=50)),
    "GIF": ("near", lambda image: encoded(image, "GIF")),
    "double as JPEG": ("near", lambda image: encoded(resized(image, 2), "JPEG", quality=50)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_copy_is_found_among_others(change: str, tmp_path: Path) -> None:
    kind, copy = CHANGES[change]
    images = [scene(0), scene(1), photo(0), photo(1)]
    ours = {f"{n}": encoded(image) for n, image in enumerate(images)}
    theirs = {f"{n}": copy(images[n]) for n in (1, 2)} | {"other": encoded(photo(9))}
    result = compare(tmp_path, ours, theirs)
    # JPEG, WebP or a palette may by chance leave the pixels of a drawing as they were.
    assert {(a, b) for _, a, b in found(result)} == {("1", "1"), ("2", "2")}
    assert kind in {each for each, _, _ in found(result)}
    assert result.ok and result.shared == 2 and sum(result.counts.values()) == 2


def test_the_same_structure_in_other_colours_or_detail_is_another_picture(tmp_path: Path) -> None:
    def icon(colour: str, hand: tuple[int, int] | None = None) -> bytes:
        image = Image.new("RGB", (72, 72), "white")
        draw = ImageDraw.Draw(image)
        draw.ellipse((4, 4, 68, 68), colour, "black", 3)
        if hand:
            draw.line((36, 36, *hand), "black", 4)
        return encoded(image)

    # Of one luma: 105 or so.
    colours = {name: icon(name) for name in ("#e02020", "#008c1e", "#6a6a6a", "#4a4aff")}
    clocks = {f"{hand}": icon("#eee", hand) for hand in ((36, 12), (54, 18), (60, 36), (36, 60))}
    mark = photo(1)
    ImageDraw.Draw(mark).rectangle((60, 60, 67, 67), "black")
    marks = {"marked": encoded(mark), "unmarked": encoded(photo(1))}
    result = overlap(data_set(tmp_path, **colours, **clocks, **marks))
    assert found(result) == []


def test_grey_transparent_and_turned_pictures_are_what_training_sees(tmp_path: Path) -> None:
    grey = scene(3).convert("L")
    on_white, clear = Image.new("RGB", (64, 64), "white"), Image.new("RGBA", (64, 64), (9, 9, 9, 0))
    for image, colour in ((on_white, (200, 0, 0)), (clear, (200, 0, 0, 255))):
        image.paste(colour, (10, 20, 40, 50))
    turned = scene(4)
    exif = Image.Exif()
    exif[0x0112] = 6
    ours = {"grey": grey, "white": on_white, "turned": turned}
    theirs = {
        "grey": encoded(grey.convert("RGB")),
        "white": encoded(clear),
        "turned": encoded(turned.transpose(Image.Transpose.ROTATE_90), exif=exif),
    }
    result = compare(tmp_path, {name: encoded(image) for name, image in ours.items()}, theirs)
    assert found(result) == [("pixels", name, name) for name in ours]


def test_flat_and_tiny_pictures(tmp_path: Path) -> None:
    def flat(colour: str, *size: int) -> bytes:
        return encoded(Image.new("RGB", size, colour))

    ours = {"white": flat("white", 1, 1), "black": flat("black", 64, 64), "red": flat("red", 9, 1)}
    theirs = {
        "white": flat("white", 500, 3),
        "red": encoded(Image.new("RGB", (30, 30), "red"), "JPEG"),
        "tall": flat("red", 1, 9),
        "blue": flat("blue", 9, 1),
        "grey": flat("#888", 64, 64),
    }
    result = compare(tmp_path, ours, theirs)
    assert found(result) == [
        ("near", "white", "white"),
        ("near", "red", "red"),
        ("near", "red", "tall"),
    ]


def test_faint_pictures_are_told_apart_by_colour(tmp_path: Path) -> None:
    """Their hashes say nothing: a ramp of a few grey levels on each of many backgrounds."""

    def faint(level: int) -> Image.Image:
        ramp = np.arange(64) // 16 + level
        return Image.fromarray(np.broadcast_to(ramp[:, None, None], (64, 64, 3)).astype(np.uint8))

    levels = range(10, 250, 20)
    ours = {f"{level}": encoded(faint(level)) for level in levels}
    theirs = {f"{level}": encoded(resized(faint(level), 0.5), "JPEG") for level in levels}
    result = compare(tmp_path, ours, theirs)
    assert [(a, b) for _, a, b in sorted(found(result))] == [(n, n) for n in sorted(ours)]


def test_many_equal_pictures_are_counted_and_some_listed(tmp_path: Path) -> None:
    white = [encoded(Image.new("RGB", (8, 8), "white"), compress_level=n) for n in (0, 9)]
    many = {f"{n:03}": white[0] for n in range(MAX_LISTED + 50)}
    alone = overlap(data_set(tmp_path / "alone", **many))
    assert alone.counts["bytes"] == 150 * 149 // 2
    assert alone.shared == 150
    pairs = list(alone.pairs())
    assert len(pairs) == sum(min(n, MAX_LISTED) for n in range(150))
    assert all(pair.a.id < pair.b.id for pair in pairs)
    assert f"{150 * 149 // 2 - len(pairs)} pairs are counted but not listed" in "".join(
        alone.notes()
    )
    both = compare(tmp_path, many, {"0": white[0], "9": white[1]})
    assert both.counts == {"bytes": 150, "pixels": 150, "near": 0}
    assert len(list(both.pairs())) == 2 * MAX_LISTED


def test_within_one_set_each_pair_comes_once(tmp_path: Path) -> None:
    image = photo(5)
    result = overlap(
        data_set(
            tmp_path,
            first=encoded(image),
            other=encoded(photo(6)),
            again=encoded(image),
            anew=encoded(image, compress_level=1),
            small=encoded(resized(image, 0.5)),
        )
    )
    assert found(result) == [
        ("bytes", "first", "again"),
        ("pixels", "first", "anew"),
        ("pixels", "again", "anew"),
        ("near", "first", "small"),
        ("near", "again", "small"),
        ("near", "anew", "small"),
    ]
    assert result.counts == {"bytes": 1, "pixels": 2, "near": 3}
    assert result.shared == 4


def test_the_same_set_twice_shares_everything(tmp_path: Path) -> None:
    path = data_set(tmp_path, **{f"{n}": encoded(photo(n)) for n in range(5)})
    result = overlap(path, path)
    assert found(result) == [("bytes", f"{n}", f"{n}") for n in range(5)]
    assert result.shared == 5


def test_tolerance(tmp_path: Path) -> None:
    image = photo(7)
    ours = {"x": encoded(image)}
    theirs = {"same": encoded(image), "near": encoded(image, "JPEG", quality=60)}
    result = compare(tmp_path, ours, theirs, tolerance=0)
    assert found(result) == [("bytes", "x", "same")]
    assert result.counts == {"bytes": 1, "pixels": 0, "near": 0} and result.shared == 1
    assert len(found(compare(tmp_path, ours, theirs, tolerance=2))) == 2
    with pytest.raises(DataError, match="must be 0 to 2"):
        compare(tmp_path, ours, theirs, tolerance=3)


def test_bad_rows_and_pictures_are_named_and_the_rest_is_compared(tmp_path: Path) -> None:
    good = encoded(photo(8))
    path = data_set(tmp_path, good=good, cut=good[: len(good) // 2], empty=b"")
    question = {"id": "question", "image": "good", "conversations": datafiles.said("<image>?")}
    two = {"id": "two", "images": ["cut", "good"]}
    two["conversations"] = datafiles.said("<image><image>", "x")  # type: ignore[assignment]
    text = {"id": "text", "conversations": datafiles.said("hi", "x")}
    with path.open("a") as file:
        for row in (question, two, text, {"id": "keys"}):
            file.write("\n" + json.dumps(row))
    result = overlap(path)
    assert [(bad.id, bad.line) for bad in result.bad_rows] == [
        ("keys", 7),
        ("cut", 2),
        ("empty", 3),
        ("two", 5),
    ]
    assert str(result.bad_rows[1]) == f'{path}:2: row "cut": image "cut" is truncated or damaged'
    assert not result.ok
    assert found(result) == [
        ("bytes", "good", "question"),
        ("bytes", "good", "two"),
        ("bytes", "question", "two"),
    ]
    assert [pair.b.number for pair in result.pairs()] == [1, 2, 2]


def test_sets_without_pictures(tmp_path: Path) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text(json.dumps({"id": "t", "conversations": datafiles.said("hi", "x")}))
    some = data_set(tmp_path / "some", x=encoded(photo(1)))
    for a, b in ((text, some), (some, text), (text, text), (text, None)):
        result = overlap(a, b)
        assert result.ok and found(result) == [] and result.shared == 0
        assert f"note: {text} has no pictures that can be read" in list(result.lines())
    empty = tmp_path / "empty.json"
    empty.write_text("[]")
    result = overlap(empty, some)
    assert [bad.file for bad in result.bad_rows] == [str(empty)]
    result = overlap(tmp_path / "none.json", some)
    assert not result.ok and "No such file" in str(result.bad_rows[0])


@pytest.mark.parametrize("kind", datafiles.TALKS)
def test_every_container_gives_its_pictures(kind: str, tmp_path: Path) -> None:
    plain = datafiles.write_json(tmp_path / "plain")
    other = datafiles.TALKS[kind](tmp_path / "other")
    result = overlap(plain, other)
    assert result.ok and (len(result.a), len(result.b)) == (4, 4)
    assert result.counts["bytes"] == 4
    places = [(pair.a.id, pair.a.number) for pair in result.pairs() if pair.kind == "bytes"]
    assert places == [("one", 1), ("two", 1), ("two", 2), ("again", 1)]


@pytest.mark.parametrize("kind", datafiles.CAPTIONS)
def test_pictures_with_captions(kind: str, tmp_path: Path) -> None:
    path = datafiles.CAPTIONS[kind](tmp_path / "x")
    assert overlap(path, path).shared == 3


def test_a_pattern_with_a_file_that_is_none(tmp_path: Path) -> None:
    data_set(tmp_path, x=encoded(photo(2)), y=encoded(photo(2)))
    (tmp_path / "broken.jsonl").write_bytes(b"\x1f\x8bpacked")
    result = overlap(tmp_path / "*.jsonl")
    assert "compressed" in result.bad_rows[0].reason
    assert found(result) == [("bytes", "x", "y")]


def test_workers_change_nothing(tmp_path: Path) -> None:
    pictures = {f"{n}": encoded(photo(n, 16), compress_level=n % 3) for n in range(160)}
    pictures["150"] = b"broken"
    path = data_set(tmp_path, **pictures, last=pictures["140"])
    alone, several = overlap(path), overlap(path, workers=2)
    assert alone.to_json() == several.to_json()
    assert found(several)[0] == ("bytes", "140", "last")
    assert [bad.id for bad in several.bad_rows] == ["150"]


def command(*words: object) -> Any:
    return CliRunner().invoke(app, ["data", "overlap", *map(str, words)])


def test_the_command(tmp_path: Path) -> None:
    a = data_set(tmp_path / "a", x=encoded(photo(1)), y=encoded(photo(2)))
    b = data_set(tmp_path / "b", z=encoded(photo(2)), w=encoded(photo(3)))
    done = command(a, b, "--out", tmp_path / "pairs.jsonl")
    assert done.exit_code == 0
    assert done.stdout.splitlines() == [
        f'bytes   0.00  {a}:2: row "y", "y"  =  {b}:1: row "z", "z"',
        f"{a}: 2 pictures; {b}: 2 pictures, 1 of them also in the first",
        "pairs: 1 bytes, 0 pixels, 0 near; 0 rows or pictures could not be read",
    ]
    (written,) = map(json.loads, (tmp_path / "pairs.jsonl").read_text().splitlines())
    place = {"file": str(b), "line": 1, "id": "z", "number": 1, "image": "z"}
    assert (written["kind"], written["distance"], written["b"]) == ("bytes", 0, place)
    values = json.loads(command(a, b, "--json").stdout)
    assert values["pairs"] == [written] and values["ok"]
    assert values["b"] == {"name": str(b), "rows": 2, "pictures": 2}
    done = command(a, a, "--show", 1)
    assert "... and 1 more" in done.stdout


def test_the_commands_mistakes_are_one_line(tmp_path: Path) -> None:
    a = data_set(tmp_path, x=encoded(photo(1)))
    for words, said in (
        ((a, "--format", "lava"), 'unknown format "lava"'),
        ((a, "--image-root", ".", "--image-root", "."), "2 image roots for 1 data set\n"),
        ((a, "--tolerance", "-1"), "the tolerance is -1; it must be 0 to 2"),
        ((a, "--out", tmp_path / "no" / "pairs.jsonl"), "No such file or directory"),
    ):
        done = command(*words)
        assert (done.exit_code, done.stderr.count("\n")) == (2, 1) and said in done.stderr
    (tmp_path / "x").write_bytes(b"broken")
    done = command(a)
    assert done.exit_code == 1 and 'row "x"' in done.stdout


def test_roots_and_formats_of_both_sides(tmp_path: Path) -> None:
    pictures = data_set(tmp_path / "pictures", x=encoded(photo(1))).parent
    (tmp_path / "list.jsonl").write_text((pictures / "rows.jsonl").read_text())
    assert command(tmp_path / "list.jsonl", pictures / "rows.jsonl").exit_code == 1
    roots = ("--image-root", pictures)
    assert command(tmp_path / "list.jsonl", tmp_path / "list.jsonl", *roots).exit_code == 0
    two = (*roots, "--image-root", pictures, "--format", "llava", "--format", "vora")
    assert command(tmp_path / "list.jsonl", pictures / "rows.jsonl", *two).exit_code == 0


@pytest.mark.parametrize(
    "step",
    [pytest.param(12, id="some"), pytest.param(1, id="all", marks=pytest.mark.slow)],
)
def test_copies_of_emoji_are_found_and_no_others(step: int, tmp_path: Path) -> None:
    """Many pictures on white that look alike: keycaps, clocks, people in one pose.

    All of them in every change, or some, each in one.
    """
    folder = SHARED / "data" / "emoji"
    if not folder.is_dir():
        pytest.skip(f"the development data is not here: {folder}")
    files = sorted((folder / "images").glob("*.png"))
    everything = data_set(tmp_path / "a", **{file.stem: file.read_bytes() for file in files})
    names = [name for name in CHANGES if name != "the same file"]
    copies = {}
    for number, file in enumerate(files[::step]):
        image = ImageRef(path=file).load()
        for name in names if step == 1 else [names[number % len(names)]]:
            copies[f"{file.stem} {name}"] = CHANGES[name][1](image)
        copies[f"{file.stem} bytes"] = file.read_bytes()
    result = overlap(everything, data_set(tmp_path / "b", **copies))
    pairs = [(pair.kind, pair.a.id, *pair.b.id.split(maxsplit=1)) for pair in result.pairs()]
    asked = Counter(copy.split(maxsplit=1)[1] for copy in copies)
    found = Counter(change for _, a, b, change in pairs if a == b)
    exact = {name for name in names if CHANGES[name][0] == "pixels"} | {"bytes"}
    for change, count in asked.items():
        least = count if change in exact else 0.95 * count
        assert found[change] >= least, f"{change}: {found[change]} of {count}"
    # The same file under two names, and a firefighter who is a man or a person.
    alike = {("1f468", "1f9d1"), ("1f46a", "1f9d1"), ("1f468", "1f46a")}
    others = {tuple(sorted((a.split("_")[0], b.split("_")[0]))) for _, a, b, _ in pairs if a != b}
    assert others <= alike
