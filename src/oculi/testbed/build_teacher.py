"""Trains the testbed's vision towers, the teachers that the vision-in-the-LLM recipes distil from.

They see pictures and what is in them (per patch: shape, colour, size and centre of the object that
covers it; for the whole picture: place and counts), never a question: what a student answers then
cannot have come through a teacher's knowledge of the questions. Held-out pairs never appear.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from oculi.testbed import playroom
from oculi.testbed.build_common import Optimisers, Plan, Progress, batches, save, setup
from oculi.testbed.scene import Scene
from oculi.testbed.towers import GRID, PATCH, TOWERS, WIDTH, Tower
from oculi.testbed.vocabulary import COLOURS, PLACES, SHAPES, SIZES

PLAN = Plan(
    steps=2800, horizon=3600, batch=96, muon_lr=0.02, adam_lr=2e-3, warmup=100, save_every=400
)
QUICK = Plan(steps=3, batch=8, muon_lr=0.02, adam_lr=2e-3, warmup=1, report_every=1)

SCORED = 200  # pictures of each level and split that the manifest's scores are from
LEAST = 0.08  # part of a patch that an object's square must cover to be the patch's object
LEVEL_1 = 0.25  # share of level 1 pictures
_COLOURS = tuple(COLOURS)

# columns of the patch targets: is there an object, then its shape, colour, size
OBJECT, SHAPE, COLOUR, SIZE = range(4)


class Heads(nn.Module):
    """The attribute heads, linear on the tower's output, thrown away after training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patch = nn.Linear(width, 2 + len(SHAPES) + len(COLOURS) + len(SIZES) + 2)
        self.whole = nn.Linear(width, len(PLACES) + 5 + len(SHAPES) + len(COLOURS))

    def forward(self, states: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], ...]:
        """Split both heads: states (B, 36, width) -> per patch (5 tensors), whole (4 tensors)."""
        patch = self.patch(states).float()
        whole = self.whole(states.mean(1)).float()
        parts = 2, len(SHAPES), len(COLOURS), len(SIZES), 2
        wholes = len(PLACES), 5, len(SHAPES), len(COLOURS)
        return patch.split(parts, -1), whole.split(wholes, -1)


def coverage(scene: Scene) -> np.ndarray:
    """Return how much of each patch each object's square covers: (objects, 36), 0 to 1."""
    edges = np.arange(GRID) * PATCH
    left, top, right, bottom = np.array([item.box for item in scene.objects]).T[..., None]
    spans = [
        np.minimum(last, edges + PATCH) - np.maximum(first, edges)
        for first, last in ((left, right), (top, bottom))
    ]
    across, down = (np.clip(span, 0, PATCH) / PATCH for span in spans)
    return (down[:, :, None] * across[:, None, :]).reshape(len(scene.objects), -1)


def targets(scene: Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return patch classes (36, 4), centre offsets in patches (36, 2), whole-picture (16,).

    The whole-picture targets are the place (level 1, otherwise -100), the number of objects, and
    how many there are of each shape and colour.
    """
    cover = coverage(scene)
    owner = cover.argmax(0)
    traits = np.array(
        [
            (1, SHAPES.index(o.shape), _COLOURS.index(o.colour), SIZES.index(o.size))
            for o in scene.objects
        ]
    )
    classes = traits[owner]
    classes[cover.max(0) < LEAST] = (0, -100, -100, -100)
    middle = (np.arange(GRID) + 0.5) * PATCH
    grid = np.stack(np.meshgrid(middle, middle), -1).reshape(-1, 2)
    offsets = (np.array([o.centre for o in scene.objects])[owner] - grid) / PATCH
    whole = np.zeros(2 + len(SHAPES) + len(COLOURS), np.int64)
    whole[0] = PLACES.index(scene.objects[0].place) if scene.level == 1 else -100
    whole[1] = len(scene.objects)
    for item in scene.objects:
        whole[2 + SHAPES.index(item.shape)] += 1
        whole[2 + len(SHAPES) + _COLOURS.index(item.colour)] += 1
    return classes, offsets.astype(np.float32), whole


def pixels(tower: Tower, scenes: list[Scene]) -> torch.Tensor:
    """Return the drawn scenes as the tower takes them: (B, 3, 84, 84) float32, normalised."""
    return normalised(tower, np.stack([np.asarray(playroom.draw(scene)) for scene in scenes]))


def normalised(tower: Tower, drawn: np.ndarray) -> torch.Tensor:
    """Return pictures (B, 84, 84, 3) uint8 as the tower takes them: (B, 3, 84, 84) float32."""
    images = torch.from_numpy(drawn).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (tower.mean, tower.std))
    return (images - mean) / std


def losses(heads: Heads, states: torch.Tensor, scenes: list[Scene]) -> dict[str, torch.Tensor]:
    """Return the named losses of a batch; `states` is the tower's output (B, 36, width)."""
    made = [targets(scene) for scene in scenes]
    classes, offsets, whole = (torch.from_numpy(np.stack(part)) for part in zip(*made, strict=True))
    patch, pooled = heads(states)
    inside = classes[..., OBJECT] == 1
    found = {"object": F.cross_entropy(patch[0].flatten(0, 1), classes[..., OBJECT].flatten())}
    for name, column in (("shape", SHAPE), ("colour", COLOUR), ("size", SIZE)):
        found[name] = F.cross_entropy(patch[column][inside], classes[..., column][inside])
    found["offset"] = F.smooth_l1_loss(patch[4][inside], offsets[inside])
    places = whole[:, 0]
    if (places >= 0).any():
        found["place"] = 0.3 * F.cross_entropy(pooled[0], places, ignore_index=-100)
    found["number"] = 0.2 * F.cross_entropy(pooled[1], whole[:, 1])
    counts = torch.cat(pooled[2:], -1)
    found["counts"] = 0.5 * F.mse_loss(counts, whole[:, 2:].float())
    return found


@torch.no_grad()
def accuracy(
    tower: Tower, model: Any, heads: Heads, level: int, split: str, n: int
) -> dict[str, float]:
    """Return per cent right over the objects of `n` pictures, and pictures with all right.

    An object is judged by the patch of which it covers most, as a probe on the tower would be.
    """
    right = {"shape": 0, "colour": 0, "size": 0}
    objects = exact = 0
    for numbers in batches(n, 100):
        scenes = [playroom.scene(level, split, number) for number in numbers]
        patch, _ = heads(tower.states(model, pixels(tower, scenes)))
        guesses = {"shape": patch[SHAPE], "colour": patch[COLOUR], "size": patch[SIZE]}
        for row, scene in enumerate(scenes):
            every = True
            for item, cover in zip(scene.objects, coverage(scene), strict=True):
                place = int(cover.argmax())
                for name, names in (("shape", SHAPES), ("colour", _COLOURS), ("size", SIZES)):
                    hit = names[int(guesses[name][row, place].argmax())] == item.value(name)
                    right[name] += hit
                    every = every and hit
                objects += 1
            exact += every
    scores = {name: round(100 * count / objects, 2) for name, count in right.items()}
    return {**scores, "exact pictures": round(100 * exact / n, 2)}


def evaluate(tower: Tower, model: Any, heads: Heads, n: int) -> dict[str, dict[str, float]]:
    """Return `accuracy` on held-out seeds and held-out pairs of both levels."""
    model.eval()
    scores = {
        f"level {level} {split}": accuracy(tower, model, heads, level, split, n)
        for level in (1, 2)
        for split in ("test", "pairs")
    }
    model.train()
    return scores


def fit(
    name: str,
    tower: Tower,
    model: Any,
    heads: nn.Module,
    plan: Plan,
    folder: Path,
    log: Path | None,
    losses_of: Callable[[int], dict[str, torch.Tensor]],
    scores_of: Callable[[], dict[str, dict[str, float]]],
) -> dict[str, Any]:
    """Train a tower and its heads, write the tower to `folder`, return what the manifest says of it.

    `losses_of` a step are added up; `scores_of` the model are told whenever it is saved.
    """
    progress, optimisers = Progress(name, plan, log), Optimisers.of_layers(model, heads, plan)
    parameters = sum(weight.numel() for weight in model.parameters())
    progress.say(f"{parameters / 1e6:.2f}M parameters, {plan.steps} steps of {plan.batch} pictures")
    for step in range(plan.steps):
        found = losses_of(step)
        torch.stack(list(found.values())).sum().backward()
        optimisers.step(step)
        progress.add(step, {name: value.item() for name, value in found.items()})
        if plan.save_every and (step + 1) % plan.save_every == 0 and step + 1 < plan.steps:
            progress.say(str(scores_of()))
            save(model, folder)
            tower.processor().save_pretrained(folder)
    save(model, folder)
    tower.processor().save_pretrained(folder)
    model.to(torch.bfloat16).to(torch.float32)  # score what is shipped
    scores = scores_of()
    progress.say(str(scores))
    return {
        "parameters": parameters,
        "steps": plan.steps,
        "samples": plan.steps * plan.batch,
        "seed": plan.seed,
        "metrics": scores,
    }


def build(
    name: str, folder: Path, quick: bool, log: Path | None = None, plan: Plan = PLAN
) -> dict[str, Any]:
    """Train the tower `name`, write it to `folder`, return what the manifest says about it."""
    plan = replace(QUICK, seed=plan.seed) if quick else plan
    setup(plan.seed)
    tower = TOWERS[name]
    model, heads = tower.new(), Heads(WIDTH)
    first = round(plan.batch * LEVEL_1)

    def losses_of(step: int) -> dict[str, torch.Tensor]:
        scenes = [
            playroom.scene(1 if slot < first else 2, "train", step * plan.batch + slot)
            for slot in range(plan.batch)
        ]
        with torch.autocast("cpu", torch.bfloat16):
            return losses(heads, tower.states(model, pixels(tower, scenes)), scenes)

    scored = 20 if quick else SCORED
    return fit(
        name, tower, model, heads, plan, folder, log, losses_of,
        lambda: evaluate(tower, model, heads, scored),
    )  # fmt: skip


build_aimv2, build_clip, build_siglip2 = (
    partial(build, name) for name in ("aimv2", "clip", "siglip2")
)
