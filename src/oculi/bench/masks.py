"""What building a mask costs, by the numbers that its operations write, at two lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_leaves
from transformers import Qwen2Config

from oculi.bench.counters import Watch
from oculi.bench.goals import Goal
from oculi.model.masks_oculi import build_mask, mask_function
from oculi.model.spans_oculi import key_spans

SHORT, LONG = 2048, 8192


@dataclass(frozen=True)
class MaskCost:
    """Of one packed row of ``SHORT`` and of ``LONG`` tokens, on the flex path.

    Attributes:
        largest: numbers of the largest tensor that was made. written: of all together.
    """

    largest: tuple[int, int]
    written: tuple[int, int]

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        lengths = ((SHORT, 0), (LONG, 1))
        return {
            str(length): {"largest": self.largest[i], "written": self.written[i]}
            for length, i in lengths
        }

    def goals(self) -> list[Goal]:
        """No tensor of T x T numbers, nor anywhere near. What grows faster than tokens is the table of
        blocks that FlexAttention reads, (T / 128)^2; a T x T table would give 4."""
        growth = self.written[1] / self.written[0] / (LONG / SHORT)
        return [
            Goal("flex mask: largest tensor / tokens", self.largest[1] / LONG, 4),
            Goal("flex mask: growth of the work / growth of tokens", growth, 2),
        ]


class _Written(Watch):
    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        self.sizes += [t.numel() for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        return result


def mask_cost() -> MaskCost:
    """Count on the CPU."""
    found = [_sizes(length) for length in (SHORT, LONG)]
    return MaskCost(largest=(max(found[0]), max(found[1])), written=(sum(found[0]), sum(found[1])))


def _sizes(length: int) -> list[int]:
    """Packed samples of 512 tokens, each with a picture of 256."""
    config = Qwen2Config()
    config._attn_implementation = "flex_attention"
    token = torch.arange(length)
    sample, within = token // 512, token % 512
    images = torch.where((within >= 16) & (within < 272), sample, -1)[None]
    with _Written() as watch:
        function = mask_function("bidirectional", images, sample[None])
        build_mask(
            config, function, None, shape_BT=(1, length), kv_length=length, q_offset=0,
            kv_offset=0, plain=False, dtype=torch.float32, device=torch.device("cpu"),
            spans=lambda: key_spans("bidirectional", images, sample[None]),
        )  # fmt: skip
    return watch.sizes
