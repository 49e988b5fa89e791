"""A vision tower of transformers' own classes and a connector: LLaVA's way to give an LLM eyes.

    patches ── tower (CLIP, SigLIP 2, AIMv2) ── states of block `layer` ── Linear, GELU, Linear ── LLM

``TowerReader`` runs a tower on flat patches and serves teachers of distillation as well. The families
differ in what they take: AIMv2 and CLIP have a table of positions for one size (CLIP a class token
besides), SigLIP 2 NaFlex and native AIMv2 take any grid. Pictures are resized to the grid that a tower
takes; where that is another than the picture's own, its states are interpolated back. Patches may be
larger than the tower's: where a whole number of its states lies in one, that one gets their mean.

Shapes: P patches of all images, N images, C = 3 * patch_size**2, M the tower's width, D the LLM's.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from .patch_embed_oculi import CLIP_MEAN, CLIP_STD, unpatchify

Grid = tuple[int, int]


class TowerReader:
    """Runs a tower on flat patches of any pictures.

    Args:
        model: Aimv2VisionModel, CLIPVisionModel or Siglip2VisionModel.
        image_mean, image_std: per channel, of pixels in [0, 1].

    Attributes:
        width: M, of its states. blocks: their number. patch_size: in pixels.
        grid: the only grid it takes, or None for any.
    """

    def __init__(
        self,
        model: nn.Module,
        image_mean: Sequence[float] = CLIP_MEAN,
        image_std: Sequence[float] = CLIP_STD,
    ) -> None:
        self.model = model
        config: Any = model.config
        self.width: int = config.hidden_size
        self.blocks: int = config.num_hidden_layers
        self.patch_size: int = config.patch_size
        self.naflex = config.model_type.startswith("siglip2")
        any_grid = self.naflex or getattr(config, "is_native", False)
        side = 0 if any_grid else config.image_size // config.patch_size
        self.grid: Grid | None = None if any_grid else (side, side)
        self.skip = 1 if config.model_type.startswith("clip") else 0  # the class token
        self.mean, self.std = tuple(image_mean), tuple(image_std)

    @property
    def norm(self) -> nn.Module:
        """The norm behind its last block; AIMv2 names it otherwise than CLIP and SigLIP 2."""
        return getattr(self.model, "rms_norm", None) or self.model.post_layernorm  # type: ignore[return-value]

    def states(
        self, patches_PC: Tensor, grids_N2: Tensor, wanted: Sequence[int] | None = None
    ) -> list[Tensor]:
        """States of all images in the order of their patches.

        Args:
            patches_PC: uint8 patches, channels first in a patch.
            grids_N2: rows and columns of each image; on the CPU, or it costs a synchronisation. May
                be empty.
            wanted: entries of the list below; None for all.

        Returns:
            of blocks + 1 tensors [P, M] (the embedding, then the raw output of each block) those
            wanted.
        """
        grids: list[Grid] = [(int(rows), int(columns)) for rows, columns in grids_N2.tolist()]
        images = patches_PC.split([rows * columns for rows, columns in grids])
        p = round((patches_PC.shape[1] // 3) ** 0.5)
        chosen = range(self.blocks + 1) if wanted is None else wanted
        groups: dict[Grid, list[int]] = {}
        pixels = []
        for i, (grid, patches) in enumerate(zip(grids, images, strict=True)):
            target = self.grid or self._within(grid, p)
            groups.setdefault(target, []).append(i)
            pixels.append(self._resize(unpatchify(patches, *grid, p), target))
        if not grids:
            weights = next(self.model.parameters())
            return [weights.new_empty(0, self.width) for _ in chosen]
        per_image: list[list[Tensor]] = [[] for _ in grids]
        for target, members in groups.items():
            states = self._run(torch.stack([pixels[i] for i in members]), target)
            for place, i in enumerate(members):
                per_image[i] = [
                    _regrid(states[k][place], target, grids[i], p > self.patch_size) for k in chosen
                ]
        return [torch.cat([image[n] for image in per_image]) for n in range(len(chosen))]

    def encode(self, pixels: Tensor, grid: Grid, layer: int) -> Tensor:
        """One state [N, rows * columns, M] of pictures [N, 3, H, W] of 0..255 that fill the grid."""
        return self._run(pixels, grid)[layer]

    def _within(self, grid: Grid, p: int) -> Grid:
        """Grid of a tower that takes any: its own patches in patches of p pixels, if they fit whole."""
        factor = p // self.patch_size if p % self.patch_size == 0 else 1
        return grid[0] * factor, grid[1] * factor

    def _resize(self, image_3HW: Tensor, grid: Grid) -> Tensor:
        size = (grid[0] * self.patch_size, grid[1] * self.patch_size)
        image = image_3HW.float()
        if tuple(image.shape[1:]) != size:
            image = F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
        return image

    def _normalise(self, pixels: Tensor) -> Tensor:
        """Pixels [N, 3, H, W] of 0..255 as the tower takes them; the host waits for nothing."""
        mean, std = (
            torch.tensor(v)[:, None, None].to(pixels.device, non_blocking=True)
            for v in (self.mean, self.std)
        )
        weights = next(self.model.parameters())
        return ((pixels / 255 - mean) / std).to(weights.dtype)

    def _run(self, pixels: Tensor, grid: Grid) -> tuple[Tensor, ...]:
        pixels = self._normalise(pixels)
        if self.naflex:
            p = self.patch_size
            n, (rows, columns) = len(pixels), grid
            # NaFlex patches are channels-last.
            flat = pixels.view(n, 3, rows, p, columns, p).permute(0, 2, 4, 3, 5, 1).flatten(3)
            flat = flat.reshape(n, rows * columns, -1)
            # All are of one grid, so no patch is padding and none needs a mask; the shapes are read
            # on the host, so they stay there.
            shapes = torch.tensor([grid] * n)
            output = self.model(
                flat, pixel_attention_mask=None, spatial_shapes=shapes, output_hidden_states=True
            )
        else:
            # So that tokens come out of the first convolution row by row. AIMv2 would keep them column
            # by column through all blocks, and each product with a weight copy it for every picture.
            pixels = pixels.contiguous(memory_format=torch.channels_last)
            output = self.model(pixels, output_hidden_states=True)
        states: tuple[Tensor, ...] = output.hidden_states
        return tuple(state[:, self.skip :] for state in states)


def _regrid(state_SM: Tensor, source: Grid, target: Grid, larger: bool) -> Tensor:
    """States [S, M] of one grid as those of another; of ``larger`` patches than the tower's by means."""
    if source == target:
        return state_SM
    grid = state_SM.T.reshape(1, -1, *source).float()
    if larger and source[0] % target[0] == 0 and source[1] % target[1] == 0:
        resized = F.adaptive_avg_pool2d(grid, target)
    else:
        resized = F.interpolate(grid, target, mode="bilinear", align_corners=False)
    return resized.flatten(2)[0].T.to(state_SM.dtype)


class VisionTower(nn.Module):
    """A tower and LLaVA-1.5's connector, a two-layer MLP (arXiv 2310.03744, section 3.3).

    Args:
        hidden_size: D, the LLM's width.
        tower: configuration of the tower as a dictionary with its ``model_type``.
        patch_size: side of a patch in pixels; one token each, of a multiple of the tower's own patch the
            mean of its states.
        layer: which of the tower's states are read: 0 is its embedding, i the raw output of block
            i - 1, negative from the end. LLaVA reads -2, the last block but one.
        image_mean, image_std: per channel, of pixels in [0, 1].
        final_norm: read the state through the norm that the tower ends in.
        connector_hidden_size: units between the connector's layers; D where it is None, as LLaVA's.
        width: of what the connector reads; None: the tower's.

    Raises:
        ValueError: the tower has no such layer.
    """

    def __init__(
        self,
        hidden_size: int,
        tower: dict[str, Any],
        patch_size: int = 14,
        layer: int = -2,
        image_mean: Sequence[float] = CLIP_MEAN,
        image_std: Sequence[float] = CLIP_STD,
        final_norm: bool = False,
        connector_hidden_size: int | None = None,
        width: int | None = None,
    ) -> None:
        super().__init__()
        self.patch_size, self.final_norm = patch_size, final_norm
        self.tower = AutoModel.from_config(AutoConfig.for_model(**tower))
        self.reader = TowerReader(self.tower, image_mean, image_std)
        states = self.reader.blocks + 1
        if not -states <= layer < states:
            raise ValueError(
                f"the tower has states {-states} to {states - 1}, none at layer {layer}"
            )
        self.layer = layer % states
        between = connector_hidden_size or hidden_size
        self.connector = nn.Sequential(
            nn.Linear(width or self.reader.width, between),
            nn.GELU(),
            nn.Linear(between, hidden_size),
        )

    def init_weights(self) -> None:
        """torch's own initialisation of the connector, as LLaVA's; the tower's comes with it."""
        for module in self.connector:
            if isinstance(module, nn.Linear):
                module.reset_parameters()

    def train(self, mode: bool = True) -> "VisionTower":
        """As any module, but a tower of which nothing is trained stays in evaluation mode.

        Its dropout would only blur what the connector and the LLM learn to read.
        """
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.tower.parameters()):
            self.tower.eval()
        return self

    def token_grids(self, image_grids: Tensor) -> Tensor:
        """Rows and columns of the tokens of each image: [N, 2], a token a patch."""
        return image_grids

    def forward(self, pixel_values: Tensor, image_grids: Tensor) -> Tensor:
        """Tokens [P, D] of all images; the arguments are those of ``PatchEmbed``."""
        (states_PM,) = self.reader.states(pixel_values, image_grids, [self.layer])
        if self.final_norm:
            states_PM = self.reader.norm(states_PM)
        return self.connector(states_PM.to(next(self.connector.parameters()).dtype))
