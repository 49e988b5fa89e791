"""What diffusers' models need around them: where they are, and pictures to latents and back.

Legend: P patches of all images, N images, C channels of a latent, h x w its size.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from oculi.errors import CheckpointError, RecipeError
from oculi.hub import load_weights, readable, resolve, resolve_part
from oculi.model.patch_embed_oculi import unpatchify

# Folders of a pipeline's parts, and the classes in them.
DENOISER, VAE = "transformer", "vae"
_CLASSES = {DENOISER: "SD3Transformer2DModel", VAE: "AutoencoderKL"}


def diffusers_class(part: str) -> Any:
    """The class of a part; raises RecipeError where diffusers is not installed."""
    try:
        import diffusers
    except ImportError:
        raise RecipeError(
            "the objective reconstruct needs diffusers: pip install 'oculi[diffusion]'"
        ) from None
    return getattr(diffusers, _CLASSES[part])


def load_part(name: str, part: str) -> Any:
    """A denoiser or an autoencoder with its weights, float32, in evaluation mode.

    Args:
        name: ``testbed:NAME``, a folder with the part or with a whole pipeline, or a pipeline's hub id.
        part: ``DENOISER`` or ``VAE``.

    Raises:
        CheckpointError: it is not there, damaged, of another class, or lacks weights.
        RecipeError: diffusers is not installed.
    """
    cls = diffusers_class(part)
    path = part_folder(name, part)
    check_class(read_config(path, name), part, name)
    # Published weights are in half precision, and torch_dtype did not change it (diffusers 0.42).
    return load_weights(cls, path, name, low_cpu_mem_usage=False).float().eval()


def part_folder(name: str, part: str) -> str:
    """Folder of a part of a pipeline; raises CheckpointError."""
    if name.startswith("testbed:") or (Path(name) / "config.json").exists():
        return resolve(name)
    return resolve_part(name, part)


def read_config(path: str, name: str) -> dict[str, Any]:
    """What the part's ``config.json`` says; raises CheckpointError."""
    with readable(name):
        found: dict[str, Any] = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
    return found


def check_class(config: dict[str, Any], part: str, name: str) -> None:
    """Raises CheckpointError unless a configuration is of the class that the part has."""
    found = config.get("_class_name", config.get("model_type", "unknown model"))
    if found != _CLASSES[part]:
        raise CheckpointError(f"{name} is a {found}, not diffusers' {_CLASSES[part]}")


class Autoencoder:
    """A frozen autoencoder of pictures: not a submodule, so never trained, saved or shipped.

    Args:
        model: an ``AutoencoderKL``.
    """

    def __init__(self, model: Any) -> None:
        # Channels last: convolutions run as they are stored, on a CPU in two thirds of the time.
        self.model: Any = model.eval().requires_grad_(False)
        self.model.to(memory_format=torch.channels_last)
        config: Any = self.model.config
        self.channels: int = config.latent_channels
        self.factor: int = 2 ** (len(config.block_out_channels) - 1)  # pixels to a latent's side
        self._scale = float(config.scaling_factor)
        self._shift = float(config.shift_factor or 0.0)

    @torch.no_grad()
    def encode(self, images_N3HW: Tensor) -> Tensor:
        """Latents [N, C, H / factor, W / factor], float32, of pictures in [0, 255]: the means."""
        weights = next(self.model.parameters())
        pixels = (images_N3HW / 127.5 - 1).to(weights.dtype, memory_format=torch.channels_last)
        mean: Tensor = self.model.encode(pixels).latent_dist.mode()
        return (mean.float().contiguous() - self._shift) * self._scale

    @torch.no_grad()
    def decode(self, latents_NChw: Tensor) -> Tensor:
        """Pictures [N, 3, H, W] in [0, 255], float32."""
        weights = next(self.model.parameters())
        latents = (latents_NChw / self._scale + self._shift).to(weights.dtype)
        pixels: Tensor = self.model.decode(latents).sample.float().contiguous()
        return ((pixels + 1) * 127.5).clamp(0, 255)


def pictures(patches_PC: Tensor, grids_N2: Tensor, size: int) -> Tensor:
    """All images of a batch scaled to one square, float32 in [0, 255]: [N, 3, size, size].

    Args:
        patches_PC: uint8 patches, channels first in a patch.
        grids_N2: rows and columns of each image, on the CPU.
        size: in pixels. A picture of another shape is squeezed, as the snapshot of VLSA's is.
    """
    p = round((patches_PC.shape[1] // 3) ** 0.5)
    grids = [(int(rows), int(columns)) for rows, columns in grids_N2.tolist()]
    parts = patches_PC.split([rows * columns for rows, columns in grids])
    scaled = [
        F.interpolate(
            unpatchify(part, *grid, p).float()[None], (size, size), mode="bilinear", antialias=True
        )
        for part, grid in zip(parts, grids, strict=True)
    ]
    return torch.cat(scaled)
