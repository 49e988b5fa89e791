"""What the tower that reads is told about its pictures, and that it is built."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from oculi.testbed import build_reader, checkpoint, playroom
from oculi.testbed.build_reader import CHARACTERS, LARGE, SIDE, STRIP, View, boxes, strips, view
from oculi.testbed.towers import GRID, PATCH, WIDTH


def lines(seen: View) -> list[str]:
    """The characters that the labels of each row of patches spell, from left to right."""
    labels = strips(seen)[0].reshape(GRID, -1)
    names = " " + CHARACTERS
    return ["".join(names[label] for label, _ in groupby(row)) for row in labels]


def once(text: str) -> str:
    """Every run of one character as a single one."""
    return "".join(name for name, _ in groupby(text))


@pytest.mark.parametrize("large", [True, False])
def test_labels_spell_the_words_in_view(large: bool) -> None:
    read = 0
    for number in range(40):
        seen = view("train", number, large)
        for word in seen.scene.words:
            left, _, right, _ = word.box
            if left < seen.left or right > seen.left + SIDE:
                continue  # cut by the border
            if not seen.top <= word.centre[1] < seen.top + SIDE:
                continue
            row = int((word.centre[1] - seen.top) // PATCH)
            spelt = lines(seen)[row]
            # Two letters of a kind side by side have no strip between them where glyphs are small.
            assert once(word.string) in once(spelt.replace(" ", "")), (number, word, spelt)
            read += 1
    assert read > 20


def test_a_view_of_a_large_picture_holds_the_middle_of_a_text() -> None:
    for number in range(30):
        seen = view("train", number, large=True)
        assert (seen.scene.width, seen.scene.height) == (LARGE, LARGE)
        assert (seen.left % SIDE, seen.top % SIDE) == (0, 0)
        assert any(
            seen.left <= word.centre[0] < seen.left + SIDE
            and seen.top <= word.centre[1] < seen.top + SIDE
            for word in seen.scene.words
        )
        assert seen.pixels().shape == (SIDE, SIDE, 3)


def test_labels_lie_where_the_glyphs_are_drawn() -> None:
    for number in range(10):
        seen = view("train", number, large=True)
        drawn = np.abs(seen.pixels().astype(int) - seen.scene.background).sum(-1)
        for row, first, last, _ in (glyph for word in boxes(seen) for glyph in word):
            there = drawn[row * PATCH : (row + 1) * PATCH, first * STRIP : last * STRIP]
            assert there.max() > 60


def test_glyphs_that_the_border_cuts_are_not_asked_for() -> None:
    scene = playroom.scene(3, "train", 0, (LARGE, LARGE))
    word = scene.words[0]
    width = (word.box[2] - word.box[0]) / len(word.string)
    seen = View(scene, round(word.box[0] + 1.5 * width), 84 * int(word.centre[1] // 84))
    (glyphs,) = [found for found, its in zip(boxes(seen), scene.words, strict=True) if its is word]
    assert "".join(CHARACTERS[character] for *_, character in glyphs) == word.string[2:]
    elsewhere = View(scene, seen.left, 84 - seen.top)
    (none,) = [
        found for found, its in zip(boxes(elsewhere), scene.words, strict=True) if its is word
    ]
    assert none == []


def test_a_strip_within_a_text_weighs_more_than_one_without() -> None:
    seen = view("train", 3, large=True)
    labels, inside = strips(seen)
    head = nn.Linear(WIDTH, labels.shape[1] * (1 + len(CHARACTERS)))
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()
    states = torch.zeros(1, GRID * GRID, WIDTH)
    uniform = float(np.log(1 + len(CHARACTERS)))
    assert 0 < inside.sum() < inside.size
    found = build_reader.loss(head, states, [seen]).item()
    assert found == pytest.approx(uniform * (1 + build_reader.OUTSIDE), rel=1e-5)


def test_a_quick_build_is_a_tower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModel

    monkeypatch.setattr(build_reader, "setup", torch.manual_seed)  # one thread, as other tests
    facts = build_reader.build(tmp_path / "reader", quick=True)
    assert set(facts["metrics"]) == {
        "level 3, tiles of 168 x 168", "level 3, 84 x 84",
        *(f"level {level} {split}" for level in (1, 2) for split in ("test", "pairs")),
    }  # fmt: skip
    assert set(facts["metrics"]["level 3, 84 x 84"]) == {"glyphs", "words"}
    model = AutoModel.from_pretrained(tmp_path / "reader")
    assert model.config.model_type == "clip_vision_model"
    assert facts["parameters"] == sum(weight.numel() for weight in model.parameters())


def test_the_shipped_tower_s_states_tell_letters_and_clip_s_do_not() -> None:
    """A probe fitted on the glyph under the middle of a patch, in tiles that are held out."""
    from transformers import AutoModel

    views = [view("test", number, large=True) for number in range(400)]
    under = np.stack([strips(seen)[0][:, PATCH // STRIP // 2] for seen in views])
    split = int(0.75 * len(views))
    right = {}
    for name in ("reader", "clip"):
        model = AutoModel.from_pretrained(checkpoint(name), dtype=torch.float32).eval()
        with torch.no_grad():
            states = build_reader.TOWER.states(model, build_reader.pixels(views)).numpy()
        known, asked = under[:split] > 0, under[split:] > 0
        seen, labels = states[:split][known], under[:split][known]
        ridge = seen.T @ seen + 10 * np.eye(WIDTH)
        weights = np.linalg.solve(ridge, seen.T @ np.eye(1 + len(CHARACTERS))[labels])
        guesses = (states[split:][asked] @ weights).argmax(1)
        right[name] = float((guesses == under[split:][asked]).mean())
    assert right["reader"] > 0.7 > 0.35 > right["clip"], right
