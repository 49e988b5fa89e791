"""Learned compressors: a fixed number of tokens for every picture (AuroraEdge-V, section 3.4).

    patches ── vision part ── [p, D] ── zeros to [256, D] ── mlp | conv | maxpool ── [64, D] ── LLM

A picture has at most ``patches`` patches. What is missing is filled with zeros and masked (section 3.2):
a filled place adds nothing to a sum and is never a maximum. The paper fills the tower's output; here
places are filled behind the projector, so that nothing is projected which is masked.

    mlp       one linear layer over the places: every token reads every patch
    conv      a convolution whose stride is its kernel       ┐ over the sequence folded into a square:
    maxpool   the largest value of each channel in a window  ┘ 256 places as 16 x 16, row by row

The square is of the sequence and not of the picture, because the paper fills the sequence: a picture of
16 columns lies in it as it is; of another width, a window's patches are no neighbours in the picture.

None of them says which token a patch went into, since one reads many: blocks cannot be distilled per
patch through them.

Shapes: P patches of all images, N images, L places of one (``patches``), K tokens of one, D the LLM's
width, k the side of a window.
"""

from abc import abstractmethod
from math import isqrt
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .encoding_error_oculi import EncodingError

Number = TypeVar("Number", int, Tensor)


def check_counts(kind: str, patches: int, tokens: int) -> None:
    """Raise ValueError unless ``kind`` can make ``tokens`` of ``patches``."""
    if not 1 <= tokens <= patches:
        raise ValueError(f"compress: need 1 <= tokens ({tokens}) <= patches ({patches})")
    if kind == "mlp":
        return
    whole, part = isqrt(patches), isqrt(tokens)
    if whole * whole != patches or part * part != tokens or whole % part:
        raise ValueError(
            f"compress: {kind} folds {patches} patches into a square of windows that become {tokens} "
            "tokens: both must be squares, the side of one a multiple of the other's, as 256 and 64"
        )


class _Learned(nn.Module):
    """What the three have in common.

    Args:
        hidden_size: D.
        patches: L, the most that a picture may have.
        tokens: K, of every picture.

    Raises:
        ValueError: the two numbers do not go together.
    """

    kind: str

    def __init__(self, hidden_size: int, patches: int = 256, tokens: int = 64) -> None:
        super().__init__()
        check_counts(self.kind, patches, tokens)
        self.hidden_size, self.patches, self.tokens = hidden_size, patches, tokens

    @classmethod
    def count(cls, rows: Number, columns: Number, patches: int = 256, tokens: int = 64) -> Number:
        """K, whatever the grid, as an integer or as an int64 tensor.

        Raises:
            EncodingError: the grid is given as integers, and has more patches than fit.
        """
        check_counts(cls.kind, patches, tokens)
        if isinstance(rows, Tensor):
            return torch.full_like(rows, tokens)
        if rows * columns > patches:
            raise _too_many(int(rows), int(columns), patches)
        return tokens

    def tokens_per_image(self, image_grids: Tensor) -> Tensor:
        """Tokens that each image [N, 2] becomes in the LLM: [N], int64."""
        return self.count(image_grids[:, 0], image_grids[:, 1], self.patches, self.tokens)

    def init_weights(self) -> None:
        """Every token begins as the mean of its window, so that what lies together stays together.

        Drawn at random, each begins as a mixture of the whole picture (docs/log.md). Nothing to do for
        what has no weights.
        """

    def windows(self, device: torch.device) -> Tensor:
        """[K, L]: the share of each place in the mean that a token begins as.

        Windows of the square where the numbers go together, else places that follow one another.
        """
        side, part = isqrt(self.patches), isqrt(self.tokens)
        place = torch.arange(self.patches, device=device)
        if side * side == self.patches and part * part == self.tokens and side % part == 0:
            window = side // part
            owner = place // side // window * part + place % side // window
        else:
            owner = place * self.tokens // self.patches
        mine_KL = owner == torch.arange(self.tokens, device=device)[:, None]
        return mine_KL / mine_KL.sum(1, keepdim=True)

    def forward(self, tokens_PD: Tensor, image_grids: Tensor) -> tuple[Tensor, None]:
        """Compress each image by itself.

        Args:
            tokens_PD: what the vision part made of the patches of all images.
            image_grids: [N, 2] int, rows and columns of each image; on the CPU, or it costs a
                synchronisation.

        Returns:
            tokens [N * K, D], and None, as no token stands for a patch.

        Raises:
            EncodingError: an image has more than ``patches``.
        """
        grids = image_grids.tolist()
        for rows, columns in grids:
            if rows * columns > self.patches:
                raise _too_many(rows, columns, self.patches)
        places_P = torch.tensor(
            [i * self.patches + j for i, (r, c) in enumerate(grids) for j in range(r * c)],
            dtype=torch.int64,
        ).to(tokens_PD.device, non_blocking=True)
        dtype = next((p.dtype for p in self.parameters()), tokens_PD.dtype)
        places = len(grids) * self.patches
        fill = tokens_PD.new_full((places, tokens_PD.shape[1]), self.filled, dtype=dtype)
        filled = fill.index_copy(0, places_P, tokens_PD.to(dtype))
        compressed_NKD = self.compressed(filled.view(len(grids), self.patches, fill.shape[1]))
        return compressed_NKD.flatten(0, 1), None

    filled = 0.0  # what stands in places without a patch

    @abstractmethod
    def compressed(self, filled_NLD: Tensor) -> Tensor:
        """[N, L, D] to [N, K, D]."""

    def _square(self, filled_NLD: Tensor) -> Tensor:
        side = isqrt(self.patches)
        return filled_NLD.mT.unflatten(2, (side, side))


class MlpCompressor(_Learned):
    """A linear layer over the places (token mixing): L * K + K parameters, 16,448 for 256 and 64."""

    kind = "mlp"

    def __init__(self, hidden_size: int, patches: int = 256, tokens: int = 64) -> None:
        super().__init__(hidden_size, patches, tokens)
        self.mix = nn.Linear(patches, tokens)

    @torch.no_grad()
    def init_weights(self) -> None:
        self.mix.weight.copy_(self.windows(self.mix.weight.device))
        nn.init.zeros_(self.mix.bias)

    def compressed(self, filled_NLD: Tensor) -> Tensor:
        mixed: Tensor = self.mix(filled_NLD.mT)
        return mixed.mT


class ConvCompressor(_Learned):
    """A convolution of all channels with windows side by side: D * D * k * k + D parameters."""

    kind = "conv"

    def __init__(self, hidden_size: int, patches: int = 256, tokens: int = 64) -> None:
        super().__init__(hidden_size, patches, tokens)
        window = isqrt(patches) // isqrt(tokens)
        self.conv = nn.Conv2d(hidden_size, hidden_size, window, stride=window)

    @torch.no_grad()
    def init_weights(self) -> None:
        kernel = self.conv.weight
        same_DD11 = torch.eye(self.hidden_size, device=kernel.device)[..., None, None]
        kernel.copy_((same_DD11 / kernel[0, 0].numel()).expand_as(kernel))
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def compressed(self, filled_NLD: Tensor) -> Tensor:
        folded: Tensor = self.conv(self._square(filled_NLD))
        return folded.flatten(2).mT


class MaxPoolCompressor(_Learned):
    """The largest value of each channel among a window's patches; a window without any gives zeros."""

    kind = "maxpool"
    filled = float("-inf")

    def compressed(self, filled_NLD: Tensor) -> Tensor:
        window = isqrt(self.patches) // isqrt(self.tokens)
        pooled = F.max_pool2d(self._square(filled_NLD), window).flatten(2).mT
        return pooled.masked_fill(pooled == self.filled, 0.0)


def _too_many(rows: int, columns: int, patches: int) -> EncodingError:
    return EncodingError(
        f"a picture of {rows} x {columns} patches is more than the {patches} that the compressor takes: "
        f"lower images.max_patches to {patches}, or raise the compressor's patches"
    )
