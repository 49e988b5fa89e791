"""Counters, on steps whose cost is known by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from oculi.bench.counters import Counters, Watch, count, operations
from oculi.bench.goals import Goal, table
from oculi.bench.masks import LONG, SHORT, mask_cost


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(10, 20, bias=False)
        self.head = nn.Linear(20, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x).sin())


def measured(body: Any) -> Counters:
    net, x = Net(), torch.randn(7, 10)
    return count(lambda: body(net, x), net.head)


def test_flops_rows_and_saved_bytes() -> None:
    found = measured(lambda net, x: net(x).sum().backward())
    # Forward both products; backward the head's two, and the first's one: its input needs no gradient.
    assert found.flops == 2 * 7 * (10 * 20 + 20 * 5) + 2 * 7 * (2 * 20 * 5 + 10 * 20)
    assert found.logits_rows == 7
    # The first's output (for sin), sin's output (for the head), and the loss.
    assert found.saved_bytes == 4 * (7 * 20 + 7 * 20 + 1)
    assert found.host_syncs == found.boolean_indices == 0


def test_what_checkpointing_keeps_is_seen() -> None:
    def body(net: Net, x: Tensor) -> None:
        checkpoint(net, x.requires_grad_(), use_reentrant=False).sum().backward()

    assert measured(body).saved_bytes == 4  # the loss; the input was there before


@pytest.mark.parametrize(
    ("wait", "syncs"),
    [
        (lambda y: y.sum().item(), 1),
        (lambda y: bool((y > 0).any()), 1),
        (lambda y: y.sum().tolist(), 1),
        (lambda y: y.detach().numpy(), 1),
        (lambda y: y.nonzero(), 1),
        (lambda y: [float(v) for v in y.flatten()[:3]], 3),
        (lambda y: y.argmax(), 0),
    ],
)
def test_waiting_is_counted(wait: Any, syncs: int) -> None:
    def body(net: Net, x: Tensor) -> None:
        y = net(x)
        wait(y)
        y.sum().backward()

    assert measured(body).host_syncs == syncs


def test_what_was_on_the_host_before_costs_no_wait() -> None:
    given = torch.arange(3)

    def body(net: Net, x: Tensor) -> None:
        given.tolist()
        given.numpy()
        net(x).sum().backward()

    assert measured(body).host_syncs == 0


def test_boolean_indices_are_counted_apart() -> None:
    def body(net: Net, x: Tensor) -> None:
        y = net(x)
        y[y[:, 0] > 0].sum().backward()

    assert measured(body).boolean_indices == 1


def test_operations_are_named() -> None:
    found = operations(lambda: torch.ones(2, 2) @ torch.ones(2, 2))
    assert found["aten.mm.default"] == 1 and found["aten.ones.default"] == 2


def test_what_is_freed_is_not_alive() -> None:
    with Watch() as watch:
        kept = torch.ones(100).sin()
        torch.ones(50).cos()
        view = kept[:10].add_(1)
    assert watch.alive() == kept.untyped_storage().nbytes() == view.untyped_storage().nbytes()


def test_goals() -> None:
    most, least = Goal("a", 2.0, 1.0), Goal("b", 2.0, 1.0, at_least=True)
    assert not most.met and least.met
    assert most.line() == "a: 2 <= 1, MISSED" and least.line() == "b: 2 >= 1, met"
    assert "advice" in Goal("c", 2.0, 1.0, advice=True).line()


def test_tables_line_up() -> None:
    lines = table(["step", "n"], [["long name", "1"], ["x", "1000"]])
    assert len({len(line) for line in lines}) == 1 and lines[1].endswith(":|")


def test_a_mask_is_linear_in_tokens() -> None:
    found = mask_cost()
    assert all(goal.met for goal in found.goals())
    assert found.largest[1] <= 4 * LONG < SHORT * SHORT
