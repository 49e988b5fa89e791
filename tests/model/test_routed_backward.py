"""Routed LoRA where a forward pass is not run from its first line to its last: recomputed, compiled, in
part."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from oculi.model import call_masks_oculi
from oculi.training.module import set_blocks
from routed import with_routed

# Batches whose image positions, and their number, differ.
ROWS = ([[5, (2, 3), 7, 8], [6, 7, 1]], [[(1, 2), 7, 8, 9], [6, (3, 1), 1]], [[5, 6], [7, 8]])


@pytest.fixture
def model(make_model: Any) -> Any:
    """In training mode, LoRA in all blocks and trained with the vision part."""
    _, made = with_routed(make_model)
    for name, parameter in made.named_parameters():
        parameter.requires_grad_(".lora_" in name or name.startswith("vision."))
    return made.train()


def gradients(model: Any, batches: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Of all batches together: every forward pass before the first backward pass."""
    model.zero_grad()
    losses = [model(**inputs, use_cache=False).logits.logsumexp(-1).sum() for inputs in batches]
    for loss in losses:
        loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {"loss": torch.stack(losses).detach(), **found}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """To 1e-5 of the largest value: float32 sums in another order."""
    assert found.keys() == wanted.keys() and len(found) > 42
    for name, value in wanted.items():
        bound = 1e-5 * max(1.0, float(value.abs().max()))
        assert (found[name] - value).abs().max() <= bound, name


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_recomputed_blocks_see_the_rows_of_their_own_batch(
    model: Any, make_inputs: Any, mode: str
) -> None:
    batches = [make_inputs(rows) for rows in ROWS]
    wanted = gradients(model, batches)
    set_blocks(model, mode)
    assert_same(gradients(model, batches), wanted)
    assert model.route.rows is None


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_with_transformers_own_checkpointing(model: Any, make_inputs: Any, reentrant: bool) -> None:
    batches = [make_inputs(rows) for rows in ROWS]
    wanted = gradients(model, batches)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    assert_same(gradients(model, batches), wanted)


def test_checkpointing_that_the_route_knows_nothing_of_is_noticed(
    model: Any, make_inputs: Any
) -> None:
    """Recomputed without LoRA, its gradients would be wrong without a word."""
    model.llm.activation_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(RuntimeError, match="switch checkpointing on there, not on its llm"):
        gradients(model, [make_inputs(ROWS[0])])


@pytest.mark.parametrize(
    "mode",
    [*(pytest.param(m, marks=pytest.mark.slow) for m in ("none", "full")), "selective"],
)
def test_a_compiled_block_computes_the_same(model: Any, make_inputs: Any, mode: str) -> None:
    """As ``set_blocks`` compiles it on a GPU: one graph for images, one for text, no break."""
    batches = [make_inputs(rows) for rows in ROWS[1:]]
    wanted = gradients(model, batches)
    set_blocks(model, mode)
    torch._dynamo.reset()
    block = model.blocks[0]
    block.forward = torch.compile(block.forward, dynamic=True, backend="aot_eager", fullgraph=True)
    assert_same(gradients(model, batches), wanted)


def with_label_rows(inputs: dict[str, Any], rows: list[int]) -> dict[str, Any]:
    return {**inputs, "label_rows": torch.tensor(rows)}


@pytest.mark.parametrize(
    "rows",
    [[8, 15, 16, 3], [17, 3, 5, 16], [2, 4, 3]],
    ids=["text and image", "other order", "image"],
)
def test_label_rows_of_the_last_block(
    model: Any, make_inputs: Any, monkeypatch: pytest.MonkeyPatch, rows: list[int]
) -> None:
    """A label row may be an image's: a caption without a question begins right behind it."""
    inputs = make_inputs([[5, (2, 3), 7, 8], [6, 7, 1, 2, (2, 1)]])
    batch = with_label_rows(inputs, rows)
    with FlopCounterMode(display=False) as few:
        found = gradients(model, [batch])
    monkeypatch.setattr(call_masks_oculi, "pays", lambda *arguments: False)
    with FlopCounterMode(display=False) as many:
        wanted = gradients(model, [batch])
    assert_same(found, wanted)
    assert few.get_total_flops() < many.get_total_flops()


def test_an_error_leaves_no_rows_behind(model: Any, make_inputs: Any) -> None:
    def broken(*arguments: Any) -> None:
        raise KeyError("mlp")

    handle = model.blocks[1].mlp.register_forward_pre_hook(broken)
    with pytest.raises(KeyError):
        model(**make_inputs(ROWS[0]))
    handle.remove()
    assert model.route.rows is None
