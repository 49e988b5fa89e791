"""The teacher of sounds: a small AIMv2 that is trained on spectrograms and what is in them.

    python examples/audio/teacher.py --out sounds/teacher

It sees pictures of sounds and, for every patch, which of the two sounds is there, its kind and whether
it is low or high; never a question. What a student answers then cannot have come through it. It is a
folder in transformers' layout, as any teacher of oculi.

Shapes: B clips, 36 patches of a clip.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sounds import KINDS, PITCHES, RATE, SAMPLES, SIDE, Clip, clip, picture, waveform
from torch import Tensor, nn

PATCH, WIDTH, BLOCKS = 14, 128, 4
GRID = SIDE // PATCH
STEPS, BATCH, RATE_OF_LEARNING = 300, 48, 2e-3
QUICK_STEPS, QUICK_BATCH = 3, 4
FIRST = 1_000_000  # clips that no data set of the student holds
MEAN = (0.48145466, 0.4578275, 0.40821073)  # as a student normalises where a teacher says nothing
STD = (0.26862954, 0.26130258, 0.27577711)
NOBODY = -100


def new_model() -> Any:
    """An untrained AIMv2: 6 x 6 patches of 14 pixels, width 128, 4 blocks."""
    from transformers import Aimv2VisionConfig, Aimv2VisionModel

    config = Aimv2VisionConfig(
        hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=BLOCKS,
        num_attention_heads=4, image_size=SIDE, patch_size=PATCH, use_head=False, is_native=False,
    )  # fmt: skip
    return Aimv2VisionModel(config)


def targets(made: Clip) -> tuple[list[int], list[int], list[int]]:
    """Of each column of patches: which sound fills most of it, its kind and its pitch."""
    seconds = SAMPLES / RATE / GRID
    which = []
    for column in range(GRID):
        begin, end = column * seconds, (column + 1) * seconds
        filled = [min(end, s.start + s.length) - max(begin, s.start) for s in made.sounds]
        best = int(np.argmax(filled))
        which.append(best if filled[best] > seconds / 2 else NOBODY)
    sounds = [made.sounds[i] if i != NOBODY else None for i in which]
    kinds = [KINDS.index(s.kind) if s else NOBODY for s in sounds]
    pitches = [list(PITCHES).index(s.pitch) if s else NOBODY for s in sounds]
    return which, kinds, pitches


def batch(first: int, count: int) -> tuple[Tensor, list[Tensor]]:
    """Normalised pictures [B, 3, 84, 84] and, for each of three attributes, classes [B, 36]."""
    made = [clip("train", index) for index in range(first, first + count)]
    drawn = np.stack([np.asarray(picture(waveform(one)).convert("RGB")) for one in made])
    images = torch.from_numpy(drawn).permute(0, 3, 1, 2).float() / 255
    images = (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    parts = zip(*(targets(one) for one in made), strict=True)
    return images, [torch.tensor(part).repeat(1, GRID) for part in parts]


def train(steps: int, size: int, seed: int = 0) -> tuple[Any, nn.Linear]:
    """The teacher and its linear head on every patch, which is thrown away."""
    torch.manual_seed(seed)
    model, head = new_model(), nn.Linear(WIDTH, 2 + len(KINDS) + len(PITCHES))
    weights = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(
        weights, lr=RATE_OF_LEARNING, betas=(0.9, 0.98), weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, RATE_OF_LEARNING, total_steps=steps + 1
    )
    began = time.monotonic()
    for step in range(steps):
        images, classes = batch(FIRST + step * size, size)
        loss = _loss(head(model(pixel_values=images).last_hidden_state), classes)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if (step + 1) % 50 == 0:
            spent = time.monotonic() - began
            print(
                f"step {step + 1} of {steps}: loss {loss.item():.3f}, "
                f"{spent / (step + 1) * (steps - step - 1):.0f} s left",
                file=sys.stderr,
            )
    return model.eval(), head


def _split(scores: Tensor) -> tuple[Tensor, ...]:
    return scores.split((2, len(KINDS), len(PITCHES)), -1)


def _loss(scores: Tensor, classes: list[Tensor]) -> Tensor:
    parts = zip(_split(scores), classes, strict=True)
    return torch.stack(
        [F.cross_entropy(s.flatten(0, 1), c.flatten(), ignore_index=NOBODY) for s, c in parts]
    ).sum()


@torch.no_grad()
def accuracy(model: Any, head: nn.Linear, count: int) -> list[float]:
    """Share of the patches, on other clips, whose sound, kind and pitch are told rightly."""
    images, classes = batch(2 * FIRST, count)
    states, found = model(pixel_values=images).last_hidden_state, []
    for scores, wanted in zip(_split(head(states)), classes, strict=True):
        known = wanted != NOBODY
        found.append(float((scores.argmax(-1) == wanted)[known].float().mean()))
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Train the teacher of sounds.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it works")
    given = parser.parse_args()
    steps, size = (QUICK_STEPS, QUICK_BATCH) if given.quick else (STEPS, BATCH)
    model, head = train(steps, size)
    model.save_pretrained(given.out)
    which, kind, pitch = accuracy(model, head, 8 if given.quick else 200)
    print(f"right of patches: place {which:.1%}, kind {kind:.1%}, pitch {pitch:.1%}")


if __name__ == "__main__":
    main()
