"""What a stage minimises."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from oculi.specs.base import Count, Int, Rate, Strict, Weight


class LmSpec(Strict):
    """Cross-entropy on answer tokens (VoRA, equation 3)."""

    kind: Literal["lm"] = "lm"
    weight: Rate = Field(1.0, description="in the loss")


class DistillSpec(Strict):
    """Cosine alignment of vision tokens with a frozen ViT (VoRA, equations 1 and 2)."""

    kind: Literal["distill"] = "distill"
    weight: Rate = Field(1.0, description="in the loss")
    teacher: str = Field(description="the ViT: AIMv2, CLIP or SigLIP 2; a folder or hub id")
    mode: Literal["none", "last", "block"] = Field(
        "block", description="which of its blocks: none, the last, every one"
    )
    align: Literal["output", "input", "released"] = Field(
        "output",
        description="outputs of both, inputs of both, or as the released code: input with output",
    )


class ReconstructSpec(Strict):
    """A latent diffusion model restores the picture from what the LLM reads (VLSA, equation 3)."""

    kind: Literal["reconstruct"] = "reconstruct"
    weight: Rate = Field(1.0, description="in the loss")
    denoiser: str = Field(description="an SD3 transformer of diffusers; testbed:sd3 is shipped")
    vae: str = Field(description="the autoencoder of its latents; testbed:vae is shipped")
    size: Count = Field(
        512, description="side in pixels to which pictures are scaled, whatever their shape"
    )
    rank: Count = Field(256, description="width between the Epigone's two layers (section 4.1)")
    target: Literal["latent", "flow"] = Field(
        "latent", description="z as the paper writes, or SD3's own, noise minus z"
    )
    times: Literal["uniform", "logit-normal"] = Field(
        "uniform", description="how the noise level is drawn; SD3 was trained with the second"
    )
    shift: Weight = Field(
        1.0, description="above 1 for more noise: t becomes s t / (1 + (s - 1) t); SD3's is 3"
    )
    checkpointing: bool = Field(
        False, description="the denoiser's activations are computed again instead of kept"
    )
    shown: Int = Field(
        8,
        ge=0,
        description="of how many first samples of the stage every checkpoint restores the pictures, for "
        "the report; 0: none",
    )


ObjectiveSpec = Annotated[LmSpec | DistillSpec | ReconstructSpec, Field(discriminator="kind")]
