"""The block mask from spans, against the mask function asked about every pair."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from oculi.model.masks_oculi import POLICIES, build_mask, mask_function
from oculi.model.rows_oculi import Chosen
from oculi.model.spans_oculi import BLOCK, block_mask, key_spans

pytestmark = pytest.mark.usefixtures("no_grad")

CPU = torch.device("cpu")


def packed(rows: int, length: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Images, segments and prompts of packed rows: adjacent images, text alone, padding behind."""
    draw = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=draw))

    images = torch.full((rows, length), -1)
    segments = torch.full((rows, length), -1)
    prompt = torch.zeros(rows, length, dtype=torch.bool)
    image = 0
    for row in range(rows):
        start, sample = 0, 0
        while start < length - 60:
            end = min(length - number(0, 40), start + number(30, 400))
            segments[row, start:end] = sample
            prompt[row, start : end - 8] = True
            place = start + number(0, 12)
            for _ in range(number(0, 3)):
                stop = min(end - 10, place + number(4, 160))
                if stop > place:
                    images[row, place:stop] = image
                    image, place = image + 1, stop + number(0, 2)
            start, sample = end, sample + 1
    return images, segments, prompt


def dense(function: Any, rows: int, queries: int, keys: int) -> Tensor:
    row = torch.arange(rows)[:, None, None]
    zero = torch.tensor(0)
    return function(row, zero, torch.arange(queries)[None, :, None], torch.arange(keys)[None, None])


def blocks(number: Tensor | None, indices: Tensor | None) -> Tensor:
    """[B, 1, N, M]: which blocks a list of them names."""
    assert number is not None and indices is not None
    named = torch.arange(indices.shape[-1]) < number[..., None]
    return torch.zeros_like(indices, dtype=torch.bool).scatter(-1, indices.long(), named)


def assert_covers(mask: BlockMask, allowed: Tensor) -> None:
    """Blocks that are left out hold no pair, whole ones hold all."""
    queries, keys = allowed.shape[1:]
    padded = torch.nn.functional.pad(allowed, (0, -keys % BLOCK, 0, -queries % BLOCK))
    tiles = padded.unflatten(2, (-1, BLOCK)).unflatten(1, (-1, BLOCK)).transpose(2, 3)
    partial = blocks(mask.kv_num_blocks, mask.kv_indices)[:, 0]
    whole = blocks(mask.full_kv_num_blocks, mask.full_kv_indices)[:, 0]
    assert not (partial & whole).any()
    assert torch.equal(tiles.any(-1).any(-1) & ~partial & ~whole, torch.zeros_like(whole))
    assert tiles[whole].all()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(4))
def test_no_pair_is_lost_and_whole_blocks_are_whole(policy: str, seed: int) -> None:
    images, segments, prompt = packed(2, 900, seed)
    function = mask_function(policy, images, segments, prompt)
    mask = block_mask(function, key_spans(policy, images, segments, prompt), 900)
    allowed = dense(function, 2, 900, 900)
    assert_covers(mask, allowed)
    assert mask.shape == (2, 1, 900, 900)


@pytest.mark.parametrize("policy", ["causal", "bidirectional"])
def test_what_a_branch_does_not_see_is_asked_for(policy: str) -> None:
    images, segments, prompt = packed(2, 900, 3)
    branches = ((torch.arange(900) // 70) % 4).expand(2, 900) * (images < 0)
    function = mask_function(policy, images, segments, prompt, branches_BT=branches)
    mask = block_mask(function, key_spans(policy, images, segments, prompt, branches=True), 900)
    allowed = dense(function, 2, 900, 900)
    assert allowed.sum() < dense(mask_function(policy, images, segments, prompt), 2, 900, 900).sum()
    assert_covers(mask, allowed)


@pytest.mark.parametrize("policy", ["causal", "bidirectional"])
def test_it_is_what_torch_finds_by_looking_at_every_pair(policy: str) -> None:
    images, segments, prompt = packed(2, 1024, 7)
    function = mask_function(policy, images, segments, prompt)
    found = block_mask(function, key_spans(policy, images, segments, prompt), 1024)
    wanted = create_block_mask(function, 2, None, 1024, 1024, device="cpu")
    for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name
    assert torch.equal(
        blocks(found.kv_num_blocks, found.kv_indices),
        blocks(wanted.kv_num_blocks, wanted.kv_indices),
    )


@pytest.mark.parametrize("policy", POLICIES)
def test_label_rows_have_their_own(policy: str) -> None:
    images, segments, prompt = packed(3, 1000, 3)
    function = mask_function(policy, images, segments, prompt)
    chosen = Chosen.of(torch.arange(0, 2400, 3), batch=3, length=1000, most=334)
    spans = key_spans(policy, images, segments, prompt).of_columns(chosen.columns_BM)
    mask = block_mask(chosen.mask(function), spans, 1000)
    assert_covers(mask, dense(chosen.mask(function), 3, 334, 1000))
    assert int(mask.kv_num_blocks.sum()) < 0.75 * mask.kv_indices.numel()


def test_flex_takes_it(make_llm_config: Any) -> None:
    """Through the attention itself, which on a CPU has a forward pass only."""
    from torch.nn.attention.flex_attention import flex_attention

    images, segments, prompt = packed(1, 300, 5)
    function = mask_function("bidirectional", images, segments, prompt)
    config = make_llm_config()
    config._attn_implementation = "flex_attention"
    mask = build_mask(
        config, function, None, shape_BT=(1, 300), kv_length=300, q_offset=0, kv_offset=0,
        plain=False, dtype=torch.float32, device=CPU,
        spans=lambda: key_spans("bidirectional", images, segments),
    )  # fmt: skip
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 300, 16)
    found = flex_attention(query, key, value, block_mask=mask)
    allowed = dense(function, 1, 300, 300)[:, None]
    wanted = torch.nn.functional.scaled_dot_product_attention(query, key, value, allowed)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
