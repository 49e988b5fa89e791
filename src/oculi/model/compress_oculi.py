"""Fewer vision tokens before the LLM: what stands between the vision part and the blocks.

    patches ── vision part ── [P, D] ── compressor ── [S, D] ── LLM

How many tokens a picture gets is a function of its grid alone, because the processor inserts as many
placeholders before anything is computed. Which patches make a token may depend on what they show.

Merging is AIM's before the LLM (arXiv 2412.03248: "iterative token merging based on embedding
similarity"), which repeats the bipartite soft matching of ToMe (arXiv 2210.09461, section 3): tokens at
even places look for the most similar one at an odd place, and the best pairs become one token.

    tokens          0   1   2   3   4   5   6   7       even: sources, odd: targets
    most similar    0 ▶ 1   2 ▶ 5   4 ▶ 3   6 ▶ 5
    the best two            2 ▶ 5           6 ▶ 5       a round merges half of the tokens at most
    left            0   1       3   4  256      7       in the order of the picture

Two departures from AIM's code: a token is the mean of its patches, where AIM takes the mean of the two
that meet in a round, whatever they stand for; and tokens stay in order, where AIM puts those that found
no partner first. Where every round halves, as in AIM's own settings, the order is the same.

Compressors with weights, which make as many tokens of every picture: ``compress_learned_oculi.py``.

Shapes: P patches of all images, N images, S tokens, D the LLM's width; G images of n patches each, of
which k tokens are left.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .compress_learned_oculi import ConvCompressor, MaxPoolCompressor, MlpCompressor
from .settings_oculi import called, chosen

Number = TypeVar("Number", int, Tensor)


class TokenMerging(nn.Module):
    """Merges the most similar tokens of an image until one in ``factor`` is left; nothing is learnt.

    Args:
        hidden_size: D; any will do, as parts of this kind are built with it.
        factor: patches to a token, on average; rounded so that an image keeps at least one token.

    Raises:
        ValueError: the factor is below one.
    """

    def __init__(self, hidden_size: int, factor: int) -> None:
        super().__init__()
        if factor < 1:
            raise ValueError(f"compress: a factor of {factor} is below one")
        self.factor = factor

    @staticmethod
    def count(rows: Number, columns: Number, factor: int) -> Number:
        """Tokens of a picture of ``rows`` x ``columns`` patches, as integers or as int64 tensors."""
        return -(-(rows * columns) // factor)

    def init_weights(self) -> None:
        """There are none."""

    def tokens_per_image(self, image_grids: Tensor) -> Tensor:
        """Tokens that each image [N, 2] becomes in the LLM: [N], int64."""
        rows, columns = image_grids.unbind(-1)
        return self.count(rows, columns, self.factor)

    def forward(self, tokens_PD: Tensor, image_grids: Tensor) -> tuple[Tensor, Tensor]:
        """Merge within each image.

        Args:
            tokens_PD: what the vision part made of the patches of all images.
            image_grids: [N, 2] int, rows and columns of each image; on the CPU, or it costs a
                synchronisation.

        Returns:
            tokens [S, D] in the dtype given, each the mean of its patches; and for every patch, [P]
            int64, the token that it went into. Gradients flow through the mean, not through the choice.
        """
        patches = [int(count) for count in image_grids.prod(-1).tolist()]
        kept = [int(count) for count in self.tokens_per_image(image_grids).tolist()]
        images = tokens_PD.split(patches)
        groups: dict[int, list[int]] = {}  # of images with as many patches: they run together
        for i, count in enumerate(patches):
            groups.setdefault(count, []).append(i)
        merged: list[Tensor] = [tokens_PD[:0]] * len(images)
        owners: list[Tensor] = [tokens_PD.new_zeros(0, dtype=torch.int64)] * len(images)
        starts = [sum(kept[:i]) for i in range(len(kept))]
        # Under autocast near ties would be decided by bfloat16's three digits.
        with torch.autocast(tokens_PD.device.type, enabled=False):
            for members in groups.values():
                group_GnD = torch.stack([images[i] for i in members]).float()
                owners_Gn = assign(group_GnD.detach(), kept[members[0]])
                means_GkD = means(group_GnD, owners_Gn, kept[members[0]]).to(tokens_PD.dtype)
                for place, i in enumerate(members):
                    merged[i], owners[i] = means_GkD[place], owners_Gn[place] + starts[i]
        if not images:
            return tokens_PD, tokens_PD.new_zeros(0, dtype=torch.int64)
        return torch.cat(merged), torch.cat(owners)


@torch.no_grad()
def assign(tokens_GnD: Tensor, kept: int) -> Tensor:
    """Token of each patch, [G, n] int64 below ``kept``; every one of them has a patch.

    Args:
        tokens_GnD: float32, the patches of images with as many patches each.
        kept: k, how many tokens are left.
    """
    left = tokens_GnD.shape[1]
    owners_Gn = torch.arange(left, device=tokens_GnD.device).expand(tokens_GnD.shape[:2])
    current = tokens_GnD
    while left > kept:
        fewer = min(left - kept, left // 2)
        owners_Gn = match(current, fewer).gather(1, owners_Gn)
        left -= fewer
        current = means(tokens_GnD, owners_Gn, left)
    return owners_Gn


def _highest(scores_Gn: Tensor, count: int) -> Tensor:
    """Places [G, count] of the highest scores; of equals the first."""
    return scores_Gn.argsort(dim=1, descending=True, stable=True)[:, :count]


def match(
    tokens_GnD: Tensor, fewer: int, highest: Callable[[Tensor, int], Tensor] = _highest
) -> Tensor:
    """One round: the new place of each token, [G, n] int64, when ``fewer`` sources found a target.

    ``highest`` says which sources those are; in a graph it is another operator.
    """
    unit = F.normalize(tokens_GnD, dim=-1)
    similarity = unit[:, ::2] @ unit[:, 1::2].mT
    best, target = similarity.max(-1)  # of equals the first, as of sources below
    source = highest(best, fewer)
    partner = 2 * target.gather(1, source) + 1
    places = torch.arange(tokens_GnD.shape[1], device=tokens_GnD.device)
    into = places.repeat(len(tokens_GnD), 1).scatter(1, 2 * source, partner)
    stays = into == places
    return (stays.cumsum(1) - 1).gather(1, into)


def means(tokens_GnD: Tensor, owners_Gn: Tensor, kept: int) -> Tensor:
    """Mean [G, k, D] of the patches of each token.

    A product, not a sum by index: that adds in no fixed order on a GPU.
    """
    belongs_Gkn = owners_Gn[:, None] == torch.arange(kept, device=owners_Gn.device)[:, None]
    weights = belongs_Gkn.to(tokens_GnD.dtype)
    return (weights @ tokens_GnD) / weights.sum(-1, keepdim=True)


# What ``compress_config["kind"]`` may name: tokens and grids in; fewer tokens, and those of the patches.
COMPRESSORS: dict[str, Any] = {
    "merge": TokenMerging,
    "mlp": MlpCompressor,
    "conv": ConvCompressor,
    "maxpool": MaxPoolCompressor,
}


def token_count(compress: dict[str, Any] | None, rows: Number, columns: Number) -> Number:
    """Tokens of a picture in the LLM: what the processor inserts and the model makes.

    Args:
        compress: ``compress_config`` of the model, None for a token a patch.
        rows, columns: of patches; integers, or int64 tensors.

    Raises:
        ValueError: there is no such compressor, or it takes no such settings.
        EncodingError: it takes no picture of so many patches.
    """
    if compress is None:
        return rows * columns
    compressor, settings = chosen("compress", COMPRESSORS, compress)
    found: Number = called("compress", compressor.count, rows, columns, **settings)
    return found


def new_compressor(compress: dict[str, Any] | None, hidden_size: int) -> Any:
    """The module that ``compress_config`` names, None for none; raises ValueError as it does."""
    if compress is None:
        return None
    token_count(compress, 1, 1)
    compressor, settings = chosen("compress", COMPRESSORS, compress)
    return called("compress", compressor, hidden_size, **settings)
