"""Parts of the model: what pixels go through before the LLM, and LoRA."""

from __future__ import annotations

from math import isqrt
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from oculi.specs.base import Count, Int, Strict

TO_BE_GIVEN = "--start"  # as model.start of a recipe for any model that sees


class PatchEmbedSpec(Strict):
    """The patch embedding (VoRA, section 3.1)."""

    kind: Literal["patch_embed"] = "patch_embed"
    patch_size: Count = Field(14, description="in pixels; that of init_from, or a multiple of it")
    width: Count | None = Field(None, description="None: the width of init_from")
    grid: tuple[Count, Count] | None = Field(
        None, description="position table; None: that of init_from"
    )
    init_from: str | None = Field(
        None, description="a ViT whose patch embedding and positions start it"
    )

    @model_validator(mode="after")
    def _has_a_size(self) -> PatchEmbedSpec:
        if self.init_from is None and (self.width is None or self.grid is None):
            raise ValueError("set width and grid, or init_from")
        return self


class _HasTower(Strict):
    """A vision part with a tower of transformers."""

    attention: Literal["sdpa", "eager"] = Field(
        "sdpa",
        description="the tower's in training; on a CPU eager is faster, by SDPA's backward",
    )


class TowerSpec(_HasTower):
    """A pre-trained vision tower with a two-layer MLP behind it (LLaVA-1.5, section 3.3)."""

    kind: Literal["tower"] = "tower"
    patch_size: Count = Field(14, description="side of a patch in pixels, one token each")
    init_from: str = Field(description="the ViT: AIMv2, CLIP or SigLIP 2")
    layer: Int = Field(
        -2,
        description="which state is read: 0 the embedding, i block i - 1's output, or from the end",
    )
    final_norm: bool = Field(
        False, description="through the tower's last norm; with layer -1 its last_hidden_state"
    )


class PerceiverSpec(_HasTower):
    """Tiles and a snapshot through one tower, gathered by the SA-Perceiver (VLSA, section 3.1)."""

    kind: Literal["perceiver"] = "perceiver"
    patch_size: Count = Field(14, description="the tower's, in pixels")
    init_from: str = Field(description="the ViT: AIMv2, CLIP or SigLIP 2")
    layer: Int = Field(-2, description="which state is read, as of a tower")
    tokens: Literal["compressed", "all", "snapshot"] = Field(
        "compressed",
        description="what the LLM reads: the snapshot with what was gathered from the tiles, the "
        "snapshot and all of the tiles (LLaVA-NeXT), or the snapshot alone",
    )
    max_tiles: Count = Field(12, description="a picture of more is scaled down to so many")
    tiles_at_once: Count = Field(16, description="that go through the tower together")
    heads: Count = Field(1, description="of the SA-Perceiver; the paper names none")
    positions: bool = Field(
        True, description="where a patch lies decides what gathers it; not in the paper"
    )
    norms: bool = Field(
        True,
        description="attention reads states at one scale; not in the paper, without it diverges",
    )
    connector_hidden_size: Count | None = Field(
        None, description="units between the connector's layers; null: the LLM's width, as LLaVA's"
    )
    width: Count | None = Field(
        None, description="of the SA-Perceiver's states, where more than the tower's is wanted"
    )


VisionSpec = Annotated[PatchEmbedSpec | TowerSpec | PerceiverSpec, Field(discriminator="kind")]


class MergeSpec(Strict):
    """Similar tokens merged before the LLM, as AIM does (arXiv 2412.03248)."""

    patchwise: ClassVar[bool] = True  # it says which token each patch went into
    kind: Literal["merge"] = "merge"
    factor: Int = Field(
        ge=2, description="patches to a token: an image of P has P / factor, rounded up"
    )


class _LearnedSpec(Strict):
    """As many tokens for every picture (AuroraEdge-V, section 3.4)."""

    patchwise: ClassVar[bool] = False
    patches: Count = Field(256, description="the most that a picture may have")
    tokens: Count = Field(64, description="of every picture")

    @model_validator(mode="after")
    def _counts_fit(self) -> _LearnedSpec:
        check_counts(self.kind, self.patches, self.tokens)  # type: ignore[attr-defined]
        return self


class MlpSpec(_LearnedSpec):
    """A linear layer over the places of a picture's patches."""

    kind: Literal["mlp"] = "mlp"


class ConvSpec(_LearnedSpec):
    """A convolution over the patches folded into a square."""

    kind: Literal["conv"] = "conv"


class MaxPoolSpec(_LearnedSpec):
    """The largest values of windows of that square."""

    kind: Literal["maxpool"] = "maxpool"


CompressSpec = Annotated[MergeSpec | MlpSpec | ConvSpec | MaxPoolSpec, Field(discriminator="kind")]


class FusionSpec(Strict):
    """Text reads the uncompressed vision tokens (AuroraEdge-V, section 3.5)."""

    kind: Literal["cross", "decoder", "combined"] = Field(
        "combined", description="cross-attention, decoder blocks over both, or one after the other"
    )
    layers: Count = Field(1, description="of each stack; the paper has one")


class ImageSpec(Strict):
    """How pictures are cut; see ``OculiImageProcessor``."""

    mode: Literal["native", "square"] = Field(
        "native", description="its own shape, or padded to a square"
    )
    size: Count = Field(448, description="of the square, in pixels")
    min_patches: Count = Field(4, description="of a native picture; a smaller one is enlarged")
    max_patches: Count = Field(1024, description="of a native picture; a larger one is scaled down")

    @model_validator(mode="after")
    def _limits_in_order(self) -> ImageSpec:
        if self.min_patches > self.max_patches:
            raise ValueError(
                f"min_patches {self.min_patches} is more than max_patches {self.max_patches}"
            )
        return self


class LoraSpec(Strict):
    """Vision LoRA: rank and the first blocks that get it; no alpha (VoRA, section 3.1)."""

    rank: Count = Field(description="of B A")
    blocks: Count | None = Field(None, description="the first so many; None: all of the LLM's")
    targets: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        description="names of the linear layers that get it",
    )
    routed: bool = Field(
        False,
        description="on image tokens alone: text stays the LLM's to the bit, nothing is merged",
    )
    modality: str = Field(
        "image",
        pattern=r"^[a-z_][a-z0-9_]*$",
        description="of routed LoRA: what it acts on is pictures of this, as rows say",
    )

    @model_validator(mode="after")
    def _is_told_apart(self) -> LoraSpec:
        if self.modality != "image" and not self.routed:
            raise ValueError("modality: only routed LoRA tells modalities apart; set routed=true")
        return self


def check_counts(kind: str, patches: int, tokens: int) -> None:
    """Raises ValueError unless a compressor of this kind can make ``tokens`` of ``patches``."""
    if tokens > patches:
        raise ValueError(f"tokens {tokens} are more than patches {patches}")
    whole, part = isqrt(patches), isqrt(tokens)
    if kind != "mlp" and (whole**2 != patches or part**2 != tokens or whole % part):
        raise ValueError(
            f"{kind} needs squares of which one side is a multiple of the other's, as patches 256 and "
            f"tokens 64; not {patches} and {tokens}"
        )


def check_places(compress: CompressSpec | None, images: ImageSpec, patch: int, where: str) -> None:
    """Raises ValueError if a picture may have more patches than the compressor takes."""
    if not isinstance(compress, _LearnedSpec):
        return
    square = images.mode == "square"
    most = (images.size // patch) ** 2 if square else images.max_patches
    if most > compress.patches:
        key = "size" if square else "max_patches"
        raise ValueError(
            f"{where}.{key} lets pictures have {most} patches, but compress.patches is "
            f"{compress.patches}: lower the one or raise the other"
        )


def check_patches(images: ImageSpec, patch: int, where: str) -> None:
    """Raises ValueError unless a square is made of whole patches."""
    if images.mode == "square" and images.size % patch:
        raise ValueError(
            f"{where}.size {images.size} is not a multiple of vision.patch_size {patch}"
        )
