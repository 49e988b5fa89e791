"""Playroom: that it is frozen, that its answers are right, and that guessing does not pay."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import replace
from importlib.metadata import version
from itertools import combinations
from pathlib import Path

import checks
import numpy as np
import pytest
from checks import HELD_OUT, NAME, Item, asked, assert_even, said, truth_about_objects
from make_golden import GOLDEN, world

from oculi.data.source import PlayroomRows
from oculi.errors import DataError
from oculi.eval.tasks import open_task
from oculi.recipe import PlayroomSource
from oculi.testbed import level1, level2, playroom
from oculi.testbed.questions import LETTERS, VALUES
from oculi.testbed.vocabulary import COLOURS, PAIRS, SHAPES, SIZES

OBJECTS = (1, 2)  # levels of objects alone; what is said here of all is said of 3 to 5, too
WITH_PAIRS = tuple(level for level in playroom.LEVELS if "pairs" in playroom.splits(level))
CASES = [(level, split) for level in playroom.LEVELS for split in playroom.splits(level)]


def items(level: int, split: str) -> tuple[Item, ...]:
    return checks.items(level, split, 3000 if level in OBJECTS else 1500)


def replies(level: int, split: str, kind: str) -> list[str]:
    return checks.replies(items(level, split), kind)


def test_world_is_frozen() -> None:
    frozen, now = json.loads(GOLDEN.read_text(encoding="utf-8")), world()
    for part in ("texts", "turns", "first"):
        assert now[part] == frozen[part]
    same = version("pillow") == frozen["pillow"]
    for name, picture in frozen["pictures"].items():
        off = np.subtract(now["pictures"][name]["mean"], picture["mean"])
        assert np.abs(off).max() <= 3, name
        assert not same or now["pictures"][name]["sha256"] == picture["sha256"], name


def test_held_out_pairs_are_spread() -> None:
    assert len(PAIRS) == 48 and len(HELD_OUT) == 6
    assert len({colour for colour, _ in HELD_OUT}) == len({shape for _, shape in HELD_OUT}) == 6


@pytest.mark.parametrize("level", playroom.LEVELS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_held_out_pairs_are_never_seen_or_named(level: int, split: str) -> None:
    for one in items(level, split):
        assert not HELD_OUT & {item.pair for item in one.scene.objects}
        texts = "\n".join((one.question.text, one.question.answer, *one.question.options))
        assert not HELD_OUT & set(NAME.findall(texts))


@pytest.mark.parametrize("level", WITH_PAIRS)
def test_every_image_of_pairs_has_one_and_the_question_is_about_it(level: int) -> None:
    for one in items(level, "pairs"):
        assert HELD_OUT & {item.pair for item in one.scene.objects}
        if one.question.kind in ("relation", "comparison"):
            assert HELD_OUT & set(NAME.findall(one.question.text))


@pytest.mark.parametrize(("level", "split"), CASES)
def test_shares_are_exact(level: int, split: str) -> None:
    some, kinds = items(level, split), playroom.kinds(level, split)
    counts = Counter(one.question.kind for one in some)
    assert counts == dict.fromkeys(kinds, len(some) // len(kinds))
    choices = Counter(one.question.kind for one in some if one.question.options)
    assert choices == dict.fromkeys(kinds, len(some) // len(kinds) // 5)


def test_answers_are_even_within_kinds() -> None:
    for kind, attribute in (
        ("colour", "colour"),
        ("shape", "shape"),
        ("size", "size"),
        ("position", "place"),
    ):
        assert_even(replies(1, "train", kind), VALUES[attribute])
    for level in OBJECTS:
        assert_even(replies(level, "train", "existence"), ["yes", "no"])
        assert_even(replies(level, "pairs", "existence"), ["yes", "no"])
    assert_even(replies(2, "train", "count"), list("01234"))
    assert_even(replies(2, "train", "relation"), ["left", "right", "above", "below"])
    for values in (tuple(COLOURS), SHAPES, SIZES):
        assert_even([a for a in replies(2, "train", "attribute") if a in values], values)


@pytest.mark.parametrize("level", playroom.LEVELS)
def test_letters_are_even_and_options_hold_the_answer_once(level: int) -> None:
    letters = defaultdict(list)
    for one in items(level, "train"):
        question = one.question
        if not question.options:
            continue
        assert len(set(question.options)) == len(question.options) >= 2
        assert question.answer in LETTERS[: len(question.options)]
        assert all(option in question.text for option in question.options)
        letters[len(question.options)].append(question.answer)
    for n, given in letters.items():
        if len(given) > 40:
            assert_even(given, LETTERS[:n])


def test_comparison_names_the_answer_first_half_of_the_time() -> None:
    first = []
    for one in items(2, "train"):
        if one.question.kind == "comparison" and not one.question.options:
            names = [" ".join(pair) for pair in NAME.findall(one.question.text)]
            first.append("first" if names[0] == one.question.answer else "second")
    assert_even(first, ["first", "second"])


def truth(one: Item) -> str:
    if one.question.kind == "description":
        return checks.described(asked(one).split('"')[1], one.scene.objects)
    return truth_about_objects(one)


@pytest.mark.parametrize("level", OBJECTS)
@pytest.mark.parametrize("split", ["train", "pairs"])
def test_answers_are_true(level: int, split: str) -> None:
    for one in items(level, split):
        assert said(one) == truth(one), one.question.text


def test_negatives_are_hard() -> None:
    for level in OBJECTS:
        for one in items(level, "train"):
            if one.question.kind == "existence" and said(one) == "no":
                ((colour, shape),) = NAME.findall(asked(one))
                assert any((o.colour == colour) != (o.shape == shape) for o in one.scene.objects)


@pytest.mark.parametrize("size", [(84, 84), (200, 60), (50, 170), (448, 448)])
def test_objects_lie_inside_within_their_sizes_and_apart(size: tuple[int, int]) -> None:
    for level, bands in ((1, level1.BANDS), (2, level2.BANDS)):
        for index in range(300):
            scene = playroom.scene(level, "train", index, size)
            assert len(scene.objects) == 1 if level == 1 else 2 <= len(scene.objects) <= 4
            for item in scene.objects:
                low, high = bands[item.size]
                assert low <= 2 * item.radius / min(size) <= high
                left, top, right, bottom = item.box
                assert left >= -1e-6 and top >= -1e-6
                assert right <= size[0] + 1e-6 and bottom <= size[1] + 1e-6
            for a, b in combinations(scene.objects, 2):
                apart = [abs(p - q) for p, q in zip(a.centre, b.centre, strict=True)]
                assert max(apart) > a.radius + b.radius
                assert apart[0] >= level2.ACROSS * min(size) - 1e-6


@pytest.mark.parametrize("size", [(84, 84), (16, 16), (17, 301), (640, 48)])
def test_any_size_draws(size: tuple[int, int]) -> None:
    for level in playroom.LEVELS:
        for index in range(12):
            picture = playroom.item(level, "test", index, size).picture
            image = picture.load()
            assert image.size == picture.size() == size and image.mode == "RGB"


def test_pictures_show_the_colours_of_their_objects() -> None:
    for index in range(60):
        one = playroom.item(2, "train", index)
        pixels = np.asarray(one.picture.load()).astype(int)
        for item in one.scene.objects:
            if item.shape != "ring":  # a ring's middle is background
                x, y = (int(c) for c in item.centre)
                assert np.abs(pixels[y, x] - item.rgb).max() <= 2


@pytest.mark.parametrize("level", playroom.LEVELS)
def test_one_index_is_one_scene_at_every_resolution(level: int) -> None:
    for index in range(60):
        (small, large) = (playroom.scene(level, "train", index, (side, side)) for side in (84, 168))
        for a, b in zip(small.objects, large.objects, strict=True):
            assert (a.pair, a.size, a.rgb) == (b.pair, b.size, b.rgb)
            assert np.allclose(np.multiply(a.centre, 2), b.centre)
        for a, b in zip(small.words, large.words, strict=True):
            assert (a.string, a.place, a.rgb) == (b.string, b.place, b.rgb)
            assert np.allclose(np.multiply([*a.centre, a.height], 2), [*b.centre, b.height])
        for a, b in zip(small.marks, large.marks, strict=True):
            assert np.allclose(np.multiply(a.points, 2), b.points) and a.rgb == b.rgb
        assert (small.chart, small.texture) == (large.chart, large.texture)
        one = playroom.item(level, "train", index)
        assert playroom.question(small, level, "train", index) == one.question


@pytest.mark.parametrize("level", playroom.LEVELS)
def test_a_picture_halved_is_the_picture_at_half_the_size(level: int) -> None:
    """Mean difference in levels of 0 to 255; the grain of level 5 is per pixel, so is left out."""
    for index in range(8):
        small, large = (
            playroom.draw(replace_grain(playroom.scene(level, "test", index, (side, side))))
            for side in (112, 224)
        )
        assert np.abs(np.subtract(large.reduce(2), small, dtype=float)).mean() < 2


def replace_grain(scene: playroom.Scene) -> playroom.Scene:
    return replace(scene, texture=scene.texture and replace(scene.texture, grain=0))


def test_without_a_size_a_picture_has_its_levels_own() -> None:
    for level, side in ((1, 84), (2, 84), (3, 112), (4, 112), (5, 168)):
        one = playroom.item(level, "test", 3)
        bare = playroom.Picture(level, "test", 3)
        assert playroom.default_size(level) == bare.size() == (side, side)
        assert (one.scene.width, one.scene.height) == one.picture.load().size == (side, side)
        assert one.picture == bare and playroom.scene(level, "test", 3) == one.scene
        rows = PlayroomRows(PlayroomSource(level=level, samples=4, split="test"))
        assert rows[3].images == (bare,)
    assert playroom.Picture(5, "test", 3, 84, 42).size() == (84, 42)


@pytest.mark.parametrize("level", playroom.LEVELS)
def test_splits_show_different_pictures(level: int) -> None:
    shown = [
        {(one.scene.objects, one.scene.words, one.scene.chart) for one in items(level, split)[:500]}
        for split in playroom.splits(level)
    ]
    assert all(len(scenes) == 500 for scenes in shown)
    assert not any(a & b for a, b in combinations(shown, 2))


def test_wrong_requests_say_what_there_is() -> None:
    with pytest.raises(DataError, match="levels are 1, 2, 3, 4, 5"):
        playroom.item(9, "train", 0)
    with pytest.raises(DataError, match='did you mean "train"'):
        playroom.item(1, "trian", 0)
    with pytest.raises(DataError, match="text only"):
        playroom.item(1, "text", 0)
    with pytest.raises(DataError, match="needs 16"):
        playroom.scene(1, "train", 0, (84, 8))
    with pytest.raises(DataError, match="count from 0"):
        playroom.item(1, "train", -1)


@pytest.mark.parametrize("level", [3, 4])
def test_levels_without_pairs_say_so(level: int) -> None:
    assert playroom.splits(level) == ("train", "test") and playroom.kinds(level, "pairs") == ()
    told = f"level {level} has no colour-shape pairs .* levels 1, 2, 5"
    with pytest.raises(DataError, match=told):
        playroom.item(level, "pairs", 0)
    with pytest.raises(DataError, match=told):
        PlayroomRows(PlayroomSource(level=level, samples=1, split="pairs"))
    with pytest.raises(DataError, match=f'no task "playroom:{level}:pairs"'):
        open_task(f"playroom:{level}:pairs")


@pytest.mark.parametrize("level", playroom.LEVELS)
def test_each_level_is_a_task(level: int) -> None:
    (question,) = open_task(f"playroom:{level}").load(1)
    assert question.text == playroom.item(level, "test", 0).question.text


def test_text_scenes_have_all_pairs_alike() -> None:
    scenes = [playroom.text_item(1, "text", index)[0] for index in range(3000)]
    assert_even([o.name for s in scenes for o in s.objects], [" ".join(pair) for pair in PAIRS])


@pytest.mark.parametrize("level", playroom.LEVELS)
def test_descriptions_in_words_name_everything(level: int) -> None:
    for index in range(10):
        scene, _ = playroom.text_item(level, "text", index)
        worded = {playroom.describe_scene(scene, wording) for wording in range(30)}
        assert len(worded) >= 5
        for text in worded:
            for item in scene.objects:
                for word in (item.colour, item.shape, item.size, item.place):
                    assert word in text
            for word in scene.words if scene.chart is None else ():
                assert word.string in text and word.place in text.lower()
            if scene.chart:
                for label, value in zip(scene.chart.labels, scene.chart.values, strict=True):
                    assert label in text and str(value) in text


def test_sheet_writes_picture_and_text(tmp_path: Path) -> None:
    picture = playroom.sheet(1, "pairs", 9, tmp_path / "new" / "look")
    assert picture.suffix == ".png" and picture.stat().st_size > 1000
    text = picture.with_suffix(".txt").read_text(encoding="utf-8")
    assert text.startswith("0 [") and text.count("->") == 9
    for place in (".", "/"):
        with pytest.raises(DataError, match="is a folder; name a PNG file in it"):
            playroom.save(playroom.item(1, "test", 0).picture.load(), Path(place))
