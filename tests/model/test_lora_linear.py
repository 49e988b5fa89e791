"""One node for a linear layer with LoRA: PEFT's numbers, fewer operations, less kept."""

from typing import Any

import pytest
import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn

from oculi.bench.counters import Watch
from oculi.model.lora import lora_config
from oculi.model.lora_linear import LoraLinear

IN, OUT, RANK = 24, 40, 4


def layer(bias: bool = True, dtype: torch.dtype = torch.float32, **changes: Any) -> LoraLinear:
    torch.manual_seed(0)
    config = lora_config(RANK, 1, ("x",))
    for key, value in changes.items():
        setattr(config, key, value)
    base = nn.Linear(IN, OUT, bias=bias).to(dtype)
    made = LoraLinear(
        base, "default", config=config, r=RANK, lora_alpha=config.lora_alpha, lora_bias=False
    )
    with torch.no_grad():
        made.lora_B["default"].weight.normal_()
    for name, parameter in made.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()  # as trained parameters are
    return made


def results(made: LoraLinear, forward: Any, autocast: bool = False) -> dict[str, Tensor]:
    torch.manual_seed(1)
    x = torch.randn(2, 5, IN, requires_grad=True)
    made.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        y = forward(made, x)
    y.float().pow(2).sum().backward()
    grads = {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}
    assert x.grad is not None
    return {"y": y.detach(), "x": x.grad, **grads}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("trained_base", [True, False])
def test_numbers_are_pefts(bias: bool, trained_base: bool) -> None:
    made = layer(bias)
    made.base_layer.requires_grad_(trained_base)
    found, wanted = results(made, LoraLinear.forward), results(made, Linear.forward)
    assert found.keys() == wanted.keys()
    assert ("base_layer.weight" in found) == trained_base
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_it_is_as_exact(dtype: torch.dtype) -> None:
    """Against float32 of the same weights: the errors are of one size."""
    made = layer(dtype=dtype)
    made.base_layer.requires_grad_(False)
    found = results(made, LoraLinear.forward, autocast=True)
    peft = results(made, Linear.forward, autocast=True)
    made.base_layer.float()
    exact = results(made, Linear.forward)
    assert found["y"].dtype == peft["y"].dtype == torch.bfloat16
    for name in exact:
        assert found[name].dtype == peft[name].dtype
        error, its = ((side[name].float() - exact[name]).norm() for side in (found, peft))
        assert error <= 1.3 * its + 1e-6, name
        assert error <= 0.02 * exact[name].norm()


def test_it_costs_less() -> None:
    made = layer()
    made.base_layer.requires_grad_(False)

    def cost(forward: Any) -> int:
        with Watch() as watch:
            results(made, forward)
        return sum(watch.ops.values())

    assert cost(LoraLinear.forward) < 0.8 * cost(Linear.forward)


def test_the_input_is_kept_once_under_autocast() -> None:
    """PEFT keeps a copy of a block's input for each of the linears that read it."""
    layers = [layer() for _ in range(3)]
    x = torch.randn(64, IN, requires_grad=True)

    def kept(forward: Any) -> int:
        sizes = {}

        def keep(tensor: Tensor) -> Tensor:
            if tensor.shape[-1] == IN and tensor.shape[0] == 64:
                sizes[tensor.untyped_storage().data_ptr()] = tensor  # alive, so addresses differ
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", dtype=torch.bfloat16),
        ):
            low = x.bfloat16()
            for made in layers:
                forward(made, low)
        return len(sizes)

    assert kept(LoraLinear.forward) == 1 < kept(Linear.forward)


@pytest.mark.parametrize(
    "changes", [{"lora_alpha": 8}, {"lora_dropout": 0.5}, {"use_rslora": True}]
)
def test_what_is_not_plain_is_pefts(changes: dict[str, Any]) -> None:
    made = layer(**changes).eval()
    assert made._plain_adapter() is None
    x = torch.randn(3, IN)
    assert torch.equal(made(x), Linear.forward(made, x))


def test_switched_off_and_merged_adapters_add_nothing_twice() -> None:
    made = layer().eval()
    x = torch.randn(3, IN)
    with_lora = made(x)
    made.enable_adapters(False)
    assert torch.equal(made(x), made.base_layer(x))
    made.enable_adapters(True)
    made.merge()
    torch.testing.assert_close(made(x), with_lora, rtol=1e-5, atol=1e-5)
