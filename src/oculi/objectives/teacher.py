"""A frozen ViT of transformers' classes as a source of block states on the student's grid.

Three families differ in what they take: AIMv2 and CLIP have a table of positions for one size (CLIP a
class token besides), SigLIP 2 NaFlex and native AIMv2 take any grid. The student's pixels are
normalised for the teacher and resized to the grid that it can take; where that is another grid than
the student's, its states are interpolated back.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig
from transformers.models.aimv2.modeling_aimv2 import Aimv2VisionModel
from transformers.models.clip.modeling_clip import CLIPVisionModel
from transformers.models.siglip2.modeling_siglip2 import Siglip2VisionModel

from oculi.errors import CheckpointError
from oculi.hub import load_weights, readable, resolve
from oculi.model.patch_embed_oculi import CLIP_MEAN, CLIP_STD, unpatchify

_TOWERS: dict[str, type[Any]] = {
    "aimv2": Aimv2VisionModel, "aimv2_vision_model": Aimv2VisionModel,
    "clip": CLIPVisionModel, "clip_vision_model": CLIPVisionModel,
    "siglip2": Siglip2VisionModel, "siglip2_vision_model": Siglip2VisionModel,
}  # fmt: skip


class Teacher:
    """A frozen tower.

    Args:
        model: Aimv2VisionModel, CLIPVisionModel or Siglip2VisionModel.
        image_mean, image_std: per channel, of pixels in [0, 1].

    Attributes:
        width: M, of its states. blocks: their number. patch_size: in pixels.
        grid: the only grid it takes, or None for any.
    """

    def __init__(
        self,
        model: nn.Module,
        image_mean: tuple[float, ...] = CLIP_MEAN,
        image_std: tuple[float, ...] = CLIP_STD,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        config: Any = model.config
        self.width: int = config.hidden_size
        self.blocks: int = config.num_hidden_layers
        self.patch_size: int = config.patch_size
        any_grid = isinstance(model, Siglip2VisionModel) or getattr(config, "is_native", False)
        side = 0 if any_grid else config.image_size // config.patch_size
        self.grid: tuple[int, int] | None = None if any_grid else (side, side)
        self.skip = 1 if isinstance(model, CLIPVisionModel) else 0  # the class token
        self.mean, self.std = torch.tensor(image_mean), torch.tensor(image_std)

    @classmethod
    def load(cls, name: str) -> Teacher:
        """From a folder, a hub id or ``testbed:NAME``.

        Raises:
            CheckpointError: it is of another class, or files are missing or damaged.
        """
        path = resolve(name)
        with readable(name):
            config = AutoConfig.from_pretrained(path)
        tower = _TOWERS.get(config.model_type)
        if tower is None:
            raise CheckpointError(
                f"the teacher {name} is a {config.model_type}; known are {', '.join(sorted(_TOWERS))}"
            )
        model = load_weights(tower, path, name, dtype=torch.float32)
        return cls(model, *normalisation(path))

    def to(self, device: torch.device) -> None:
        self.model.to(device)
        self.mean, self.std = self.mean.to(device), self.std.to(device)

    @torch.no_grad()
    def features(self, patches_PC: Tensor, grids_N2: Tensor) -> list[Tensor]:
        """States of all images in the student's token order.

        Args:
            patches_PC: uint8 patches of the student.
            grids_N2: their grids, on the CPU.

        Returns:
            blocks + 1 tensors [P, M]: the embedding, then the raw output of each block.
        """
        grids = [(int(rows), int(columns)) for rows, columns in grids_N2.tolist()]
        images = patches_PC.split([rows * columns for rows, columns in grids])
        p = round((patches_PC.shape[1] // 3) ** 0.5)
        groups: dict[tuple[int, int], list[int]] = {}
        pixels = []
        for i, (grid, patches) in enumerate(zip(grids, images, strict=True)):
            target = self.grid or grid
            groups.setdefault(target, []).append(i)
            pixels.append(self._resize(unpatchify(patches, *grid, p), target))
        per_image: list[list[Tensor]] = [[] for _ in grids]
        for target, members in groups.items():
            states = self._run(torch.stack([pixels[i] for i in members]), target)
            for place, i in enumerate(members):
                per_image[i] = [_regrid(state[place], target, grids[i]) for state in states]
        return [torch.cat([image[k] for image in per_image]) for k in range(self.blocks + 1)]

    def _resize(self, image_3HW: Tensor, grid: tuple[int, int]) -> Tensor:
        size = (grid[0] * self.patch_size, grid[1] * self.patch_size)
        image = image_3HW.float()
        if tuple(image.shape[1:]) != size:
            image = F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
        return (image / 255 - self.mean[:, None, None]) / self.std[:, None, None]

    def _run(self, pixels: Tensor, grid: tuple[int, int]) -> tuple[Tensor, ...]:
        if isinstance(self.model, Siglip2VisionModel):
            p = self.patch_size
            n, (rows, columns) = len(pixels), grid
            # NaFlex patches are channels-last.
            flat = pixels.view(n, 3, rows, p, columns, p).permute(0, 2, 4, 3, 5, 1).flatten(3)
            flat = flat.reshape(n, rows * columns, -1)
            shapes = torch.tensor([grid] * n, device=pixels.device)
            mask = torch.ones(flat.shape[:2], dtype=torch.int64, device=pixels.device)
            output = self.model(
                flat, pixel_attention_mask=mask, spatial_shapes=shapes, output_hidden_states=True
            )
        else:
            output = self.model(pixels, output_hidden_states=True)
        states: tuple[Tensor, ...] = output.hidden_states
        return tuple(state[:, self.skip :] for state in states)


def _regrid(state_SM: Tensor, source: tuple[int, int], target: tuple[int, int]) -> Tensor:
    if source == target:
        return state_SM
    grid = state_SM.T.reshape(1, -1, *source).float()
    resized = F.interpolate(grid, target, mode="bilinear", align_corners=False)
    return resized.flatten(2)[0].T.to(state_SM.dtype)


def normalisation(path: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation from the checkpoint's ``preprocessor_config.json``, else CLIP's."""
    file = Path(path) / "preprocessor_config.json"
    if not file.exists():
        return CLIP_MEAN, CLIP_STD
    config = json.loads(file.read_text(encoding="utf-8"))
    return tuple(config.get("image_mean", CLIP_MEAN)), tuple(config.get("image_std", CLIP_STD))


def load_patch_embedding(name: str) -> dict[str, Tensor]:
    """Weights of a ViT's patch embedding under the names of ``PatchEmbed``, as far as it has them.

    ``patch.weight`` [W, 3 * p * p], ``patch.bias``, ``norm.weight``, ``position`` [rows * columns, W].
    """
    teacher = Teacher.load(name)
    embeddings: Any = teacher.model.embeddings
    if isinstance(teacher.model, Siglip2VisionModel):
        # NaFlex patches are channels-last; the student's are channels-first.
        p = teacher.patch_size
        weight = embeddings.patch_embedding.weight.view(-1, p, p, 3).permute(0, 3, 1, 2).flatten(1)
        found = {"patch.weight": weight, "patch.bias": embeddings.patch_embedding.bias}
        found["position"] = embeddings.position_embedding.weight
    elif isinstance(teacher.model, CLIPVisionModel):
        weight = embeddings.patch_embedding.weight.flatten(1)
        found = {"patch.weight": weight, "patch.bias": torch.zeros(len(weight))}
        found["position"] = embeddings.position_embedding.weight[1:]
    else:
        found = {"patch.weight": embeddings.patch_embed.weight.flatten(1)}
        found["patch.bias"] = embeddings.patch_embed.bias
        found["norm.weight"] = embeddings.rms_norm.weight
        if teacher.grid is not None:
            found["position"] = embeddings.position_embedding.weight
    return {key: value.detach().clone() for key, value in found.items()}
