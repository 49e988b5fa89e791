"""Playroom: that it is frozen, that its answers are right, and that guessing does not pay."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from make_golden import GOLDEN, world

from oculi.errors import DataError
from oculi.testbed import level1, level2, playroom
from oculi.testbed.playroom import Item
from oculi.testbed.questions import LETTERS, VALUES
from oculi.testbed.vocabulary import COLOURS, HELD_OUT_PAIRS, PAIRS, SHAPES, SIZES

N = 3000
HELD_OUT = set(HELD_OUT_PAIRS)
NAME = re.compile(rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})")


@cache
def items(level: int, split: str) -> tuple[Item, ...]:
    return tuple(playroom.item(level, split, index) for index in range(N))


def replies(level: int, split: str, kind: str) -> list[str]:
    """The answers of a kind's open questions."""
    asked = [one.question for one in items(level, split) if one.question.kind == kind]
    return [question.answer for question in asked if not question.options]


def assert_even(values: Sequence[str], among: Sequence[str]) -> None:
    """Chi-square: four standard deviations above what even chances give is too much."""
    counts = Counter(values)
    assert set(counts) <= set(among)
    expected = len(values) / len(among)
    statistic = sum((counts[value] - expected) ** 2 / expected for value in among)
    free = len(among) - 1
    assert statistic < free + 4 * (2 * free) ** 0.5, counts


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


@pytest.mark.parametrize("level", playroom.LEVELS)
def test_every_image_of_pairs_has_one_and_the_question_is_about_it(level: int) -> None:
    for one in items(level, "pairs"):
        assert HELD_OUT & {item.pair for item in one.scene.objects}
        if one.question.kind in ("relation", "comparison"):
            assert HELD_OUT & set(NAME.findall(one.question.text))


@pytest.mark.parametrize("level", playroom.LEVELS)
def test_shares_are_exact(level: int) -> None:
    for split in playroom.SPLITS:
        counts = Counter(one.question.kind for one in items(level, split))
        assert counts == dict.fromkeys(playroom.kinds(level), N // 6)
        choices = Counter(one.question.kind for one in items(level, split) if one.question.options)
        assert choices == dict.fromkeys(playroom.kinds(level), N // 30)


def test_answers_are_even_within_kinds() -> None:
    for kind, attribute in (
        ("colour", "colour"),
        ("shape", "shape"),
        ("size", "size"),
        ("position", "place"),
    ):
        assert_even(replies(1, "train", kind), VALUES[attribute])
    for level in playroom.LEVELS:
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


def said(one: Item) -> str:
    """The answer as text, multiple choice or not."""
    question = one.question
    if not question.options:
        return question.answer
    return question.options[LETTERS.index(question.answer)]


def truth(one: Item) -> str:
    """Work the answer out from the question's words and the scene alone; counts: see below."""
    scene, kind = one.scene, one.question.kind
    text = one.question.text.split("\n")[0]
    if scene.level == 1 and kind in ("colour", "shape", "size"):
        return scene.objects[0].value(kind)
    if kind == "position":
        return scene.objects[0].place
    named = [next((o for o in scene.objects if o.pair == p), None) for p in NAME.findall(text)]
    if kind == "existence":
        return "yes" if named[0] else "no"
    if kind == "description":
        form = re.search('"(.*)"', text)[1]
        several = re.split("(, a |; | then |, )(?=[aSC])", form) if scene.level == 2 else [form]
        joint = several[1].removesuffix("a ") if len(several) > 1 else ""
        fill = [
            several[0].replace("SIZE", o.size).replace("COLOUR", o.colour)
            .replace("SHAPE", o.shape).replace("PLACE", o.place)
            for o in sorted(scene.objects, key=lambda o: o.centre[0])
        ]  # fmt: skip
        return joint.join(fill)
    if kind == "relation":
        turned = text.startswith(("Seen from", "Compared with"))
        (ax, ay), (bx, by) = (o.centre for o in (named[::-1] if turned else named))
        if abs(ax - bx) > abs(ay - by):
            return "left" if ax < bx else "right"
        return "above" if ay < by else "below"
    if kind == "comparison":
        pick = max if "larger" in text else min
        return pick(named, key=lambda o: o.radius).name
    about = re.search("colour|shape|size", text)[0]
    (words,) = re.findall(rf"\b(?:{'|'.join((*COLOURS, *SHAPES, *SIZES))})\b", text)
    (match,) = [o for o in scene.objects if words in (o.colour, o.shape, o.size)]
    return match.value(about)


@pytest.mark.parametrize("level", playroom.LEVELS)
@pytest.mark.parametrize("split", ["train", "pairs"])
def test_answers_are_true(level: int, split: str) -> None:
    for one in items(level, split):
        if one.question.kind != "count":
            assert said(one) == truth(one), one.question.text


def test_counts_are_true() -> None:
    plural = {name: name for name in (*COLOURS, *SIZES)}
    plural |= {f"{shape}es" if shape == "cross" else f"{shape}s": shape for shape in SHAPES}
    for split in ("train", "pairs"):
        for one in items(2, split):
            if one.question.kind != "count":
                continue
            words = re.findall(r"\w+", one.question.text.split("\n")[0])
            (value,) = [plural[word] for word in words if word in plural]
            real = sum(value in (o.colour, o.shape, o.size) for o in one.scene.objects)
            assert said(one) == str(real), one.question.text


def test_negatives_are_hard() -> None:
    for level in playroom.LEVELS:
        for one in items(level, "train"):
            if one.question.kind == "existence" and said(one) == "no":
                ((colour, shape),) = NAME.findall(one.question.text.split("\n")[0])
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


def test_one_index_is_one_scene_at_every_resolution() -> None:
    small, large = (playroom.scene(2, "train", 5, (side, side)) for side in (84, 168))
    for a, b in zip(small.objects, large.objects, strict=True):
        assert (a.pair, a.size, a.rgb) == (b.pair, b.size, b.rgb)
        assert np.allclose(np.multiply(a.centre, 2), b.centre)
    assert playroom.question(small, 2, "train", 5) == playroom.item(2, "train", 5).question


def test_wrong_requests_say_what_there_is() -> None:
    with pytest.raises(DataError, match="levels are 1, 2"):
        playroom.item(9, "train", 0)
    with pytest.raises(DataError, match='did you mean "train"'):
        playroom.item(1, "trian", 0)
    with pytest.raises(DataError, match="text only"):
        playroom.item(1, "text", 0)
    with pytest.raises(DataError, match="needs 16"):
        playroom.scene(1, "train", 0, (84, 8))
    with pytest.raises(DataError, match="count from 0"):
        playroom.item(1, "train", -1)


def test_text_scenes_have_all_pairs_alike() -> None:
    scenes = [playroom.text_item(1, "text", index)[0] for index in range(N)]
    assert_even([o.name for s in scenes for o in s.objects], [" ".join(pair) for pair in PAIRS])


def test_descriptions_in_words_name_everything() -> None:
    for level in playroom.LEVELS:
        scene = playroom.scene(level, "train", 1)
        worded = {playroom.describe_scene(scene, wording) for wording in range(30)}
        assert len(worded) >= 4
        for text in worded:
            for item in scene.objects:
                for word in (item.colour, item.shape, item.size, item.place):
                    assert word in text


def test_sheet_writes_picture_and_text(tmp_path: Path) -> None:
    picture = playroom.sheet(1, "pairs", 9, tmp_path / "new" / "look")
    assert picture.suffix == ".png" and picture.stat().st_size > 1000
    text = picture.with_suffix(".txt").read_text(encoding="utf-8")
    assert text.startswith("0 [") and text.count("->") == 9
