"""The testbed's vision towers, one of each family: 6 x 6 patches of 14 pixels, width 192, 5 blocks.

They differ as the real ones do: AIMv2 has RMSNorm and gated MLPs, CLIP a class token, SigLIP 2
(NaFlex) takes patches of any grid, and its pixels are scaled otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

SIDE, PATCH = 84, 14
GRID = SIDE // PATCH
WIDTH, BLOCKS, HEADS = 192, 5, 4
GATED, PLAIN = 512, 768  # widths within an MLP of three and of two matrices, alike in size
_SHAPE: dict[str, Any] = {
    "hidden_size": WIDTH, "num_hidden_layers": BLOCKS, "num_attention_heads": HEADS,
    "patch_size": PATCH,
}  # fmt: skip
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True, slots=True)
class Tower:
    """What is different about a family.

    Attributes:
        new: makes an untrained tower.
        states: (tower, pixels (B, 3, 84, 84) float32, normalised) -> its last states (B, 36, 192),
            as the family normalises them, without class token.
        mean, std: per channel, of pixels in [0, 1].
        processor: makes the image processor that does the same to any picture.
    """

    new: Callable[[], Any]
    states: Callable[[Any, torch.Tensor], torch.Tensor]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    processor: Callable[[], Any]


def _new_aimv2() -> Any:
    from transformers import Aimv2VisionConfig, Aimv2VisionModel

    config = Aimv2VisionConfig(
        **_SHAPE, intermediate_size=GATED, image_size=SIDE, use_head=False, is_native=False
    )
    return Aimv2VisionModel(config)


def _new_clip() -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    return CLIPVisionModel(CLIPVisionConfig(**_SHAPE, intermediate_size=PLAIN, image_size=SIDE))


def _new_siglip2() -> Any:
    from transformers import Siglip2VisionConfig, Siglip2VisionModel

    config = Siglip2VisionConfig(
        **_SHAPE, intermediate_size=PLAIN, num_patches=GRID * GRID, vision_use_head=False
    )
    return Siglip2VisionModel(config)


def _aimv2_states(tower: Any, pixels: torch.Tensor) -> torch.Tensor:
    states: torch.Tensor = tower(pixel_values=pixels).last_hidden_state
    return states


def _clip_states(tower: Any, pixels: torch.Tensor) -> torch.Tensor:
    # transformers normalises the class token alone; the patches' states are read as well.
    states: torch.Tensor = tower.post_layernorm(tower(pixel_values=pixels).last_hidden_state)
    return states[:, 1:]


def _siglip2_states(tower: Any, pixels: torch.Tensor) -> torch.Tensor:
    """NaFlex takes flat patches, channels last."""
    n = len(pixels)
    cut = pixels.view(n, 3, GRID, PATCH, GRID, PATCH).permute(0, 2, 4, 3, 5, 1)
    states: torch.Tensor = tower(
        cut.reshape(n, GRID * GRID, -1),
        pixel_attention_mask=torch.ones(n, GRID * GRID, dtype=torch.long),
        spatial_shapes=torch.full((n, 2), GRID),
    ).last_hidden_state
    return states


def _resizing() -> Any:
    from transformers import CLIPImageProcessorPil

    side = {"height": SIDE, "width": SIDE}
    return CLIPImageProcessorPil(
        size=side, crop_size=side, do_center_crop=False, image_mean=CLIP_MEAN, image_std=CLIP_STD
    )


def _naflex() -> Any:
    from transformers import Siglip2ImageProcessorPil

    return Siglip2ImageProcessorPil(patch_size=PATCH, max_num_patches=GRID * GRID)


TOWERS = {
    "aimv2": Tower(_new_aimv2, _aimv2_states, CLIP_MEAN, CLIP_STD, _resizing),
    "clip": Tower(_new_clip, _clip_states, CLIP_MEAN, CLIP_STD, _resizing),
    "siglip2": Tower(_new_siglip2, _siglip2_states, HALF, HALF, _naflex),
}
