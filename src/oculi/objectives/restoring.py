"""Pictures restored from what the LLM is given of them, beside those restored from another's.

Legend: N images, C x h x w of a latent.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from oculi.model.taps_oculi import Seen
from oculi.objectives.exhibit import Exhibit, Pixels
from oculi.objectives.latents import Autoencoder
from oculi.objectives.likeness import WINDOW, psnr, ssim

OWN, SHUFFLED = "own", "shuffled"
LEVELS = (0.9, 0.75, 0.5)  # of noise, from which a picture is restored in one step


class Denoiser(Protocol):
    """What restores: ``Reconstruct``."""

    @property
    def autoencoder(self) -> Autoencoder: ...

    def velocity(self, seen: Seen, mixed: Tensor, times: Tensor) -> Tensor: ...


def kind(tokens: str, level: float | None) -> str:
    """Name of a condition: drawn from noise alone, or restored in one step from a level of noise.

    Args:
        tokens: the picture's own, or those of the next picture.
        level: of noise; None is noise alone.
    """
    return tokens if level is None else f"{tokens} at {level}"


@torch.no_grad()
def denoised(term: Denoiser, seen: Seen, latents: Tensor, noise: Tensor, level: float) -> Tensor:
    """z again [N, C, h, w] from z_t, in one step: what the loss of equation 3 compares with z."""
    mixed = (1 - level) * latents + level * noise
    times = torch.full((len(latents),), level, device=latents.device)
    return mixed - level * term.velocity(seen, mixed, times).float()


def of_next(seen: Seen) -> Seen:
    """For each image what is given of the next one, for the last that of the first."""
    first, *others = seen.of_each()
    given = [*others, first]
    counts = tuple(len(tokens) for tokens, _ in given)
    whole_ND = torch.stack([whole for _, whole in given])
    return Seen(torch.cat([tokens for tokens, _ in given]), counts, whole_ND)


def to_pixels(images_N3HW: Tensor) -> Pixels:
    """Pictures in [0, 255] as uint8 [N, H, W, 3] in host memory."""
    rounded = images_N3HW.round().clamp(0, 255).to(torch.uint8)
    found: Pixels = rounded.permute(0, 2, 3, 1).cpu().numpy()
    return found


@torch.no_grad()
def exhibit(
    term: Denoiser, seen: Seen, images_N3HW: Tensor, latents: Tensor, noise: Tensor
) -> Exhibit:
    """Each image restored from its own tokens and from the next one's, with the same noise.

    Args:
        seen: of the images, two or more. latents, noise: z and e [N, C, h, w] of them.

    Returns:
        PSNR in dB and SSIM by ``kind``, and pictures from the most noise: what is in them came through
        the tokens.
    """
    wanted, decode = to_pixels(images_N3HW), term.autoencoder.decode
    rows = {"picture": wanted, "autoencoder alone": to_pixels(decode(latents))}
    scores = {}
    for tokens, given in ((OWN, seen), (SHUFFLED, of_next(seen))):
        for level in LEVELS:
            made = to_pixels(decode(denoised(term, given, latents, noise, level)))
            scores[f"PSNR, {kind(tokens, level)}"] = psnr(made, wanted)
            if min(wanted.shape[1:3]) >= WINDOW:
                scores[f"SSIM, {kind(tokens, level)}"] = ssim(made, wanted)
            if level == max(LEVELS):
                rows[f"{tokens} tokens"] = made
    return Exhibit({name: np.asarray(each, np.float64) for name, each in scores.items()}, rows)
