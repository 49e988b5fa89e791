"""VLSA's compressive high-resolution encoding (section 3.1): a picture's tiles, gathered in a snapshot.

    picture ─┬─ padded, cut into tiles ── tower ── V_Hi [n, M] ─┐
             │                                                  ▼ keys, values
             └─ scaled to one tile ────── tower ── V_Lo [l, M] ─ SA-Perceiver ─┬─ V ── connector ── LLM
                                            + query [1, M]                     └─ P ── connector

The LLM reads l tokens, the snapshot's, whatever the size of the picture. Two settings of the same part
are what it is compared with: the snapshot alone, and LLaVA-NeXT's way, in which the tiles' tokens go to
the LLM as well (https://llava-vl.github.io/blog/2024-01-30-llava-next).

Shapes: P patches of all images, N images, D the LLM's width, M the tower's, d the SA-Perceiver's (M
unless said); l = side**2 tokens of a snapshot or tile, n patches of a picture at its size; G pictures of
one size, H heads, E = d / H.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .grids_oculi import Grid, token_grids, within_tiles
from .patch_embed_oculi import CLIP_MEAN, CLIP_STD, unpatchify
from .tower_oculi import VisionTower

TOKENS = ("compressed", "all", "snapshot")
KEYS = (
    2304  # patches that are gathered at once: scores of all would take gigabytes for twelve tiles
)
NORM_EPS = 1e-6


class Perceiver(VisionTower):
    """Snapshot and tiles through one tower, then SA-Perceiver and connector.

    Args:
        hidden_size: D, the LLM's width.
        tower: configuration of the tower as a dictionary with its ``model_type``.
        patch_size: the tower's, in pixels.
        layer: which of the tower's states are read, as in ``VisionTower``.
        image_mean, image_std: per channel, of pixels in [0, 1].
        tokens: what the LLM reads: ``compressed``, the snapshot with what was gathered from the tiles;
            ``snapshot``, as it is; ``all``, the snapshot and then the tiles' patches row by row, without
            those of the padding, a learnt token behind each row.
        max_tiles: a picture of more is scaled down until it has at most so many.
        tiles_at_once: tiles that go through the tower together.
        heads: of both attentions; must divide d.
        positions: whether where a patch lies decides what gathers it (``SAPerceiver``).
        norms: whether attention reads states at one scale (``SAPerceiver``).
        connector_hidden_size: as of ``VisionTower``.
        width: d, of the states in the SA-Perceiver; None: M.

    Raises:
        ValueError: a setting is out of range or does not fit the tower.
    """

    def __init__(
        self,
        hidden_size: int,
        tower: dict[str, Any],
        patch_size: int = 14,
        layer: int = -2,
        image_mean: Sequence[float] = CLIP_MEAN,
        image_std: Sequence[float] = CLIP_STD,
        tokens: str = "compressed",
        max_tiles: int = 12,
        tiles_at_once: int = 16,
        heads: int = 1,
        positions: bool = True,
        norms: bool = True,
        connector_hidden_size: int | None = None,
        width: int | None = None,
    ) -> None:
        super().__init__(
            hidden_size, tower, patch_size, layer, image_mean, image_std,
            connector_hidden_size=connector_hidden_size,
            width=width if tokens == "compressed" else None,
        )  # fmt: skip
        if tokens not in TOKENS:
            raise ValueError(f'tokens "{tokens}" is none of {", ".join(TOKENS)}')
        if patch_size != self.reader.patch_size:
            raise ValueError(
                f"patch_size {patch_size} is not the tower's, {self.reader.patch_size}"
            )
        if max_tiles < 1 or tiles_at_once < 1:
            raise ValueError("max_tiles and tiles_at_once must be at least one")
        self.tokens, self.max_tiles, self.tiles_at_once = tokens, max_tiles, tiles_at_once
        self.side = tile_side(self.reader.model.config)
        self.vision_tokens = vision_tokens(self.side, tokens, max_tiles)
        if tokens == "compressed":
            self.perceiver = SAPerceiver(self.reader.width, heads, positions, norms, width)
        if tokens == "all":
            self.newline = nn.Parameter(torch.empty(hidden_size))

    def init_weights(self) -> None:
        """As ``VisionTower``'s; with a new SA-Perceiver, V is the snapshot's states."""
        super().init_weights()
        if self.tokens == "compressed":
            self.perceiver.init_weights()
        if self.tokens == "all":
            nn.init.normal_(self.newline, std=len(self.newline) ** -0.5)

    def token_grids(self, image_grids: Tensor) -> Tensor:
        """Rows and columns of the tokens of each image: [N, 2] of patches to [N, 2], int64."""
        return token_grids(self.vision_tokens, image_grids)

    def forward(self, pixel_values: Tensor, image_grids: Tensor) -> Any:
        """Tokens of all images, in order.

        Args:
            pixel_values: [P, 3 * patch_size**2] uint8, as of ``PatchEmbed``.
            image_grids: [N, 2] int, rows and columns of patches; on the CPU, or it costs a
                synchronisation.

        Returns:
            V of all images, [S, D]; where tokens are compressed also P [N, D], the global embedding of
            each.
        """
        grids: list[Grid] = [(int(rows), int(columns)) for rows, columns in image_grids.tolist()]
        if not grids:
            bias: Any = self.connector[-1].bias
            return bias.new_empty(0, len(bias))
        patches = pixel_values.split([rows * columns for rows, columns in grids])
        p = self.patch_size
        images = [unpatchify(x, *grid, p) for x, grid in zip(patches, grids, strict=True)]
        size = (self.side * p, self.side * p)
        low_NlM = self._encode(torch.stack([_resized(image, size) for image in images]))
        if self.tokens == "snapshot":
            return self._connect(low_NlM).flatten(0, 1)
        high = self._high(images, grids)
        if self.tokens == "all":
            rows = (
                torch.cat([self._connect(low), self._with_newlines(self._connect(x))])
                for low, x in zip(low_NlM, high, strict=True)
            )
            return torch.cat(list(rows))
        seen_NlM, whole_NM = self._gather(low_NlM, high)
        return self._connect(seen_NlM).flatten(0, 1), self._connect(whole_NM)

    def _connect(self, states: Tensor) -> Tensor:
        connected: Tensor = self.connector(states.to(next(self.connector.parameters()).dtype))
        return connected

    def _with_newlines(self, tokens_RCD: Tensor) -> Tensor:
        """[R, C, D] to [R * (C + 1), D]."""
        newline = self.newline.to(tokens_RCD.dtype).expand(len(tokens_RCD), 1, -1)
        return torch.cat([tokens_RCD, newline], 1).flatten(0, 1)

    def _high(self, images: Sequence[Tensor], grids: Sequence[Grid]) -> list[Tensor]:
        """States of every picture's own patches, each [rows, columns, M]: padding is cut off again."""
        p, side = self.patch_size, self.side
        sizes = [within_tiles(*grid, side, self.max_tiles) for grid in grids]
        tiles, shapes = [], []
        for image, (rows, columns) in zip(images, sizes, strict=True):
            scaled = _resized(image, (rows * p, columns * p))
            shape = -(-rows // side), -(-columns // side)
            tiles.append(_cut(self._padded(scaled, shape), shape))
            shapes.append(shape)
        counts = [len(x) for x in tiles]
        states = self._encode(torch.cat(tiles)).split(counts)
        found = []
        for state, (high, wide), (rows, columns) in zip(states, shapes, sizes, strict=True):
            grid = state.view(high, wide, side, side, -1).transpose(1, 2)
            grid = grid.reshape(high * side, wide * side, -1)
            found.append(grid[:rows, :columns])
        return found

    def _padded(self, image_3HW: Tensor, shape: Grid) -> Tensor:
        """The picture with the mean colour below and to the right, up to whole tiles."""
        height, width = (count * self.side * self.patch_size for count in shape)
        colour = [255 * value for value in self.reader.mean]
        padded = torch.stack([image_3HW.new_full((height, width), value) for value in colour])
        padded[:, : image_3HW.shape[1], : image_3HW.shape[2]] = image_3HW
        return padded

    def _encode(self, pixels_K3HW: Tensor) -> Tensor:
        """States [K, l, M] of K tiles, some at once; all activations of a trained tower are not kept."""
        chunks = pixels_K3HW.split(self.tiles_at_once)
        trained = torch.is_grad_enabled() and any(p.requires_grad for p in self.tower.parameters())
        if len(chunks) == 1 or not trained:
            return torch.cat([self._states(chunk) for chunk in chunks])
        kept = [checkpoint(self._states, chunk, use_reentrant=False) for chunk in chunks]
        return torch.cat(kept)

    def _states(self, pixels_K3HW: Tensor) -> Tensor:
        return self.reader.encode(pixels_K3HW, (self.side, self.side), self.layer)

    def _gather(self, low_NlM: Tensor, high: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The SA-Perceiver over all pictures, those of one size together: [N, l, d] and [N, d]."""
        dtype = self.perceiver.query.dtype
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, states in enumerate(high):
            groups.setdefault(tuple(states.shape), []).append(i)
        seen = [low_NlM[:0]] * len(high)
        whole = [low_NlM[:0]] * len(high)
        for members in groups.values():
            low_GlM = low_NlM[torch.tensor(members)].to(dtype)
            tokens, pooled = self.perceiver(
                low_GlM, torch.stack([high[i] for i in members]).to(dtype)
            )
            for place, i in enumerate(members):
                seen[i], whole[i] = tokens[place], pooled[place]
        return torch.stack(seen), torch.stack(whole)


class SAPerceiver(nn.Module):
    """VLSA's equations 1 and 2, which are damaged in the text; docs/vlsa.md says why they are read so.

        X = [V_Lo; q]                                          a learnable query behind the snapshot
        X = X + W_o1 (SiLU(W_q N(X) (W_kv N(V_Hi))^T / sqrt(E) + B) W_kv N(V_Hi)) r l / n         (1)
        X = X + W_o2 (softmax(N(X) (W_k N(X))^T / sqrt(E)) N(X))                                  (2)
        V, P = X[:l], X[l]

    Ours: the scales; N, a state over its root mean square, because SiLU bounds no weight: what is
    gathered grows with the cube of the states' scale, and that of a tower's raw states is 20 and more;
    r, the root mean square of V_Lo, so that what is gathered is as large as what it is added to; it was
    a tenth of its variance; and B, a bump for each head over where a patch lies to a token, because
    neither states nor equations say which part of the picture a tile is. SiLU sums up what softmax would
    weigh, so the sum is taken per patch that a token stands for: a picture of many tiles moves X as far.

    Args:
        states: M, width of the tower's states.
        heads: must divide d.
        positions: whether there is B.
        norms: whether there are N and r.
        width: d, of X; None: M. A wider X begins with V_Lo and has room behind it: what several patches
            hold is more than one state does.

    Raises:
        ValueError: the width is less than the states', or the heads do not divide it.
    """

    def __init__(
        self,
        states: int,
        heads: int = 1,
        positions: bool = True,
        norms: bool = True,
        width: int | None = None,
    ) -> None:
        super().__init__()
        width = width or states
        if width < states:
            raise ValueError(f"width {width} is less than the tower's, {states}")
        if heads < 1 or width % heads:
            raise ValueError(f"heads {heads} do not divide the width {width}")
        self.heads, self.positions, self.norms = heads, positions, norms
        self.room = width - states
        self.query = nn.Parameter(torch.empty(width))
        self.w_q = nn.Linear(width, width, bias=False)
        self.w_kv = nn.Linear(states, width, bias=False)
        self.w_o1 = nn.Linear(width, width, bias=False)
        self.w_k = nn.Linear(width, width, bias=False)
        self.w_o2 = nn.Linear(width, width, bias=False)
        if positions:
            # Of each head's bump: place (y, x) and logarithm of the width, in tokens; height.
            self.bumps = nn.Parameter(torch.empty(heads, 4))

    def init_weights(self) -> None:
        """Both updates start at nothing; scores start small, or far patches would drown near ones."""
        width = len(self.query)
        nn.init.normal_(self.query, std=0.02)
        for linear in (self.w_kv, self.w_k):
            linear.reset_parameters()
        nn.init.normal_(self.w_q.weight, std=0.1 * width**-0.5)
        for linear in (self.w_o1, self.w_o2):
            nn.init.zeros_(linear.weight)
        if self.positions:
            self._spread()

    @torch.no_grad()
    def _spread(self) -> None:
        """Bumps side by side within the place of a token, so that heads tell its patches apart."""
        side = math.ceil(self.heads**0.5)
        centres = (torch.arange(side) + 0.5) / side - 0.5
        places = torch.cartesian_prod(centres, centres)[: self.heads]
        self.bumps[:, :2].copy_(places)
        # No narrower for more heads: some would reach no patch of a picture of few tiles.
        self.bumps[:, 2].fill_(math.log(0.35 / min(side, 2)))
        self.bumps[:, 3].fill_(4.0)

    def forward(self, low_GlM: Tensor, high_GRCM: Tensor) -> tuple[Tensor, Tensor]:
        """Gather and mix.

        Args:
            low_GlM: states of snapshots, l = side**2.
            high_GRCM: states of the same pictures' patches, R rows and C columns.

        Returns:
            V [G, l, d] and P [G, d].
        """
        scale = low_GlM.square().mean((1, 2), keepdim=True).sqrt()
        low_GlM = F.pad(low_GlM, (0, self.room))
        states = torch.cat([low_GlM, self.query.expand(len(low_GlM), 1, -1).to(low_GlM.dtype)], 1)
        gathered = self.w_o1(self._gather(self._scaled(states), self._scaled(high_GRCM)))
        if self.norms:
            gathered = gathered * scale
        states = states + gathered
        read = self._scaled(states)
        query = self._split(read)
        mixed = F.scaled_dot_product_attention(query, self._split(self.w_k(read)), query)
        states = states + self.w_o2(mixed.transpose(1, 2).flatten(2))
        return states[:, :-1], states[:, -1]

    def _scaled(self, states: Tensor) -> Tensor:
        """N, over the last dimension; there is nothing to learn in it."""
        return F.rms_norm(states, states.shape[-1:], eps=NORM_EPS) if self.norms else states

    def _split(self, states_GTM: Tensor) -> Tensor:
        return states_GTM.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [G, H, T, E]

    def _gather(self, states_GTM: Tensor, high_GRCM: Tensor) -> Tensor:
        """What the tokens take of the patches [G, T, d]: a plain sum, so some rows at a time."""
        rows, columns = high_GRCM.shape[1:3]
        query = self._split(self.w_q(states_GTM))
        step = max(1, KEYS // columns)
        parts = range(0, rows, step)
        total = torch.zeros_like(query)
        for start in parts:
            part = (query, high_GRCM[:, start : start + step], start, rows)
            if len(parts) > 1 and torch.is_grad_enabled():
                total = total + checkpoint(self._gather_rows, *part, use_reentrant=False)
            else:
                total = total + self._gather_rows(*part)
        per_token = rows * columns / (states_GTM.shape[1] - 1)
        return (total / per_token).transpose(1, 2).flatten(2)

    def _gather_rows(self, query_GHTE: Tensor, high_GrCM: Tensor, start: int, rows: int) -> Tensor:
        """[G, H, T, E] of the rows of patches from ``start`` of all ``rows``."""
        value = self._split(self.w_kv(high_GrCM.flatten(1, 2)))
        scores = query_GHTE @ value.mT * value.shape[-1] ** -0.5
        if self.positions:
            side = math.isqrt(query_GHTE.shape[2] - 1)
            count, columns = high_GrCM.shape[1:3]
            bias = self._bias(side, start, count, columns, rows)
            scores = scores + F.pad(bias, (0, 0, 0, 1)).to(scores.dtype)  # the query has no place
        gathered: Tensor = F.silu(scores) @ value
        return gathered

    def _bias(self, side: int, start: int, count: int, columns: int, rows: int) -> Tensor:
        """B [H, l, count * columns]: Gaussian in the distance of a patch from where a head looks."""
        device = self.bumps.device
        y, x, width, height = self.bumps.float().T[:, :, None, None]
        token = torch.arange(side, device=device)[:, None] + 0.5
        row = (torch.arange(start, start + count, device=device) + 0.5) * side / rows
        column = (torch.arange(columns, device=device) + 0.5) * side / columns
        width = width.exp()
        down = torch.exp(-0.5 * ((row - token - y) / width) ** 2)  # [H, side, count]
        across = torch.exp(-0.5 * ((column - token - x) / width) ** 2)  # [H, side, columns]
        bias = height[..., None, None] * down[:, :, None, :, None] * across[:, None, :, None, :]
        return bias.flatten(1, 2).flatten(2)


def tile_side(config: Any) -> int:
    """Patches along a side of the picture that a tower was trained on.

    Args:
        config: of a CLIP, AIMv2 or SigLIP 2 vision tower.
    """
    if config.model_type.startswith("siglip2"):
        return math.isqrt(config.num_patches)
    return int(config.image_size // config.patch_size)


def vision_tokens(side: int, tokens: str, max_tiles: int) -> dict[str, Any]:
    """What the image processor is told, so that it inserts as many placeholders (``grids_oculi.py``)."""
    if tokens == "all":
        return {"kind": "tiled", "side": side, "max_tiles": max_tiles}
    return {"kind": "fixed", "side": side}


def _resized(image_3HW: Tensor, size: tuple[int, int]) -> Tensor:
    image = image_3HW.float()
    if tuple(image.shape[1:]) == size:
        return image
    return F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]


def _cut(image_3HW: Tensor, shape: Grid) -> Tensor:
    """Tiles [high * wide, 3, h, w] of a picture of whole ones, row by row."""
    high, wide = shape
    _, height, width = image_3HW.shape
    cut = image_3HW.view(3, high, height // high, wide, width // wide)
    return cut.permute(1, 3, 0, 2, 4).flatten(0, 1)
