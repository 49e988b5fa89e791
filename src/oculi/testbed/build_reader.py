"""Trains `testbed:reader`: the testbed's CLIP tower taken on to letters, as the large towers know them.

A high-resolution method is about details that the tower can see and the LLM is not given; a tower that
has never seen a letter would have to learn them through the LLM. So this one sees tiles of 84 x 84
pixels cut out of level 3's pictures of 168 x 168, and such pictures at 84 x 84, and is told which glyph
lies under every second column of a patch; levels 1 and 2 go on as in `build_teacher`. It sees no
question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from oculi.testbed import build_teacher, checkpoint, glyphs, playroom
from oculi.testbed.build_common import Plan, batches, setup
from oculi.testbed.scene import Scene
from oculi.testbed.towers import GRID, PATCH, SIDE, TOWERS, WIDTH

PLAN = Plan(steps=1200, batch=96, muon_lr=0.01, adam_lr=1e-3, warmup=50, save_every=300)
QUICK = Plan(steps=3, batch=8, muon_lr=0.01, adam_lr=1e-3, warmup=1, report_every=1)

CHARACTERS = glyphs.LETTERS + glyphs.DIGITS
STRIP = 2  # pixels that have one label
STRIPS = PATCH // STRIP  # of a patch
LARGE = 2 * SIDE  # side of the pictures that tiles are cut from
TILES, SMALL = (
    0.5,
    0.2,
)  # shares of a batch: tiles, and whole pictures of level 3; the rest is levels 1, 2
OUTSIDE = 0.2  # weight of the strips without a text
SCORED = 300  # pictures that the manifest's scores are from
TOWER = TOWERS["clip"]


@dataclass(frozen=True, slots=True)
class View:
    """84 x 84 pixels of a picture with texts, from (left, top) on."""

    scene: Scene
    left: int = 0
    top: int = 0

    def pixels(self) -> np.ndarray:
        """Return what is seen: (84, 84, 3) uint8."""
        drawn = np.asarray(playroom.draw(self.scene))
        return drawn[self.top : self.top + SIDE, self.left : self.left + SIDE]


def view(split: str, number: int, large: bool) -> View:
    """Return a tile of a large picture, one that a text's middle lies in, or all of a small one."""
    if not large:
        return View(playroom.scene(3, split, number, (SIDE, SIDE)))
    scene = playroom.scene(3, split, number, (LARGE, LARGE))
    word = scene.words[number % len(scene.words)]
    left, top = (SIDE * int(place // SIDE) for place in word.centre)
    return View(scene, left, top)


def boxes(seen: View) -> list[list[tuple[int, int, int, int]]]:
    """Return of each word its glyphs: row of patches, first strip, strip behind the last, character.

    A text belongs to the row of patches that its middle lies in; glyphs that are not wholly in view are
    left out, and all of a word whose row is not.
    """
    found = []
    for word in seen.scene.words:
        row = int((word.centre[1] - seen.top) // PATCH)
        glyphs_of_word = []
        for number, name in enumerate(word.string):
            first = word.box[0] - seen.left + number * (glyphs.WIDTH + glyphs.GAP) * word.height
            last = first + glyphs.WIDTH * word.height
            if 0 <= row < GRID and first >= 0 and last <= SIDE:
                strips = round(first / STRIP), max(round(last / STRIP), round(first / STRIP) + 1)
                glyphs_of_word.append((row, *strips, CHARACTERS.index(name)))
        found.append(glyphs_of_word)
    return found


def strips(seen: View) -> tuple[np.ndarray, np.ndarray]:
    """Return the label of every strip (36, 7), 0 for no glyph, and whether it lies within a text."""
    labels = np.zeros((GRID, GRID * STRIPS), np.int64)
    inside = np.zeros_like(labels, bool)
    for word in boxes(seen):
        for row, first, last, character in word:
            labels[row, first:last] = character + 1
        if word:
            inside[word[0][0], word[0][1] : word[-1][2]] = True
    cut = GRID, GRID, STRIPS
    return labels.reshape(cut).reshape(-1, STRIPS), inside.reshape(cut).reshape(-1, STRIPS)


def pixels(views: Sequence[View]) -> torch.Tensor:
    """Return views as the tower takes them: (B, 3, 84, 84) float32, normalised."""
    return build_teacher.normalised(TOWER, np.stack([one.pixels() for one in views]))


def loss(head: nn.Linear, states: torch.Tensor, views: Sequence[View]) -> torch.Tensor:
    """Return the mean over strips within texts, and a part of that over all others."""
    made = [strips(one) for one in views]
    labels, inside = (torch.from_numpy(np.stack(part)) for part in zip(*made, strict=True))
    logits = head(states).float().unflatten(-1, (STRIPS, -1))
    each = F.cross_entropy(logits.flatten(0, 2), labels.flatten(), reduction="none")
    within = inside.flatten()
    return each[within].mean() + OUTSIDE * each[~within].mean()


@torch.no_grad()
def accuracy(model: Any, head: nn.Linear, large: bool, n: int) -> dict[str, float]:
    """Return per cent of glyphs right, and of words of which every glyph in view is."""
    glyphs_seen = glyphs_right = words = words_right = 0
    for numbers in batches(n, 100):
        views = [view("test", number, large) for number in numbers]
        logits = head(TOWER.states(model, pixels(views))).unflatten(-1, (STRIPS, -1))
        lines = logits.log_softmax(-1).view(len(views), GRID, GRID * STRIPS, -1)
        for one, line in zip(views, lines, strict=True):
            for word in filter(None, boxes(one)):
                right = [
                    int(line[row, first:last, 1:].sum(0).argmax()) == character
                    for row, first, last, character in word
                ]
                glyphs_seen, glyphs_right = glyphs_seen + len(right), glyphs_right + sum(right)
                words, words_right = words + 1, words_right + all(right)
    return {
        "glyphs": round(100 * glyphs_right / glyphs_seen, 2),
        "words": round(100 * words_right / words, 2),
    }


def evaluate(
    model: Any, heads: build_teacher.Heads, head: nn.Linear, n: int
) -> dict[str, dict[str, float]]:
    """Return the scores of texts in tiles and in small pictures, and those of objects."""
    model.eval()
    scores = {
        f"level 3, {name}": accuracy(model, head, large, n)
        for name, large in (("tiles of 168 x 168", True), ("84 x 84", False))
    }
    scores |= build_teacher.evaluate(TOWER, model, heads, n)
    model.train()
    return scores


def build(folder: Path, quick: bool, log: Path | None = None, plan: Plan = PLAN) -> dict[str, Any]:
    """Train the tower, write it to `folder`, return what the manifest says about it."""
    from transformers import CLIPVisionModel

    plan = replace(QUICK, seed=plan.seed) if quick else plan
    setup(plan.seed)
    model = CLIPVisionModel.from_pretrained(checkpoint("clip"), dtype=torch.float32).train()
    heads, head = build_teacher.Heads(WIDTH), nn.Linear(WIDTH, STRIPS * (1 + len(CHARACTERS)))
    large, small = (round(plan.batch * share) for share in (TILES, SMALL))

    def losses_of(step: int) -> dict[str, torch.Tensor]:
        numbers = [step * plan.batch + slot for slot in range(plan.batch)]
        texts, others = numbers[: large + small], numbers[large + small :]
        views = [view("train", number, slot < large) for slot, number in enumerate(texts)]
        scenes = [playroom.scene(1 + (number % 3 > 0), "train", number) for number in others]
        images = torch.cat([pixels(views), build_teacher.pixels(TOWER, scenes)])
        with torch.autocast("cpu", torch.bfloat16):
            states = TOWER.states(model, images)
            found = build_teacher.losses(heads, states[len(views) :], scenes)
            return found | {"text": loss(head, states[: len(views)], views)}

    scored = 20 if quick else SCORED
    return build_teacher.fit(
        "reader", TOWER, model, nn.ModuleList([heads, head]), plan, folder, log, losses_of,
        lambda: evaluate(model, heads, head, scored),
    )  # fmt: skip
