"""The patch embedding: its size, its positions, its pixels."""

import pytest
import torch
from torch.nn import functional

from oculi.model.image_processing_oculi import OculiImageProcessor
from oculi.model.patch_embed_oculi import CLIP_MEAN, CLIP_STD, PatchEmbed, unpatchify

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture
def embed() -> PatchEmbed:
    torch.manual_seed(0)
    module = PatchEmbed(hidden_size=8, patch_size=4, width=6, grid=(4, 5))
    for parameter in module.parameters():
        parameter.normal_()
    return module


def pixels(patches: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (patches, 48), dtype=torch.uint8, generator=generator)


def test_size_at_7b() -> None:
    """VoRA, section 3.1: about 6M parameters at Qwen2.5-7B's width."""
    with torch.device("meta"):
        module = PatchEmbed(hidden_size=3584, patch_size=14, width=1536, grid=(32, 32))
    table = module.position.numel()
    assert table == 1_572_864
    assert sum(p.numel() for p in module.parameters()) - table == 6_411_264


def test_is_projection_of_norm_and_position(embed: PatchEmbed) -> None:
    """The formula, written with the convolution that it replaces."""
    rows, columns = embed.grid
    image = pixels(rows * columns)
    whole = unpatchify(image, rows, columns, 4).float() / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (CLIP_MEAN, CLIP_STD))
    kernel = embed.patch.weight.view(6, 3, 4, 4)
    hidden = functional.conv2d((whole - mean)[None] / std, kernel, embed.patch.bias, stride=4)
    hidden = hidden.flatten(2).squeeze(0).T
    hidden = hidden / (hidden.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * embed.norm.weight
    expected = (hidden + embed.position) @ embed.projection.weight.T
    found = embed(image, torch.tensor([[rows, columns]]))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def resized(embed: PatchEmbed, rows: int, columns: int) -> torch.Tensor:
    table = embed.position.view(1, *embed.grid, -1).permute(0, 3, 1, 2)
    target = functional.interpolate(table, (rows, columns), mode="bilinear", align_corners=False)
    return target.flatten(2).squeeze(0).T


@pytest.mark.parametrize(
    "grid", [(2, 2), (3, 4), (1, 1), (9, 9), (4, 10), (2, 7), (1, 13), (11, 3)]
)
def test_positions_are_bilinear(embed: PatchEmbed, grid: tuple[int, int]) -> None:
    found = embed.interpolate(torch.tensor([grid]), grid[0] * grid[1])
    torch.testing.assert_close(found, resized(embed, *grid), atol=1e-5, rtol=1e-5)


def test_positions_are_exact_at_the_base_grid(embed: PatchEmbed) -> None:
    assert torch.equal(embed.interpolate(torch.tensor([[4, 5]]), 20), embed.position)


def test_positions_of_a_small_image_span_the_table(embed: PatchEmbed) -> None:
    """Not its first rows: a table that holds its own coordinates is read at the patches' centres."""
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(5.0), indexing="ij")
    embed.position[:, 0], embed.position[:, 1] = rows.flatten(), columns.flatten()
    found = embed.interpolate(torch.tensor([[2, 2]]), 4)[:, :2]
    assert found.tolist() == [[0.5, 0.75], [0.5, 3.25], [2.5, 0.75], [2.5, 3.25]]


def test_images_of_a_batch_do_not_matter_to_each_other(embed: PatchEmbed) -> None:
    grids = [(2, 3), (4, 5), (1, 1), (7, 2)]
    patches = pixels(sum(a * b for a, b in grids))
    together = embed(patches, torch.tensor(grids))
    start = 0
    for rows, columns in grids:
        stop = start + rows * columns
        alone = embed(patches[start:stop], torch.tensor([[rows, columns]]))
        torch.testing.assert_close(together[start:stop], alone, atol=1e-5, rtol=1e-5)
        start = stop


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_floats_of_the_same_range_equal_uint8(embed: PatchEmbed, dtype: torch.dtype) -> None:
    patches, grids = pixels(6), torch.tensor([[2, 3]])
    torch.testing.assert_close(embed(patches.to(dtype), grids), embed(patches, grids))


def test_normalise_has_the_channels_in_order(embed: PatchEmbed) -> None:
    patches = torch.tensor([[0] * 16 + [255] * 16 + [51] * 16], dtype=torch.uint8)
    found = embed.normalise(patches).view(3, 16)
    expected = [(v - m) / s for v, m, s in zip((0, 1, 0.2), CLIP_MEAN, CLIP_STD, strict=True)]
    torch.testing.assert_close(found, torch.tensor(expected)[:, None].expand(3, 16))


def test_result_has_the_dtype_of_the_weights(embed: PatchEmbed) -> None:
    exact = embed(pixels(6), torch.tensor([[2, 3]]))
    half = embed.to(torch.bfloat16)(pixels(6), torch.tensor([[2, 3]]))
    assert half.dtype == torch.bfloat16
    assert (half.float() - exact).abs().max() < 0.05 * exact.abs().max()


def test_no_image_is_no_token(embed: PatchEmbed) -> None:
    found = embed(pixels(0), torch.empty(0, 2, dtype=torch.long))
    assert found.shape == (0, 8)


def test_a_token_a_patch(embed: PatchEmbed) -> None:
    assert embed.token_grids(torch.tensor([[2, 3], [4, 5]])).tolist() == [[2, 3], [4, 5]]


def test_init_draws_small_positions() -> None:
    torch.manual_seed(0)
    module = PatchEmbed(hidden_size=8, patch_size=4, width=32, grid=(16, 16))
    module.init_weights()
    assert module.position.std().item() == pytest.approx(0.02, rel=0.05)


def test_unpatchify_inverts_the_processor(make_picture: object) -> None:
    picture = make_picture(12, 8)  # type: ignore[operator]
    patches, (rows, columns) = OculiImageProcessor(patch_size=4, min_patches=1).patches(picture)
    assert (rows, columns) == (2, 3)
    whole = unpatchify(torch.from_numpy(patches), rows, columns, 4)
    expected = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(8, 12, 3)
    assert torch.equal(whole, expected.permute(2, 0, 1))
