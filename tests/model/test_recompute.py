"""What is computed again in the backward pass, and that it changes nothing."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy

from oculi.bench.counters import Watch, operations
from oculi.model.recompute_oculi import MODES, keep_narrow, recomputing

aten = torch.ops.aten


@pytest.mark.parametrize(
    ("operation", "shapes", "kept"),
    [
        (aten.mm.default, [(9, 8), (8, 8)], True),
        (aten.mm.default, [(9, 8), (8, 3)], True),
        (aten.mm.default, [(9, 8), (8, 32)], False),
        (aten.addmm.default, [(8,), (9, 32), (32, 8)], True),
        (aten.addmm.default, [(32,), (9, 8), (8, 32)], False),
        (aten._scaled_dot_product_flash_attention.default, [(1, 2, 9, 4)] * 3, True),
        (aten.silu.default, [(9, 32)], False),
    ],
)
def test_narrow_products_and_attention_are_kept(operation: Any, shapes: Any, kept: bool) -> None:
    found = keep_narrow(None, operation, *(torch.empty(shape) for shape in shapes))
    assert (found == CheckpointPolicy.MUST_SAVE) == kept


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 32, bias=False), nn.Linear(32, 8, bias=False)
        self.out = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.down(self.up(x).square().sin()).tanh())


def step(mlp: Mlp, mode: str) -> list[Tensor]:
    torch.manual_seed(0)
    mlp.zero_grad()
    x = torch.randn(64, 8, requires_grad=True)
    recomputing(mlp, mode)(x).square().sum().backward()
    return [x.grad.clone(), *(p.grad.clone() for p in mlp.parameters())]  # type: ignore[union-attr]


def test_no_mode_changes_a_gradient() -> None:
    mlp = Mlp()
    wanted = step(mlp, "none")
    for mode in MODES[1:]:
        for found, gradient in zip(step(mlp, mode), wanted, strict=True):
            assert torch.equal(found, gradient), mode


def test_what_is_computed_again() -> None:
    mlp = Mlp()
    runs = {mode: operations(lambda m=mode: step(mlp, m)) for mode in MODES}
    products = {mode: ops["aten.mm.default"] for mode, ops in runs.items()}
    elementwise = {mode: ops["aten.sin.default"] for mode, ops in runs.items()}
    # Of the forward's: up widens; down is narrow; the last one, whose result no gradient needs, is not
    # reached again.
    assert products["selective"] == products["none"] + 1
    assert products["full"] == products["none"] + 2
    assert elementwise["none"] < elementwise["selective"] == elementwise["full"]


def test_less_is_kept() -> None:
    mlp, kept = Mlp(), {}
    x = torch.randn(512, 8, requires_grad=True)
    for mode in MODES:
        with Watch() as watch:
            result = recomputing(mlp, mode)(x)
        kept[mode] = watch.alive() - result.untyped_storage().nbytes()
    assert kept["full"] == 0 < kept["selective"] < 0.5 * kept["none"]


def test_a_mode_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match='"some" is none of none, selective, full'):
        recomputing(Mlp(), "some")


def test_a_tap_keeps_next_to_nothing(make_model: Any, make_inputs: Any) -> None:
    """What distillation makes of a block's output is computed again: only its narrow product stays."""
    model = make_model().train()
    inputs = make_inputs([[5, (8, 8), 7]])
    head = nn.Linear(32, 4, bias=False)
    calls = []

    def reducer(hidden_SD: Tensor) -> Tensor:
        calls.append(hidden_SD.shape)
        return head(hidden_SD.square().sin().exp()).square().sum()

    def kept(**taps: Any) -> int:
        with Watch() as watch:
            output = model(**inputs, **taps, use_cache=False)
        assert output.logits is not None
        return watch.alive()

    before = kept()
    added = kept(taps={0: reducer, 1: reducer}) - before
    assert calls == [(64, 32)] * 2
    assert added < 2 * (64 * 32 * 4 / 2)  # less than half of one copy of the vision tokens each
    model(**inputs, taps={1: reducer}, use_cache=False).taps[1].backward()
    assert calls == [(64, 32)] * 4
    assert head.weight.grad is not None and head.weight.grad.any()
