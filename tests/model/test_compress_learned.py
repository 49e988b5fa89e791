"""Learned compressors: a fixed number of tokens, masked places, windows, refusals."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from oculi.model.compress_oculi import new_compressor, token_count

KINDS = pytest.mark.parametrize("kind", ["mlp", "conv", "maxpool"])
GRIDS = [(4, 4), (2, 5), (1, 1), (3, 4), (1, 16)]
WIDTH, PATCHES, TOKENS = 8, 16, 4


def made(kind: str, patches: int = PATCHES, tokens: int = TOKENS, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    settings = {"kind": kind, "patches": patches, "tokens": tokens}
    module = new_compressor(settings, WIDTH)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module


def drawn(grids: list[tuple[int, int]], seed: int = 0) -> tuple[Tensor, Tensor]:
    total = sum(a * b for a, b in grids)
    tokens = torch.randn(total, WIDTH, generator=torch.Generator().manual_seed(seed))
    return tokens, torch.tensor(grids).reshape(-1, 2)


def by_hand(module: Any, tokens: Tensor) -> Tensor:
    """One picture's tokens [p, D] to [K, D]: sums over the patches that there are, with loops."""
    side, window = int(module.patches**0.5), int((module.patches / module.tokens) ** 0.5)
    out = []
    for k in range(module.tokens):
        if module.kind == "mlp":
            weights = module.mix.weight[k, : len(tokens)]
            out.append((weights[:, None] * tokens).sum(0) + module.mix.bias[k])
            continue
        across = side // window
        corner = (k // across * side + k % across) * window
        places = [(i, j, corner + i * side + j) for i in range(window) for j in range(window)]
        there = [(i, j, tokens[place]) for i, j, place in places if place < len(tokens)]
        if module.kind == "maxpool":
            values = [token for _, _, token in there]
            out.append(torch.stack(values).amax(0) if values else torch.zeros(WIDTH))
        else:
            parts = [module.conv.weight[:, :, i, j] @ token for i, j, token in there]
            out.append(sum(parts, module.conv.bias))
    return torch.stack(out)


@KINDS
def test_places_without_a_patch_say_nothing(kind: str) -> None:
    module = made(kind)
    tokens, grids = drawn(GRIDS)
    found, owners = module(tokens, grids)
    assert owners is None
    wanted = [by_hand(module, part) for part in tokens.split(grids.prod(-1).tolist())]
    torch.testing.assert_close(found, torch.cat(wanted), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_a_token_begins_as_the_mean_of_its_window(kind: str) -> None:
    module = made(kind)
    module.init_weights()
    tokens, grids = drawn([(4, 4)])
    square = tokens.mT.unflatten(1, (4, 4))
    wanted = F.avg_pool2d(square, 2).flatten(1).mT
    torch.testing.assert_close(module(tokens, grids)[0], wanted)


def test_without_a_square_windows_follow_one_another() -> None:
    module = made("mlp", patches=10, tokens=3)
    module.init_weights()
    tokens = torch.randn(10, WIDTH)
    parts = [tokens[:4], tokens[4:7], tokens[7:]]
    wanted = torch.stack([part.mean(0) for part in parts])
    torch.testing.assert_close(module(tokens, torch.tensor([[2, 5]]))[0], wanted)


@KINDS
def test_as_many_tokens_for_every_picture(kind: str) -> None:
    module, (tokens, grids) = made(kind), drawn(GRIDS)
    config = {"kind": kind, "patches": PATCHES, "tokens": TOKENS}
    assert module.tokens_per_image(grids).tolist() == [TOKENS] * len(GRIDS)
    assert [token_count(config, *grid) for grid in GRIDS] == [TOKENS] * len(GRIDS)
    assert len(module(tokens, grids)[0]) == TOKENS * len(GRIDS)


@KINDS
def test_images_of_a_batch_do_not_matter_to_each_other(kind: str) -> None:
    module, (tokens, grids) = made(kind), drawn(GRIDS)
    alone = [
        module(part, grid[None])[0]
        for part, grid in zip(tokens.split(grids.prod(-1).tolist()), grids, strict=True)
    ]
    torch.testing.assert_close(module(tokens, grids)[0], torch.cat(alone), rtol=1e-4, atol=1e-5)


@KINDS
def test_no_image_is_no_token(kind: str) -> None:
    tokens, grids = drawn([])
    assert made(kind)(tokens, grids)[0].shape == (0, WIDTH)


def test_a_square_picture_is_pooled_as_it_lies() -> None:
    """16 x 16 patches to 8 x 8 tokens, as torch pools pictures."""
    tokens, grids = drawn([(16, 16)])
    found, _ = made("maxpool", 256, 64)(tokens, grids)
    image = tokens.T.view(1, WIDTH, 16, 16)
    assert torch.equal(found, F.max_pool2d(image, 2).flatten(2)[0].T)


def test_sizes_are_the_papers() -> None:
    """256 x 64 + 64 of the MLP, which performance.md's arithmetic finds; 64 of 256 is the default."""
    assert sum(p.numel() for p in made("mlp", 256, 64).parameters()) == 16_448
    assert token_count({"kind": "mlp"}, 16, 16) == 64
    conv = made("conv", 256, 16)
    assert sum(p.numel() for p in conv.parameters()) == WIDTH * WIDTH * 16 + WIDTH
    assert list(made("maxpool").parameters()) == []


@KINDS
def test_gradients_reach_every_patch_and_weight(kind: str) -> None:
    module, (tokens, grids) = made(kind), drawn([(4, 4), (2, 2)])
    tokens.requires_grad_()
    module(tokens, grids)[0].square().sum().backward()
    assert tokens.grad is not None and tokens.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())
    assert kind == "maxpool" or (tokens.grad.abs().amax(1) > 0).all()


@KINDS
def test_autocast_and_bfloat16(kind: str) -> None:
    module, (tokens, grids) = made(kind), drawn(GRIDS)
    exact = module(tokens, grids)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = module(tokens, grids)[0]
    assert (low.float() - exact).abs().max() < 0.1 * exact.abs().max()
    half = module.bfloat16()(tokens, grids)[0]
    assert half.dtype == (torch.float32 if kind == "maxpool" else torch.bfloat16)


@KINDS
def test_too_many_patches_are_refused(kind: str) -> None:
    module, (tokens, grids) = made(kind), drawn([(2, 2), (3, 6)])
    said = r"3 x 6 patches is more than the 16 .* lower images\.max_patches to 16"
    with pytest.raises(ValueError, match=said):
        module(tokens, grids)
    with pytest.raises(ValueError, match=said):
        token_count({"kind": kind, "patches": 16, "tokens": 4}, 3, 6)


@pytest.mark.parametrize(
    ("kind", "patches", "tokens", "said"),
    [
        ("mlp", 4, 5, r"tokens \(5\) <= patches \(4\)"),
        ("mlp", 4, 0, r"1 <= tokens \(0\)"),
        ("conv", 256, 60, "both must be squares"),
        ("maxpool", 200, 4, "both must be squares"),
        ("conv", 256, 9, "multiple of the other's"),
    ],
)
def test_counts_that_do_not_go_together(kind: str, patches: int, tokens: int, said: str) -> None:
    settings = {"kind": kind, "patches": patches, "tokens": tokens}
    for make in (lambda: new_compressor(settings, WIDTH), lambda: token_count(settings, 1, 1)):
        with pytest.raises(ValueError, match=said):
            make()
