"""From a recipe's vision spec to the vision part's configuration and the weights it starts from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from oculi.errors import RecipeError
from oculi.model.patch_embed_oculi import CLIP_MEAN, CLIP_STD
from oculi.model.perceiver_oculi import tile_side, vision_tokens
from oculi.objectives.teacher import (
    load_patch_embedding,
    load_tower,
    normalisation,
    tower_config,
)
from oculi.recipe import PatchEmbedSpec, PerceiverSpec, TowerSpec, VisionSpec

_NOT_OF_THE_TOWER = ("_name_or_path", "architectures", "transformers_version", "dtype")


@dataclass(frozen=True)
class VisionStart:
    """``config`` is the model's ``vision_config``; ``weights`` have the part's own names."""

    config: dict[str, Any]
    weights: dict[str, Tensor]

    @torch.no_grad()
    def load(self, vision: nn.Module, origin: str | None) -> None:
        """Copy the weights into the part; raises RecipeError where one has another shape."""
        own = vision.state_dict()
        for name, value in self.weights.items():
            if own[name].shape != value.shape:
                raise RecipeError(
                    f"model.vision: {name} is {tuple(own[name].shape)} here but {tuple(value.shape)} "
                    f"in {origin}: take its patch_size or a multiple, its width and grid, or no "
                    "init_from"
                )
            own[name].copy_(value)


def vision_start(spec: VisionSpec) -> VisionStart:
    """Read what the spec names.

    Raises:
        CheckpointError: ``init_from`` is not there, damaged, or no vision tower.
        RecipeError: it has no such layer.
    """
    return _PARTS[type(spec)](spec)


def mean_and_deviation(spec: VisionSpec) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of pixels, as the weights that start the vision part were trained with."""
    if spec.init_from is None:
        return CLIP_MEAN, CLIP_STD
    return normalisation(spec.init_from)


def token_settings(spec: VisionSpec) -> dict[str, Any] | None:
    """What the image processor is told of the tokens that the part makes; None: one of each patch.

    Raises:
        CheckpointError: the tower's configuration is not there or cannot be read.
    """
    if not isinstance(spec, PerceiverSpec):
        return None
    return vision_tokens(tile_side(tower_config(spec.init_from)), spec.tokens, spec.max_tiles)


def _patch_embed(spec: PatchEmbedSpec) -> VisionStart:
    weights = load_patch_embedding(spec.init_from) if spec.init_from else {}
    width, grid = spec.width, spec.grid
    if weights:
        weights["patch.weight"] = enlarge(weights["patch.weight"], spec.patch_size)
        width = width or weights["patch.weight"].shape[0]
    if grid is None and "position" in weights:
        side = round(len(weights["position"]) ** 0.5)
        grid = (side, side)
    config = {"patch_size": spec.patch_size, "width": width, "grid": list(grid or (32, 32))}
    return VisionStart(_common(spec) | config, weights)


def enlarge(weight_WC: Tensor, patch_size: int) -> Tensor:
    """Filters of a ViT for larger patches, [W, 3 * patch_size**2]: they see it at the ViT's resolution.

    A patch k times as wide gives what the ViT's own filters give of its k x k means. That is FlexiViT's
    PI-resize (arXiv 2212.08013) for a picture that is enlarged by repeating pixels. Filters
    for patches that are no multiple are returned as they are.

    Args:
        weight_WC: [W, 3 * p * p], channels first in a patch.
    """
    own = round((weight_WC.shape[1] / 3) ** 0.5)
    if patch_size % own:
        return weight_WC
    factor = patch_size // own
    filters = weight_WC.view(-1, 3, own, own) / factor**2
    return filters.repeat_interleave(factor, 2).repeat_interleave(factor, 3).flatten(1)


def _tower(spec: TowerSpec | PerceiverSpec) -> VisionStart:
    model: Any = load_tower(spec.init_from)
    states = model.config.num_hidden_layers + 1
    if not -states <= spec.layer < states:
        raise RecipeError(
            f"model.vision.layer: {spec.init_from} has states {-states} to {states - 1}, none at "
            f"{spec.layer}"
        )
    weights = {f"tower.{name}": value for name, value in model.state_dict().items()}
    tower = {k: v for k, v in model.config.to_dict().items() if k not in _NOT_OF_THE_TOWER}
    config = {"patch_size": spec.patch_size, "tower": tower, "layer": spec.layer}
    return VisionStart(_common(spec) | config | own_settings(spec), weights)


def _perceiver(spec: PerceiverSpec) -> VisionStart:
    start = _tower(spec)
    check_perceiver(spec, start.config["tower"])
    return start


def own_settings(spec: TowerSpec | PerceiverSpec) -> dict[str, Any]:
    """What a spec says beyond its tower, under the names of ``vision_config``."""
    return spec.model_dump(exclude={"kind", "patch_size", "init_from", "layer", "attention"})


def check_perceiver(spec: PerceiverSpec, tower: Mapping[str, Any]) -> None:
    """Raises RecipeError where the spec does not fit its tower's configuration."""
    if spec.patch_size != tower["patch_size"]:
        raise RecipeError(
            f"model.vision.patch_size: {spec.patch_size} here but {tower['patch_size']} in "
            f"{spec.init_from}: a perceiver takes its tower's"
        )
    width = spec.width or tower["hidden_size"]
    if width < tower["hidden_size"]:
        raise RecipeError(
            f"model.vision.width: {width} is less than the width of {spec.init_from}, "
            f"{tower['hidden_size']}"
        )
    if width % spec.heads:
        raise RecipeError(f"model.vision.heads: {spec.heads} do not divide the width of {width}")


def _common(spec: VisionSpec) -> dict[str, Any]:
    mean, deviation = mean_and_deviation(spec)
    return {"kind": spec.kind, "image_mean": list(mean), "image_std": list(deviation)}


_PARTS: dict[type, Callable[[Any], VisionStart]] = {
    PatchEmbedSpec: _patch_embed,
    TowerSpec: _tower,
    PerceiverSpec: _perceiver,
}
