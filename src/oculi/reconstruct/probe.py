"""Restores pictures from what a frozen checkpoint's LLM is given of them.

A checkpoint that was never trained to be restored has no Epigone, and one that was has one that fits it
alone. So each gets a new one: Epigone and denoiser are trained for as many steps on the same pictures
with the same noise, the vision part is not touched, and what differs is what it gives.

Legend: N pictures, C x h x w of a latent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from oculi.model import OculiForConditionalGeneration, OculiProcessor
from oculi.model.taps_oculi import Seen
from oculi.objectives.latents import pictures
from oculi.objectives.reconstruct import Noised, Reconstruct
from oculi.recipe import ReconstructSpec

Pixels = NDArray[np.uint8]
BATCH = 16
LR = 1e-3


@dataclass(frozen=True)
class Probe:
    """How checkpoints are asked.

    Attributes:
        spec: denoiser, autoencoder, size and rank.
        steps: of training. samplings: steps from noise to picture. seed: of weights and noise.
    """

    spec: ReconstructSpec
    steps: int
    samplings: int = 20
    seed: int = 0


@dataclass(frozen=True)
class Restored:
    """Pictures [N, size, size, 3] uint8: as they are, through the autoencoder alone, restored from their
    own tokens, and from shuffled ones: those of the next picture."""

    originals: Pixels
    latents: Pixels
    own: Pixels
    shuffled: Pixels


def restore(
    model: OculiForConditionalGeneration,
    processor: OculiProcessor,
    probe: Probe,
    train: Callable[[int], Image.Image],
    test: Sequence[Image.Image],
    on_step: Callable[[int, int], None] | None = None,
) -> Restored:
    """Train a probe on a checkpoint and restore pictures with it.

    Args:
        model, processor: of the checkpoint; nothing of it is changed.
        train: the picture of a number. test: at least two, scored in this order.
        on_step: told of steps done and in all.

    Raises:
        CheckpointError, RecipeError: see ``Reconstruct``.
    """
    model = model.eval().requires_grad_(False)
    torch.manual_seed(probe.seed)
    term = Reconstruct.from_spec(probe.spec, model)
    _train(model, processor, probe, term, train, on_step)
    found: list[tuple[Tensor, ...]] = []
    generator = torch.Generator().manual_seed(probe.seed)
    for start in range(0, len(test), BATCH):
        part = list(test[start : start + BATCH])
        # Each picture's stranger is the next one, also at the end of a part.
        nexts = [*part[1:], test[(start + len(part)) % len(test)]]
        patches, grids = _cut(processor, part)
        originals = pictures(patches, grids, probe.spec.size)
        latents = term.autoencoder.encode(originals)
        noise = torch.randn(latents.shape, generator=generator)
        own, shuffled = (
            _sample(term, model.look(*_cut(processor, shown)), noise, probe.samplings)
            for shown in (part, nexts)
        )
        decoded = (term.autoencoder.decode(x) for x in (latents, own, shuffled))
        found.append((originals, *decoded))
    return Restored(*(_pixels(torch.cat(each)) for each in zip(*found, strict=True)))


def _train(
    model: OculiForConditionalGeneration,
    processor: OculiProcessor,
    probe: Probe,
    term: Reconstruct,
    train: Callable[[int], Image.Image],
    on_step: Callable[[int, int], None] | None,
) -> None:
    optimizer = torch.optim.AdamW(term.parameters(), lr=LR, weight_decay=0.0)
    warmup = max(1, probe.steps // 10)
    for step in range(probe.steps):
        for group in optimizer.param_groups:
            left = 1 - step / probe.steps
            group["lr"] = LR * min((step + 1) / warmup, left)
        patches, grids = _cut(processor, [train(step * BATCH + i) for i in range(BATCH)])
        latents = term.autoencoder.encode(pictures(patches, grids, probe.spec.size))
        torch.manual_seed(probe.seed + 1 + step)  # of noise: the same whatever a checkpoint draws
        noise, times = torch.randn_like(latents), torch.rand(len(latents))
        with torch.no_grad():
            seen = model.look(patches, grids)
        loss = term.errors(seen, Noised(latents, noise, times)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(term.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if on_step is not None:
            on_step(step + 1, probe.steps)


@torch.no_grad()
def _sample(term: Reconstruct, seen: Seen, noise: Tensor, steps: int) -> Tensor:
    """Latents from noise [N, C, h, w], by Euler's method along the flow from level 1 to 0."""
    latents = noise
    levels = torch.linspace(1, 0, steps + 1)
    for level, following in pairwise(levels):
        velocity = term.velocity(seen, latents, level.expand(len(latents))).float()
        latents = latents + (following - level) * velocity
    return latents


def _cut(processor: OculiProcessor, images: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
    batch = processor.image_processor(list(images), return_tensors="pt")
    return batch["pixel_values"], batch["image_grids"]


def _pixels(images_N3HW: Tensor) -> Pixels:
    rounded = images_N3HW.round().clamp(0, 255).to(torch.uint8)
    found: Pixels = rounded.permute(0, 2, 3, 1).numpy()
    return found
