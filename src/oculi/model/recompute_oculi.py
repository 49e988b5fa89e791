"""Activations that are computed again in the backward pass instead of kept.

``selective`` keeps what is dear to compute and cheap to keep: attention, and products whose result is no
wider than what went in (queries, keys, values, output and down projections, ``A x`` of LoRA). Products
that widen (gate and up projections, ``B`` of LoRA) and everything elementwise are computed again. A
value of a product costs two operations per input, so a byte of a wide result saves the least.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

MODES = ("none", "selective", "full")

_aten = torch.ops.aten
# Operation: place of its two factors among the arguments.
_PRODUCTS = {_aten.mm.default: (0, 1), _aten.addmm.default: (1, 2), _aten.bmm.default: (0, 1)}
_ATTENTION = (
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.higher_order.flex_attention,
)


def keep_narrow(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """The policy of ``selective``, as ``create_selective_checkpoint_contexts`` asks it."""
    keep = operation in _ATTENTION
    if factors := _PRODUCTS.get(operation):
        left, right = (args[i] for i in factors)
        keep = right.shape[-1] <= left.shape[-1]
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE


def recomputing(function: Callable[..., Any], mode: str) -> Callable[..., Any]:
    """``function``, which must have no side effects, as one whose backward pass runs it again.

    Args:
        function: any part of a forward pass. The method of a block whose linears are routed sees the
            same rows again (``routed_oculi.py``).
        mode: one of ``MODES``: ``none`` returns it as it is, ``full`` keeps its arguments alone,
            ``selective`` what the policy says besides.

    Raises:
        ValueError: the mode is unknown.
    """
    if mode not in MODES:
        raise ValueError(f'"{mode}" is none of {", ".join(MODES)}')
    if mode == "none":
        return function
    settings: dict[str, Any] = {"use_reentrant": False}
    if mode == "selective":
        settings["context_fn"] = partial(create_selective_checkpoint_contexts, keep_narrow)
    route = getattr(getattr(function, "__self__", None), "route", None)
    if route is None:
        return partial(checkpoint, function, **settings)
    return partial(route.checkpointing(checkpoint), function, **settings)
