"""Blocked attention against eager attention, on packed rows with images, branches and padding."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.qwen2.modeling_qwen2 import eager_attention_forward

import oculi.model.blocked_attention_oculi as blocked
from oculi.model.blocked_attention_oculi import BLOCKED, blocked_attention, blocked_mask
from oculi.model.masks_oculi import build_mask, mask_function

ROWS, LENGTH, HEADS, KV_HEADS, WIDTH = 2, 30, 4, 2, 8
LAYER: Any = SimpleNamespace(num_key_value_groups=2, training=True)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked, "BLOCK", 8)
    monkeypatch.setattr(blocked, "EVEN", 4)


def packed_mask(implementation: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Two samples in each row, the first with an image, the second with branches; then padding."""
    images = torch.full((ROWS, LENGTH), -1)
    images[:, 2:9] = 0
    segments = torch.full((ROWS, LENGTH), -1)
    branches = torch.zeros(ROWS, LENGTH, dtype=torch.long)
    for row, cut in enumerate((10, 17)):
        segments[row, :cut], segments[row, cut:26] = 0, 1
        branches[row, cut + 2 : cut + 5], branches[row, cut + 5 : 26] = 1, 2
    function = mask_function("bidirectional", images, segments, branches_BT=branches)
    mask: Tensor = build_mask(
        SimpleNamespace(_attn_implementation=implementation), function, None,
        shape_BT=(ROWS, LENGTH), kv_length=LENGTH, q_offset=0, kv_offset=0, plain=False,
        dtype=dtype, device=torch.device("cpu"),
    )  # fmt: skip
    return mask


def states(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(0)
    heads = (HEADS, KV_HEADS, KV_HEADS)
    return [torch.randn(ROWS, h, LENGTH, WIDTH, dtype=dtype).requires_grad_() for h in heads]


def with_gradients(function: Any, inputs: list[Tensor], mask: Tensor | None) -> list[Tensor]:
    out = function(LAYER, *inputs, mask, scaling=0.4, dropout=0.0)[0]
    torch.manual_seed(1)
    return [out, *torch.autograd.grad(out, inputs, torch.randn(out.shape, dtype=out.dtype))]


def test_equals_eager_attention_and_its_gradients() -> None:
    found = with_gradients(blocked_attention, states(), packed_mask(BLOCKED))
    wanted = with_gradients(eager_attention_forward, states(), packed_mask("eager"))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_in_bfloat16_it_is_as_near_to_float32_as_eager_attention() -> None:
    exact = with_gradients(eager_attention_forward, states(), packed_mask("eager"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = with_gradients(blocked_attention, states(), packed_mask(BLOCKED))
        wanted = with_gradients(eager_attention_forward, states(), packed_mask("eager"))
    assert found[0].dtype == torch.bfloat16
    for ours, theirs, true in zip(found, wanted, exact, strict=True):
        assert (ours.float() - true).norm() < 1.25 * (theirs.float() - true).norm()


def test_without_a_mask_every_query_sees_all() -> None:
    found = with_gradients(blocked_attention, states(), None)
    wanted = with_gradients(eager_attention_forward, states(), None)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_keys_that_no_query_of_a_block_sees_are_left_out() -> None:
    mask = packed_mask(BLOCKED)
    query, key, value = (state.detach() for state in states())
    blocked_attention(LAYER, query, key, value, mask)
    found = [(b.start, b.stop, b.first, b.last) for b in vars(mask)["blocks"][torch.float32]]
    # The image of both rows ends at 8. Row 0's second sample begins at 10, row 1's at 17; the padding of
    # both, from 26 on, sees itself alone. Keys begin and end at multiples of 4, or with the row.
    assert found == [(0, 8, 0, 12), (8, 16, 0, 16), (16, 24, 0, 24), (24, 30, 8, 30)]
    assert [b.bias.shape[-2:] for b in vars(mask)["blocks"][torch.float32]] == [
        (stop - start, last - first) for start, stop, first, last in found
    ]


def test_a_layer_after_the_first_finds_the_blocks() -> None:
    mask = packed_mask(BLOCKED)
    query, key, value = (state.detach() for state in states())
    blocked_attention(LAYER, query, key, value, mask)
    kept = vars(mask)["blocks"][torch.float32]
    blocked_attention(LAYER, query, key, value, mask)
    assert vars(mask)["blocks"][torch.float32] is kept


def test_rows_that_see_nothing_give_numbers() -> None:
    mask = torch.zeros(ROWS, 1, LENGTH, LENGTH, dtype=torch.bool)
    found = with_gradients(blocked_attention, states(), mask)
    assert all(bool(part.isfinite().all()) for part in found)


def test_a_mask_is_never_left_out_for_plain_causal_rows() -> None:
    mask = blocked_mask(batch_size=1, q_length=4, kv_length=4, allow_is_causal_skip=True)
    assert torch.equal(mask[0, 0], torch.ones(4, 4, dtype=torch.bool).tril())


@pytest.mark.parametrize("extra", [{"softcap": 30.0}, {"s_aux": torch.zeros(HEADS)}])
def test_what_it_does_not_know_is_refused(extra: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r'soft caps nor sinks.*attn_implementation="eager"'):
        blocked_attention(LAYER, *states(), None, **extra)


def test_dropout_is_of_the_weights_in_training_alone() -> None:
    inputs, mask = [state.detach() for state in states()], packed_mask(BLOCKED)
    asleep: Any = SimpleNamespace(num_key_value_groups=2, training=False)
    plain = blocked_attention(LAYER, *inputs, mask)[0]
    assert torch.equal(blocked_attention(asleep, *inputs, mask, dropout=0.5)[0], plain)
    assert not blocked_attention(LAYER, *inputs, mask, dropout=1.0)[0].any()


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("family", ["qwen2", "llama", "olmo2"])
def test_a_model_generates_the_same(make_model: Any, make_inputs: Any, family: str) -> None:
    model = make_model(family)
    inputs = make_inputs([[5, (2, 2), 7, (1, 3), (2, 2), 8, 9], [6, (2, 3), 7]])
    told = []
    for implementation in (BLOCKED, "eager"):
        model.set_attn_implementation(implementation)
        assert model.llm.config._attn_implementation == implementation
        told.append(model.generate(**inputs, max_new_tokens=6, do_sample=False, pad_token_id=0))
    assert torch.equal(*told)
