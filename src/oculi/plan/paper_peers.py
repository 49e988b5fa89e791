"""Models that papers compare with, of transformers' own classes, on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from transformers import AutoModelForImageTextToText, PreTrainedConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from oculi.errors import CheckpointError, RecipeError
from oculi.plan.configs import find_config
from oculi.plan.paper_style import PaperCount, counting


@dataclass(frozen=True)
class PeerCount:
    """A peer's count, and the tokens that the picture became in its LLM."""

    count: PaperCount
    image_tokens: int


def count_peer(name: str, size: tuple[int, int], text: int) -> PeerCount:
    """One forward pass of a peer over one picture and its text, by the rules of ``paper_style``.

    Args:
        name: a folder or a shipped configuration, of a family in ``PEERS``.
        size: width and height of the picture in pixels. text: tokens beside those of the picture.

    Raises:
        CheckpointError: there is no such configuration, or it is of another family.
        RecipeError: the family takes no picture of this shape.
    """
    config = find_config(name)
    if config.model_type not in PEERS:
        raise CheckpointError(
            f"{name} is a {config.model_type}; the families that can be compared with are "
            f"{', '.join(sorted(PEERS))}"
        )
    return PEERS[config.model_type](config, size, text)


def _qwen_vl(config: PreTrainedConfig, size: tuple[int, int], text: int) -> PeerCount:
    """Qwen2-VL and Qwen2.5-VL: the tower over all patches, a merger, then LLM and head at every token.

    The tower and the LLM are called one after the other, as the model's own ``forward`` looks at values
    of ``input_ids``, which the meta device has not.
    """
    vision: Any = config.vision_config
    text_config: Any = config.text_config
    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(config).eval()
    merge, patch = vision.spatial_merge_size, vision.patch_size
    try:
        height, width = smart_resize(size[1], size[0], factor=patch * merge)
    except ValueError as error:  # it refuses very long pictures
        raise RecipeError(
            f"--image: {size[0]}x{size[1]} is no picture for Qwen-VL: {error}"
        ) from None
    rows, columns = height // patch, width // patch
    patches = rows * columns
    tokens = patches // merge**2
    # A picture is a video of one frame, which is there as often as the temporal patch is deep.
    pixels = torch.empty(
        patches, 3 * vision.temporal_patch_size * patch**2, device="meta", dtype=model.dtype
    )
    with counting(model) as count:
        model.model.visual(
            pixels,
            grid_thw=torch.tensor([[1, rows, columns]]),  # on the host: lengths are read from it
            position_ids=torch.empty(patches, 2, dtype=torch.int64, device="meta"),
        )
        length = tokens + text
        embeds = torch.empty(1, length, text_config.hidden_size, device="meta", dtype=model.dtype)
        places = torch.empty(3, 1, length, dtype=torch.int64, device="meta")
        model(inputs_embeds=embeds, position_ids=places, use_cache=False)
    return PeerCount(count, tokens)


PEERS: Final[Mapping[str, Callable[[PreTrainedConfig, tuple[int, int], int], PeerCount]]] = {
    "qwen2_vl": _qwen_vl,
    "qwen2_5_vl": _qwen_vl,
}
