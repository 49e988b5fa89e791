"""PEFT's LoRA layer with one autograd node: fewer operations, one copy of the input kept.

PEFT writes ``W x + scaling * B(A(x))`` as modules. Under autocast each of a block's seven linears then
keeps its own bfloat16 copy of its input, and every output is multiplied by one and added in passes of
their own. Here the whole layer is one node that keeps ``x`` and ``A x``; parameters, names and
checkpoints stay PEFT's.

Shapes: N tokens, I inputs, O outputs, r the rank.
"""

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class LoraLinear(Linear):
    """PEFT's linear layer with LoRA; what is not plain (dropout, a scale, several adapters, another kind
    of base layer) goes PEFT's own way."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[..., I] to [..., O], in the autocast dtype if there is one, else that of ``x``."""
        adapter = self._plain_adapter()
        if adapter is None or args or kwargs:
            return super().forward(x, *args, **kwargs)
        base = self.base_layer
        a, b = self.lora_A[adapter].weight, self.lora_B[adapter].weight
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
        else:
            dtype = x.dtype
        with torch.autocast(x.device.type, enabled=False):
            return _LoraLinear.apply(x.to(dtype), base.weight, base.bias, a, b)

    def _plain_adapter(self) -> str | None:
        """Name of the only adapter, if nothing but ``W x + B A x`` is to be computed."""
        active = self.active_adapters
        if len(active) != 1 or self.disable_adapters or self.merged:
            return None
        (name,) = active
        plain = (
            name in self.lora_A
            and self.scaling[name] == 1.0
            and isinstance(self.lora_dropout[name], nn.Identity)
            and name not in self.lora_variant
            and not self.lora_bias[name]
            and type(self.base_layer) is nn.Linear
        )
        return name if plain else None


class _LoraLinear(torch.autograd.Function):
    """``x W^T + bias + (x A^T) B^T`` for x [..., I], W [O, I], A [r, I], B [O, r], in the dtype of x."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor
    ) -> Tensor:
        dtype = x.dtype
        x_NI = x.reshape(-1, x.shape[-1])
        ax_Nr = x_NI.mm(a.to(dtype).t())
        b_rO = b.to(dtype).t()
        y_NO = ax_Nr.mm(b_rO) if bias is None else torch.addmm(bias.to(dtype), ax_Nr, b_rO)
        # Not in place: torch's FLOP counter does not know addmm_, and recomputation must not change
        # what it has kept.
        y_NO = torch.addmm(y_NO, x_NI, weight.to(dtype).t())
        ctx.save_for_backward(x_NI, ax_Nr, weight, a, b)
        ctx.has_bias = bias is not None
        return y_NO.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, ax_Nr, weight, a, b = ctx.saved_tensors
        need_x, need_weight, need_bias, need_a, need_b = ctx.needs_input_grad
        dtype = x_NI.dtype
        grad_NO = grad.reshape(-1, grad.shape[-1])
        d_x = d_weight = d_bias = d_a = d_b = None
        if need_x or need_a:
            grad_Nr = grad_NO.mm(b.to(dtype))
            if need_a:
                d_a = grad_Nr.t().mm(x_NI).to(a.dtype)
        if need_b:
            d_b = grad_NO.t().mm(ax_Nr).to(b.dtype)
        if need_x:
            d_x = torch.addmm(grad_Nr.mm(a.to(dtype)), grad_NO, weight.to(dtype))
            d_x = d_x.view(*grad.shape[:-1], -1)
        if need_weight:
            d_weight = grad_NO.t().mm(x_NI).to(weight.dtype)
        if need_bias and ctx.has_bias:
            d_bias = grad_NO.sum(0).to(weight.dtype)
        return d_x, d_weight, d_bias, d_a, d_b
