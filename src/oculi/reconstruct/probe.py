"""Restores pictures from what a frozen checkpoint's LLM is given of them.

A checkpoint that was never trained to be restored has no Epigone, and one that was has one that fits it
alone. So each gets a new one: Epigone and denoiser are trained for as many steps on the same pictures
with the same noise, the vision part is not touched, and what differs is what it gives. That is computed
once for each picture and kept, so that a step costs what the small denoiser costs.

Legend: N pictures, C x h x w of a latent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from PIL import Image
from torch import Tensor, nn

from oculi.model import OculiForConditionalGeneration, OculiProcessor
from oculi.model.taps_oculi import Seen
from oculi.objectives.exhibit import Pixels
from oculi.objectives.latents import pictures
from oculi.objectives.reconstruct import Noised, Reconstruct
from oculi.objectives.restoring import LEVELS, OWN, SHUFFLED, denoised, kind, to_pixels
from oculi.recipe import ReconstructSpec

BATCH = 32
LR = 3e-3


@dataclass(frozen=True)
class Probe:
    """How checkpoints are asked.

    Attributes:
        spec: denoiser, autoencoder, size and rank.
        steps: of training. pictures: trained on, again and again.
        samplings: steps from noise to picture. seed: of weights, order and noise.
    """

    spec: ReconstructSpec
    steps: int
    pictures: int
    samplings: int = 20
    seed: int = 0


@dataclass(frozen=True)
class Restored:
    """Pictures [N, size, size, 3] uint8.

    Attributes:
        originals: as they are. latents: through the autoencoder alone.
        found: restored, by ``kind``.
    """

    originals: Pixels
    latents: Pixels
    found: Mapping[str, Pixels]


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
        model, processor: of the checkpoint; nothing of it is changed. All is computed where it is.
        train: the picture of a number below ``probe.pictures``.
        test: at least two, scored in this order.
        on_step: told of what is done and of all there is to do: batches looked at, then steps.

    Raises:
        CheckpointError, RecipeError: see ``Reconstruct``.
    """
    model = model.eval().requires_grad_(False)
    torch.manual_seed(probe.seed)
    device = next(model.parameters()).device
    term = Reconstruct.from_spec(probe.spec, model).to(device)
    term.place(device, torch.float32)
    parts = range(0, probe.pictures, BATCH)
    looked: list[_Looked] = []
    for done, start in enumerate(parts, 1):
        numbers = range(start, min(start + BATCH, probe.pictures))
        looked.append(_look(model, processor, term, [train(i) for i in numbers])[1])
        if on_step is not None:
            on_step(done, len(parts) + probe.steps)
    _train(term, probe, _Looked.joined(looked), len(parts), on_step)
    generator = torch.Generator().manual_seed(probe.seed)
    found: list[dict[str, Tensor]] = []
    for start in range(0, len(test), BATCH):
        part = list(test[start : start + BATCH])
        # Each picture's stranger is the next one, also at the end of a part.
        nexts = [*part[1:], test[(start + len(part)) % len(test)]]
        originals, own = _look(model, processor, term, part)
        _, strange = _look(model, processor, term, nexts)
        latents = own.latents.to(device)
        noise = torch.randn(latents.shape, generator=generator).to(device)
        made = {"latents": latents}
        for tokens, seen in ((OWN, own.seen(device)), (SHUFFLED, strange.seen(device))):
            made[kind(tokens, None)] = _sample(term, seen, noise, probe.samplings)
            for level in LEVELS:
                made[kind(tokens, level)] = denoised(term, seen, latents, noise, level)
        decoded = {name: term.autoencoder.decode(each).cpu() for name, each in made.items()}
        found.append({"originals": originals, **decoded})
    pixels = {name: to_pixels(torch.cat([each[name] for each in found])) for name in found[0]}
    return Restored(pixels.pop("originals"), pixels.pop("latents"), pixels)


@dataclass(frozen=True)
class _Looked:
    """What there is of pictures, in host memory.

    Latents [N, C, h, w], and for each what the LLM is given of it: tokens [s, D], an embedding [D].
    """

    latents: Tensor
    given: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def joined(cls, parts: Sequence[_Looked]) -> _Looked:
        latents = torch.cat([part.latents for part in parts])
        return cls(latents, tuple(each for part in parts for each in part.given))

    def seen(self, device: torch.device, chosen: Sequence[int] | None = None) -> Seen:
        given = self.given if chosen is None else [self.given[i] for i in chosen]
        counts = tuple(len(tokens) for tokens, _ in given)
        whole_ND = torch.stack([whole for _, whole in given]).to(device)
        return Seen(torch.cat([tokens for tokens, _ in given]).to(device), counts, whole_ND)


@torch.no_grad()
def _look(
    model: OculiForConditionalGeneration,
    processor: OculiProcessor,
    term: Reconstruct,
    shown: Sequence[Image.Image],
) -> tuple[Tensor, _Looked]:
    """The pictures as squares [N, 3, size, size], and what there is of them."""
    patches, grids = _cut(processor, shown)
    patches = patches.to(next(model.parameters()).device)
    images = pictures(patches, grids, term.spec.size)
    given = model.look(patches, grids).of_each()
    # Copies: each would else keep its whole batch's tokens alive.
    copies = tuple((_host_copy(tokens), _host_copy(whole)) for tokens, whole in given)
    return images.cpu(), _Looked(term.autoencoder.encode(images).cpu(), copies)


def _host_copy(tensor: Tensor) -> Tensor:
    return tensor.to("cpu", copy=True)


def _train(
    term: Reconstruct,
    probe: Probe,
    looked: _Looked,
    before: int,
    on_step: Callable[[int, int], None] | None,
) -> None:
    """Train Epigone and denoiser on what was looked at, ``before`` batches of it."""
    optimizers = _optimizers(term)
    device = next(term.parameters()).device
    warmup = max(1, probe.steps // 10)
    generator = torch.Generator().manual_seed(probe.seed + 1)
    for step in range(probe.steps):
        for group in (group for part in optimizers for group in part.param_groups):
            group["lr"] = LR * min((step + 1) / warmup, 1 - step / probe.steps)
        chosen = torch.randint(len(looked.given), (BATCH,), generator=generator)
        latents = looked.latents[chosen].to(device)
        noise = torch.randn(latents.shape, generator=generator).to(device)
        noised = Noised(latents, noise, torch.rand(BATCH, generator=generator).to(device))
        term.errors(looked.seen(device, chosen.tolist()), noised).mean().backward()
        torch.nn.utils.clip_grad_norm_(term.parameters(), 1.0)
        for part in optimizers:
            part.step()
            part.zero_grad(set_to_none=True)
        if on_step is not None:
            on_step(before + step + 1, before + probe.steps)


def _optimizers(term: Reconstruct) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the denoiser's blocks, AdamW for the rest."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, weight in term.named_parameters():
        inside = weight.ndim == 2 and "transformer_blocks" in name
        (matrices if inside else others).append(weight)
    return [
        torch.optim.Muon(matrices, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, weight_decay=0.0),
    ]


@torch.no_grad()
def _sample(term: Reconstruct, seen: Seen, noise: Tensor, steps: int) -> Tensor:
    """Latents from noise [N, C, h, w], by Euler's method along the flow from level 1 to 0."""
    latents = noise
    levels = torch.linspace(1, 0, steps + 1, device=noise.device)
    for level, following in pairwise(levels):
        velocity = term.velocity(seen, latents, level.expand(len(latents))).float()
        latents = latents + (following - level) * velocity
    return latents


def _cut(processor: OculiProcessor, images: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
    batch = processor.image_processor(list(images), return_tensors="pt")
    return batch["pixel_values"], batch["image_grids"]
