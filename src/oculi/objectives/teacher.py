"""A frozen ViT of transformers' classes as a source of block states on the student's grid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig
from transformers.models.aimv2.modeling_aimv2 import Aimv2VisionModel
from transformers.models.clip.modeling_clip import CLIPVisionModel
from transformers.models.siglip2.modeling_siglip2 import Siglip2VisionModel

from oculi.errors import CheckpointError
from oculi.hub import load_weights, readable, resolve
from oculi.model.patch_embed_oculi import CLIP_MEAN, CLIP_STD
from oculi.model.tower_oculi import Grid, TowerReader

TOWERS: dict[str, type[Any]] = {
    "aimv2": Aimv2VisionModel, "aimv2_vision_model": Aimv2VisionModel,
    "clip": CLIPVisionModel, "clip_vision_model": CLIPVisionModel,
    "siglip2": Siglip2VisionModel, "siglip2_vision_model": Siglip2VisionModel,
}  # fmt: skip


class Teacher(TowerReader):
    """A tower that is never trained, saved or shipped; see ``TowerReader``."""

    def __init__(
        self,
        model: nn.Module,
        image_mean: tuple[float, ...] = CLIP_MEAN,
        image_std: tuple[float, ...] = CLIP_STD,
    ) -> None:
        super().__init__(model.eval().requires_grad_(False), image_mean, image_std)

    @classmethod
    def load(cls, name: str) -> Teacher:
        """From a folder, a hub id or ``testbed:NAME``.

        Raises:
            CheckpointError: it is of another class, or files are missing or damaged.
        """
        return cls(load_tower(name), *normalisation(name))

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Its weights to a device and a dtype; its states are of that dtype."""
        self.model.to(device, dtype)

    @torch.no_grad()
    def features(self, patches_PC: Tensor, grids_N2: Tensor) -> list[Tensor]:
        """The embedding and the raw output of each block, blocks + 1 tensors [P, M]."""
        return self.states(patches_PC, grids_N2)

    def _run(self, pixels: Tensor, grid: Grid) -> tuple[Tensor, ...]:
        # What it returns cannot be kept for a backward pass; `states` copies it into tensors that can.
        with torch.inference_mode():
            return super()._run(pixels, grid)


def load_tower(name: str) -> nn.Module:
    """A vision tower with its weights, from a folder (a two-tower checkpoint too), hub id or testbed.

    Raises:
        CheckpointError: it is of another class, or files are missing or damaged.
    """
    path, config = resolve(name), _config(name)
    model: nn.Module = load_weights(TOWERS[config.model_type], path, name, dtype=torch.float32)
    return model


def tower_config(name: str) -> Any:
    """Configuration of a vision tower, taken out of a two-tower model's; raises CheckpointError."""
    config = _config(name)
    return getattr(config, "vision_config", config)


def _config(name: str) -> Any:
    path = resolve(name)
    with readable(name):
        config = AutoConfig.from_pretrained(path)
    if config.model_type not in TOWERS:
        raise CheckpointError(
            f"{name} is a {config.model_type}, no vision tower; known are {', '.join(sorted(TOWERS))}"
        )
    return config


def normalisation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of a checkpoint's pixels, by channel; CLIP's where it does not say.

    They are in ``preprocessor_config.json``, or under ``image_processor`` in the
    ``processor_config.json`` that transformers writes since its version 5.

    Raises:
        CheckpointError: there is none, or the file is damaged.
    """
    folder, config = Path(resolve(name)), {}
    with readable(name):
        for file in ("preprocessor_config.json", "processor_config.json"):
            if (folder / file).exists():
                config = json.loads((folder / file).read_text(encoding="utf-8"))
                config = config.get("image_processor", config) if isinstance(config, dict) else {}
                break
        return _channels(config, "image_mean", CLIP_MEAN), _channels(config, "image_std", CLIP_STD)


def _channels(config: dict[str, Any], key: str, default: tuple[float, ...]) -> tuple[float, ...]:
    found = config.get(key) or default
    numbers = isinstance(found, (list, tuple)) and all(isinstance(v, (int, float)) for v in found)
    if not numbers or len(found) != len(default):
        raise ValueError(f"{key} is {found!r}, not a number for each of {len(default)} channels")
    return tuple(map(float, found))


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
