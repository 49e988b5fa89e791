"""Patch embedding: from pixels to the LLM's width, with no vision tower behind it.

VoRA, section 3.1: "a shallow MLP with positional encodings of about 6M parameters". A patch is
projected, normalised, given a position and projected to the LLM. Images come as flat patches, so
any resolution and aspect ratio is the same code.

Shapes: P patches of all images, N images, C = 3 * patch_size**2, W width, D the LLM's width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class RMSNorm(nn.RMSNorm):
    """RMSNorm in float32 whatever the input's dtype, as AIMv2's is; the result has the input's."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.float()
        return F.rms_norm(x.float(), self.normalized_shape, weight, self.eps).to(x.dtype)


class PatchEmbed(nn.Module):
    """Linear patch projection, RMSNorm, 2-D position table, linear projection to the LLM.

    Args:
        hidden_size: D, the LLM's width.
        patch_size: side of a patch in pixels.
        width: W, the width before the last projection (the teacher's, so that its embedding fits).
        grid: rows and columns of the position table; other grids are interpolated from it.
        image_mean, image_std: per channel, of pixels in [0, 1].
        eps: of the RMSNorm.
    """

    def __init__(
        self,
        hidden_size: int,
        patch_size: int = 14,
        width: int = 1536,
        grid: tuple[int, int] = (32, 32),
        image_mean: tuple[float, ...] = CLIP_MEAN,
        image_std: tuple[float, ...] = CLIP_STD,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        channels = 3 * patch_size**2
        self.patch_size = patch_size
        self.grid = (int(grid[0]), int(grid[1]))
        self.image_mean, self.image_std = tuple(image_mean), tuple(image_std)
        self.patch = nn.Linear(channels, width)
        self.norm = RMSNorm(width, eps=eps)
        self.position = nn.Parameter(torch.empty(self.grid[0] * self.grid[1], width))
        self.projection = nn.Linear(width, hidden_size, bias=False)

    def init_weights(self) -> None:
        """Small random positions and projection, so that image tokens start at the size of words."""
        nn.init.normal_(self.position, std=0.02)
        nn.init.normal_(self.projection.weight, std=0.02)

    def token_grids(self, image_grids: Tensor) -> Tensor:
        """Rows and columns of the tokens of each image: [N, 2], a token a patch."""
        return image_grids

    def normalise(self, pixel_values: Tensor) -> Tensor:
        """Patches [P, C] of 0..255 to the mean and deviation of the teacher's inputs, float32."""
        per_channel = pixel_values.shape[-1] // 3
        mean, std = (
            torch.tensor(values).to(pixel_values.device, non_blocking=True)
            for values in (self.image_mean, self.image_std)
        )
        scale = (1 / (255 * std)).repeat_interleave(per_channel)
        shift = (mean / std).repeat_interleave(per_channel)
        return pixel_values.float() * scale - shift

    def forward(self, pixel_values: Tensor, image_grids: Tensor) -> Tensor:
        """Embed the patches of all images.

        Args:
            pixel_values: [P, C] uint8 (or float of the same 0..255), channels first in a patch.
            image_grids: [N, 2] int, rows and columns of patches of each image; sums to P.

        Returns:
            [P, D] in the dtype of the weights.
        """
        patches_PC = self.normalise(pixel_values).to(self.patch.weight.dtype)
        features_PW = self.norm(self.patch(patches_PC))
        features_PW = features_PW + self.interpolate(image_grids, pixel_values.shape[0])
        return self.projection(features_PW)

    def interpolate(self, image_grids: Tensor, total: int) -> Tensor:
        """Positions of all patches, [P, W]: bilinear in the table, exact where the grids agree.

        The same as ``interpolate(table, grid, mode="bilinear", align_corners=False)`` per image, but
        with four gathers for the whole batch: no loop over images and no host synchronisation.
        """
        device = self.position.device
        grids = image_grids.to(device, non_blocking=True)
        counts = grids.prod(-1)
        image = torch.repeat_interleave(
            torch.arange(grids.shape[0], device=device), counts, output_size=total
        )
        starts = counts.cumsum(0) - counts
        within = torch.arange(total, device=device) - starts[image]
        rows, columns = grids[image].unbind(-1)
        return self.positions(within // columns, within % columns, rows, columns)

    def positions(self, row: Tensor, column: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Positions [P, W] of the patches at ``row`` and ``column`` of images of so many."""
        y = _source(row, rows, self.grid[0])
        x = _source(column, columns, self.grid[1])
        y0, x0 = y.floor().long(), x.floor().long()
        y1, x1 = (y0 + 1).clamp(max=self.grid[0] - 1), (x0 + 1).clamp(max=self.grid[1] - 1)
        wy, wx = (y - y0)[:, None], (x - x0)[:, None]

        def at(row: Tensor, column: Tensor) -> Tensor:
            return self.position[row * self.grid[1] + column].float()

        top = at(y0, x0) * (1 - wx) + at(y0, x1) * wx
        bottom = at(y1, x0) * (1 - wx) + at(y1, x1) * wx
        return (top * (1 - wy) + bottom * wy).to(self.position.dtype)


def _source(index: Tensor, size: Tensor, table: int) -> Tensor:
    """Coordinate in a table of ``table`` cells of the centre of cell ``index`` out of ``size``."""
    return ((index + 0.5) * table / size - 0.5).clamp(0, table - 1)


def unpatchify(pixel_values: Tensor, rows: int, columns: int, patch_size: int) -> Tensor:
    """Patches [rows * columns, 3 * p * p] of one image back to pixels [3, rows * p, columns * p]."""
    patches = pixel_values.view(rows, columns, 3, patch_size, patch_size)
    return patches.permute(2, 0, 3, 1, 4).reshape(3, rows * patch_size, columns * patch_size)
