"""Attention and autocast on the meta device, as a GPU has them.

The meta device would take attention apart into products of all pairs, and it knows no autocast. Here
attention is the fused operation that a GPU runs for a mask of image blocks, and whoever asks whether
autocast is on is told so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

FUSED = torch.ops.aten._scaled_dot_product_efficient_attention
FUSED_BACKWARD = torch.ops.aten._scaled_dot_product_efficient_attention_backward


@contextmanager
def fused_attention() -> Iterator[None]:
    """Within it ``scaled_dot_product_attention`` is ``FUSED``, which takes any mask.

    No ``TorchFunctionMode``: torch turns those off in a backward pass, and checkpointing computes there.
    """
    with _replaced(F, scaled_dot_product_attention=_fused):
        yield


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **kwargs: Any,
) -> Tensor:
    if torch.is_autocast_enabled("meta"):
        dtype = torch.get_autocast_dtype("meta")
        query, key, value = (states.to(dtype) for states in (query, key, value))
    # A boolean mask becomes numbers to add, once for each call.
    bias = None if attn_mask is None else attn_mask.to(query.dtype).expand(*query.shape[:-1], -1)
    return FUSED(query, key, value, bias, True, dropout_p, is_causal)[0]


@contextmanager
def _replaced(module: Any, **functions: Callable[..., Any]) -> Iterator[None]:
    own = {name: getattr(module, name) for name in functions}
    for name, function in functions.items():
        setattr(module, name, function)
    try:
        yield
    finally:
        for name, function in own.items():
            setattr(module, name, function)


class Autocast(TorchFunctionMode):
    """A context that does to products on the meta device what autocast does to them elsewhere.

    Their operands go to ``dtype``; a weight's copy is made once.

    Args:
        dtype: to compute in, or None for no autocast.

    Attributes:
        copies: of weights, by weight.
    """

    PRODUCTS = (F.linear, F.conv2d)

    def __init__(self, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.dtype = dtype
        self.copies: dict[Tensor, Tensor] = {}
        self.on = dtype is not None
        self._answers = _answering(self)

    def __enter__(self) -> Any:
        self._answers.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._answers.__exit__(*error)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.on and func in self.PRODUCTS:
            args = [self._lower(value) for value in args]
            kwargs = {key: self._lower(value) for key, value in kwargs.items()}
        return func(*args, **kwargs)

    def _lower(self, value: Any) -> Any:
        if not (isinstance(value, Tensor) and value.is_floating_point()):
            return value
        if value.dtype == self.dtype:
            return value
        if not isinstance(value, nn.Parameter) or not torch.is_grad_enabled():
            return value.to(self.dtype)
        if value not in self.copies:
            self.copies[value] = value.to(self.dtype)
        return self.copies[value]

    @contextmanager
    def region(self, enabled: bool) -> Iterator[None]:
        """``torch.autocast("meta", enabled=...)``."""
        before, self.on = self.on, enabled and self.dtype is not None
        try:
            yield
        finally:
            self.on = before


@contextmanager
def _answering(autocast: Autocast) -> Iterator[None]:
    """Let torch answer for the meta device, instead of failing as at a device that it does not know."""
    enabled_of, dtype_of, region_of = (
        torch.is_autocast_enabled, torch.get_autocast_dtype, torch.autocast,
    )  # fmt: skip

    def is_autocast_enabled(*device: str) -> bool:
        return autocast.on if device == ("meta",) else enabled_of(*device)

    def get_autocast_dtype(device: str) -> torch.dtype | None:
        return autocast.dtype if device == "meta" else dtype_of(device)

    def region(device_type: str, dtype: Any = None, enabled: bool = True, **kwargs: Any) -> Any:
        if device_type == "meta":
            return autocast.region(enabled)
        return region_of(device_type, dtype, enabled, **kwargs)

    with _replaced(
        torch,
        is_autocast_enabled=is_autocast_enabled,
        get_autocast_dtype=get_autocast_dtype,
        autocast=region,
    ):
        yield
